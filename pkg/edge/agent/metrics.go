package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/pkg/edge/store"
)

// registerMetrics tells of the store, the certificate and the problems, which
// have no metrics of their own.
func (a *Agent) registerMetrics() {
	gauge := func(name, help string, value func(store.Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(a.store.Stats()) })
	}
	a.registry.MustRegister(
		gauge("skerry_hub_store_file_bytes", "Size of the store's file.", func(s store.Stats) float64 { return float64(s.FileBytes) }),
		gauge("skerry_hub_store_live_bytes", "Bytes of the store that hold something.", func(s store.Stats) float64 { return float64(s.LiveBytes) }),
		gauge("skerry_hub_store_pending_bytes", "Bytes that are applied and not yet in the file.", func(s store.Stats) float64 { return float64(s.PendingBytes) }),
		gauge("skerry_hub_store_max_bytes", "Size at which nothing more is kept.", func(store.Stats) float64 { return float64(a.maxBytes) }),
		gauge("skerry_hub_store_objects", "Objects in the store.", func(s store.Stats) float64 { return float64(s.Objects) }),
		gauge("skerry_hub_store_views", "Views in the store.", func(s store.Stats) float64 { return float64(s.Views) }),
		gauge("skerry_hub_store_quarantined", "Damaged records that were set aside.", func(s store.Stats) float64 { return float64(s.Quarantined) }),
		gauge("skerry_hub_store_full", "1 while nothing more can be kept.", func(s store.Stats) float64 {
			if s.Full {
				return 1
			}
			return 0
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "skerry_hub_store_written_bytes_total", Help: "Bytes written to the disk for the store.",
		}, func() float64 { return float64(a.store.Stats().WrittenBytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skerry_hub_certificate_expiry_timestamp_seconds", Help: "When the node's client certificate runs out; 0 if there is none.",
		}, func() float64 {
			if expires := a.certificates.Expires(); !expires.IsZero() {
				return float64(expires.Unix())
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skerry_hub_problems", Help: "What is wrong right now; `skerry status` says what.",
		}, func() float64 { return float64(len(a.allProblems())) }),
	)
}
