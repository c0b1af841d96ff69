package site

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestConditionPatch(t *testing.T) {
	was := verdict.Condition{Status: corev1.ConditionTrue, Reason: "Heartbeat"}
	for _, row := range []struct {
		name    string
		c       verdict.Change
		version string
		want    string
	}{
		{"dead", verdict.Change{Node: "a", UID: "u", Was: was, To: verdict.Condition{Status: corev1.ConditionFalse, Reason: "R", Message: "M"}}, "7",
			`{"metadata":{"resourceVersion":"7","uid":"u"},"status":{"conditions":[{"lastHeartbeatTime":"2026-11-23T12:00:00Z","lastTransitionTime":"2026-11-23T12:00:00Z","message":"M","reason":"R","status":"False","type":"skerry.dev/Alive"}]}}`},
		{"another reason: since when stays", verdict.Change{Node: "a", UID: "u", Was: was, To: verdict.Condition{Status: corev1.ConditionTrue, Reason: "R", Message: "M"}}, "",
			`{"metadata":{"uid":"u"},"status":{"conditions":[{"lastHeartbeatTime":"2026-11-23T12:00:00Z","message":"M","reason":"R","status":"True","type":"skerry.dev/Alive"}]}}`},
		{"gone", verdict.Change{Node: "a", UID: "u", Was: was}, "",
			`{"metadata":{"uid":"u"},"status":{"conditions":[{"$patch":"delete","type":"skerry.dev/Alive"}]}}`},
	} {
		got, err := conditionPatch(row.c, row.version, metav1.NewTime(noon))
		if err != nil || string(got) != row.want {
			t.Errorf("%s: %s (%v), want %s", row.name, got, err, row.want)
		}
	}
}

