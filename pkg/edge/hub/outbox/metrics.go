package outbox

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Why an entry or a write was dropped.
const (
	dropUID      = "uid"       // the object in the cloud is another one
	dropGone     = "gone"      // there is none, or not on this node
	dropTerminal = "terminal"  // it is Succeeded or Failed there
	dropInvalid  = "invalid"   // the API server will never take it
	dropDenied   = "forbidden" // it was forbidden for a long time
	dropFull     = "full"      // the queue of events is full
	dropExpired  = "expired"   // an old event, of too many
	dropDamaged  = "damaged"   // the entry cannot be read
	dropShutdown = "shutdown"  // a failure because the node shuts down: never kept
	dropRejected = "rejected"  // a failure by the kubelet's admission: never kept
)

// What came of a replayed entry.
const (
	resultSent     = "sent"
	resultSame     = "unchanged"
	resultDropped  = "dropped"
	resultDeferred = "deferred"
)

type metrics struct {
	replayed *prometheus.CounterVec
	dropped  *prometheus.CounterVec
}

func newMetrics(b *Outbox, r prometheus.Registerer) metrics {
	m := metrics{
		replayed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_hub_outbox_replayed_total",
			Help: "Unsent writes that were replayed, by what came of it.",
		}, []string{"result"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_hub_outbox_dropped_total",
			Help: "Writes that were acknowledged and will not reach the cloud, by reason.",
		}, []string{"reason"}),
	}
	for _, result := range []string{resultSent, resultSame, resultDropped, resultDeferred} {
		m.replayed.WithLabelValues(result)
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.replayed, m.dropped,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skerry_hub_outbox_entries",
			Help: "Writes that the cloud does not know yet.",
		}, func() float64 { n, _ := b.Pending(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skerry_hub_outbox_oldest_seconds",
			Help: "Age of the oldest write that the cloud does not know yet; 0 if there is none.",
		}, func() float64 {
			_, oldest := b.Pending()
			if oldest.IsZero() {
				return 0
			}
			return max(0, b.o.Now().Sub(oldest).Seconds())
		}))
	return m
}
