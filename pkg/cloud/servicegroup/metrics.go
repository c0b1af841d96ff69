package servicegroup

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// measures of the controllers.
type measures struct {
	writes *prometheus.CounterVec
	sites  *prometheus.GaugeVec
}

// newMeasures makes the measures, and registers them if there is a registry.
func newMeasures(registry prometheus.Registerer) (*measures, error) {
	m := &measures{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_grid_writes_total",
			Help: "Children that the controllers of grids applied, by kind of child and result: applied, refused (the API server will not have it) or failed (it is tried again).",
		}, []string{"kind", "result"}),
		sites: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "skerry_grid_sites",
			Help: "Sites of each grid by phase.",
		}, []string{"kind", "namespace", "name", "phase"}),
	}
	if registry == nil {
		return m, nil
	}
	return m, errors.Join(registry.Register(m.writes), registry.Register(m.sites))
}

// wroteChild counts a write.
func (m *measures) wroteChild(kind string, err error) {
	result := "applied"
	switch {
	case err != nil && final(err):
		result = "refused"
	case err != nil:
		result = "failed"
	}
	m.writes.WithLabelValues(kind, result).Inc()
}

// count notes how many sites of a grid are in each phase.
func (m *measures) count(kind, namespace, name string, sites []gridv1.SiteStatus) {
	phases := map[gridv1.Phase]float64{}
	for _, s := range sites {
		phases[s.Phase]++
	}
	for _, phase := range []gridv1.Phase{
		gridv1.PhaseReady, gridv1.PhaseProgressing, gridv1.PhaseNotReady, gridv1.PhaseFailed, gridv1.PhasePending, gridv1.PhaseOffline, gridv1.PhaseLeaving, gridv1.PhaseRetained,
	} {
		m.sites.WithLabelValues(kind, namespace, name, string(phase)).Set(phases[phase])
	}
}

// forget drops what is known about a grid that is gone.
func (m *measures) forget(kind, namespace, name string) {
	m.sites.DeletePartialMatch(prometheus.Labels{"kind": kind, "namespace": namespace, "name": name})
}
