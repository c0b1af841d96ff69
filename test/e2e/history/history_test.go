//go:build e2e

package history

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

var (
	seed   = flag.Uint64("history.seed", 0, "of the choices; random if 0")
	rounds = flag.Int("history.rounds", 20, "how many rounds to run")
)

const (
	names    = 3 // of each kind, but of services and pods twice as many
	converge = 10 * time.Second
)

// world is the test's state.
type world struct {
	t         *testing.T
	r         *rand.Rand
	cloud     *cloud
	link      *link
	agent     *agent
	followers []*follower
	sets      map[*follower]*kubernetes.Clientset
	kubelet   *kubelet
	stop      context.CancelFunc

	counts map[string]int
	gates  map[types.UID]string
	failed map[types.UID]bool
	gone   map[types.UID]bool // removed in the cloud
	serial int
}

func TestHistory(t *testing.T) {
	start := *seed
	if start == 0 {
		start = rand.Uint64()
	}
	t.Logf("%d rounds, seed %d; again with -history.rounds=%d -history.seed=%d", *rounds, start, *rounds, start)
	// Not t.TempDir: its name is too long for a Unix socket.
	dir, err := os.MkdirTemp("", "history")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{
		t: t, r: rand.New(rand.NewPCG(start, 1)), cloud: newCloud(t, dir), counts: map[string]int{}, sets: map[*follower]*kubernetes.Clientset{},
		gates: map[types.UID]string{}, failed: map[types.UID]bool{}, gone: map[types.UID]bool{},
	}
	w.link = newLink(t, w.cloud.Address)
	w.agent = newAgent(t, dir, w.cloud, w.link)
	w.agent.start()
	w.follow()
	t.Cleanup(w.stop)
	began := time.Now()
	w.quiet("the start")
	for i := range *rounds {
		w.round(i)
	}
	w.restoredFromBackup()
	w.offlineStart()
	w.report(time.Since(began))
}

// follow starts the clients: what a kubelet, kube-proxy and CoreDNS ask.
func (w *world) follow() {
	node := w.agent.asNode()
	proxy := w.agent.asToken(w.cloud.token("kube-proxy"), "application/json")
	dns := w.agent.asToken(w.cloud.token("coredns"), "application/vnd.kubernetes.protobuf")
	mine := "spec.nodeName=" + nodeName
	answers := newAnswers()
	for _, c := range []struct {
		set *kubernetes.Clientset
		q   question
	}{
		{node, question{name: "kubelet's pods", resource: "pods", field: mine}},
		{node, question{name: "pods, with initial events", resource: "pods", field: mine, watchList: true}},
		{node, question{name: "one ConfigMap", resource: "configmaps", namespace: "default", field: "metadata.name=cm-0"}},
		{node, question{name: "another ConfigMap", resource: "configmaps", namespace: "default", field: "metadata.name=cm-1", watchList: true}},
		{node, question{name: "one Secret", resource: "secrets", namespace: "default", field: "metadata.name=secret-0"}},
		{proxy, question{name: "kube-proxy's services", resource: "services", label: "!service.kubernetes.io/headless", watchList: true}},
		{dns, question{name: "all services", resource: "services"}},
		{dns, question{name: "ConfigMaps of a namespace", resource: "configmaps", namespace: "default"}},
	} {
		f := newFollower(c.set, c.q, answers)
		w.followers = append(w.followers, f)
		w.sets[f] = c.set
	}
	w.kubelet = &kubelet{set: node, pods: w.followers[0], answers: answers, r: w.r, last: map[types.UID]*word{}}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	for _, f := range w.followers {
		go f.run(ctx)
	}
}

