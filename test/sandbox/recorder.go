package sandbox

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Counts are what the cloud did to pods of the recorded nodes.
type Counts struct {
	PodsDeleted      int // removed, or told to end
	PodsNotReady     int // condition Ready went to False
	EndpointsRemoved int // an address left a Service or turned not ready
	NoExecute        int // taints of this effect that were set
	NoSchedule       int
}

func (c Counts) String() string {
	return fmt.Sprintf("%d pods deleted, %d pods marked NotReady, %d endpoints removed, %d NoExecute taints, %d NoSchedule taints",
		c.PodsDeleted, c.PodsNotReady, c.EndpointsRemoved, c.NoExecute, c.NoSchedule)
}

// Recorder counts, from watches that began before the fault.
type Recorder struct {
	s     *Sandbox
	nodes []string

	mu     sync.Mutex
	counts Counts
	log    []string
	gone   map[string]bool // pods counted as deleted, by UID
	// tainted is when a node got its first NoExecute taint.
	tainted map[string]time.Time
}

// Record starts to watch what happens to the named machines and the pods on
// them. It returns when the watches run.
func (s *Sandbox) Record(nodes ...string) *Recorder {
	s.t.Helper()
	r := &Recorder{s: s, nodes: nodes, gone: map[string]bool{}, tainted: map[string]time.Time{}}
	factory := informers.NewSharedInformerFactory(s.Kube(), 0)
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		factory.Core().V1().Pods().Informer(): cache.ResourceEventHandlerFuncs{
			UpdateFunc: func(old, now any) { r.podChanged(old.(*corev1.Pod), now.(*corev1.Pod)) },
			DeleteFunc: func(old any) {
				if p, ok := last[*corev1.Pod](old); ok {
					r.podDeleted(p)
				}
			},
		},
		factory.Core().V1().Nodes().Informer(): cache.ResourceEventHandlerFuncs{
			UpdateFunc: func(old, now any) { r.nodeChanged(old.(*corev1.Node), now.(*corev1.Node)) },
		},
		factory.Discovery().V1().EndpointSlices().Informer(): cache.ResourceEventHandlerFuncs{
			UpdateFunc: func(old, now any) {
				r.endpointsChanged(old.(*discoveryv1.EndpointSlice), now.(*discoveryv1.EndpointSlice))
			},
			DeleteFunc: func(old any) {
				if e, ok := last[*discoveryv1.EndpointSlice](old); ok {
					r.endpointsChanged(e, &discoveryv1.EndpointSlice{})
				}
			},
		},
	} {
		_, err := informer.AddEventHandler(handler)
		s.must(err)
	}
	stop := make(chan struct{})
	s.t.Cleanup(func() {
		close(stop)
		factory.Shutdown()
	})
	factory.Start(stop)
	for kind, ok := range factory.WaitForCacheSync(s.t.Context().Done()) {
		if !ok {
			s.t.Fatalf("the watch of %v did not start", kind)
		}
	}
	return r
}

// last returns the last known state of a deleted object.
func last[T any](old any) (T, bool) {
	if unknown, ok := old.(cache.DeletedFinalStateUnknown); ok {
		old = unknown.Obj
	}
	t, ok := old.(T)
	return t, ok
}

func (r *Recorder) watches(node string) bool { return slices.Contains(r.nodes, node) }

// note writes down one thing that happened; the lock is held.
func (r *Recorder) note(count *int, format string, args ...any) {
	*count++
	r.log = append(r.log, fmt.Sprintf("%s %s", time.Now().UTC().Format("15:04:05.0"), fmt.Sprintf(format, args...)))
}

func (r *Recorder) podDeleted(p *corev1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watches(p.Spec.NodeName) && !r.gone[string(p.UID)] {
		r.gone[string(p.UID)] = true
		r.note(&r.counts.PodsDeleted, "pod %s/%s on %s deleted", p.Namespace, p.Name, p.Spec.NodeName)
	}
}

func (r *Recorder) podChanged(old, now *corev1.Pod) {
	if old.DeletionTimestamp == nil && now.DeletionTimestamp != nil {
		r.podDeleted(now)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.watches(now.Spec.NodeName) {
		return
	}
	before, after := podReady(old), podReady(now)
	if before == nil || before.Status != corev1.ConditionTrue || after == nil {
		return
	}
	// A change of the time without a change of the status is one that went
	// and came back between two events.
	if after.Status != corev1.ConditionTrue || !after.LastTransitionTime.Equal(&before.LastTransitionTime) {
		r.note(&r.counts.PodsNotReady, "pod %s/%s on %s marked NotReady", now.Namespace, now.Name, now.Spec.NodeName)
	}
}

func podReady(p *corev1.Pod) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func (r *Recorder) nodeChanged(old, now *corev1.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.watches(now.Name) {
		return
	}
	for _, taint := range now.Spec.Taints {
		had := slices.ContainsFunc(old.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&taint) })
		if had {
			continue
		}
		switch taint.Effect {
		case corev1.TaintEffectNoExecute:
			if r.tainted[now.Name].IsZero() {
				r.tainted[now.Name] = time.Now()
			}
			r.note(&r.counts.NoExecute, "taint %s set on %s", taint.ToString(), now.Name)
		case corev1.TaintEffectNoSchedule:
			r.note(&r.counts.NoSchedule, "taint %s set on %s", taint.ToString(), now.Name)
		}
	}
}

func (r *Recorder) endpointsChanged(old, now *discoveryv1.EndpointSlice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, address := range r.readyAddresses(old) {
		if !slices.Contains(r.readyAddresses(now), address) {
			r.note(&r.counts.EndpointsRemoved, "endpoint %s of %s removed", address, old.Labels[discoveryv1.LabelServiceName])
		}
	}
}

// readyAddresses lists the ready addresses on recorded nodes.
func (r *Recorder) readyAddresses(e *discoveryv1.EndpointSlice) []string {
	var all []string
	for _, ep := range e.Endpoints {
		if ep.NodeName != nil && r.watches(*ep.NodeName) && (ep.Conditions.Ready == nil || *ep.Conditions.Ready) {
			all = append(all, ep.Addresses...)
		}
	}
	return all
}

// Tainted is when a node got its first NoExecute taint since the recording
// began; zero: it has got none.
func (r *Recorder) Tainted(node string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tainted[node]
}

// Counts are those so far.
func (r *Recorder) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

// Log is what happened so far, a line each.
func (r *Recorder) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// MustBeHeld fails the test if anything but a NoSchedule taint was done to
// the nodes and their pods.
func (r *Recorder) MustBeHeld() {
	r.s.t.Helper()
	c := r.Counts()
	r.s.Step("counted on %s: %s", strings.Join(r.nodes, ", "), c)
	c.NoSchedule = 0
	if c != (Counts{}) {
		r.s.t.Fatalf("the nodes were not held:\n  %s", strings.Join(r.Log(), "\n  "))
	}
}

// WaitEvicted waits until pods of the nodes are deleted.
func (r *Recorder) WaitEvicted(timeout time.Duration) {
	r.s.t.Helper()
	r.s.Eventually(timeout, "pods on "+strings.Join(r.nodes, ", ")+" are evicted", func() error {
		if c := r.Counts(); c.PodsDeleted == 0 {
			return fmt.Errorf("%s", c)
		}
		return nil
	})
	r.s.Step("counted on %s: %s", strings.Join(r.nodes, ", "), r.Counts())
}
