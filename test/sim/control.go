package sim

import (
	"math/rand/v2"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// watcher is a controller that hears what changes. Version orders the news of
// one object; nil: it is gone.
type watcher interface {
	node(name string, version int64, n *verdict.Node)
	lease(name string, version int64, renewed *time.Time)
	report(name string, version int64, r *sitev1.NodeReport)
	site(name string, version int64, s *sitev1.Site)
}

// stream is one watch of one controller: in order, and sometimes late.
type stream struct {
	last time.Duration
}

// watched tells all controllers that something changed.
func (w *World) watched(kind string, tell func(watcher)) {
	if c := w.controller; c != nil {
		w.deliver(&c.streams, kind, w.state.cacheLag, func() bool { return w.controller == c }, func() { tell(c) })
	}
	if k := w.kcm; k != nil {
		w.deliver(&k.streams, kind, 0, func() bool { return w.kcm == k }, func() { tell(k) })
	}
}

func (w *World) deliver(streams *map[string]*stream, kind string, late time.Duration, alive func() bool, tell func()) {
	if *streams == nil {
		*streams = map[string]*stream{}
	}
	s := (*streams)[kind]
	if s == nil {
		s = &stream{}
		(*streams)[kind] = s
	}
	lag := late + time.Millisecond + time.Duration(w.net.Int64N(int64(20*time.Millisecond)))
	if w.state.lag > 0 {
		lag += time.Duration(w.net.Int64N(int64(w.state.lag)))
	}
	s.last = max(s.last, w.now+lag)
	w.after(s.last-w.now, func() {
		if alive() {
			tell()
		}
	})
}

// controller is the process around the tracker: skerry-controller-manager's
// controllers, in short.
type controller struct {
	w       *World
	tracker *verdict.Tracker
	streams map[string]*stream
	shift   time.Duration // of its clock
	// busy are objects that are being written, versions the newest seen.
	busy     map[string]bool
	versions map[string]int64
	again    bool
	listed   time.Duration // when the reports were last read
	rand     *rand.Rand
}

// listFor is how long reports that were read are good for more than one verdict.
const listFor = time.Second

// startController begins a life of the controller, with what the API server
// holds.
func (w *World) startController(shift time.Duration) {
	w.controllers++
	c := &controller{
		w: w, tracker: verdict.New(), shift: shift, busy: map[string]bool{}, versions: map[string]int64{},
		rand: rand.New(rand.NewPCG(w.Schedule.Seed, 0xc0000+uint64(w.controllers))),
	}
	w.controller = c
	w.note("the controller starts")
	now := c.now()
	for _, n := range w.nodes {
		if l := w.api.leases[n.name]; l != nil {
			c.tracker.SetLease(now, n.name, l.renewed, true)
			c.versions["lease "+n.name] = l.version
		}
		if r := w.api.reports[n.name]; r != nil {
			c.giveReport(now, r, true)
		}
		if o := w.api.nodes[n.name]; o != nil {
			c.tracker.SetNode(now, o.Node)
			c.versions["node "+n.name] = o.version
		}
	}
	for _, s := range w.Schedule.Sites {
		if o := w.api.sites[s.Name]; o != nil {
			c.tracker.SetSite(now, o)
		}
	}
	c.loop(time.Duration(c.rand.Int64N(int64(300 * time.Millisecond))))
}

func (c *controller) now() time.Time { return epoch.Add(c.w.now + c.shift) }

// newer says whether news about an object is.
func (c *controller) newer(what string, version int64) bool {
	if version <= c.versions[what] {
		return false
	}
	c.versions[what] = version
	return true
}

func (c *controller) node(name string, version int64, n *verdict.Node) {
	if !c.newer("node "+name, version) {
		return
	}
	if n == nil {
		c.tracker.DeleteNode(c.now(), name)
		return
	}
	c.tracker.SetNode(c.now(), *n)
}

func (c *controller) lease(name string, version int64, renewed *time.Time) {
	if !c.newer("lease "+name, version) {
		return
	}
	if renewed == nil {
		c.tracker.DeleteLease(c.now(), name)
		return
	}
	c.tracker.SetLease(c.now(), name, *renewed, false)
}

func (c *controller) report(name string, version int64, r *sitev1.NodeReport) {
	if !c.newer("report "+name, version) {
		return
	}
	if r == nil {
		if c.w.bug != ReportsStandForEver {
			c.tracker.DeleteReport(c.now(), name)
		}
		return
	}
	c.giveReport(c.now(), r, false)
}

// giveReport tells the tracker of a report, as it is or as a planted bug has it.
func (c *controller) giveReport(now time.Time, r *sitev1.NodeReport, initial bool) {
	if c.w.bug == RefutationIgnored {
		r = r.DeepCopy()
		kept := r.Spec.Neighbours[:0]
		for _, n := range r.Spec.Neighbours {
			if n.State == sitev1.NeighbourUnreachable {
				kept = append(kept, n)
			}
		}
		r.Spec.Neighbours = kept
	}
	c.tracker.SetReport(now, r, initial)
}

func (c *controller) site(name string, version int64, s *sitev1.Site) {
	if c.newer("site "+name, version) {
		c.tracker.SetSite(c.now(), s)
	}
}

func (c *controller) loop(in time.Duration) {
	w := c.w
	w.after(in, func() {
		if w.controller != c {
			return
		}
		c.plant()
		c.pass()
		c.loop(200*time.Millisecond + time.Duration(c.rand.Int64N(int64(100*time.Millisecond))))
	})
}

// plant does what a planted bug does on each pass.
func (c *controller) plant() {
	w := c.w
	switch w.bug {
	case TrustsReportersClock, ReportsStandForEver:
		// A report is as young as its writer's clock says, or as it ever was.
		for _, n := range w.nodes {
			r := w.api.reports[n.name]
			if r == nil || w.bug == TrustsReportersClock && c.now().Sub(r.Spec.RenewTime.Time) > verdict.ReportFor {
				continue
			}
			w.plants++
			fresh := r.DeepCopy()
			fresh.Spec.RenewTime = metav1.NewMicroTime(c.now().Add(time.Duration(w.plants) * time.Microsecond))
			c.tracker.SetReport(c.now(), fresh, false)
		}
	}
}

// pass evaluates what is due and writes what has changed.
func (c *controller) pass() {
	w := c.w
	if c.again {
		c.again = false
		c.tracker.Dirty()
	}
	for _, site := range c.tracker.Due(c.now()) {
		result := c.tracker.Evaluate(c.now(), site)
		if result.Exists && result.Changed {
			c.write("site "+site, func() bool {
				o, version := w.writeStatus(site, result.Status)
				c.back(func() { c.site(site, version, o) })
				return true
			})
		}
		for _, change := range result.Nodes {
			if w.bug == NeverTakenBack && change.Was.Dead() {
				continue
			}
			c.write("node "+change.Node, func() bool {
				if change.To.Dead() && w.bug != BelievesItsCache {
					var dead bool
					if change, dead = c.confirm(change); !dead {
						return false
					}
				}
				if !w.writeCondition(change) {
					return false
				}
				o := w.api.nodes[change.Node]
				c.back(func() { c.node(change.Node, o.version, &o.Node) })
				return true
			})
		}
	}
}

// confirm looks, past the watches, at what a verdict of death rests on, and
// decides again.
func (c *controller) confirm(change verdict.Change) (verdict.Change, bool) {
	w, now := c.w, c.now()
	if c.listed == 0 || w.now-c.listed >= listFor {
		c.listed = w.now
		for _, n := range w.nodes {
			c.report(n.name, w.api.version, w.api.reports[n.name])
		}
	}
	if l := w.api.leases[change.Node]; l != nil {
		c.tracker.SetLease(now, change.Node, l.renewed, false)
	}
	if o := w.api.nodes[change.Node]; o == nil || o.version != c.versions["node "+change.Node] {
		return change, false // the write would be refused: there is a newer one
	}
	return c.tracker.Confirm(now, change.Node, verdict.PolicyOf(w.api.sites[change.Site]))
}

// write writes one object: one write at a time, and again if it fails. A
// controller that ends meanwhile may still have written.
func (c *controller) write(what string, do func() bool) {
	if c.busy[what] {
		c.again = true
		return
	}
	c.busy[what] = true
	c.w.after(time.Millisecond+time.Duration(c.rand.Int64N(int64(30*time.Millisecond))), func() {
		pause := 10 * time.Millisecond
		if !c.w.state.api || !do() {
			c.again = true
			pause = 500 * time.Millisecond
		}
		c.w.after(pause, func() { delete(c.busy, what) })
	})
}

// back is the answer to a write.
func (c *controller) back(do func()) {
	c.w.after(2*time.Millisecond, func() {
		if c.w.controller == c {
			do()
		}
	})
}

// kcm is what kube-controller-manager makes of leases and verdicts.
type kcm struct {
	w       *World
	streams map[string]*stream
	nodes   map[string]*verdict.Node
	leases  map[string]time.Time
	probed  map[string]probe
}

type probe struct {
	renewed time.Time
	at      time.Duration
	uid     string
}

const (
	kcmPeriod = 5 * time.Second
	kcmGrace  = 50 * time.Second
	deadGrace = 15 * time.Second
)

func (w *World) startKCM() {
	k := &kcm{w: w, nodes: map[string]*verdict.Node{}, leases: map[string]time.Time{}, probed: map[string]probe{}}
	w.kcm = k
	w.note("kube-controller-manager starts")
	for name, o := range w.api.nodes {
		n := o.Node
		k.nodes[name] = &n
	}
	for name, l := range w.api.leases {
		k.leases[name] = l.renewed
	}
	k.loop(time.Duration(w.net.Int64N(int64(kcmPeriod))))
}

func (k *kcm) node(name string, _ int64, n *verdict.Node) {
	if n == nil {
		delete(k.nodes, name)
		return
	}
	k.nodes[name] = n
}

func (k *kcm) lease(name string, _ int64, renewed *time.Time) {
	if renewed == nil {
		delete(k.leases, name)
		return
	}
	k.leases[name] = *renewed
}

func (k *kcm) report(string, int64, *sitev1.NodeReport) {}
func (k *kcm) site(string, int64, *sitev1.Site)         {}

func (k *kcm) loop(in time.Duration) {
	k.w.after(in, func() {
		if k.w.kcm != k {
			return
		}
		if k.w.state.api {
			k.pass()
		}
		k.loop(kcmPeriod)
	})
}

// pass is monitorNodeHealth: a node whose lease was not seen to change for the
// grace period is not heard; the hook lets it be tainted if it is dead, and
// shortens the grace period then.
func (k *kcm) pass() {
	for _, machine := range k.w.nodes {
		n := k.nodes[machine.name]
		if n == nil {
			delete(k.w.taints, machine.name)
			continue
		}
		p, ok := k.probed[n.Name]
		if renewed := k.leases[n.Name]; !ok || p.uid != string(n.UID) || !p.renewed.Equal(renewed) {
			p = probe{renewed, k.w.now, string(n.UID)}
			k.probed[n.Name] = p
			if _, tainted := k.w.taints[n.Name]; tainted && ok {
				k.w.note("the taint of %s is removed", n.Name)
				delete(k.w.taints, n.Name)
			}
		}
		grace := kcmGrace
		if n.Alive.Dead() {
			grace = deadGrace
		}
		if k.w.bug == TaintsAtOnce && n.Alive.Dead() {
			grace = -1
		}
		if k.w.now-p.at <= grace {
			continue
		}
		_, tainted := k.w.taints[n.Name]
		switch {
		case n.Alive.Dead() && !tainted:
			k.w.note("%s is tainted NoExecute", n.Name)
			k.w.taints[n.Name] = k.w.now
			k.w.tainted(machine)
		case !n.Alive.Dead() && tainted:
			k.w.note("%s is held again, its taint removed", n.Name)
			delete(k.w.taints, n.Name)
		}
	}
}
