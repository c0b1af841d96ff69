package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	imageutils "k8s.io/kubernetes/test/utils/image"

	"skerry.dev/api"
)

// Agnhost is upstream's image of test servers and clients.
func Agnhost() string { return imageutils.GetE2EImage(imageutils.Agnhost) }

// Kube is a client of the API server with the administrator's rights.
func (s *Sandbox) Kube() kubernetes.Interface {
	s.t.Helper()
	client, err := s.box.Client()
	s.must(err)
	return client
}

// Context ends with the test.
func (s *Sandbox) Context() context.Context { return s.t.Context() }

// Kubectl runs kubectl on the host and returns what it printed; the test fails
// if it does.
func (s *Sandbox) Kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.kubectl(s.t.Context(), "", args...)
	s.must(err)
	return out
}

// TryKubectl runs kubectl on the host.
func (s *Sandbox) TryKubectl(args ...string) (string, error) {
	return s.kubectl(s.t.Context(), "", args...)
}

func (s *Sandbox) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.places.Dist, "bin", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.box.Kubeconfig())
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Apply applies objects, which are deleted when the test ends.
func (s *Sandbox) Apply(yaml string) {
	s.t.Helper()
	_, err := s.kubectl(s.t.Context(), yaml, "apply", "--server-side", "--force-conflicts", "-f", "-")
	s.must(err)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.collect() // before the evidence goes
		}
		// The next test must not find them; an API server that is gone by now
		// is its own failure.
		_, err := s.kubectl(context.Background(), yaml, "delete", "--ignore-not-found", "--wait=true", "--timeout=180s", "-f", "-")
		if err != nil && !s.t.Failed() {
			s.t.Errorf("deleting what the test applied: %v", err)
		}
	})
}

// Load imports one of the built test images, such as "agnhost", on all
// machines that have not got it yet.
func (s *Sandbox) Load(name string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[name] {
		return
	}
	s.Step("importing image %s on all nodes", name)
	all, err := s.box.MachineNames("")
	s.must(err)
	s.must(s.box.Load(s.t.Context(), s.TestImage(name), all...))
	s.images[name] = true
}

// TestImage is the archive of a test image.
func (s *Sandbox) TestImage(name string) string {
	return filepath.Join(s.places.Dist, "images", "test", name+".tar")
}

// App is a Deployment and a Service of one name in one site.
type App struct {
	s    *Sandbox
	Name string
	Site string
}

// Deployment runs replicas of a small web server in a site, spread over its
// nodes, with a Service of the same name, and waits until all are ready. With
// an empty site they run on nodes without one.
func (s *Sandbox) Deployment(name, site string, replicas int) *App {
	s.t.Helper()
	s.Load("agnhost")
	s.Step("deploying %s with %d replicas in %s", name, replicas, cmp.Or(site, "no site"))
	expression := fmt.Sprintf("{key: %s, operator: In, values: [%q]}", api.SiteLabel, site)
	if site == "" {
		expression = fmt.Sprintf("{key: %s, operator: DoesNotExist}", api.SiteLabel)
	}
	s.Apply(fmt.Sprintf(appTemplate, name, replicas, expression, Agnhost()))
	a := &App{s, name, site}
	s.Eventually(2*time.Minute, name+" is ready", func() error {
		d, err := s.Kube().AppsV1().Deployments(metav1.NamespaceDefault).Get(s.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if int(d.Status.ReadyReplicas) != replicas {
			return fmt.Errorf("%d of %d replicas are ready", d.Status.ReadyReplicas, replicas)
		}
		return nil
	})
	return a
}

const appTemplate = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]q, namespace: default}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]q}}
  template:
    metadata: {labels: {app: %[1]q}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [%[3]s]}]
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[1]q}}}
      containers:
      - name: web
        image: %[4]q
        imagePullPolicy: IfNotPresent
        args: [netexec, --http-port=8080]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]q, namespace: default}
spec: {selector: {app: %[1]q}, ports: [{port: 80, targetPort: 8080}]}
`

// Pods lists the pods of the application.
func (a *App) Pods() []corev1.Pod {
	a.s.t.Helper()
	list, err := a.s.Kube().CoreV1().Pods(metav1.NamespaceDefault).List(a.s.t.Context(), metav1.ListOptions{LabelSelector: "app=" + a.Name})
	a.s.must(err)
	return list.Items
}

// PodsOn lists the pods of the application on one machine.
func (a *App) PodsOn(n *Node) []corev1.Pod {
	a.s.t.Helper()
	var on []corev1.Pod
	for _, p := range a.Pods() {
		if p.Spec.NodeName == n.Name() {
			on = append(on, p)
		}
	}
	return on
}

// ServiceIP is the address of the application's Service.
func (a *App) ServiceIP() string {
	a.s.t.Helper()
	svc, err := a.s.Kube().CoreV1().Services(metav1.NamespaceDefault).Get(a.s.t.Context(), a.Name, metav1.GetOptions{})
	a.s.must(err)
	return svc.Spec.ClusterIP
}

// NodeReady is the status of a machine's Ready condition: True, False, Unknown
// or, without a Node, empty.
func (s *Sandbox) NodeReady(name string) (corev1.ConditionStatus, error) {
	n, err := s.Kube().CoreV1().Nodes().Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status, nil
		}
	}
	return "", nil
}

// WaitReady waits until the Nodes of all named machines have this Ready status.
func (s *Sandbox) WaitReady(timeout time.Duration, want corev1.ConditionStatus, names ...string) {
	s.t.Helper()
	s.Eventually(timeout, fmt.Sprintf("Ready is %s on %s", want, strings.Join(names, ", ")), func() error {
		for _, name := range names {
			got, err := s.NodeReady(name)
			if err != nil {
				return err
			}
			if got != want {
				return fmt.Errorf("node %s: Ready is %s", name, got)
			}
		}
		return nil
	})
}
