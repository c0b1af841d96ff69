package closed

import (
	"strings"
	"testing"
	"testing/synctest"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/testutil"
)

func TestMetrics(t *testing.T) {
	run(t, func(w *world) {
		m := newMetrics()
		registry := metrics.NewKubeRegistry()
		registry.CustomMustRegister(m)
		if err := testutil.GatherAndCompare(registry, strings.NewReader("")); err != nil {
			t.Errorf("before kube-proxy runs: %v", err)
		}
		m.provider.Store(w.p)
		w.p.OnServiceAdd(newService("web", bySite))
		w.p.OnServiceAdd(newService("typo", "oops"))
		w.p.OnServiceAdd(newService("open", ""))
		synctest.Wait()
		w.begin()
		w.put(endpoints("web", 1, "w1 w2 e1 e2 c1"))
		w.put(endpoints("typo", 1, "w1 -"))
		w.put(endpoints("open", 1, "w1 e1"))
		w.label("e1", map[string]string{"skerry.dev/site": "west"})
		err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP skerry_closed_nodes [ALPHA] Nodes that share this node's value of a label that closed Services name.
# TYPE skerry_closed_nodes gauge
skerry_closed_nodes{label="skerry.dev/site"} 3
# HELP skerry_closed_nodes_synced [ALPHA] Whether the nodes that share a label are known (1).
# TYPE skerry_closed_nodes_synced gauge
skerry_closed_nodes_synced{label="skerry.dev/site"} 1
# HELP skerry_closed_service_endpoints [ALPHA] Endpoints of closed Services, in all slices: those this node uses (state=kept) and those it does not (state=dropped).
# TYPE skerry_closed_service_endpoints gauge
skerry_closed_service_endpoints{state="dropped"} 3
skerry_closed_service_endpoints{state="kept"} 4
# HELP skerry_closed_services [ALPHA] Closed Services.
# TYPE skerry_closed_services gauge
skerry_closed_services 2
# HELP skerry_closed_services_unreadable [ALPHA] Services whose annotation cannot be read, and which are closed to every endpoint on a node.
# TYPE skerry_closed_services_unreadable gauge
skerry_closed_services_unreadable 1
`))
		if err != nil {
			t.Error(err)
		}
	})
}
