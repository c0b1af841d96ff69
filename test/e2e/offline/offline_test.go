//go:build e2e

package offline

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/skerry/test/sandbox"
)

const description = `
sites: [{name: edge, nodes: 2}]
`

// The rows of TestOffline build on each other: they all happen in one outage,
// in this order. Single ones can be chosen; the outage and the healing frame
// them all the same.
func TestOffline(t *testing.T) {
	whole := sandbox.New(t, description)
	s := load(t, whole, "edge", "edge-1")
	tokens := s.makeTokens("edge-2")
	before, err := s.inCloud()
	if err != nil {
		t.Fatal(err)
	}
	s.security(t, "online", tokens)

	s.Step("the link is cut")
	s.site.Cut()
	s.waitOffline()

	row := func(name string, do func(s *subject)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			sub := *s
			sub.t, sub.Sandbox = t, s.For(t)
			sub.node, sub.site = sub.Node(s.node.Name()), sub.Site(s.site.Name())
			do(&sub)
		})
	}
	row("KubeletRestart", func(s *subject) { s.restart("kubelet") })
	row("AgentRestart", func(s *subject) { s.restart("skerry-agent") })
	row("AgentKill9", func(s *subject) {
		same := s.containers()
		s.node.Kill("skerry-agent")
		s.waitReady(time.Time{}, time.Minute)
		s.sameContainers(same)
	})
	row("ContainerdRestart", func(s *subject) { s.restart("containerd") })
	row("CrashedContainerRestarts", func(s *subject) {
		starts := s.starts()
		s.write(hostDir+"/crash", "")
		s.waitStarts(starts + 1)
	})
	row("LivenessRestarts", func(s *subject) {
		starts := s.starts()
		s.write(hostDir+"/sick", "")
		s.waitStarts(starts + 1)
	})
	row("JobFinishes", func(s *subject) {
		s.write(hostDir+"/finish", "")
		s.Eventually(time.Minute, "the Job that finished is known to the hub", func() error {
			pods, err := s.onNode()
			if err != nil {
				return err
			}
			return finished(pods, "finishing")
		})
	})
	row("PowerCycle", func(s *subject) { s.powerCycle(s.node) })
	row("PowerCycleTwice", func(s *subject) { s.powerCycle(s.node) })
	row("SitePowerCycle", func(s *subject) { s.powerCycle(s.site.Nodes()...) })
	row("CrashedContainerRestartsAfterPowerCycle", func(s *subject) {
		starts := s.starts()
		s.write(hostDir+"/crash", "")
		s.waitStarts(starts + 1)
	})
	row("ServicesAfterPowerCycle", func(s *subject) { s.proxyRestarts() })
	row("Answers", func(s *subject) { s.answers() })
	row("SecurityOffline", func(s *subject) { s.security(s.t, "offline", tokens) })
	row("AfterHeal", func(s *subject) { s.afterHeal(before) })
	row("SecretsAtRest", func(s *subject) { s.secretsAtRest() })
	row("CutInTheMiddle", func(s *subject) { s.cutInTheMiddle() })
}

// waitOffline waits until the agent knows.
func (s *subject) waitOffline() {
	s.t.Helper()
	s.Eventually(time.Minute, "the agent knows that the cloud is away", func() error {
		out, err := s.node.Try("skerry", "status")
		if err != nil {
			return err
		}
		if !strings.Contains(out, "lost since") {
			return errors.New(out)
		}
		return nil
	})
}

// restart restarts a unit of the node, which no container may notice.
func (s *subject) restart(unit string) {
	s.t.Helper()
	same := s.containers()
	s.Step("restarting %s", unit)
	s.node.RestartUnit(unit)
	s.Eventually(time.Minute, "the kubelet is well", func() error { return s.get("http://127.0.0.1:10248/healthz") })
	s.waitReady(time.Time{}, time.Minute)
	s.Consistently(10*time.Second, "all pods stay Ready", func() error {
		pods, err := s.onNode()
		if err != nil {
			return err
		}
		return allReady(pods, time.Time{})
	})
	s.sameContainers(same)
	s.finishedOnce()
}