// round is some peace, some trouble, and the comparison.
func (w *world) round(i int) {
	before := maps.Clone(w.counts)
	w.kubelet.heartbeat(w.t.Context())
	w.some(10+w.r.IntN(15), false)
	what := []string{"cut", "cut", "black hole", "flapping", "none"}[w.r.IntN(5)]
	switch what {
	case "cut":
		w.link.set(linkClosed)
		w.counts["cuts"]++
	case "black hole":
		w.link.set(linkHole)
		w.counts["black holes"]++
	}
	if what != "none" && what != "flapping" && w.r.IntN(3) > 0 {
		w.t.Log(w.waitOffline())
	}
	w.some(25+w.r.IntN(40), what == "flapping")
	if w.r.IntN(2) == 0 {
		w.cloud.compact()
		w.counts["compactions"]++
	}
	if w.r.IntN(5) == 0 {
		w.cloud.restartAPI()
		w.counts["API server restarts"]++
	}
	w.some(w.r.IntN(20), what == "flapping")
	w.link.set(linkOpen)
	took := w.quiet(fmt.Sprintf("round %d (%s)", i, what))
	var did []string
	for _, k := range slices.Sorted(maps.Keys(w.counts)) {
		if n := w.counts[k] - before[k]; n > 0 {
			did = append(did, fmt.Sprintf("%s %d", k, n))
		}
	}
	w.t.Logf("round %d: %s; the same everywhere %s after healing; %s", i, what, took.Round(time.Millisecond), strings.Join(did, ", "))
}

// waitOffline lets the agent notice, so that what follows is offline.
func (w *world) waitOffline() string {
	began := time.Now()
	for time.Since(began) < 15*time.Second {
		if s, err := w.agent.status(); err == nil && !s.Online {
			return fmt.Sprintf("offline after %s", time.Since(began).Round(time.Millisecond))
		}
		// Without a request nobody can notice a black hole; a kubelet always has one.
		if _, err := w.kubelet.set.CoreV1().Pods("default").Get(w.t.Context(), "holder", metav1.GetOptions{}); err != nil {
			w.t.Fatalf("a pod that is in the store cannot be read: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatalf("the agent does not notice that the link is down:\n%s", w.agent.proc.Tail(40))
	return ""
}

// some makes n random operations.
func (w *world) some(n int, flap bool) {
	for range n {
		switch k := w.r.IntN(20); {
		case k < 10:
			w.inTheCloud()
		case k < 16:
			w.kubelet.step(w.t.Context())
		case k < 18:
			w.followers[w.r.IntN(len(w.followers))].interrupt()
			w.counts["client restarts"]++
		case k == 18 && w.r.IntN(2) == 0:
			if w.r.IntN(3) == 0 {
				w.agent.restart()
				w.counts["agent restarts"]++
			} else {
				w.agent.kill()
				w.agent.start()
				w.counts["agent kills"]++
			}
		}
		if flap && w.r.IntN(8) == 0 {
			w.link.set(linkClosed)
			time.Sleep(time.Duration(w.r.IntN(1500)) * time.Millisecond)
			w.link.set(linkOpen)
			w.counts["cuts"]++
		}
		time.Sleep(time.Duration(w.r.IntN(60)) * time.Millisecond)
	}
}

// inTheCloud is an operation of somebody in the cloud.
func (w *world) inTheCloud() {
	ctx, core := w.t.Context(), w.cloud.admin.CoreV1()
	w.serial++
	w.counts["operations"]++
	value := fmt.Sprint(w.serial)
	var err error
	switch w.r.IntN(8) {
	case 0, 1:
		name, maps := fmt.Sprint("cm-", w.r.IntN(names)), core.ConfigMaps("default")
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"v": value}}
		if w.r.IntN(4) == 0 {
			err = maps.Delete(ctx, name, metav1.DeleteOptions{})
		} else if _, err = maps.Update(ctx, cm, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, err = maps.Create(ctx, cm, metav1.CreateOptions{})
		}
	case 2:
		name, secrets := fmt.Sprint("secret-", w.r.IntN(names)), core.Secrets("default")
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"v": []byte(value)}}
		if w.r.IntN(4) == 0 {
			err = secrets.Delete(ctx, name, metav1.DeleteOptions{})
		} else if _, err = secrets.Update(ctx, secret, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
		}
	case 3, 4:
		err = w.service(value)
	default:
		err = w.pod(value)
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		w.t.Fatalf("in the cloud: %v", err)
	}
}