func TestTaintPatch(t *testing.T) {
	ours := corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	admins := corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "byhand", Effect: corev1.TaintEffectNoExecute}
	softer := corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoSchedule}
	other := corev1.Taint{Key: "example.com/a", Effect: corev1.TaintEffectNoSchedule}
	for _, row := range []struct {
		name   string
		taints []corev1.Taint
		marked bool
		want   bool
		after  string // keys=values of the taints; "-": nothing to do
		mark   string
	}{
		{"put on", []corev1.Taint{other}, false, true, "example.com/a= node.kubernetes.io/out-of-service=nodeshutdown", `"nodeshutdown"`},
		{"put on the first", nil, false, true, "node.kubernetes.io/out-of-service=nodeshutdown", `"nodeshutdown"`},
		{"there already, ours", []corev1.Taint{ours}, true, true, "-", ""},
		{"there already, somebody's", []corev1.Taint{admins}, false, true, "-", ""},
		{"there already, somebody's like ours", []corev1.Taint{ours}, false, true, "-", ""},
		{"the same key with another effect", []corev1.Taint{softer}, false, true, "node.kubernetes.io/out-of-service=nodeshutdown node.kubernetes.io/out-of-service=nodeshutdown", `"nodeshutdown"`},
		{"take off", []corev1.Taint{other, ours, softer}, true, false, "example.com/a= node.kubernetes.io/out-of-service=nodeshutdown", "null"},
		{"take off what somebody changed", []corev1.Taint{admins}, true, false, "node.kubernetes.io/out-of-service=byhand", "null"},
		{"take off what somebody took off", nil, true, false, "", "null"},
		{"not ours", []corev1.Taint{ours}, false, false, "-", ""},
		{"nothing there", []corev1.Taint{other}, false, false, "-", ""},
	} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", ResourceVersion: "7"}, Spec: corev1.NodeSpec{Taints: row.taints}}
		if row.marked {
			node.Annotations = map[string]string{OutOfServiceAnnotation: outOfServiceValue}
		}
		raw, err := taintPatch(node, row.want)
		if err != nil {
			t.Fatal(err)
		}
		if row.after == "-" {
			if raw != nil {
				t.Errorf("%s: %s", row.name, raw)
			}
			continue
		}
		var patch struct {
			Metadata struct {
				UID             string                     `json:"uid"`
				ResourceVersion string                     `json:"resourceVersion"`
				Annotations     map[string]json.RawMessage `json:"annotations"`
			} `json:"metadata"`
			Spec struct {
				Taints []corev1.Taint `json:"taints"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(raw, &patch); err != nil {
			t.Fatalf("%s: %s: %v", row.name, raw, err)
		}
		var after []string
		for _, taint := range patch.Spec.Taints {
			after = append(after, taint.Key+"="+taint.Value)
		}
		if got := strings.Join(after, " "); got != row.after || string(patch.Metadata.Annotations[OutOfServiceAnnotation]) != row.mark ||
			patch.Metadata.ResourceVersion != "7" || patch.Metadata.UID != "u" {
			t.Errorf("%s: %s", row.name, raw)
		}
	}
}

func TestStatusPatch(t *testing.T) {
	got, err := statusPatch(v1alpha1.SiteStatus{Nodes: 2, Connected: 2})
	if err != nil || string(got) != `{"status":{"connected":2,"dead":0,"doubts":null,"held":0,"nodes":2,"unknown":0}}` {
		t.Errorf("%s (%v): zeroes and an empty list must be said, or what was there stays", got, err)
	}
	got, err = statusPatch(v1alpha1.SiteStatus{Doubts: []v1alpha1.Doubt{{Node: "a", UID: "u", Since: metav1.NewTime(noon)}}})
	if want := `"doubts":[{"node":"a","reachable":0,"since":"2026-11-23T12:00:00Z","uid":"u","unreachable":0}]`; err != nil || !strings.Contains(string(got), want) {
		t.Errorf("%s (%v), want %s", got, err, want)
	}
}

func TestLean(t *testing.T) {
	now := metav1.NowMicro()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", ResourceVersion: "7", Labels: map[string]string{api.SiteLabel: "west", "b": "c"},
		Annotations:   map[string]string{OutOfServiceAnnotation: outOfServiceValue, "big": strings.Repeat("x", 1000)},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
		Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{SizeBytes: 1}}, Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: api.AliveCondition, Status: corev1.ConditionFalse, Reason: "R", Message: "M"}}}}
	lean, err := leanNode(node)
	if err != nil {
		t.Fatal(err)
	}
	got, want := factsOf(lean.(*corev1.Node)), factsOf(node)
	if got != want || got.Site != "west" || !got.InSite || got.Alive.Reason != "R" {
		t.Errorf("%+v, want %+v", got, want)
	}
	raw, err := json.Marshal(lean)
	if err != nil || len(raw) > 600 || !strings.Contains(string(raw), OutOfServiceAnnotation) {
		t.Errorf("%d bytes: %s", len(raw), raw)
	}
	lease, err := leanLease(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "a", OwnerReferences: make([]metav1.OwnerReference, 1)}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}})
	if l := lease.(*coordinationv1.Lease); err != nil || !renewed(l).Time.Equal(now.Time) || len(l.OwnerReferences) > 0 {
		t.Errorf("%+v", lease)
	}
	if got := renewed(&coordinationv1.Lease{}); !got.IsZero() {
		t.Errorf("%s", got)
	}
	if got := factsOf(&corev1.Node{}); got.InSite || got.Alive.Status != "" {
		t.Errorf("%+v", got)
	}
}

// A Site goes when it has been empty for an hour, if nobody made it their own.
func TestEmptySites(t *testing.T) {
	made := func(change func(s *v1alpha1.Site)) *v1alpha1.Site {
		s := &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "west", UID: "u", Generation: 1, Annotations: map[string]string{MadeByAnnotation: maker}}}
		change(s)
		return s
	}
	for _, row := range []struct {
		name string
		site *v1alpha1.Site
		goes bool
	}{
		{"as it was made", made(func(*v1alpha1.Site) {}), true},
		{"with another policy", made(func(s *v1alpha1.Site) { s.Generation = 2 }), false},
		{"made by a user", made(func(s *v1alpha1.Site) { s.Annotations = nil }), false},
		{"annotated", made(func(s *v1alpha1.Site) { s.Annotations["a"] = "b" }), false},
		{"labelled", made(func(s *v1alpha1.Site) { s.Labels = map[string]string{"a": "b"} }), false},
		{"owned", made(func(s *v1alpha1.Site) { s.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} }), false},
	} {
		now := noon
		b := &brain{now: func() time.Time { return now }, tracker: verdict.New(), results: map[string]verdict.Result{}, wroteSite: map[string]string{}}
		c := fake.NewClientBuilder().WithScheme(Scheme()).WithStatusSubresource(&v1alpha1.Site{}).WithObjects(row.site).Build()
		w := &siteWriter{brain: b, client: c, events: record.NewFakeRecorder(10), emptyAfter: time.Hour, written: map[string]time.Time{}, empty: map[string]time.Time{}}
		nodes := int32(0)
		reconcile := func() time.Duration {
			t.Helper()
			b.results["west"] = verdict.Result{Site: "west", Exists: true, Valid: true, Status: v1alpha1.SiteStatus{Nodes: nodes}}
			r, err := w.Reconcile(t.Context(), "west")
			if err != nil {
				t.Fatalf("%s: %v", row.name, err)
			}
			return r.RequeueAfter
		}
		there := func() bool {
			return !apierrors.IsNotFound(c.Get(t.Context(), client.ObjectKeyFromObject(row.site), &v1alpha1.Site{}))
		}
		if again := reconcile(); (again == time.Hour) != row.goes {
			t.Errorf("%s: again after %s", row.name, again)
		}
		now = now.Add(59 * time.Minute)
		nodes = 1 // somebody joined for a moment
		reconcile()
		nodes = 0
		reconcile()
		now = now.Add(59 * time.Minute)
		reconcile()
		if !there() {
			t.Errorf("%s: gone before an hour", row.name)
		}
		now = now.Add(time.Minute)
		reconcile()
		if there() == row.goes {
			t.Errorf("%s: there %v", row.name, there())
		}
	}
}

// What an older watch event says of what we wrote ourselves is not news.
func TestOwnWritesAreNotUndone(t *testing.T) {
	node := func(version string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: version}}
	}
	wrote := map[string]string{"a": "100"}
	if passed(wrote, node("99")) {
		t.Error("an older one was believed")
	}
	if !passed(wrote, node("100")) || len(wrote) > 0 {
		t.Error("our own was not")
	}
	if !passed(wrote, node("5")) {
		t.Error("nothing was written")
	}
	wrote["a"] = "100"
	if !passed(wrote, node("what?")) {
		t.Error("a version that is none must not blind us")
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	b := &brain{}
	m, err := newMetrics(b, registry)
	if err != nil {
		t.Fatal(err)
	}
	m.site(verdict.Result{Site: "west", Status: v1alpha1.SiteStatus{Nodes: 5, Connected: 2, Held: 2, Unknown: 1, Dead: 1, Doubts: make([]v1alpha1.Doubt, 3)}})
	m.site(verdict.Result{Site: "east", Status: v1alpha1.SiteStatus{Nodes: 4, Connected: 4}})
	m.site(verdict.Result{Site: "gone", Status: v1alpha1.SiteStatus{Nodes: 1, Held: 1}})
	m.site(verdict.Result{Site: "gone"})
	m.published(verdict.Change{To: verdict.Condition{Status: corev1.ConditionFalse, Reason: "R"}})
	m.published(verdict.Change{})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			key := family.GetName()
			for _, label := range metric.GetLabel() {
				key += " " + label.GetValue()
			}
			got[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"skerry_verdict_nodes Connected": 6, "skerry_verdict_nodes Held": 2, "skerry_verdict_nodes Dead": 1, "skerry_verdict_doubts": 3,
		"skerry_verdict_site_nodes west Held": 2, "skerry_verdict_site_nodes west Dead": 1, "skerry_verdict_site_nodes west Unknown": 1,
		"skerry_verdict_changes_total R False": 1, "skerry_verdict_changes_total  None": 1, "skerry_verdict_leader": 0,
	} {
		if value, ok := got[key]; !ok || value != want {
			t.Errorf("%s is %v (%v), want %v", key, value, ok, want)
		}
	}
	for key := range got {
		if strings.Contains(key, "east") || strings.Contains(key, "gone") {
			t.Errorf("series %s: of sites in which something is wrong only", key)
		}
	}
	if _, err := newMetrics(b, registry); err == nil {
		t.Error("registered twice without an error")
	}
}

// The dead are written before the explanations of a large outage.
func TestPriority(t *testing.T) {
	if a, b, c := priority(verdict.Condition{Status: corev1.ConditionFalse}), priority(verdict.Condition{Status: corev1.ConditionTrue}), priority(verdict.Condition{Status: corev1.ConditionUnknown}); a <= b || b <= c {
		t.Error(a, b, c)
	}
}
