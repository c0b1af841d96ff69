package sim

import (
	"math/rand/v2"
	"time"

	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/test/sim/schedule"
)

// node is one machine, with the kubelet's and the hub's part in the story.
type node struct {
	w     *World
	name  string
	index int
	lan   string // the site whose network it is plugged into
	delay time.Duration

	joined bool // it has a Node object, or will have one again
	// life counts the agent's processes; 0 is none that ever ran.
	life  int
	agent *agent
	held  []func() // what waits for the machine to go on
	shift time.Duration

	booted  bool
	view    view // what the hub's store holds; it outlives the agent
	viewing bool // a fetch is under way
	stale   bool // the cloud has something newer

	renewing bool // a lease renewal is under way
	pending  bool // a renewal was taken while the cloud was away
	rand     *rand.Rand

	dead     time.Duration // since when it is off or frozen; -1: it runs
	deadFor  string        // the Node's UID at that moment
	clean    bool          // nothing else was wrong when it died
	measured bool

	kubeletDown, kubeletUp time.Duration // when kubelet, runtime or agent went down last, and came back
}

// view is what a node knows of the cloud.
type view struct {
	known     bool
	site      string
	members   []detect.Member
	dead      map[string]bool // condition Alive is False
	doubts    []doubt
	witnesses int
}

func (n *node) on() bool     { return n.joined && !n.w.state.off[n.name] }
func (n *node) frozen() bool { return n.on() && n.w.state.frozen[n.name] }
func (n *node) runs() bool   { return n.on() && !n.w.state.frozen[n.name] }

func (n *node) kubeletRuns() bool { return n.runs() && !n.w.state.kubelet[n.name] }
func (n *node) agentRuns() bool   { return n.runs() && n.agent != nil }

// wall is the time by the clock of the machine.
func (n *node) wall() time.Time { return epoch.Add(n.w.now + n.shift) }

// local runs something in a process of the machine: never, if that process has
// ended; later, if the machine does not go on.
func (n *node) local(life int, do func()) {
	switch {
	case n.life != life || !n.on():
	case n.frozen():
		n.held = append(n.held, func() { n.local(life, do) })
	default:
		do()
	}
}

// settle brings the machine into the state that the faults want.
func (n *node) settle() {
	wantAgent := n.on() && !n.w.state.agent[n.name]
	if n.on() && !n.booted {
		n.booted = true
		n.w.note("%s boots", n.name)
	}
	if !n.on() && n.booted {
		n.booted, n.held = false, nil
	}
	switch {
	case wantAgent && n.agent == nil && !n.frozen():
		n.startAgent()
	case !wantAgent && n.agent != nil:
		n.stopAgent()
	case n.agent != nil && n.runs() && n.agent.observes == n.w.state.observer[n.name]:
		n.stopAgent() // it is configured otherwise
		n.startAgent()
	}
	if n.runs() && len(n.held) > 0 {
		held := n.held
		n.held = nil
		for _, do := range held {
			n.w.after(0, do)
		}
	}
	if a := n.agent; a != nil && n.runs() {
		life := n.life
		n.w.after(0, func() { n.local(life, a.look) })
	}
}

func (n *node) startAgent() {
	n.life = n.w.lives + 1
	n.w.lives++
	for _, f := range n.w.active {
		if f.Kind == schedule.ClockOff && f.Nodes[0] == n.name {
			n.shift = f.Shift
		}
	}
	n.w.note("%s: agent starts", n.name)
	n.agent = newAgent(n, n.life)
	n.pending = false
	n.kubeletLoop(n.life, time.Duration(n.rand.Int64N(int64(2*time.Second))))
	n.hubLoop(n.life, 200*time.Millisecond)
}

func (n *node) stopAgent() {
	n.w.note("%s: agent ends", n.name)
	n.agent = nil
	n.life = n.w.lives + 1 // nobody's
	n.w.lives++
	n.renewing, n.viewing = false, false
	n.w.hangUp(n)
}

// kubeletLoop renews the lease each 10 s, as long as this agent takes it.
func (n *node) kubeletLoop(life int, in time.Duration) {
	n.w.after(in, func() {
		n.local(life, func() {
			next := 10*time.Second + time.Duration(n.rand.Int64N(int64(400*time.Millisecond)))
			if n.kubeletRuns() && n.agent != nil {
				if n.agent.online {
					n.renew(life)
				} else {
					n.pending = true
				}
			}
			n.kubeletLoop(life, next)
		})
	})
}

// renew writes the lease; what fails is tried again soon.
func (n *node) renew(life int) {
	if n.renewing {
		return
	}
	n.renewing = true
	wall := n.wall()
	n.w.request(n, 10*time.Second, func() bool { return n.w.renewLease(n.name, wall) }, func(ok bool) {
		n.renewing = false
		if ok {
			n.pending = false
			return
		}
		n.pending = true
		n.w.after(300*time.Millisecond, func() {
			n.local(life, func() {
				if n.agent != nil && n.agent.online && n.kubeletRuns() && n.pending {
					n.renew(life)
				}
			})
		})
	})
}

// hubLoop looks whether the cloud is there: each second while it is away, now
// and then while it is there. One failure is looked at again before it counts.
func (n *node) hubLoop(life int, in time.Duration) {
	failures := 0
	var look func()
	again := func(in time.Duration) { n.w.after(in, func() { n.local(life, look) }) }
	look = func() {
		timeout := 3 * time.Second
		if n.agent != nil && !n.agent.online {
			timeout *= 2
		}
		n.w.request(n, timeout, func() bool { return true }, func(ok bool) {
			a := n.agent
			if a == nil {
				return
			}
			switch {
			case ok:
				failures = 0
				if !a.online {
					a.setOnline(true)
					n.w.after(time.Duration(n.rand.Int64N(int64(time.Second))), func() {
						n.local(life, func() {
							if n.pending && n.kubeletRuns() {
								n.renew(life)
							}
							n.fetch()
						})
					})
				}
				again(time.Duration(3+n.rand.IntN(4)) * time.Second)
			case a.online && failures == 0:
				failures++
				again(1500 * time.Millisecond)
			default:
				if a.online {
					a.setOnline(false)
				}
				again(time.Second)
			}
		})
	}
	again(in)
}

// fetch brings the news of the cloud to the hub's store, one answer after the
// other: a watch that never skips the newest state.
func (n *node) fetch() {
	if n.viewing || n.agent == nil || !n.agent.online {
		n.stale = true
		return
	}
	n.viewing, n.stale = true, false
	life := n.life
	var news view
	n.w.request(n, 10*time.Second, func() bool { news = n.w.viewOf(n.name); return true }, func(ok bool) {
		n.viewing = false
		if !ok {
			n.stale = true
			n.w.after(500*time.Millisecond, func() { n.local(life, func() { n.refetch() }) })
			return
		}
		n.view = news
		if n.agent != nil {
			n.agent.learn()
		}
		n.refetch()
	})
}

func (n *node) refetch() {
	if n.stale && n.agent != nil && n.agent.online {
		n.fetch()
	}
}