func (w *world) service(value string) error {
	ctx, services := w.t.Context(), w.cloud.admin.CoreV1().Services("default")
	name := fmt.Sprint("svc-", w.r.IntN(2*names))
	if w.r.IntN(4) == 0 {
		return services.Delete(ctx, name, metav1.DeleteOptions{})
	}
	// Of some the label comes and goes that kube-proxy does not want to see.
	label := "null"
	if w.r.IntN(3) == 0 {
		label = `""`
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"service.kubernetes.io/headless":%s,"v":%q}}}`, label, value)
	_, err := services.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = services.Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
	}
	return err
}

func (w *world) pod(value string) error {
	ctx, pods := w.t.Context(), w.cloud.admin.CoreV1().Pods("default")
	name := fmt.Sprint("pod-", w.r.IntN(2*names))
	pod, err := pods.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = pods.Create(ctx, newPod(name), metav1.CreateOptions{})
		return err
	} else if err != nil {
		return err
	}
	if isTerminal(pod) && w.r.IntN(2) == 0 {
		// As a controller cleans up, so that there is something to run.
		w.counts["pods deleted"]++
		return pods.Delete(ctx, name, metav1.DeleteOptions{})
	}
	switch w.r.IntN(10) {
	case 0:
		w.gone[pod.UID] = true
		w.counts["pods killed"]++
		return pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	case 1:
		w.counts["pods deleted"]++
		return pods.Delete(ctx, name, metav1.DeleteOptions{})
	case 2:
		if isTerminal(pod) {
			return nil
		}
		w.failed[pod.UID] = true
		_, err = pods.Patch(ctx, name, types.StrategicMergePatchType, fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":{"phase":"Failed","reason":"NodeLost"}}`, pod.UID), metav1.PatchOptions{}, "status")
	case 3, 4:
		_, err = pods.Patch(ctx, name, types.StrategicMergePatchType,
			fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":{"conditions":[{"type":"example.com/gate","status":"True","message":%q}]}}`, pod.UID, value), metav1.PatchOptions{}, "status")
		if err == nil {
			w.gates[pod.UID] = value
		}
	default:
		_, err = pods.Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"v":%q}}}`, value), metav1.PatchOptions{})
	}
	return err
}

// quiet waits until everybody has the same, for at most ten seconds.
func (w *world) quiet(when string) time.Duration {
	w.t.Helper()
	began := time.Now()
	var problem string
	for time.Since(began) < converge {
		w.kubelet.flush(w.t.Context())
		if problem = w.compare(); problem == "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	took := time.Since(began)
	for _, f := range w.followers {
		for _, c := range f.complaints() {
			w.t.Errorf("after %s: %s", when, c)
		}
	}
	if problem != "" {
		w.t.Errorf("after %s, healed %s ago: %s", when, took.Round(time.Millisecond), problem)
	}
	if w.t.Failed() {
		status, err := w.agent.status()
		w.t.Fatalf("status %+v (%v); the agent's last lines:\n%s", status, err, w.agent.proc.Tail(60))
	}
	return took
}

// compare holds etcd against what clients have replayed, what the hub lists from
// its store, and what the kubelet said.
func (w *world) compare() string {
	ctx := w.t.Context()
	for _, f := range w.followers {
		truth := &follower{question: f.question, rest: w.cloud.admin.CoreV1().RESTClient()}
		want, _, err := truth.list(ctx, "")
		if err != nil {
			return fmt.Sprintf("%s: etcd: %v", f.name, err)
		}
		if d := differs(want, f.state()); d != "" {
			return fmt.Sprintf("%s: replayed: %s", f.name, d)
		}
		got, _, err := f.list(ctx, "0")
		if err != nil {
			return fmt.Sprintf("%s: the hub: %v", f.name, err)
		}
		if d := differs(want, got); d != "" {
			return fmt.Sprintf("%s: the hub lists: %s", f.name, d)
		}
		if f == w.kubelet.pods {
			if d := w.words(want); d != "" {
				return d
			}
		}
	}
	status, err := w.agent.status()
	if err != nil {
		return fmt.Sprintf("the agent's status: %v", err)
	}
	if status.Unsent > 0 {
		return fmt.Sprintf("%d writes are unsent", status.Unsent)
	}
	return ""
}

// words compares the cloud's pods with what the kubelet and others said.
func (w *world) words(pods map[string]object) string {
	for key, o := range pods {
		pod := o.typed.(*corev1.Pod)
		if w.gone[pod.UID] {
			return fmt.Sprintf("%s (%s) was removed and is there", key, pod.UID)
		}
		if pod.DeletionTimestamp != nil {
			return fmt.Sprintf("%s is still terminating", key)
		}
		gate := ""
		for _, c := range pod.Status.Conditions {
			if c.Type == "example.com/gate" {
				gate = c.Message
			}
		}
		if gate != w.gates[pod.UID] {
			return fmt.Sprintf("%s: another manager said %q, the cloud has %q", key, w.gates[pod.UID], gate)
		}
		said := w.kubelet.last[pod.UID]
		if said == nil {
			continue
		}
		got := wordOf(pod)
		if w.failed[pod.UID] && pod.Status.Reason == "NodeLost" {
			if got.phase != corev1.PodFailed {
				return fmt.Sprintf("%s was failed by the cloud and is %s", key, got.phase)
			}
			continue
		}
		if !got.equal(said) {
			return fmt.Sprintf("%s (%s): the kubelet said %+v, the cloud has %+v", key, pod.UID, *said, *got)
		}
	}
	return ""
}

// restoredFromBackup puts an older state of the cloud in place: clients go back
// once, with a list, and from then on all is as ever.
func (w *world) restoredFromBackup() {
	w.t.Helper()
	w.cloud.backUp()
	gates, failed, gone := maps.Clone(w.gates), maps.Clone(w.failed), maps.Clone(w.gone)
	w.quiet("the backup")
	// An API server writes as it starts: the backup must be further behind.
	w.cloud.write(500)
	w.some(30, false)
	w.quiet("what the backup does not have")
	for _, f := range w.followers {
		f.mu.Lock()
		f.restored = true
		f.mu.Unlock()
	}
	w.cloud.restore()
	w.gates, w.failed, w.gone, w.kubelet.lease = gates, failed, gone, nil
	w.kubelet.insists = true
	took := w.quiet("the restore")
	w.kubelet.insists = false
	w.t.Logf("the same everywhere %s after the cloud was restored from a backup", took.Round(time.Millisecond))
	w.some(20, false)
	w.quiet("operations after the restore")
	w.agent.kill()
	w.agent.start()
	w.some(10, true)
	w.quiet("a kill after the restore")
}

// offlineStart kills the agent, cuts the link, and expects the new agent to list
// what the cloud has.
func (w *world) offlineStart() {
	w.t.Helper()
	want := map[*follower]map[string]object{}
	for _, f := range w.followers {
		want[f] = f.state()
	}
	w.agent.kill()
	w.link.set(linkClosed)
	w.agent.start()
	for _, f := range w.followers {
		eventually(w.t, 5*time.Second, f.name+" offline", func() error {
			got, _, err := f.list(w.t.Context(), "0")
			if err == nil {
				if d := differs(want[f], got); d != "" {
					w.t.Fatalf("after an offline start, %s: %s", f.name, d)
				}
			}
			return err
		})
	}
	w.link.set(linkOpen)
	w.quiet("the offline start")
	w.stop()
	w.agent.end(syscall.SIGTERM)
}

func (w *world) report(took time.Duration) {
	k := w.kubelet
	w.t.Logf("%d rounds in %s; %d statuses acknowledged, %d refused or unread, %d pods removed by the kubelet", *rounds, took.Round(time.Second), k.acknowledged, k.refused, k.removed)
	for _, name := range slices.Sorted(maps.Keys(w.counts)) {
		w.t.Logf("%s: %d", name, w.counts[name])
	}
	for _, f := range w.followers {
		w.t.Logf("%s: %d events, %d lists, %d watches, %d expired, %d needless events, at %d",
			f.name, f.events, f.lists, f.watches, f.expired, f.needless, f.last)
	}
	if k.acknowledged == 0 || w.counts["operations"] == 0 || w.followers[0].events == 0 {
		w.t.Error("nothing was tested")
	}
}
