package views

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/pkg/agentapi"
)

type metrics struct {
	events, unwritten, refused prometheus.Counter
	relists                    *prometheus.CounterVec
	terminations               *prometheus.CounterVec
	watchers                   *prometheus.GaugeVec
}

func newMetrics(vs *Views, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		events:    prometheus.NewCounter(prometheus.CounterOpts{Name: "skerry_hub_view_events_total", Help: "Events handed to the watchers of shared views."}),
		unwritten: prometheus.NewCounter(prometheus.CounterOpts{Name: "skerry_hub_view_unwritten_total", Help: "Batches of changes from the cloud that the store refused."}),
		refused:   prometheus.NewCounter(prometheus.CounterOpts{Name: "skerry_hub_view_refused_total", Help: "Views refused because the caller has too many."}),
		relists: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skerry_hub_view_relists_total", Help: "Times that a known view had to be listed again."},
			[]string{"resource"}),
		terminations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skerry_hub_view_watcher_terminations_total", Help: "Watches ended by the hub before their time, by reason."},
			[]string{"reason"}),
		watchers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "skerry_hub_view_watchers", Help: "Open watches."}, []string{"resource"}),
	}
	if r == nil {
		return m, nil
	}
	var all []error
	for _, c := range []prometheus.Collector{m.events, m.unwritten, m.refused, m.relists, m.terminations, m.watchers, tableCollector{vs}} {
		all = append(all, r.Register(c))
	}
	if err := errors.Join(all...); err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	return m, nil
}

// tableCollector reads the table when it is asked.
type tableCollector struct{ vs *Views }

var (
	descLive  = prometheus.NewDesc("skerry_hub_view_live", "Views that follow the cloud now.", []string{"resource"}, nil)
	descKnown = prometheus.NewDesc("skerry_hub_views", "Views in use.", []string{"resource"}, nil)
	descAge   = prometheus.NewDesc("skerry_hub_view_age_seconds", "Time since the stalest view in use of a resource was up to date.", []string{"resource"}, nil)
	descBytes = prometheus.NewDesc("skerry_hub_view_window_bytes", "Memory of events kept for watches that resume.", nil, nil)
)

func (t tableCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descLive
	ch <- descKnown
	ch <- descAge
	ch <- descBytes
}

func (t tableCollector) Collect(ch chan<- prometheus.Metric) {
	type sum struct {
		live, known int
		age         time.Duration
	}
	sums := map[string]*sum{}
	now := time.Now()
	for _, v := range t.vs.all() {
		s := sums[v.resource()]
		if s == nil {
			s = &sum{}
			sums[v.resource()] = s
		}
		v.mu.Lock()
		s.known++
		if v.live {
			s.live++
		} else if !v.synced.IsZero() {
			s.age = max(s.age, now.Sub(v.synced))
		}
		v.mu.Unlock()
	}
	for resource, s := range sums {
		ch <- prometheus.MustNewConstMetric(descLive, prometheus.GaugeValue, float64(s.live), resource)
		ch <- prometheus.MustNewConstMetric(descKnown, prometheus.GaugeValue, float64(s.known), resource)
		ch <- prometheus.MustNewConstMetric(descAge, prometheus.GaugeValue, s.age.Seconds(), resource)
	}
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.GaugeValue, float64(t.vs.windowBytes.Load()))
}

// resource is "pods" or "endpointslices.discovery.k8s.io".
func (v *view) resource() string {
	if v.q.Group == "" {
		return v.q.Resource
	}
	return v.q.Resource + "." + v.q.Group
}

// Status lists the stored views, and those in use, for `skerry status`.
func (vs *Views) Status() []agentapi.ViewStatus {
	stored, err := vs.st.Views("", "")
	if err != nil {
		vs.log.Error("reading the views", "error", err)
		return nil
	}
	out := make([]agentapi.ViewStatus, 0, len(stored))
	for _, s := range stored {
		if isStaging(s.Query) || !s.Complete {
			continue
		}
		v := &view{q: s.Query}
		one := agentapi.ViewStatus{Resource: v.resource(), Namespace: s.Namespace, Selector: selector(s.LabelSelector, s.FieldSelector), Synced: s.Synced}
		if n, _, err := vs.st.Size(s.Query); err == nil {
			one.Objects = n
		}
		if used := vs.lookup(s.Query); used != nil {
			used.mu.Lock()
			one.Live = used.live
			if used.live {
				one.Synced = time.Now()
			} else if used.synced.After(one.Synced) {
				one.Synced = used.synced
			}
			used.mu.Unlock()
		}
		out = append(out, one)
	}
	return out
}

// Problems says what is wrong with the views, for `skerry status`.
func (vs *Views) Problems() []string {
	var out []string
	for _, v := range vs.all() {
		v.mu.Lock()
		switch {
		case v.unwritten.lost:
			out = append(out, fmt.Sprintf("%s cannot be listed: %v", v.q, v.unwritten.err))
		case v.unwritten.degraded():
			out = append(out, fmt.Sprintf("%s: %d changes are in memory only: %v", v.q, len(v.unwritten.objects), v.unwritten.err))
		}
		v.mu.Unlock()
	}
	return out
}

func selector(label, field string) string {
	if label != "" && field != "" {
		return label + " " + field
	}
	return label + field
}