// starts counts how often the frail container has started. The count is in an
// emptyDir, which must survive.
func (s *subject) starts() int {
	return strings.Count(s.read(hostDir+"/starts"), "started")
}

func (s *subject) waitStarts(want int) {
	s.t.Helper()
	s.Eventually(time.Minute, fmt.Sprintf("the container has started %d times", want), func() error {
		if got := s.starts(); got != want {
			return fmt.Errorf("it has started %d times", got)
		}
		return nil
	})
	s.waitReady(time.Time{}, time.Minute)
}

// finishedOnce checks that finished Jobs have not run again.
func (s *subject) finishedOnce() {
	s.t.Helper()
	for _, job := range []string{"finished", "finishing"} {
		if runs := strings.Count(s.read(hostDir+"/"+job), "ran"); runs > 1 || (runs == 0 && job == "finished") {
			s.t.Errorf("Job %s has run %d times", job, runs)
		}
	}
}

// powerCycle turns machines off at once and on again, and waits for all pods.
func (s *subject) powerCycle(nodes ...*sandbox.Node) time.Duration {
	s.t.Helper()
	starts := s.starts()
	s.Step("power off")
	for _, n := range nodes {
		n.PowerOff()
	}
	on := time.Now()
	for _, n := range nodes {
		n.PowerOn()
	}
	s.waitReady(on, 4*time.Minute)
	took := time.Since(on)
	s.Step("%d pods were Ready %.1fs after power-on", running, took.Seconds())
	if got := s.starts(); got != starts+1 {
		s.t.Errorf("the frail container has started %d times, want %d: its emptyDir is lost, or it was restarted without a reason", got, starts+1)
	}
	s.finishedOnce()
	return took
}

// afterHeal heals the link and compares with what was before.
func (s *subject) afterHeal(before []corev1.Pod) {
	s.t.Helper()
	same := s.containers()
	ctx := s.Context()
	s.Step("while the node is away: a pod is deleted, a ConfigMap and an image's environment change")
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	must(s.Kube().CoreV1().Pods(namespace).Delete(ctx, "classed", metav1.DeleteOptions{}))
	_, err := s.Kube().CoreV1().ConfigMaps(namespace).Patch(ctx, "settings", types.MergePatchType, []byte(`{"data":{"added":"yes"}}`), metav1.PatchOptions{})
	must(err)
	_, err = s.Kube().CoreV1().Pods(namespace).Patch(ctx, "configured", types.MergePatchType, []byte(`{"metadata":{"labels":{"changed":"yes"}}}`), metav1.PatchOptions{})
	must(err)

	s.Step("the link is healed")
	healed := time.Now()
	s.site.Heal()
	s.Eventually(30*time.Second, "the changed label is known to the hub", func() error {
		pods, err := s.onNode()
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Name == "configured" && p.Labels["changed"] == "yes" {
				return nil
			}
		}
		return errors.New("it is not there")
	})
	applied := time.Since(healed)
	s.Step("from heal to a change applied on the node: %.1fs (goal 5s)", applied.Seconds())
	if applied > 5*time.Second {
		s.t.Errorf("a change reached the node %.1fs after healing, want at most 5s", applied.Seconds())
	}
	s.Eventually(time.Minute, "the deleted pod is gone, from the cloud and from the node", func() error {
		pods, err := s.inCloud()
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Name == "classed" {
				return errors.New("it is in the cloud")
			}
		}
		containers, err := s.runningContainers()
		if err == nil && containers["classed"] {
			err = errors.New("its container runs")
		}
		return err
	})
	s.Eventually(time.Minute, "the cloud knows what happened", func() error {
		pods, err := s.inCloud()
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range pods {
			if p.Name != "pulling" && condition(p, corev1.PodReady) == corev1.ConditionTrue {
				ready++
			}
		}
		if want := running - 2; ready != want { // one was deleted, one Job has finished
			return fmt.Errorf("%d pods are Ready, want %d", ready, want)
		}
		return errors.Join(finished(pods, "finished"), finished(pods, "finishing"))
	})
	s.Eventually(time.Minute, "the Job's result reached the cloud", func() error {
		job, err := s.Kube().BatchV1().Jobs(namespace).Get(ctx, "finishing", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if job.Status.Succeeded != 1 || job.Status.Failed != 0 {
			return fmt.Errorf("%d succeeded, %d failed", job.Status.Succeeded, job.Status.Failed)
		}
		return nil
	})
	after, err := s.inCloud()
	must(err)
	now := uids(after)
	changed := 0
	for name, uid := range uids(before) {
		if name != "classed" && now[name] != uid {
			changed++
			s.t.Errorf("pod %s is another one now (UID %s, was %s)", name, now[name], uid)
		}
	}
	delete(same, "classed/main")
	s.Consistently(10*time.Second, "nothing restarts after healing", func() error {
		now := s.containers()
		for name, id := range same {
			if now[name] != id {
				return fmt.Errorf("container %s was replaced", name)
			}
		}
		return nil
	})
	s.finishedOnce()
	s.Step("%d pods, %d UIDs changed", len(now), changed)
}

