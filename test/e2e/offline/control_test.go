//go:build e2e

package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/test/sandbox"
)

// TestControl is the same on a node as upstream makes it. What it shows must
// break, or the suite proves nothing.
func TestControl(t *testing.T) {
	t.Setenv(box.DistVariable, pristineDist(t))
	s := load(t, sandbox.New(t, "sites: [{name: edge, nodes: 1, hub: false}]"), "edge", "edge-1")
	s.site.Cut()

	s.Step("restarting the kubelet")
	s.node.RestartUnit("kubelet")
	s.Eventually(time.Minute, "the kubelet is well", func() error { return s.get("http://127.0.0.1:10248/healthz") })
	starts := s.starts()
	s.write(hostDir+"/crash", "")
	s.Consistently(time.Minute, "a crashed container is not restarted", func() error {
		if got := s.starts(); got != starts {
			return fmt.Errorf("it was: %d starts, there were %d", got, starts)
		}
		return nil
	})

	s.node.PowerOff()
	s.node.PowerOn()
	s.Eventually(2*time.Minute, "the static pod runs", func() error { return s.onlyStatic() })
	s.Consistently(2*time.Minute, "no other pod comes back", func() error { return s.onlyStatic() })
	s.Step("control: 0 of %d pods came back, and the static one", running-1)
	s.site.Heal() // or nothing of it can be deleted
	s.WaitReady(2*time.Minute, corev1.ConditionTrue, s.node.Name())
}

// onlyStatic says which pods run beside the static one.
func (s *subject) onlyStatic() error {
	pods, err := s.runningContainers()
	if err == nil && (len(pods) != 1 || !pods["static-"+s.node.Name()]) {
		err = fmt.Errorf("there run: %s", names(pods))
	}
	return err
}

// pristineDist is the built Skerry with upstream's own kubelet.
func pristineDist(t *testing.T) string {
	t.Helper()
	places, err := box.FindPlaces(box.Places{})
	if err != nil {
		t.Fatal(err)
	}
	dist, err := os.MkdirTemp(places.Root, "pristine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dist) })
	for _, dir := range []string{"bin", "cni", "images", "images/test"} {
		entries, err := os.ReadDir(filepath.Join(places.Dist, dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dist, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			from := filepath.Join(places.Dist, dir, e.Name())
			if dir == "bin" && e.Name() == "kubelet" {
				from = filepath.Join(places.Dist, "pristine", "kubelet")
			}
			if e.IsDir() {
				continue
			}
			if err := os.Link(from, filepath.Join(dist, dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dist
}
