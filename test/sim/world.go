package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	sitev1 "skerry.dev/api/site/v1alpha1"

	"skerry.dev/skerry/test/sim/schedule"
)

// quiet is how long a run goes on after everything is right again.
const quiet = 45 * time.Second

// epoch is when runs begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Bug is an error that is planted, to see that it is found.
type Bug string

// Planted bugs.
const (
	NoBug                 Bug = ""
	TrustsReportersClock  Bug = "trusts-the-reporters-clock"
	ReportsStandForEver   Bug = "reports-stand-for-ever"
	RefutationIgnored     Bug = "refutation-ignored"
	AnswersTooLate        Bug = "answers-later-than-anybody-waits"
	UnansweredIfReachable Bug = "questions-not-answered"
	NeverTakenBack        Bug = "verdict-never-taken-back"
	TaintsAtOnce          Bug = "verdict-taints-without-a-stale-lease"
	BelievesItsCache      Bug = "calls-dead-without-asking-the-api-server"
)

// World is one run.
type World struct {
	clock
	Schedule schedule.Schedule
	bug      Bug
	tracing  bool

	net         *rand.Rand // losses and delays
	nodes       []*node
	byName      map[string]*node
	sides       map[[2]int]*side
	lives       int
	active      []*schedule.Fault
	state       *state
	api         api
	controller  *controller
	controllers int
	kcm         *kcm
	taints      map[string]time.Duration
	writes      []write
	contact     map[string]time.Duration // when a node last wrote anything
	reported    map[string]time.Duration // when it last wrote its report
	evidence    map[[2]string]said
	left        map[[2]string]time.Duration // when a node last left a site
	plants      int

	truth truth
	stats Stats

	trace []string
	Fails []string
}

// Stats are what a run is measured by.
type Stats struct {
	// ToDead and ToTaint are how long machines that lost their power, with
	// nothing else wrong, waited for the verdict and the taint.
	ToDead, ToTaint []time.Duration
	// Healed is how long it took until all was right after the last fault.
	Healed time.Duration
	// Deaths counts verdicts Dead, Deserved those of machines that were off or frozen.
	Deaths, Deserved int
	Packets          int
	Events           int
	Kinds            map[schedule.Kind]int
}

// Run runs a schedule. A run ends with the first thing that is wrong.
func Run(s schedule.Schedule, bug Bug, tracing bool) *World {
	w := &World{
		Schedule: s, bug: bug, tracing: tracing, net: rand.New(rand.NewPCG(s.Seed, 0x0e7)),
		byName: map[string]*node{}, sides: map[[2]int]*side{}, taints: map[string]time.Duration{},
		contact: map[string]time.Duration{}, reported: map[string]time.Duration{}, evidence: map[[2]string]said{}, left: map[[2]string]time.Duration{},
		api: api{nodes: map[string]*nodeObject{}, leases: map[string]*leaseObject{}, reports: map[string]*sitev1.NodeReport{}, sites: map[string]*sitev1.Site{}},
	}
	w.stats.Kinds = map[schedule.Kind]int{}
	later := map[string]bool{}
	for _, f := range s.Faults {
		w.stats.Kinds[f.Kind]++
		if f.Kind == schedule.NodeAdded {
			later[f.Nodes[0]] = true
		}
	}
	for _, site := range s.Sites {
		witnesses := int32(site.Witnesses)
		o := &sitev1.Site{ObjectMeta: metav1.ObjectMeta{Name: site.Name, Generation: 1}, Spec: sitev1.SiteSpec{Witnesses: &witnesses, KubeletGrace: &metav1.Duration{Duration: site.KubeletGrace}}}
		if site.HoldTimeout > 0 {
			o.Spec.HoldTimeout = &metav1.Duration{Duration: site.HoldTimeout}
		}
		w.api.sites[site.Name] = o
		for _, name := range site.Nodes {
			n := &node{w: w, name: name, index: len(w.nodes), lan: site.Name, delay: site.Delay, dead: -1, kubeletDown: -1, kubeletUp: -1,
				rand: rand.New(rand.NewPCG(s.Seed, 0xd0000+uint64(len(w.nodes))))}
			n.shift = time.Duration(n.rand.IntN(48)-24) * time.Hour
			w.nodes = append(w.nodes, n)
			w.byName[name] = n
		}
	}
	w.truth.init(w)
	w.state = w.derive()
	for _, n := range w.nodes {
		if !later[n.name] {
			w.join(n, n.lan)
		}
	}
	w.startController(0)
	w.startKCM()
	w.change()
	for i := range s.Faults {
		f := &s.Faults[i]
		w.after(f.At, func() { w.begin(f) })
	}
	w.after(time.Second, w.check)
	w.after(s.Heal, w.heal)
	end := s.Heal + healingOf(s) + quiet
	for len(w.Fails) == 0 && w.step(end) {
		w.stats.Events++
	}
	if len(w.Fails) == 0 {
		w.checkQuiet(s.Heal + healingOf(s))
	}
	return w
}

