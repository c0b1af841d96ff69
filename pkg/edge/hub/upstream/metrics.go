package upstream

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests       *prometheus.CounterVec
	sent, received prometheus.Counter
}

func (m *metrics) register(r prometheus.Registerer, u *Upstream) error {
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "skerry_hub_upstream_requests_total",
		Help: "Requests to the API server, by the code of the answer, or \"error\" without one.",
	}, []string{"code"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "skerry_hub_upstream_bytes_total",
		Help: "Bytes on connections to the API server, TLS included, by direction (sent, received).",
	}, []string{"direction"})
	m.sent, m.received = bytes.WithLabelValues("sent"), bytes.WithLabelValues("received")
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{
		m.requests, bytes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "skerry_hub_online",
			Help: "Whether the API server can be reached: 1 or 0.",
		}, func() float64 {
			if u.Online() {
				return 1
			}
			return 0
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "skerry_hub_outage_seconds_total",
			Help: "Seconds without the API server since the agent started.",
		}, u.link.outageSeconds),
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) answered(code int) { m.requests.WithLabelValues(strconv.Itoa(code)).Inc() }
func (m *metrics) failed()           { m.requests.WithLabelValues("error").Inc() }
