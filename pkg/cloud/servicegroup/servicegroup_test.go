package servicegroup

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/rollout"
)

// What the longest names and messages make of a status, for more sites than it
// takes, stays below what etcd takes, and what is not well is never left out.
func TestStatusIsBounded(t *testing.T) {
	grid := &gridv1.DeploymentGrid{}
	l := &look{grid: grid, parts: deployments.open(grid), states: map[string]state{}, now: time.Now()}
	plan := &rollout.Plan{Ready: 3400, Reason: gridv1.ReasonStopped, Message: strings.Repeat("m", 10000)}
	for i := range 5000 {
		o := rollout.Outcome{Site: rollout.Site{Name: fmt.Sprintf("%s%05d", strings.Repeat("s", 58), i), Exists: true, Updated: true}, Phase: gridv1.PhaseReady}
		if i%3 == 0 {
			o.Phase, o.Message = gridv1.PhaseFailed, strings.Repeat("é", 1000)
		}
		plan.Sites = append(plan.Sites, o)
	}
	l.summarize(plan)
	text, err := json.Marshal(grid)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 1<<20 || len(grid.Status.Sites) != maxSites || grid.Status.DesiredSites != 5000 {
		t.Errorf("%d bytes, %d of %d sites", len(text), len(grid.Status.Sites), grid.Status.DesiredSites)
	}
	failed := 0
	for _, s := range grid.Status.Sites {
		if s.Phase == gridv1.PhaseFailed {
			failed++
		}
		if len(s.Message) > maxMessage || !utf8.ValidString(s.Message) {
			t.Fatalf("message of %d bytes: %q", len(s.Message), s.Message)
		}
	}
	if failed != 1667 {
		t.Errorf("%d of 1667 failed sites are shown", failed)
	}
}

func TestAttention(t *testing.T) {
	got := attention([]gridv1.SiteStatus{
		{Name: "a", Phase: gridv1.PhaseReady}, {Name: "b", Phase: gridv1.PhaseOffline}, {Name: "c", Phase: gridv1.PhaseFailed, Ready: 1, Desired: 2}, {Name: "d", Phase: gridv1.PhaseProgressing, Desired: 3},
	})
	if want := "c Failed 1/2, d Progressing 0/3, b Offline"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func entry(manager string, operation metav1.ManagedFieldsOperationType, fields string) metav1.ManagedFieldsEntry {
	e := metav1.ManagedFieldsEntry{Manager: manager, Operation: operation, FieldsV1: &metav1.FieldsV1{}, Time: ptr.To(metav1.NewTime(time.Unix(1000, 0)))}
	e.FieldsV1.SetRawString(fields)
	return e
}

func deployment(fields string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "web-east", UID: "u", ResourceVersion: "7",
			Labels:      map[string]string{gridv1.GridLabel: "web", gridv1.SiteLabel: "east", "other": "x"},
			Annotations: map[string]string{gridv1.HashAnnotation: "h", "other": strings.Repeat("x", 1000), ownedKey: "a user's"},
			ManagedFields: []metav1.ManagedFieldsEntry{
				entry("kubectl", metav1.ManagedFieldsOperationUpdate, `{"f:spec":{"f:replicas":{}}}`),
				entry(gridv1.FieldManager, metav1.ManagedFieldsOperationApply, fields),
			},
		},
		Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](3), Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}}}},
	}
}

