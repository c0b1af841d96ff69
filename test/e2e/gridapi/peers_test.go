//go:build e2e

package gridapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// Each test here is a failing of another system of this kind.

// There, all sites shared one nodeSelector map, every Deployment got the last
// site's value, and the controller wrote it into the user's object.
func TestPeerSharedNodeSelector(t *testing.T) {
	w := newWorld(t)
	w.node("a", "bj", true)
	w.node("b", "gz", true)
	w.mustApply(strings.Replace(web("web:v1", ""), "      spec:\n", "      spec:\n        nodeSelector: {disk: ssd}\n", 1))
	w.wantChildren("web-bj", "web-gz")
	for _, site := range []string{"bj", "gz"} {
		selector := w.deployment("web-" + site).Spec.Template.Spec.NodeSelector
		if len(selector) != 2 || selector[w.key] != site || selector["disk"] != "ssd" {
			t.Errorf("the pods of %s are for nodes with %v", site, selector)
		}
	}
	var g gridv1.DeploymentGrid
	w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &g))
	if strings.Contains(string(g.Spec.Template.Raw), w.key) || g.Generation != 1 {
		t.Errorf("the controller changed the user's spec: generation %d, %s", g.Generation, g.Spec.Template.Raw)
	}
}

// There, leaving out replicas crashed the controller for everyone.
func TestPeerNoReplicas(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(strings.Replace(web("web:v1", ""), "    replicas: 2\n", "", 1))
	w.wantChildren("web-east")
	if n := w.deployment("web-east").Spec.Replicas; n == nil || *n != 1 {
		t.Errorf("replicas is %v, want Kubernetes' own default", n)
	}
}

// There, an autoscaler's replicas were taken back at each sync.
func TestPeerFightsAutoscaler(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	noReplicas := func(image string) string { return strings.Replace(web(image, ""), "    replicas: 2\n", "", 1) }
	w.mustApply(noReplicas("web:v1"))
	w.wantChildren("web-east")
	// A real autoscaler, the one of kube-controller-manager. It needs no metrics to
	// keep to its bounds, and looks every 15 seconds.
	autoscaler := func(min, max int) {
		w.mustApply(fmt.Sprintf(`
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web-east}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web-east}
  minReplicas: %d
  maxReplicas: %d
`, min, max))
	}
	scaled := func(to int32) {
		t.Helper()
		w.within(time.Minute, fmt.Sprintf("the autoscaler's %d replicas", to), func() error {
			if n := *w.deployment("web-east").Spec.Replicas; n != to {
				return fmt.Errorf("there are %d", n)
			}
			return nil
		})
		w.never("another number of replicas", func() bool { return *w.deployment("web-east").Spec.Replicas != to })
	}
	autoscaler(3, 9)
	scaled(3)
	w.mustApply(noReplicas("web:v2"))
	w.wantImage("web-east", "web:v2")
	scaled(3)
	autoscaler(1, 2)
	scaled(2)
	if got := w.events("SuccessfulRescale"); len(got) != 2 {
		t.Errorf("the autoscaler says it has scaled %d times, want 2: %q", len(got), got)
	}
	if got := w.events("Corrected"); len(got) != 0 {
		t.Errorf("the grid has corrected: %q", got)
	}
}

// There, ports and selectors that were removed from the grid stayed in the
// Service for ever.
func TestPeerServiceRemovals(t *testing.T) {
	w := newWorld(t)
	service := func(ports, selector string) string {
		return fmt.Sprintf(`
apiVersion: apps.skerry.dev/v1alpha1
kind: ServiceGrid
metadata: {name: web}
spec:
  gridKey: KEY
  template: {ports: [%s], selector: {%s}}
`, ports, selector)
	}
	get := func() *corev1.Service {
		var s corev1.Service
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &s); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return &s
	}
	w.mustApply(service("{name: a, port: 80}, {name: b, port: 81, protocol: UDP}, {name: c, port: 82}", "app: web, tier: front"))
	w.eventually("the Service", func() error {
		if s := get(); len(s.Spec.Ports) != 3 || len(s.Spec.Selector) != 2 {
			return fmt.Errorf("it has %v and %v", s.Spec.Ports, s.Spec.Selector)
		}
		return nil
	})
	address := get().Spec.ClusterIP
	w.mustApply(service("{name: a, port: 80}", "app: web"))
	w.eventually("the removal", func() error {
		if s := get(); len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Name != "a" || len(s.Spec.Selector) != 1 || s.Spec.Selector["app"] != "web" {
			return fmt.Errorf("it has %v and %v", s.Spec.Ports, s.Spec.Selector)
		}
		return nil
	})
	if got := get(); got.Spec.ClusterIP != address || got.Annotations["skerry.dev/topology-keys"] != fmt.Sprintf("[%q]", w.key) {
		t.Errorf("the Service is %s with %v", got.Spec.ClusterIP, got.Annotations)
	}
}

