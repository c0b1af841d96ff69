package serve

import (
	"bufio"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// recorder remembers the status code of an answer, and keeps what the writer
// beneath can do. A client that takes nothing for a while is given up: over
// HTTP/2 it would hold its stream, and what is to be written to it, for as long as
// it answers pings.
type recorder struct {
	http.ResponseWriter
	code     int
	hijacked bool
	stall    time.Duration // how long one write may take
	timer    *time.Timer   // of the write that is under way
}

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 || w.code < 200 {
		w.code = code
	}
	w.begin()
	defer w.timer.Stop()
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	w.begin()
	defer w.timer.Stop()
	return w.ResponseWriter.Write(p)
}

func (w *recorder) Flush() { _ = w.FlushError() }

// FlushError is Flush that tells when the client is gone.
func (w *recorder) FlushError() error {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	w.begin()
	defer w.timer.Stop()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// begin gives the client time for the next bytes. A deadline of the connection's
// own is set only when it has passed: an idle watch has none.
func (w *recorder) begin() {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.stall, func() {
			_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(-time.Second))
		})
		return
	}
	w.timer.Reset(w.stall)
}

func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked, w.code = true, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) wrote() bool { return w.code != 0 || w.hijacked }

// maxResources bounds the label resource: a client can ask for any name.
const maxResources = 200

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	refused  *prometheus.CounterVec

	mu        sync.Mutex
	resources map[string]bool
}

func newMetrics(r prometheus.Registerer, l *limiter) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_hub_requests_total",
			Help: "Requests that the hub answered, by who asked, what for, and where the answer came from.",
		}, []string{"client", "verb", "resource", "code", "source"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "skerry_hub_request_duration_seconds",
			Help:    "Time to answer a request that ends by itself.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2, 5, 10, 30},
		}, []string{"verb", "source"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_hub_refused_total",
			Help: "Requests that the hub refused, by reason.",
		}, []string{"reason"}),
		resources: map[string]bool{},
	}
	inFlight := func(kind int, name, help string) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return l.inFlight(kind) })
	}
	r.MustRegister(m.requests, m.duration, m.refused,
		inFlight(0, "skerry_hub_requests_in_flight", "Requests in flight that end by themselves."),
		inFlight(1, "skerry_hub_streams_in_flight", "Watches, upgraded connections and followed logs."))
	return m
}

func (m *metrics) done(x *exchange, took time.Duration) {
	client, verb, resource := "other", x.r.Method, ""
	switch {
	case x.caller.Node:
		client = x.caller.ID()
	case x.req != nil && x.caller.Verified:
		if _, _, ok := x.Keep(x.caller.User.Name, x.req.Group, x.req.Resource); ok {
			client = x.caller.User.Name
		}
	}
	switch verb {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		verb = "other"
	}
	code := x.w.code
	if code == 0 {
		code = http.StatusOK
	}
	if x.req != nil {
		if x.req.IsResource {
			verb, resource = x.req.Verb, m.resource(x.req.Group, x.req.Resource, code)
		} else {
			resource = "documents"
		}
	}
	m.requests.WithLabelValues(client, verb, resource, strconv.Itoa(code), x.source).Inc()
	if x.req == nil || !longRunning(x.req, x.r) {
		m.duration.WithLabelValues(verb, x.source).Observe(took.Seconds())
	}
}

func (m *metrics) resource(group, resource string, code int) string {
	name := resource
	if group != "" {
		name += "." + group
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resources[name] {
		return name
	}
	if code >= 400 || len(m.resources) >= maxResources {
		return "other"
	}
	m.resources[name] = true
	return name
}

// audit writes a line for each refused request, at most so many a second.
type audit struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	window  time.Time
	lines   int
	skipped int
}

const auditLinesPerSecond = 20

func newAudit(l *slog.Logger, now func() time.Time) *audit { return &audit{logger: l, now: now} }

func (a *audit) refused(x *exchange, err error, why string) {
	a.mu.Lock()
	now := a.now().Truncate(time.Second)
	if !now.Equal(a.window) {
		a.window, a.lines = now, 0
	}
	a.lines++
	if a.lines > auditLinesPerSecond {
		a.skipped++
		a.mu.Unlock()
		return
	}
	skipped := a.skipped
	a.skipped = 0
	a.mu.Unlock()

	who := x.caller.ID()
	if why == "credential" || why == "path" || why == "header" {
		who = "unknown"
	}
	// The query can hold anything that a client wrote, and the credential is
	// never looked at here.
	a.logger.Warn("refused a request", "client", clip(who), "from", x.r.RemoteAddr, "pod", x.caller.PodUID,
		"method", clip(x.r.Method), "path", clip(x.r.URL.Path), "agent", clip(x.r.UserAgent()),
		"code", statusCode(err), "why", why, "reason", clip(err.Error()), "skipped", skipped)
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

func statusCode(err error) int {
	if status, ok := err.(apierrors.APIStatus); ok {
		return int(status.Status().Code)
	}
	return http.StatusInternalServerError
}
