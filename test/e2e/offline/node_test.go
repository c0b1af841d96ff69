//go:build e2e

package offline

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	imageutils "k8s.io/kubernetes/test/utils/image"

	"skerry.dev/skerry/test/sandbox"
)

//go:embed workload.yaml
var workload string

//go:embed static.yaml
var staticPod string

const (
	namespace = "loaded"
	// hostDir is where pods and test leave each other files, on the node.
	hostDir = "/var/lib/e2e"
	// running is how many pods of the workload are to be Ready.
	running = 30
	// kubeletConf has the kubelet's own credential, which is for the hub.
	kubeletConf = "/etc/kubernetes/kubelet.conf"
)

// subject is the node under test, with thirty pods on it.
type subject struct {
	*sandbox.Sandbox
	t       *testing.T
	node    *sandbox.Node
	site    *sandbox.Site
	planted string // a secret that must not be found anywhere
	colour  string
}

// values are what the manifests are filled in with.
type values struct {
	Namespace, Node, Dir, Agnhost, Busybox, Registry, Planted, Colour string
	Volumes                                                           []int
}

func (s *subject) fill(text string, registry string) string {
	s.t.Helper()
	parsed, err := template.New("").Parse(text)
	if err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, values{
		Namespace: namespace, Node: s.node.Name(), Dir: hostDir, Registry: registry, Planted: s.planted, Colour: s.colour,
		Agnhost: sandbox.Agnhost(), Busybox: busybox(), Volumes: []int{0, 1},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out.String()
}

// busybox is upstream's image of a shell.
func busybox() string { return imageutils.GetE2EImage(imageutils.BusyBox) }

// load puts the workload on a node and waits until all of it runs.
func load(t *testing.T, box *sandbox.Sandbox, site, node string) *subject {
	t.Helper()
	s := &subject{Sandbox: box, t: t, node: box.Node(node), site: box.Site(site), planted: "planted-" + rand.Text(), colour: "grey"}
	registry := serveRegistry(t, box, s.planted, node)
	box.Load("agnhost")
	box.Load("busybox")
	s.node.Shell("mkdir -p " + hostDir + "/pv-0 " + hostDir + "/pv-1 /etc/kubernetes/manifests")
	box.Step("putting %d pods on %s", running, node)
	box.Apply(s.fill(workload, registry))
	s.write("/etc/kubernetes/manifests/static.yaml", s.fill(staticPod, registry))
	// Its mirror is in the namespace, and comes back for as long as it is there.
	t.Cleanup(func() {
		// The test's own context has ended.
		if _, err := box.Box().Output(context.Background(), time.Minute, node, "rm", "/etc/kubernetes/manifests/static.yaml"); err != nil {
			t.Logf("removing the static pod: %v", err)
		}
	})
	box.Eventually(4*time.Minute, fmt.Sprintf("%d pods are Ready", running), func() error {
		pods, err := s.inCloud()
		if err != nil {
			return err
		}
		if err := finished(pods, "finished"); err != nil {
			return err
		}
		return allReady(pods, time.Time{})
	})
	return s
}

// write makes a file in the machine.
func (s *subject) write(path, content string) {
	s.t.Helper()
	s.node.Exec("sh", "-c", `printf %s "$1" >"$2"`, "sh", content, path)
}

// read returns a file of the machine, "" if there is none.
func (s *subject) read(path string) string {
	s.t.Helper()
	return s.node.Shell("cat " + path + " 2>/dev/null || true")
}

// inCloud lists the workload as the API server has it.
func (s *subject) inCloud() ([]corev1.Pod, error) {
	list, err := s.Kube().CoreV1().Pods(namespace).List(s.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + s.node.Name()})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// kubectl asks the node's hub, with the credential of its kubelet.
func (s *subject) kubectl(args ...string) (string, error) {
	return s.node.Try(append([]string{"kubectl", "--kubeconfig", kubeletConf, "--request-timeout=10s"}, args...)...)
}

// onNode lists the workload as the node's hub has it.
func (s *subject) onNode() ([]corev1.Pod, error) {
	out, err := s.kubectl("get", "pods", "-A", "--field-selector", "spec.nodeName="+s.node.Name(), "-o", "json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("the hub's answer: %w", err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.Namespace != namespace }), nil
}

func condition(p corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// allReady says which pods are not Ready, or have a container that was started
// before the given time.
func allReady(pods []corev1.Pod, since time.Time) error {
	ready, not := 0, []string{}
	for _, p := range pods {
		if p.Name == "pulling" {
			continue // offline it starts, as its image is there
		}
		if p.Status.Phase == corev1.PodSucceeded && p.Labels["batch.kubernetes.io/job-name"] == "finishing" {
			ready++ // it did what it was there for
			continue
		}
		if condition(p, corev1.PodReady) != corev1.ConditionTrue {
			not = append(not, p.Name+" "+string(p.Status.Phase))
			continue
		}
		old := slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
			// The API has seconds only.
			return c.State.Running == nil || c.State.Running.StartedAt.Time.Before(since.Truncate(time.Second))
		})
		if old {
			not = append(not, p.Name+" as before")
			continue
		}
		ready++
	}
	if ready != running {
		slices.Sort(not)
		return fmt.Errorf("%d of %d pods are Ready; not so: %s", ready, running, strings.Join(not, ", "))
	}
	return nil
}

// finished says whether a Job's pod has Succeeded, and is one.
func finished(pods []corev1.Pod, job string) error {
	count := 0
	for _, p := range pods {
		if p.Labels["batch.kubernetes.io/job-name"] != job {
			continue
		}
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("pod %s of the Job is %s", p.Name, p.Status.Phase)
		}
		count++
	}
	if count != 1 {
		return fmt.Errorf("Job %s has %d pods", job, count)
	}
	return nil
}

