package hold

import (
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
)

// transition says where a node went: into a hold, or out of it and how.
type transition string

const (
	toHeld      transition = "Held"
	toHeartbeat transition = "HeartbeatBack"
	toDead      transition = "Dead"
	toNoSite    transition = "NoSite"
	toDeleted   transition = "Deleted"
)

// holdMetrics counts per site, never per node: a site is as fine as the number
// of series may grow. The gauge is read from the state at scrape time, so it
// cannot drift from it, and a site without held nodes has no series.
type holdMetrics struct {
	metrics.BaseStableCollector

	hold        *Hold
	held        *metrics.Desc
	transitions *metrics.CounterVec
}

var _ metrics.StableCollector = &holdMetrics{}

func newHoldMetrics(h *Hold) *holdMetrics {
	return &holdMetrics{
		hold: h,
		held: metrics.NewDesc("skerry_hold_nodes",
			"Nodes whose heartbeat is lost and whose pods are kept, by site and by why they are held.",
			[]string{"site", "reason"}, nil, metrics.ALPHA, ""),
		transitions: metrics.NewCounterVec(&metrics.CounterOpts{
			Name:           "skerry_hold_transitions_total",
			Help:           "Nodes that came to be held (to=Held) and holds that ended, by site and by how they ended.",
			StabilityLevel: metrics.ALPHA,
		}, []string{"site", "to"}),
	}
}

// register adds the metrics to a registry.
func (m *holdMetrics) register(custom func(...metrics.StableCollector), plain func(...metrics.Registerable)) {
	custom(m)
	plain(m.transitions)
}

// DescribeWithStability implements metrics.StableCollector.
func (m *holdMetrics) DescribeWithStability(ch chan<- *metrics.Desc) { ch <- m.held }

// CollectWithStability implements metrics.StableCollector.
func (m *holdMetrics) CollectWithStability(ch chan<- metrics.Metric) {
	type series struct {
		site   string
		reason Reason
	}
	counts := map[series]int{}
	m.hold.mu.Lock()
	for _, n := range m.hold.nodes {
		if n.held {
			counts[series{n.site, n.reason}]++
		}
	}
	m.hold.mu.Unlock()
	for s, n := range counts {
		ch <- metrics.NewLazyConstMetric(m.held, metrics.GaugeValue, float64(n), s.site, string(s.reason))
	}
}

func (m *holdMetrics) transition(site string, to transition) {
	m.transitions.WithLabelValues(site, string(to)).Inc()
}

// Install sets the hook of this process and registers its metrics beside those
// of the component. It is called once, before the controllers start.
func Install() {
	h := New()
	h.metrics.register(legacyregistry.CustomMustRegister, legacyregistry.MustRegister)
	nodelifecycle.SkerryHold = h
}
