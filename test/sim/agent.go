package sim

import (
	"math/rand/v2"
	"time"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/report"
)

// doubt is a question of the cloud.
type doubt = sitev1.Doubt

// agent is the observer in one process of skerry-agent: the real detector and
// the real reporter, and what the real glue does between them.
type agent struct {
	n        *node
	life     int
	observes bool
	online   bool
	health   detect.Health
	detector *detect.Detector
	reporter *report.Reporter
	settled  map[string]time.Time // since when the cloud calls a neighbour dead

	due   time.Time     // when the reporter has something to do
	wake  time.Duration // when the next wake-up is due
	alarm int           // of the last wake-up asked for
	spun  int           // wake-ups at one moment
	last  time.Duration
	wrote time.Duration // when it last wrote its report
}

func newAgent(n *node, life int) *agent {
	seed := n.w.Schedule.Seed
	a := &agent{n: n, life: life, settled: map[string]time.Time{}}
	a.detector = detect.New(detect.Options{Self: n.name, Rand: rand.New(rand.NewPCG(seed, uint64(2*life)))})
	a.reporter = report.New(report.Options{Self: n.name, Knock: true, Rand: rand.New(rand.NewPCG(seed, uint64(2*life+1)))})
	a.observes = !n.w.state.observer[n.name]
	if n.view.known {
		a.learn()
	}
	return a
}

// look sees how its own machine is.
func (a *agent) look() {
	n := a.n
	health := detect.Health{KubeletDown: n.w.state.kubelet[n.name], RuntimeDown: n.w.state.runtime[n.name]}
	if health != a.health {
		// It takes a few looks before it counts.
		n.w.after(3*time.Second, func() {
			n.local(a.life, func() {
				now := detect.Health{KubeletDown: n.w.state.kubelet[n.name], RuntimeDown: n.w.state.runtime[n.name]}
				if now == a.health || n.agent != a {
					return
				}
				a.health = now
				n.w.note("%s: kubelet down %v, runtime down %v", n.name, now.KubeletDown, now.RuntimeDown)
				a.detector.SetHealth(n.wall(), now)
				a.reporter.SetHealth(n.wall(), now)
				a.run(true)
			})
		})
	}
	a.run(false)
}

func (a *agent) setOnline(online bool) {
	if a.online == online {
		return
	}
	a.online = online
	a.n.w.note("%s: online %v", a.n.name, online)
	a.reporter.SetOnline(a.n.wall(), online)
	a.run(true)
}

// learn takes what the hub's store holds now.
func (a *agent) learn() {
	v, now := &a.n.view, a.n.wall()
	a.detector.SetMembers(now, v.members)
	for name := range a.settled {
		if !v.dead[name] {
			delete(a.settled, name)
		}
	}
	for name := range v.dead {
		if a.settled[name].IsZero() {
			a.settled[name] = now
		}
	}
	doubts := v.doubts
	switch a.n.w.bug {
	case UnansweredIfReachable:
	case AnswersTooLate:
		a.n.w.after(8*time.Second, func() {
			a.n.local(a.life, func() {
				a.reporter.SetDoubts(a.n.wall(), doubts)
				a.run(true)
			})
		})
	default:
		a.reporter.SetDoubts(now, doubts)
	}
	a.reporter.SetWitnesses(v.witnesses)
	a.run(true)
}

func (a *agent) receive(from *node, data []byte) {
	if !a.observes {
		return
	}
	message, err := detect.Decode(data)
	if err != nil {
		a.n.w.fail("%s sends %q to %s: %v", from.name, data, a.n.name, err)
		return
	}
	a.detector.Receive(a.n.wall(), from.name, message)
	a.run(false)
}