// waitReady waits until the hub says that all pods are Ready, with containers
// started after the given time, and returns how long that took.
func (s *subject) waitReady(since time.Time, within time.Duration) time.Duration {
	s.t.Helper()
	began := time.Now()
	s.Eventually(within, fmt.Sprintf("%d pods are Ready by the hub of %s", running, s.node.Name()), func() error {
		pods, err := s.onNode()
		if err != nil {
			return err
		}
		return allReady(pods, since)
	})
	return time.Since(began)
}

// containers returns the running containers by pod and name.
func (s *subject) containers() map[string]string {
	s.t.Helper()
	pods, err := s.onNode()
	if err != nil {
		s.t.Fatal(err)
	}
	ids := map[string]string{}
	for _, p := range pods {
		if p.Name == "pulling" {
			continue
		}
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			ids[p.Name+"/"+c.Name] = c.ContainerID
		}
	}
	return ids
}

// sameContainers fails the test if containers were replaced.
func (s *subject) sameContainers(before map[string]string) {
	s.t.Helper()
	now := s.containers()
	for name, id := range before {
		if now[name] != id {
			s.t.Errorf("container %s was replaced: %s, was %s", name, now[name], id)
		}
	}
	if len(now) != len(before) {
		s.t.Errorf("%d containers, there were %d", len(now), len(before))
	}
}

// uids returns the UID of each pod by its name. The mirror of a static pod has
// one of its own in the cloud.
func uids(pods []corev1.Pod) map[string]string {
	all := map[string]string{}
	for _, p := range pods {
		if !strings.HasPrefix(p.Name, "static-") {
			all[p.Name] = string(p.UID)
		}
	}
	return all
}

// runningContainers returns the pods of the workload of which containerd runs a
// container: the truth that no API can colour.
func (s *subject) runningContainers() (map[string]bool, error) {
	tasks, err := s.node.Try("ctr", "-n", "k8s.io", "tasks", "ls")
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for line := range strings.Lines(tasks) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" {
			alive[f[0]] = true
		}
	}
	ids, err := s.node.Try("ctr", "-n", "k8s.io", "containers", "ls", "-q", `labels."io.cri-containerd.kind"==container`)
	if err != nil {
		return nil, err
	}
	pods := map[string]bool{}
	for _, id := range strings.Fields(ids) {
		if !alive[id] {
			continue
		}
		out, err := s.node.Try("ctr", "-n", "k8s.io", "containers", "info", id)
		if err != nil {
			return nil, err
		}
		var info struct{ Labels map[string]string }
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			return nil, fmt.Errorf("ctr's answer: %w", err)
		}
		if info.Labels["io.kubernetes.pod.namespace"] == namespace {
			pods[info.Labels["io.kubernetes.pod.name"]] = true
		}
	}
	return pods, nil
}

func names(set map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), " ")
}
