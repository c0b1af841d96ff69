package closed

import (
	"sync/atomic"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// collector reads the state at scrape time, so it cannot drift from it.
type collector struct {
	metrics.BaseStableCollector

	provider atomic.Pointer[Provider]

	services, unreadable, endpoints, nodes, synced *metrics.Desc
}

var _ metrics.StableCollector = &collector{}

func newMetrics() *collector {
	gauge := func(name, help string, labels ...string) *metrics.Desc {
		return metrics.NewDesc(name, help, labels, nil, metrics.ALPHA, "")
	}
	return &collector{
		services:   gauge("skerry_closed_services", "Closed Services."),
		unreadable: gauge("skerry_closed_services_unreadable", "Services whose annotation cannot be read, and which are closed to every endpoint on a node."),
		endpoints:  gauge("skerry_closed_service_endpoints", "Endpoints of closed Services, in all slices: those this node uses (state=kept) and those it does not (state=dropped).", "state"),
		nodes:      gauge("skerry_closed_nodes", "Nodes that share this node's value of a label that closed Services name.", "label"),
		synced:     gauge("skerry_closed_nodes_synced", "Whether the nodes that share a label are known (1).", "label"),
	}
}

func (m *collector) register() { legacyregistry.CustomMustRegister(m) }

// DescribeWithStability implements metrics.StableCollector.
func (m *collector) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{m.services, m.unreadable, m.endpoints, m.nodes, m.synced} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (m *collector) CollectWithStability(ch chan<- metrics.Metric) {
	p := m.provider.Load()
	if p == nil {
		return
	}
	gauge := func(d *metrics.Desc, value int, labels ...string) {
		ch <- metrics.NewLazyConstMetric(d, metrics.GaugeValue, float64(value), labels...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	unreadable, kept, all := 0, 0, 0
	for name, rule := range p.rules {
		if rule.Unreadable != nil {
			unreadable++
		}
		for _, s := range p.slices[name] {
			kept += len(s.has.Endpoints)
			all += len(s.is.Endpoints) + s.packed
		}
	}
	gauge(m.services, len(p.rules))
	gauge(m.unreadable, unreadable)
	gauge(m.endpoints, kept, "kept")
	gauge(m.endpoints, all-kept, "dropped")
	for key, s := range p.peers {
		gauge(m.nodes, len(s.names), key)
		synced := 0
		if s.synced {
			synced = 1
		}
		gauge(m.synced, synced, key)
	}
}
