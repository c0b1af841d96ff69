package observer

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/mesh"
	"skerry.dev/skerry/pkg/edge/observer/report"
)

// counts are the detector's figures, for those who do not own it.
type counts struct {
	detect.Counts
	states [detect.Unreachable + 1]int
	slow   int
	loss   float64
}

// metrics are what the observer tells Prometheus.
type metrics struct {
	reports            *prometheus.CounterVec
	malformed, overrun prometheus.Counter
}

func newMetrics(ob *Observer, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_observer_reports_total", Help: "Writes of this node's NodeReport, by what was done and whether it succeeded.",
		}, []string{"action", "result"}),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "skerry_observer_malformed_total", Help: "Messages of neighbours that could not be read.",
		}),
		overrun: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "skerry_observer_overrun_total", Help: "Messages of neighbours that came faster than they were taken.",
		}),
	}
	for _, c := range []prometheus.Collector{m.reports, m.malformed, m.overrun, collector{ob}} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of the observer: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) wrote(kind report.ActionKind, err error) {
	action, result := "put", "ok"
	if kind == report.Delete {
		action = "delete"
	}
	if err != nil {
		result = "error"
	}
	m.reports.WithLabelValues(action, result).Inc()
}

// collector reads what is counted elsewhere.
type collector struct{ ob *Observer }

var (
	descMembers    = prometheus.NewDesc("skerry_observer_members", "Other nodes of the site, by what this node knows about them.", []string{"state"}, nil)
	descProbes     = prometheus.NewDesc("skerry_observer_probes_total", "Probes of neighbours that have ended.", []string{"result"}, nil)
	descMessages   = prometheus.NewDesc("skerry_observer_messages_total", "Messages to and from neighbours.", []string{"direction"}, nil)
	descDropped    = prometheus.NewDesc("skerry_observer_messages_dropped_total", "Messages that there was no way for, or too many of.", nil, nil)
	descBytes      = prometheus.NewDesc("skerry_observer_bytes_total", "Bytes of UDP to and from neighbours, without the headers of IP and UDP.", []string{"direction"}, nil)
	descPackets    = prometheus.NewDesc("skerry_observer_packets_total", "Packets to and from neighbours.", []string{"direction"}, nil)
	descHandshakes = prometheus.NewDesc("skerry_observer_handshakes_total", "Connections with neighbours: accepted and dialled, failed, refused for the certificate, limited for their number.", []string{"result"}, nil)
	descLinks      = prometheus.NewDesc("skerry_observer_connections", "Open connections with neighbours.", nil, nil)
	descSlow       = prometheus.NewDesc("skerry_observer_self_doubt", "How much this node doubts itself, 0 to 3: its patience is longer by so many times.", nil, nil)
	descLoss       = prometheus.NewDesc("skerry_observer_loss_ratio", "Share of round trips to neighbours that were lost lately.", nil, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descMembers, descProbes, descMessages, descDropped, descBytes, descPackets, descHandshakes, descLinks, descSlow, descLoss} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	n := c.ob.counts.Load()
	for state, count := range n.states {
		gauge(descMembers, float64(count), detect.State(state).String())
	}
	counter(descProbes, n.Probes-n.Failed, "answered")
	counter(descProbes, n.Failed, "failed")
	gauge(descSlow, float64(n.slow))
	gauge(descLoss, n.loss)
	var stats mesh.Stats
	links := 0
	if m := c.ob.mesh.Load(); m != nil {
		stats, links = m.Stats(), m.Connections()
	}
	counter(descMessages, stats.Sent, "sent")
	counter(descMessages, stats.Received, "received")
	counter(descDropped, stats.Dropped)
	counter(descBytes, stats.BytesOut, "sent")
	counter(descBytes, stats.BytesIn, "received")
	counter(descPackets, stats.PacketsOut, "sent")
	counter(descPackets, stats.PacketsIn, "received")
	counter(descHandshakes, stats.Accepted, "accepted")
	counter(descHandshakes, stats.Dialled, "dialled")
	counter(descHandshakes, stats.Failed, "failed")
	counter(descHandshakes, stats.Refused, "refused")
	counter(descHandshakes, stats.Limited, "limited")
	gauge(descLinks, float64(links))
}
