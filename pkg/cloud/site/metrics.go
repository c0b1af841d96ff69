package site

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// metrics count per site where something is wrong, never per node.
type metrics struct {
	brain     *brain
	leader    prometheus.Gauge
	changes   *prometheus.CounterVec
	refuted   prometheus.Counter
	evaluated prometheus.Histogram
	nodes     *prometheus.Desc
	inSite    *prometheus.Desc
	doubts    *prometheus.Desc

	// sites has the last status of each; guarded by brain.mu.
	sites map[string]v1alpha1.SiteStatus
}

func newMetrics(b *brain, registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		brain: b, sites: map[string]v1alpha1.SiteStatus{},
		leader: prometheus.NewGauge(prometheus.GaugeOpts{Name: "skerry_verdict_leader",
			Help: "1 in the replica that decides."}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skerry_verdict_changes_total",
			Help: "Verdicts that were written into Nodes, by status and reason."}, []string{"status", "reason"}),
		refuted: prometheus.NewCounter(prometheus.CounterOpts{Name: "skerry_verdict_refuted_total",
			Help: "Verdicts of death that were not written, because the API server knew better than the watches."}),
		evaluated: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "skerry_verdict_evaluation_seconds",
			Help: "How long the verdicts of one site took to compute.", Buckets: prometheus.ExponentialBuckets(1e-6, 4, 10)}),
		nodes: prometheus.NewDesc("skerry_verdict_nodes",
			"Nodes of sites, by what is known about them: Connected, Held, Dead. Only the leader knows.", []string{"state"}, nil),
		inSite: prometheus.NewDesc("skerry_verdict_site_nodes",
			"Nodes that the cloud does not hear, of the sites that have such: Held, Dead, and Unknown, which are part of the held.", []string{"site", "state"}, nil),
		doubts: prometheus.NewDesc("skerry_verdict_doubts", "Nodes about which their neighbours are asked.", nil, nil),
	}
	for _, c := range []prometheus.Collector{m, m.leader, m.changes, m.refuted, m.evaluated} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of verdicts: %w", err)
		}
	}
	return m, nil
}

// site notes a site's status; the caller holds brain.mu.
func (m *metrics) site(r verdict.Result) {
	if r.Status.Nodes == 0 {
		delete(m.sites, r.Site)
		return
	}
	s := r.Status
	s.Conditions = nil
	m.sites[r.Site] = s
}

func (m *metrics) published(c verdict.Change) {
	status := string(c.To.Status)
	if status == "" {
		status = "None"
	}
	m.changes.WithLabelValues(status, c.To.Reason).Inc()
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.nodes
	ch <- m.inSite
	ch <- m.doubts
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int32, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	m.brain.mu.Lock()
	defer m.brain.mu.Unlock()
	var total v1alpha1.SiteStatus
	doubts := 0
	for _, name := range sorted(m.sites) {
		s := m.sites[name]
		total.Connected += s.Connected
		total.Held += s.Held
		total.Dead += s.Dead
		doubts += len(s.Doubts)
		for state, n := range map[string]int32{"Held": s.Held, "Dead": s.Dead, "Unknown": s.Unknown} {
			if n > 0 {
				gauge(m.inSite, n, name, state)
			}
		}
	}
	gauge(m.nodes, total.Connected, "Connected")
	gauge(m.nodes, total.Held, "Held")
	gauge(m.nodes, total.Dead, "Dead")
	gauge(m.doubts, int32(min(doubts, 1<<30)))
}
