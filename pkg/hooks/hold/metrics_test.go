package hold

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/metrics"
)

func TestMetrics(t *testing.T) {
	h, registry := New(), metrics.NewKubeRegistry()
	h.metrics.register(registry.CustomMustRegister, registry.MustRegister)
	observe := func(name string, ready v1.ConditionStatus, alive ...v1.ConditionStatus) {
		n := siteNode(alive...)
		n.Name = name
		h.Observe(&record.FakeRecorder{}, n, ready)
	}
	observe("a", v1.ConditionUnknown)
	observe("b", v1.ConditionUnknown, v1.ConditionTrue)
	observe("c", v1.ConditionUnknown)
	observe("d", v1.ConditionTrue)
	expectMetrics(t, registry,
		"skerry_hold_nodes reason=NoVerdict site=west 2",
		"skerry_hold_nodes reason=VerdictAlive site=west 1",
		"skerry_hold_transitions_total site=west to=Held 3")

	observe("a", v1.ConditionUnknown, v1.ConditionUnknown)
	observe("b", v1.ConditionTrue)
	observe("c", v1.ConditionUnknown, v1.ConditionFalse)
	expectMetrics(t, registry,
		"skerry_hold_nodes reason=VerdictUnknown site=west 1",
		"skerry_hold_transitions_total site=west to=Dead 1",
		"skerry_hold_transitions_total site=west to=HeartbeatBack 1",
		"skerry_hold_transitions_total site=west to=Held 3")

	h.Forget("a")
	h.Forget("d")
	expectMetrics(t, registry,
		"skerry_hold_transitions_total site=west to=Dead 1",
		"skerry_hold_transitions_total site=west to=Deleted 1",
		"skerry_hold_transitions_total site=west to=HeartbeatBack 1",
		"skerry_hold_transitions_total site=west to=Held 3")
}

func expectMetrics(t *testing.T, registry metrics.KubeRegistry, want ...string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			got = append(got, fmt.Sprintf("%s %s %g", f.GetName(), strings.Join(labels, " "), value))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("metrics\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