// There, an item removed from the end of a list, a removed map key and a zero
// value were not noticed in workloads either.
func TestPeerWorkloadRemovals(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	full := strings.Replace(web("web:v1", ""), `env: [{name: A, value: "1"}]`, `env: [{name: A, value: "1"}, {name: B, value: "2"}], tty: true, command: [a, b]`, 1)
	full = strings.Replace(full, "        containers:", "        tolerations: [{key: x, operator: Exists}]\n        containers:", 1)
	w.mustApply(full)
	w.wantChildren("web-east")
	w.become("web-east", true)
	w.mustApply(strings.Replace(web("web:v1", ""), "replicas: 2", "replicas: 0", 1))
	w.eventually("the removals", func() error {
		d := w.deployment("web-east")
		c := d.Spec.Template.Spec.Containers[0]
		if *d.Spec.Replicas != 0 || len(c.Env) != 1 || c.TTY || c.Command != nil || d.Spec.Template.Spec.Tolerations != nil {
			return fmt.Errorf("it has %d replicas, %v", *d.Spec.Replicas, c)
		}
		return nil
	})
}

// There, a node that lost its label for a moment, or was deleted and joined
// again, took the site's Deployment with it at once.
func TestPeerRelabelledNode(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east")
	uid := w.deployment("web-east").UID
	w.label("a", "")
	w.eventually("the site to leave", func() error {
		if s := w.status("web"); s.LeavingSites != 1 || s.DesiredSites != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	w.never("the deletion", func() bool { return len(w.children()) == 0 })
	w.label("a", "east")
	w.eventually("the site to be back", func() error {
		d := w.deployment("web-east")
		if s := w.status("web"); s.LeavingSites != 0 || s.DesiredSites != 1 || d.Annotations[gridv1.SiteLeftAnnotation] != "" {
			return fmt.Errorf("%+v, %v", s, d.Annotations)
		}
		return nil
	})
	if d := w.deployment("web-east"); d.UID != uid {
		t.Error("the Deployment is another one")
	}
}

// There, each of a site's nodes made its own attempt at creating the child.
func TestPeerOneWritePerNode(t *testing.T) {
	w := newWorld(t)
	for i := range 10 {
		w.node(fmt.Sprint("a", i), "east", true)
	}
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east")
	w.never("a second write", func() bool { return w.deployment("web-east").Generation != 1 })
}

// There, the controller wrote a hash and a status into the user's object, so
// that tools which compare it with a repository were never quiet, and updated
// objects by replacing them, so that a user's label was lost.
func TestPeerEditsTheUsersObjects(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east")
	w.patch(w.deployment("web-east"), map[string]any{"metadata": map[string]any{"labels": map[string]any{"mine": "yes"}}})
	w.mustApply(web("web:v2", ""))
	w.wantImage("web-east", "web:v2")
	if w.deployment("web-east").Labels["mine"] != "yes" {
		t.Error("the user's label is lost")
	}
	var g gridv1.DeploymentGrid
	w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &g))
	if g.Generation != 2 || len(g.Annotations)+len(g.Labels)+len(g.Finalizers) != 0 {
		t.Errorf("the grid is generation %d with %v %v %v", g.Generation, g.Annotations, g.Labels, g.Finalizers)
	}
}

// There, all sites were changed at once.
func TestPeerNoWaves(t *testing.T) {
	w := rollOut(t, 4, "web:v2", "")
	for i := range 4 {
		name := fmt.Sprint("web-s", i)
		w.wantImage(name, "web:v2")
		w.become(name, false)
		w.never("a second site", func() bool { return i < 3 && w.image(fmt.Sprint("web-s", i+1)) == "web:v2" })
		w.become(name, true)
	}
	w.wantPhase(gridv1.PhaseReady)
}

// There, the queue dropped a grid after fifteen errors, and a resync did not
// bring it back.
func TestPeerDroppedAfterErrors(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	// In the way, and somebody else's.
	other := strings.NewReplacer("apps.skerry.dev/v1alpha1", "apps/v1", "DeploymentGrid", "Deployment", "name: web}", "name: web-east}", "  gridKey: KEY\n  template:\n", "").Replace(web("other:v1", ""))
	var lines []string
	for _, line := range strings.Split(other, "\n") {
		lines = append(lines, strings.Replace(line, "    ", "  ", 1))
	}
	w.mustApply(strings.Join(lines, "\n"))
	w.mustApply(web("web:v1", ""))
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonStopped, "exists and is not the grid's")
	if got := w.image("web-east"); got != "other:v1" {
		t.Fatalf("the grid took over what is not its own: %s", got)
	}
	w.must(api.Delete(t.Context(), w.deployment("web-east")))
	w.wantImage("web-east", "web:v1")
}