// serviceIP asks the hub for a Service's address, as the cloud may be away.
func (s *subject) serviceIP(name string) string {
	s.t.Helper()
	var ip string
	s.Eventually(30*time.Second, "the hub knows Service "+name, func() error {
		out, err := s.kubectl("get", "services", "-A", "-o", `jsonpath={range .items[?(@.metadata.name=="`+name+`")]}{.metadata.namespace} {.spec.clusterIP}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(out, "\n") {
			if f := strings.Fields(line); len(f) == 2 && f[0] == namespace {
				ip = f[1]
				return nil
			}
		}
		return fmt.Errorf("it answered %q", out)
	})
	return ip
}

// get asks a web server from the node's own network.
func (s *subject) get(url string) error {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.node.Connect}}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// dial opens a connection from the node.
// answers asks the hub what an operator on the site would.
func (s *subject) answers() {
	s.t.Helper()
	for _, test := range []struct {
		what string
		args []string
		want string // part of the answer
		fail bool
	}{
		{"a table", []string{"get", "pods", "-n", namespace, "--field-selector", "spec.nodeName=" + s.node.Name()}, "private", false},
		{"one object as YAML", []string{"get", "pod", "-n", namespace, "configured", "-o", "yaml"}, "kind: Pod", false},
		{"a label selector", []string{"get", "pods", "-A", "--field-selector", "spec.nodeName=" + s.node.Name(), "-l", "app=always", "-o", "name"}, "pod/always-", false},
		{"the own node", []string{"get", "node", s.node.Name(), "-o", "jsonpath={.metadata.name}"}, s.node.Name(), false},
		{"another page", []string{"get", "pods", "-A", "--field-selector", "spec.nodeName=" + s.node.Name(), "--chunk-size=7", "-o", "name"}, "pod/frail", false},
		{"what was never asked for", []string{"get", "deployments", "-n", namespace}, "skerry", true},
		{"a secret of no pod here", []string{"get", "secret", "-n", namespace, "not-for-pods", "-o", "yaml"}, "skerry", true},
		{"a write", []string{"create", "configmap", "-n", namespace, "new"}, "skerry", true},
	} {
		out, err := s.kubectl(test.args...)
		switch {
		case test.fail && err == nil:
			s.t.Errorf("%s: answered %q, want an error", test.what, out)
		case test.fail && strings.Contains(err.Error(), "NotFound"):
			s.t.Errorf("%s: %v; what was never kept is not absent", test.what, err)
		case !test.fail && err != nil:
			s.t.Errorf("%s: %v", test.what, err)
		case !test.fail && !strings.Contains(out, test.want):
			s.t.Errorf("%s: %q is not in the answer %q", test.what, test.want, out)
		}
	}
	out := s.node.Exec("skerry", "status")
	s.Step("skerry status:\n%s", out)
	for _, want := range []string{"lost since", s.node.Name()} {
		if !strings.Contains(out, want) {
			s.t.Errorf("skerry status does not say %q", want)
		}
	}
}
