package site

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"

	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// queue is that of a controller, once it has started.
type queue struct {
	ready chan struct{}
	add   func(name string, priority int)
}

func (q *queue) set(_ context.Context, w workqueue.TypedRateLimitingInterface[string]) error {
	q.add = func(name string, _ int) { w.Add(name) }
	if p, ok := w.(priorityqueue.PriorityQueue[string]); ok {
		q.add = func(name string, priority int) { p.AddWithOpts(priorityqueue.AddOpts{Priority: &priority}, name) }
	}
	close(q.ready)
	return nil
}

// Priorities of writes when there are many.
const (
	explain = iota // why a node is held
	back           // a node is heard again
	urgent         // a node is dead, or somebody is asked whether it is
)

// loop evaluates the sites in which something changed. It runs in each replica,
// because evaluating remembers, too (since when a site is heard again, since when
// a kubelet is down); what follows is written in the leader only.
type loop struct {
	brain        *brain
	metrics      *metrics
	nodes, sites queue
	leading      atomic.Bool
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*loop) NeedLeaderElection() bool { return false }

// Start evaluates until the context ends.
func (l *loop) Start(ctx context.Context) error {
	select {
	case <-l.brain.synced:
	case <-ctx.Done():
		return nil
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		l.pass()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// lead runs in the leader, when the controllers have started.
func (l *loop) lead(ctx context.Context) error {
	for _, ready := range []chan struct{}{l.nodes.ready, l.sites.ready} {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
	}
	// What was concluded while another led may not have been written by it.
	l.brain.do(func(t *verdict.Tracker, _ time.Time) { t.Dirty() })
	l.leading.Store(true)
	l.metrics.leader.Set(1)
	defer l.metrics.leader.Set(0)
	<-ctx.Done()
	l.leading.Store(false)
	return nil
}

// pass evaluates what is due. The lock is given up after each site: the first
// pass of a large cluster must not keep heartbeats waiting.
func (l *loop) pass() {
	b, leading := l.brain, l.leading.Load()
	var due []string
	b.do(func(t *verdict.Tracker, now time.Time) {
		due = t.Due(now)
		if !leading {
			return
		}
		for _, name := range t.Strays() {
			l.nodes.add(name, back)
		}
		for name := range b.tainted {
			if !t.Failover(name) {
				l.nodes.add(name, back)
			}
		}
	})
	for _, name := range due {
		b.do(func(t *verdict.Tracker, now time.Time) {
			start := time.Now()
			r := t.Evaluate(now, name)
			l.metrics.evaluated.Observe(time.Since(start).Seconds())
			if leading {
				l.write(t, r)
			}
		})
	}
}

func (l *loop) write(t *verdict.Tracker, r verdict.Result) {
	for _, c := range r.Nodes {
		l.nodes.add(c.Node, priority(c.To))
	}
	for _, name := range r.Failover {
		if !l.brain.tainted[name] {
			l.nodes.add(name, urgent)
		}
	}
	l.metrics.site(r)
	if !r.Valid || !r.Changed && r.Status.Nodes > 0 {
		delete(l.brain.results, r.Site)
		return
	}
	l.brain.results[r.Site] = r
	p := explain
	if r.Status.Connected > 0 && len(r.Status.Doubts) > 0 || !r.Exists {
		p = urgent
	}
	l.sites.add(r.Site, p)
}

func priority(c verdict.Condition) int {
	switch c.Status {
	case corev1.ConditionFalse:
		return urgent
	case corev1.ConditionTrue, "":
		return back
	}
	return explain
}

// sweeper deletes reports that nobody renews, and those of nodes that are gone.
type sweeper struct {
	brain  *brain
	client client.Client
	log    logr.Logger
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*sweeper) NeedLeaderElection() bool { return true }

// Start sweeps until the context ends.
func (s *sweeper) Start(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.sweep(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *sweeper) sweep(ctx context.Context) {
	var names []string
	s.brain.do(func(t *verdict.Tracker, now time.Time) { names = t.Silent(now, reportKept) })
	for _, name := range names {
		report := &v1alpha1.NodeReport{}
		if err := s.client.Get(ctx, client.ObjectKey{Name: name}, report); err != nil {
			continue // gone meanwhile
		}
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		// Renewed meanwhile: it stays.
		err := s.client.Delete(ctx, report, client.Preconditions{UID: &report.UID, ResourceVersion: &report.ResourceVersion})
		cancel()
		if client.IgnoreNotFound(err) != nil {
			s.log.Info("cannot delete a report that nobody renews", "report", name, "error", err.Error())
		}
	}
}

// sorted is for what is done in an order that does not matter, but shall be the
// same each time.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
