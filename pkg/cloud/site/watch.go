package site

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// brain is the tracker, shared by those who feed it and those who ask it.
type brain struct {
	now    func() time.Time
	synced chan struct{} // closed when the tracker knows all that there is

	mu      sync.Mutex
	tracker *verdict.Tracker
	// results are the statuses of Sites that have to be written.
	results map[string]verdict.Result
	// tainted are the Nodes that have a taint of ours.
	tainted map[string]bool
	// wroteNode and wroteSite are the resourceVersions of our last writes that the
	// watches have not come to yet: what is older says nothing new.
	wroteNode, wroteSite map[string]string
	// listed is the version of the last list of reports that was read past the
	// watch: what the watch tells of before it is no news. While such a list is on
	// its way, meanwhile has the versions that the watch told.
	listed    string
	meanwhile map[string]string
}

func (b *brain) do(f func(t *verdict.Tracker, now time.Time)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.tracker, b.now())
}

// passed says whether a watch has come to what we wrote ourselves.
func passed(wrote map[string]string, o client.Object) bool {
	own, ok := wrote[o.GetName()]
	if !ok {
		return true
	}
	if older(o.GetResourceVersion(), own) {
		return false
	}
	delete(wrote, o.GetName())
	return true
}

func (b *brain) setNode(node *corev1.Node) {
	b.do(func(t *verdict.Tracker, now time.Time) {
		if !passed(b.wroteNode, node) {
			return
		}
		t.SetNode(now, factsOf(node))
		if _, ok := node.Annotations[OutOfServiceAnnotation]; ok {
			b.tainted[node.Name] = true
		} else {
			delete(b.tainted, node.Name)
		}
	})
}

func (b *brain) setSite(site *v1alpha1.Site) {
	b.do(func(t *verdict.Tracker, now time.Time) {
		if passed(b.wroteSite, site) {
			t.SetSite(now, site)
		}
	})
}

func (b *brain) setReport(report *v1alpha1.NodeReport, initial bool) {
	b.do(func(t *verdict.Tracker, now time.Time) {
		if b.tells(report) {
			t.SetReport(now, report, initial)
		}
	})
}

// deleteReport is told the report as it was last known. missed: the watch missed
// the deletion itself, so nothing says when it was.
func (b *brain) deleteReport(report *v1alpha1.NodeReport, missed bool) {
	b.do(func(t *verdict.Tracker, now time.Time) {
		if missed || b.tells(report) {
			t.DeleteReport(now, report.Name)
		}
	})
}

// tells says whether what the watch tells of a report is newer than what was read
// past it.
func (b *brain) tells(report *v1alpha1.NodeReport) bool {
	if older(report.ResourceVersion, b.listed) {
		return false
	}
	if b.meanwhile != nil {
		b.meanwhile[report.Name] = report.ResourceVersion
	}
	return true
}

// watcher feeds the brain. It runs in each replica.
type watcher struct {
	cache cache.Cache
	brain *brain
	log   logr.Logger
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*watcher) NeedLeaderElection() bool { return false }

// Start watches until the context ends. The API server may be away, and our types
// may be new to it: it is tried until it works.
func (w *watcher) Start(ctx context.Context) error {
	b := w.brain
	// Leases first, so that a Node that appears with its lease has one.
	watches := []struct {
		object client.Object
		on     toolscache.ResourceEventHandlerDetailedFuncs
	}{
		{&coordinationv1.Lease{}, on(
			func(l *coordinationv1.Lease, initial bool) {
				b.do(func(t *verdict.Tracker, now time.Time) { t.SetLease(now, l.Name, renewed(l).Time, initial) })
			},
			func(l *coordinationv1.Lease, _ bool) {
				b.do(func(t *verdict.Tracker, now time.Time) { t.DeleteLease(now, l.Name) })
			})},
		{&corev1.Node{}, on(
			func(n *corev1.Node, _ bool) { b.setNode(n) },
			func(n *corev1.Node, _ bool) {
				b.do(func(t *verdict.Tracker, now time.Time) {
					t.DeleteNode(now, n.Name)
					delete(b.tainted, n.Name)
					delete(b.wroteNode, n.Name)
				})
			})},
		{&v1alpha1.Site{}, on(
			func(s *v1alpha1.Site, _ bool) { b.setSite(s) },
			func(s *v1alpha1.Site, _ bool) {
				b.do(func(t *verdict.Tracker, now time.Time) {
					t.DeleteSite(now, s.Name)
					delete(b.wroteSite, s.Name)
				})
			})},
		{&v1alpha1.NodeReport{}, on(
			b.setReport, b.deleteReport)},
	}
	var all []toolscache.InformerSynced
	for _, watch := range watches {
		synced, err := w.watch(ctx, watch.object, watch.on)
		if err != nil {
			return nil // the context ended
		}
		all = append(all, synced)
	}
	if toolscache.WaitForCacheSync(ctx.Done(), all...) {
		close(b.synced)
	}
	<-ctx.Done()
	return nil
}

func (w *watcher) watch(ctx context.Context, object client.Object, on toolscache.ResourceEventHandlerDetailedFuncs) (toolscache.InformerSynced, error) {
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		informer, err := w.cache.GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err == nil {
			registration, err := informer.AddEventHandler(on)
			if err != nil {
				return nil, fmt.Errorf("watching %T: %w", object, err)
			}
			return registration.HasSynced, nil
		}
		w.log.Info("cannot watch yet", "type", fmt.Sprintf("%T", object), "error", err.Error(), "again", wait.String())
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// on makes a handler out of two functions. missed: the watch did not see the
// deletion, and the object is the last that was known.
func on[T client.Object](set func(object T, initial bool), gone func(object T, missed bool)) toolscache.ResourceEventHandlerDetailedFuncs {
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(object any, initial bool) {
			if o, ok := object.(T); ok {
				set(o, initial)
			}
		},
		UpdateFunc: func(_, object any) {
			if o, ok := object.(T); ok {
				set(o, false)
			}
		},
		DeleteFunc: func(object any) {
			last, missed := object.(toolscache.DeletedFinalStateUnknown)
			if missed {
				object = last.Obj
			}
			if o, ok := object.(T); ok {
				gone(o, missed)
			}
		},
	}
}
