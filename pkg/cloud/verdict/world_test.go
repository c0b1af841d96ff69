package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api/site/v1alpha1"
)

// world drives a tracker as a controller would, in steps of half a second:
// leases of the nodes that are connected, reports as they are said, and what the
// tracker wants written comes back to it.
type world struct {
	t       *testing.T
	tracker *Tracker
	now     time.Time
	skew    map[string]time.Duration // clocks of nodes

	nodes   map[string]Node
	leases  map[string]time.Time
	reports map[string]*v1alpha1.NodeReport
	sites   map[string]*v1alpha1.Site

	silent map[string]bool // no heartbeat
	mute   map[string]bool // no report reaches the cloud
	writes []string        // "node=status reason"
	phase  map[string]int
}

const step = 500 * time.Millisecond

func newWorld(t *testing.T) *world {
	return &world{t: t, tracker: New(), now: noon, skew: map[string]time.Duration{}, nodes: map[string]Node{}, leases: map[string]time.Time{},
		reports: map[string]*v1alpha1.NodeReport{}, sites: map[string]*v1alpha1.Site{}, silent: map[string]bool{}, mute: map[string]bool{}, phase: map[string]int{}}
}

// join adds nodes "site/name".
func (w *world) join(names ...string) {
	for _, both := range names {
		site, name, _ := strings.Cut(both, "/")
		w.nodes[name] = Node{Name: name, UID: types.UID("uid-" + name), Site: site, InSite: site != ""}
		w.phase[name] = len(w.phase) % 20
		w.tracker.SetNode(w.now, w.nodes[name])
		if _, ok := w.sites[site]; !ok && site != "" {
			w.sites[site] = &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: site, Generation: 1}}
			w.tracker.SetSite(w.now, w.sites[site])
		}
		w.beat(name)
	}
}

func (w *world) beat(name string) {
	w.leases[name] = w.now.Add(w.skew[name])
	w.tracker.SetLease(w.now, name, w.leases[name], false)
}

// say sets what a node reports; it is renewed every 10 s until it is unsaid.
func (w *world) say(name string, self v1alpha1.SelfReport, about ...string) {
	r := &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NodeReportSpec{Self: self}}
	for _, both := range about {
		node, state, _ := strings.Cut(both, "=")
		r.Spec.Neighbours = append(r.Spec.Neighbours, v1alpha1.NeighbourReport{Node: node, UID: w.nodes[node].UID, State: v1alpha1.NeighbourState(state)})
	}
	w.reports[name] = r
	w.renew(name)
}

func (w *world) renew(name string) {
	w.reports[name].Spec.RenewTime = metav1.NewMicroTime(w.now.Add(w.skew[name]))
	if !w.mute[name] {
		w.tracker.SetReport(w.now, w.reports[name].DeepCopy(), false)
	}
}

func (w *world) unsay(name string) {
	delete(w.reports, name)
	w.tracker.DeleteReport(w.now, name)
}

// restart replaces the tracker by one that knows what the API server holds.
func (w *world) restart() {
	w.tracker = New()
	for name, renewed := range w.leases {
		w.tracker.SetLease(w.now, name, renewed, true)
	}
	for _, n := range w.nodes {
		w.tracker.SetNode(w.now, n)
	}
	for _, r := range w.reports {
		w.tracker.SetReport(w.now, r.DeepCopy(), true)
	}
	for _, s := range w.sites {
		w.tracker.SetSite(w.now, s.DeepCopy())
	}
	w.settle()
}

// settle writes what the tracker wants written.
func (w *world) settle() {
	for _, name := range w.tracker.Due(w.now) {
		r := w.tracker.Evaluate(w.now, name)
		if r.Changed && r.Exists {
			w.sites[name].Status = r.Status
			w.tracker.SetSite(w.now, w.sites[name].DeepCopy())
		}
		for _, c := range r.Nodes {
			w.write(c)
		}
	}
}

func (w *world) write(c Change) {
	n := w.nodes[c.Node]
	if n.UID != c.UID {
		w.t.Errorf("written on a Node that is gone: %+v", c)
	}
	n.Alive = c.To
	w.nodes[c.Node] = n
	w.tracker.SetNode(w.now, n)
	w.writes = append(w.writes, fmt.Sprintf("%s=%s %s", c.Node, c.To.Status, c.To.Reason))
}

func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(step)
		tick := int((w.now.Sub(noon)/step)%20+20) % 20
		for name := range w.nodes {
			if tick != w.phase[name] {
				continue
			}
			if !w.silent[name] {
				w.beat(name)
			}
			if w.reports[name] != nil {
				w.renew(name)
			}
		}
		w.settle()
	}
}

func (w *world) is(name, want string) {
	w.t.Helper()
	c := w.nodes[name].Alive
	if got := strings.TrimSpace(fmt.Sprintf("%s %s", c.Status, c.Reason)); got != want {
		w.t.Errorf("%s after %s: %s (%s), want %s", name, w.now.Sub(noon), got, c.Message, want)
	}
}

// within passes time until the node's condition is as wanted, and returns how
// long that took.
func (w *world) within(d time.Duration, name, want string) time.Duration {
	w.t.Helper()
	start := w.now
	for w.now.Sub(start) < d {
		w.pass(step)
		if c := w.nodes[name].Alive; string(c.Status)+" "+c.Reason == want {
			return w.now.Sub(start)
		}
	}
	w.is(name, want)
	return d
}

const (
	well        = "True Heartbeat"
	unreachable = "False NeighboursCannotReachIt"
)

// site is a site of n nodes, a, b, c, ..., a minute after all of them joined.
func siteOf(t *testing.T, n int) *world {
	w := newWorld(t)
	for i := range n {
		w.join("west/" + string(rune('a'+i)))
	}
	w.pass(time.Minute)
	for name := range w.nodes {
		w.is(name, well)
	}
	return w
}