// The cache keeps of a child what is read of it, also when it is given its own
// result, and of others whose they are.
func TestSlim(t *testing.T) {
	once, err := slimDeployment(deployment(`{"f:spec":{"f:template":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	twice, _ := slimDeployment(once)
	for _, o := range []any{once, twice} {
		d := o.(*appsv1.Deployment)
		if d.Annotations[ownedKey] != hashOf(`{"f:spec":{"f:template":{}}}`) || d.Annotations[replicasKey] != "" || d.Annotations["other"] != "" || d.Annotations[changedKey] != "1970-01-01T00:16:40Z" ||
			d.Labels["other"] != "" || d.ManagedFields != nil || len(d.Spec.Template.Spec.Containers) != 0 || *d.Spec.Replicas != 3 {
			t.Errorf("%+v", d)
		}
	}
	owns, _ := slimDeployment(deployment(`{"f:spec":{"f:replicas":{}}}`))
	if owns.(*appsv1.Deployment).Annotations[replicasKey] == "" {
		t.Error("that replicas are ours was not noticed")
	}
	other := deployment("{}")
	other.Labels = nil
	other.OwnerReferences = []metav1.OwnerReference{{APIVersion: "argoproj.io/v1", Kind: "X", Name: "web", Controller: ptr.To(true)}}
	kept, _ := slimDeployment(other)
	if d := kept.(*appsv1.Deployment); d.Annotations != nil || d.Spec.Replicas != nil || len(d.OwnerReferences) != 1 {
		t.Errorf("%+v", d)
	}
}

// What is known about a child: from the cache, or from our own write when the
// cache is behind.
func TestChild(t *testing.T) {
	const was, is = `{"f:spec":{"f:template":{}}}`, `{"f:spec":{}}`
	slim := func(version, fields string) *appsv1.Deployment {
		d := deployment(fields)
		d.ResourceVersion = version
		o, _ := slimDeployment(d)
		return o.(*appsv1.Deployment)
	}
	now := time.Now()
	m := newMemory()
	key := types.NamespacedName{Namespace: "ns", Name: "web"}
	g := m.of(key, "grid")
	if c := g.child("web-east", slim("7", was), now); !c.exists || c.known || c.fresh {
		t.Errorf("after a restart: %+v", c)
	}
	result := deployment(was)
	result.ResourceVersion = "9"
	g.applied("web-east", "h2", &metav1.PartialObjectMetadata{ObjectMeta: result.ObjectMeta}, now)
	if c := g.child("web-east", slim("7", was), now); !c.fresh || c.hash != "h2" || !c.untouched {
		t.Errorf("before the cache has seen the write: %+v", c)
	}
	if c := g.child("web-east", nil, now); !c.fresh || !c.exists {
		t.Errorf("before the cache has seen the first write: %+v", c)
	}
	if c := g.child("web-east", nil, now.Add(2*unseen)); c.exists {
		t.Errorf("deleted before the cache saw it: %+v", c)
	}
	g.applied("web-east", "h", &metav1.PartialObjectMetadata{ObjectMeta: result.ObjectMeta}, now)
	if c := g.child("web-east", slim("9", was), now); c.fresh || !c.known || !c.untouched {
		t.Errorf("as we left it: %+v", c)
	}
	if c := g.child("web-east", slim("10", is), now); !c.known || c.untouched {
		t.Errorf("somebody took a field: %+v", c)
	}
	// One whose record differs from the others' is as we left it if it has the
	// record that we left; else it would be written for ever.
	odd := deployment(is)
	odd.ResourceVersion = "12"
	g.applied("web-east", "h", &metav1.PartialObjectMetadata{ObjectMeta: odd.ObjectMeta}, now)
	for range 2 {
		if c := g.child("web-east", slim("12", is), now); !c.untouched {
			t.Errorf("as we left it, and odd: %+v", c)
		}
	}
	m.gone(key, "web-east", "u")
	if c := g.child("web-east", nil, now); c.exists {
		t.Errorf("deleted: %+v", c)
	}
	if m.of(key, "another grid of that name") == g {
		t.Error("a grid inherits the memory of another")
	}
}

func TestObserveStatefulSet(t *testing.T) {
	base := func(change func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
		s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](2)}}
		s.Status = appsv1.StatefulSetStatus{ObservedGeneration: 2, Replicas: 2, ReadyReplicas: 2, AvailableReplicas: 2, UpdatedReplicas: 2, CurrentRevision: "a", UpdateRevision: "a"}
		change(s)
		return s
	}
	for name, c := range map[string]struct {
		set                *appsv1.StatefulSet
		complete, finished bool
	}{
		"ready":     {base(func(*appsv1.StatefulSet) {}), true, true},
		"unseen":    {base(func(s *appsv1.StatefulSet) { s.Generation = 3 }), false, false},
		"updating":  {base(func(s *appsv1.StatefulSet) { s.Status.UpdateRevision, s.Status.UpdatedReplicas = "b", 1 }), false, false},
		"not ready": {base(func(s *appsv1.StatefulSet) { s.Status.AvailableReplicas = 1 }), false, true},
		"starting":  {base(func(s *appsv1.StatefulSet) { s.Status.Replicas, s.Status.AvailableReplicas = 1, 0 }), false, false},
		"partition": {base(func(s *appsv1.StatefulSet) {
			s.Status.UpdateRevision, s.Status.UpdatedReplicas = "b", 1
			s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](1)}
		}), true, false},
		"on delete": {base(func(s *appsv1.StatefulSet) {
			s.Status.UpdateRevision, s.Status.UpdatedReplicas = "b", 0
			s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
		}), true, false},
		"scaled down": {base(func(s *appsv1.StatefulSet) {
			s.Spec.Replicas = ptr.To[int32](0)
			s.Status.Replicas, s.Status.AvailableReplicas, s.Status.UpdatedReplicas = 0, 0, 0
		}), true, true},
	} {
		if got := observeStatefulSet(c.set); got.complete != c.complete || got.finished != c.finished {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestMaxUnavailable(t *testing.T) {
	for _, c := range []struct {
		value *intstr.IntOrString
		sites int
		want  int
	}{
		{nil, 2, 1}, {nil, 8, 2}, {ptr.To(intstr.FromInt32(3)), 100, 3}, {ptr.To(intstr.FromString("100%")), 7, 7}, {ptr.To(intstr.FromString("0%")), 7, 1}, {ptr.To(intstr.FromString("bad")), 7, 1},
	} {
		if got := maxUnavailable(c.value, c.sites); got != c.want {
			t.Errorf("%v of %d: %d, want %d", c.value, c.sites, got, c.want)
		}
	}
}

func TestMeasures(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := newMeasures(registry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newMeasures(registry); err == nil {
		t.Error("registered twice")
	}
	m.wroteChild("Deployment", nil)
	m.wroteChild("Deployment", apierrors.NewBadRequest("no"))
	m.wroteChild("Deployment", apierrors.NewTooManyRequests("later", 1))
	m.count("DeploymentGrid", "ns", "web", []gridv1.SiteStatus{{Phase: gridv1.PhaseReady}, {Phase: gridv1.PhaseReady}, {Phase: gridv1.PhaseOffline}})
	want := `
# HELP skerry_grid_sites Sites of each grid by phase.
# TYPE skerry_grid_sites gauge
`
	for _, p := range []struct {
		phase gridv1.Phase
		n     int
	}{{"Failed", 0}, {"Leaving", 0}, {"NotReady", 0}, {"Offline", 1}, {"Pending", 0}, {"Progressing", 0}, {"Ready", 2}, {"Retained", 0}} {
		want += fmt.Sprintf("skerry_grid_sites{kind=\"DeploymentGrid\",name=\"web\",namespace=\"ns\",phase=%q} %d\n", p.phase, p.n)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "skerry_grid_sites"); err != nil {
		t.Error(err)
	}
	for _, result := range []string{"applied", "refused", "failed"} {
		if n := testutil.ToFloat64(m.writes.WithLabelValues("Deployment", result)); n != 1 {
			t.Errorf("%s: %v", result, n)
		}
	}
	m.forget("DeploymentGrid", "ns", "web")
	if n := testutil.CollectAndCount(m.sites); n != 0 {
		t.Errorf("%d series are left of a grid that is gone", n)
	}
}