// join makes a machine a node of a site.
func (w *World) join(n *node, site string) {
	n.joined, n.lan = true, site
	w.register(n.name, site)
}

// begin puts a fault in force.
func (w *World) begin(f *schedule.Fault) {
	w.note("FAULT %s", f)
	w.active = append(w.active, f)
	for _, name := range f.Nodes {
		n := w.byName[name]
		switch f.Kind {
		case schedule.NodeAdded:
			if !n.joined {
				w.join(n, n.lan)
			}
		case schedule.NodeRemoved:
			w.unregister(name)
		case schedule.NodeReplaced:
			if o := w.api.nodes[name]; o != nil {
				site := o.Site
				w.unregister(name)
				w.after(300*time.Millisecond, func() {
					if w.api.nodes[name] == nil && n.joined {
						w.register(name, site)
					}
				})
			}
		case schedule.NodeMoved:
			w.move(n, f.To)
		}
	}
	w.change()
	switch f.Kind {
	case schedule.SiteFlaps, schedule.LANFlaps:
		w.flap(f)
	}
	w.after(f.For, func() { w.end(f) })
}

// flap looks again each time that a flapping fault comes or goes.
func (w *World) flap(f *schedule.Fault) {
	half := f.Period / 2
	w.after(half-(w.now-f.At)%half, func() {
		if slices.Contains(w.active, f) {
			w.change()
			w.flap(f)
		}
	})
}

// end undoes a fault.
func (w *World) end(f *schedule.Fault) {
	i := slices.Index(w.active, f)
	if i < 0 {
		return
	}
	w.note("END   %s", f)
	w.active = slices.Delete(w.active, i, i+1)
	for _, name := range f.Nodes {
		n := w.byName[name]
		switch f.Kind {
		case schedule.NodeRemoved:
			if w.api.nodes[name] == nil && n.joined {
				w.register(name, n.lan)
			}
		case schedule.NodeMoved:
			w.move(n, f.Site)
		}
	}
	shift := f.Shift
	w.change()
	if f.Kind == schedule.Controller && w.controller == nil && !w.state.controller {
		w.startController(shift)
	}
}

// move carries a machine to another site, and labels it.
func (w *World) move(n *node, to string) {
	if !n.joined || n.lan == to {
		return
	}
	n.lan = to
	w.relabel(n.name, to)
}

// heal ends all faults.
func (w *World) heal() {
	w.note("all faults end")
	for _, f := range slices.Clone(w.active) {
		w.end(f)
	}
}

// change brings everything into the state that follows from the faults.
func (w *World) change() {
	w.state = w.derive()
	if w.state.controller && w.controller != nil {
		w.note("the controller ends")
		w.controller = nil
	}
	if w.state.kcm && w.kcm != nil {
		w.note("kube-controller-manager ends")
		w.kcm = nil
	}
	if !w.state.kcm && w.kcm == nil {
		w.startKCM()
	}
	if !w.state.controller && w.controller == nil && !slices.ContainsFunc(w.active, func(f *schedule.Fault) bool { return f.Kind == schedule.Controller }) {
		w.startController(0)
	}
	for _, n := range w.nodes {
		n.settle()
	}
	w.truth.changed(w)
}

func (w *World) note(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%8.3fs  %s", w.now.Seconds(), fmt.Sprintf(format, args...)))
	}
}

// Trace is the history of the run, if it was kept.
func (w *World) Trace() []string { return w.trace }

// Stats are those of the run.
func (w *World) Stats() Stats { return w.stats }

// fail notes that something is wrong.
func (w *World) fail(format string, args ...any) {
	text := fmt.Sprintf("%8.3fs  ", w.now.Seconds()) + fmt.Sprintf(format, args...)
	w.Fails = append(w.Fails, text)
	w.note("WRONG: %s", text)
}

// Shrink takes away faults and nodes for as long as the run still fails.
func Shrink(s schedule.Schedule, bug Bug) schedule.Schedule {
	fails := func(s schedule.Schedule) bool { return len(Run(s, bug, false).Fails) > 0 }
	for changed := true; changed; {
		changed = false
		for i := 0; i < len(s.Faults); i++ {
			less := s
			less.Faults = slices.Delete(slices.Clone(s.Faults), i, i+1)
			if fails(less) {
				s, changed = less, true
				i--
			}
		}
		for i := range s.Sites {
			for j := 0; j < len(s.Sites[i].Nodes); j++ {
				name := s.Sites[i].Nodes[j]
				if slices.ContainsFunc(s.Faults, func(f schedule.Fault) bool { return slices.Contains(f.Nodes, name) }) {
					continue
				}
				less := s
				less.Sites = slices.Clone(s.Sites)
				less.Sites[i].Nodes = slices.Delete(slices.Clone(s.Sites[i].Nodes), j, j+1)
				if fails(less) {
					s, changed = less, true
					j--
				}
			}
		}
	}
	return s
}

func (w *World) sortedTaints() []string { return slices.Sorted(maps.Keys(w.taints)) }
