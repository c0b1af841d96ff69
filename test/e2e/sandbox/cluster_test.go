//go:build e2e

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/api"
	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/test/sandbox"
)

// TestCluster proves the cluster that create forms, and that nothing of it
// stays.
func TestCluster(t *testing.T) {
	places, err := box.FindPlaces(box.Places{})
	if err != nil {
		t.Fatal(err)
	}
	marks := []string{"t-cluster", filepath.Join(places.Root, "t-cluster")}
	before := sandbox.LookAtHost(t, marks...)
	t.Run("lives", cluster)
	if left := sandbox.LookAtHost(t, marks...).Diff(before); len(left) > 0 && os.Getenv("SKERRY_KEEP") == "" {
		t.Errorf("the sandbox left:\n  %s", strings.Join(left, "\n  "))
	}
}

func cluster(t *testing.T) {
	sb := sandbox.New(t, "cloud: {nodes: 2}\nsites: [{name: east}, {name: west}]")
	for _, n := range sb.Nodes() {
		node, err := sb.Kube().CoreV1().Nodes().Get(t.Context(), n.Name(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := siteOf(sb, n)
		if want == spec.CloudName {
			want = ""
		}
		if got := node.Labels[api.SiteLabel]; got != want {
			t.Errorf("node %s is labelled with site %q, want %q", n.Name(), got, want)
		}
	}
	apps := map[string]*sandbox.App{}
	for site, replicas := range map[string]int{"east": 2, "west": 2, "": 1} {
		apps[site] = sb.Deployment("web-"+site+"x", site, replicas)
	}
	t.Run("pods: who reaches whom", func(t *testing.T) { podsReach(t, sb.In(t), apps) })
	t.Run("a cut site serves itself", func(t *testing.T) { cutSiteServes(t, sb.In(t), apps["west"]) })
	t.Run("a rebooted node comes back", func(t *testing.T) { rebootedNode(t, sb.In(t), apps["west"]) })
	t.Run("the pristine controller manager as a control", func(t *testing.T) {
		sb := sb.In(t)
		sb.UsePristine("kube-controller-manager")
	})
}

// podsReach asks from inside pods, over kubectl exec, so that the way from the
// API server to every kubelet is used as well.
func podsReach(t *testing.T, sb *sandbox.Sandbox, apps map[string]*sandbox.App) {
	try := func(from corev1.Pod, to string) error {
		_, err := sb.TryKubectl("exec", from.Name, "--", "/agnhost", "connect", "--timeout=3s", to)
		return err
	}
	for fromSite, fromApp := range apps {
		from := fromApp.Pods()[0]
		for toSite, toApp := range apps {
			apart := fromSite != toSite && fromSite != "" && toSite != ""
			asItShould := func(target string) error {
				err := try(from, target)
				switch {
				case apart && err == nil:
					return fmt.Errorf("a pod of site %q reaches %s of site %q; want the router to refuse", fromSite, target, toSite)
				case apart && !strings.Contains(err.Error(), "no route to host"):
					return fmt.Errorf("a pod of site %q and %s of site %q: want the router to refuse: %w", fromSite, target, toSite, err)
				case !apart && err != nil:
					return fmt.Errorf("a pod of site %q does not reach %s of site %q: %w", fromSite, target, toSite, err)
				}
				return nil
			}
			// A pod may be ready a second or two before all nodes have the rules.
			service := net.JoinHostPort(toApp.ServiceIP(), "80")
			sb.Eventually(10*time.Second, fmt.Sprintf("a pod of site %q asks the Service of site %q", fromSite, toSite), func() error { return asItShould(service) })
			for _, p := range toApp.Pods() {
				if err := asItShould(net.JoinHostPort(p.Status.PodIP, "8080")); err != nil {
					t.Error(err)
				}
			}
		}
		if err := try(from, "kubernetes.default.svc.cluster.local:443"); err != nil {
			t.Errorf("a pod of site %q does not reach the API server by name: %v", fromSite, err)
		}
	}
}

func cutSiteServes(t *testing.T, sb *sandbox.Sandbox, app *sandbox.App) {
	rec := sb.Record(sb.Site("west").NodeNames()...)
	sb.Site("west").Cut()
	one, two := sb.Node("west-1"), sb.Node("west-2")
	target := net.JoinHostPort(app.PodsOn(two)[0].Status.PodIP, "8080")
	sb.Consistently(5*time.Second, "the pod on west-2 answers west-1 and not the cloud", func() error {
		if err := fetch(one, target); err != nil {
			return err
		}
		if err := fetch(sb.ControlPlane(), target); err == nil {
			return errors.New("the cloud reached a pod of a cut site")
		}
		return nil
	})
	sb.Site("west").Heal()
	sb.WaitReady(time.Minute, corev1.ConditionTrue, "west-1", "west-2")
	rec.MustBeHeld()
}

// fetch gets a page from inside a machine.
func fetch(n *sandbox.Node, target string) error {
	return n.Config().InNetwork(func() error {
		conn, err := net.DialTimeout("tcp4", target, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET /hostname HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		answer, err := io.ReadAll(conn)
		if err == nil && !strings.Contains(string(answer), "200 OK") {
			err = fmt.Errorf("answer %q", answer)
		}
		return err
	})
}

func rebootedNode(t *testing.T, sb *sandbox.Sandbox, app *sandbox.App) {
	n := sb.Node("west-1")
	before := app.PodsOn(n)[0]
	n.Reboot()
	sb.Eventually(2*time.Minute, "its pod runs again", func() error {
		for _, p := range app.PodsOn(n) {
			if p.UID != before.UID {
				return fmt.Errorf("pod %s was replaced", before.Name)
			}
			if s := p.Status.ContainerStatuses[0]; s.RestartCount == 0 || !s.Ready {
				return fmt.Errorf("container: %d restarts, ready: %v", s.RestartCount, s.Ready)
			}
		}
		return nil
	})
}

// TestCreateFails proves that a sandbox that cannot be made says why and
// leaves nothing but logs.
func TestCreateFails(t *testing.T) {
	places, err := box.FindPlaces(box.Places{})
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken.tar")
	if err := os.WriteFile(broken, []byte("this is no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	const name = "t-fails"
	marks := []string{name, filepath.Join(places.Root, name)}
	for _, c := range []struct {
		name, images string
		timeout      time.Duration
		want         []string
	}{
		{"an image that is none", "images: [" + broken + "]", 5 * time.Minute, []string{"skerry init", "broken.tar", "All logs: "}},
		{"interrupted", "", 6 * time.Second, []string{"stopped", "All logs: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := sandbox.LookAtHost(t, marks...)
			description, err := spec.Parse([]byte("name: " + name + "\n" + c.images))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
			defer cancel()
			_, err = box.Create(ctx, description, box.Options{Places: places, Self: self(places)})
			if err == nil {
				_ = box.Delete(places.Root, name)
				t.Fatal("it was made")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			_, logs, _ := strings.Cut(err.Error(), "All logs: ")
			if entries, err := os.ReadDir(strings.TrimSpace(logs)); err != nil || len(entries) < 5 {
				t.Errorf("the logs are not where it says: %v, %v", entries, err)
			}
			if left := sandbox.LookAtHost(t, marks...).Diff(before); len(left) > 0 {
				t.Errorf("it left:\n  %s", strings.Join(left, "\n  "))
			}
		})
	}
}