// run does what is due, and asks to be woken for the rest.
func (a *agent) run(set bool) {
	if a.n.agent != a || !a.n.runs() {
		return
	}
	if !a.observes {
		return
	}
	w, now := a.n.w, a.n.wall()
	if !a.detector.Next().After(now) {
		a.detector.Tick(now)
	}
	for range 8 {
		events := a.detector.Events()
		for _, e := range events {
			if e.Kind == detect.Probed {
				a.reporter.Probed(now, e)
				w.note("%s: probed %s: reached %v, blind %v", a.n.name, e.Name, e.Reached, e.Blind)
			} else if e.From != e.To {
				w.note("%s: %s %s -> %s", a.n.name, e.Name, e.From, e.To)
			}
		}
		if len(events) == 0 && !set && a.due.After(now) {
			break
		}
		set = false
		a.report(now)
		a.due = a.reporter.Next(now)
	}
	for _, out := range a.detector.Take() {
		if to := w.byName[out.To]; to != nil {
			w.send(a.n, to, detect.Append(nil, out.Message))
		}
	}
	a.sleep(now)
}

// report lets the reporter do its work.
func (a *agent) report(now time.Time) {
	members := a.detector.Members()
	neighbours := make([]report.Neighbour, len(members))
	for i, m := range members {
		neighbours[i] = report.Neighbour{Status: m, SettledSince: a.settled[m.Name]}
	}
	a.reporter.SetNeighbours(now, neighbours)
	a.reporter.Tick(now)
	for _, name := range a.reporter.Probes() {
		a.detector.Probe(now, name)
	}
	for _, name := range a.reporter.Knocks() {
		a.knock(name)
	}
	if action := a.reporter.Action(now); action.Kind != report.None {
		a.write(action)
	}
}

// knock asks the machine of a neighbour whether an observer is there: three
// times, 200 ms each. A machine that runs, and has none, refuses.
func (a *agent) knock(name string) {
	w, n, to := a.n.w, a.n, a.n.w.byName[name]
	answered := func(refused bool) {
		n.local(a.life, func() {
			if n.agent == a {
				w.note("%s: knocked at %s: refused %v", n.name, name, refused)
				a.reporter.Knocked(n.wall(), name, refused)
				a.run(true)
			}
		})
	}
	for range 3 {
		if to != nil && to.runs() && w.net.Float64() >= w.loss(n, to) && w.net.Float64() >= w.loss(to, n) {
			refused := to.agent == nil || !to.agent.observes
			w.after(time.Millisecond, func() { answered(refused) })
			return
		}
	}
	w.after(600*time.Millisecond, func() { answered(false) })
}

// write does what the reporter wants done in the API.
func (a *agent) write(action report.Action) {
	w, n := a.n.w, a.n
	if a.wrote > 0 && w.now-a.wrote < time.Second {
		w.fail("%s writes its report again after %s", n.name, w.now-a.wrote)
	}
	a.wrote = w.now
	if action.Kind == report.Put {
		w.note("%s: writes %s", n.name, describe(action.Spec))
	}
	w.request(n, 5*time.Second, func() bool { return w.writeReport(n.name, action) }, func(ok bool) {
		if n.agent != a {
			return
		}
		a.reporter.Done(n.wall(), action, ok)
		a.run(true)
	})
}

// sleep asks to be woken when something is due.
func (a *agent) sleep(now time.Time) {
	w := a.n.w
	next := a.detector.Next()
	if a.due.Before(next) {
		next = a.due
	}
	at := w.now + next.Sub(now)
	if at <= w.now {
		at = w.now
		if a.last == w.now {
			a.spun++
		} else {
			a.last, a.spun = w.now, 0
		}
		if a.spun > 20 {
			w.fail("%s spins: it wants to be woken at once, again and again (detector %s, reporter %s)", a.n.name, a.detector.Next().Sub(now), a.due.Sub(now))
			at = w.now + 100*time.Millisecond
		}
	}
	if a.wake > w.now && a.wake <= at {
		return // it is woken before that anyway
	}
	a.wake = at
	a.alarm++
	alarm := a.alarm
	w.after(at-w.now, func() {
		a.n.local(a.life, func() {
			if a.alarm == alarm && a.n.agent == a {
				a.wake = 0
				a.run(false)
			}
		})
	})
}
