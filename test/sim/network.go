package sim

import (
	"slices"
	"time"

	"skerry.dev/skerry/test/sim/schedule"
)

// state is what follows from the faults in force.
type state struct {
	off, frozen, kubelet, runtime, agent, observer map[string]bool
	lan                                            map[[2]string]float64 // loss from one node to another, where there is any
	up, down                                       map[string]float64    // loss between a node and the cloud
	delay                                          map[string]time.Duration
	api                                            bool
	lag                                            time.Duration // of watches, at most
	cacheLag                                       time.Duration // of skerry-controller-manager's watches, beside that
	controller, kcm                                bool          // does not run
}

// derive works out the state from the faults in force.
func (w *World) derive() *state {
	s := &state{
		off: map[string]bool{}, frozen: map[string]bool{}, kubelet: map[string]bool{}, runtime: map[string]bool{}, agent: map[string]bool{}, observer: map[string]bool{},
		lan: map[[2]string]float64{}, up: map[string]float64{}, down: map[string]float64{}, delay: map[string]time.Duration{}, api: true,
	}
	for _, f := range w.active {
		if !f.Active(w.now) {
			continue
		}
		mark := func(m map[string]bool) {
			for _, name := range f.Nodes {
				m[name] = true
			}
		}
		all := w.onLAN(f.Site)
		between := func(from, to func(string) bool, loss float64) {
			for _, a := range all {
				for _, b := range all {
					if a != b && from(a) && to(b) {
						s.lan[[2]string{a, b}] = add(s.lan[[2]string{a, b}], loss)
					}
				}
			}
		}
		in := func(name string) bool { return slices.Contains(f.Nodes, name) }
		not := func(name string) bool { return !in(name) }
		any := func(string) bool { return true }
		link := func(up, down float64) {
			for _, name := range all {
				s.up[name], s.down[name] = add(s.up[name], up), add(s.down[name], down)
			}
		}
		switch f.Kind {
		case schedule.PowerOff, schedule.NodeRemoved:
			mark(s.off)
		case schedule.Freeze:
			mark(s.frozen)
		case schedule.KubeletDead:
			mark(s.kubelet)
		case schedule.RuntimeDead:
			mark(s.runtime)
		case schedule.AgentDead, schedule.AgentCrash:
			mark(s.agent)
		case schedule.ObserverOff:
			mark(s.observer)
		case schedule.SiteCut, schedule.SiteFlaps:
			link(1, 1)
		case schedule.SiteUp:
			link(1, 0)
		case schedule.SiteDown:
			link(0, 1)
		case schedule.SiteLoss:
			link(f.Loss, f.Loss)
		case schedule.SiteSlow:
			for _, name := range all {
				s.delay[name] += f.Period
			}
		case schedule.NodeCut:
			for _, name := range f.Nodes {
				s.up[name], s.down[name] = 1, 1
			}
		case schedule.Alone, schedule.LANFlaps:
			between(in, any, 1)
			between(any, in, 1)
		case schedule.Mute:
			between(in, any, 1)
		case schedule.Deaf:
			between(any, in, 1)
		case schedule.PairCut:
			if len(f.Nodes) == 2 {
				between(func(a string) bool { return a == f.Nodes[0] }, func(b string) bool { return b == f.Nodes[1] }, 1)
			}
		case schedule.LANLoss:
			between(any, any, f.Loss)
		case schedule.SiteSplit:
			between(in, not, 1)
			between(not, in, 1)
		case schedule.Controller:
			s.controller = true
		case schedule.KCM:
			s.kcm = true
		case schedule.APIServer:
			s.api = false
		case schedule.WatchLag:
			s.lag += f.Period
		case schedule.CacheLag:
			s.cacheLag = max(s.cacheLag, f.Period)
		}
	}
	return s
}

// add joins two independent losses.
func add(a, b float64) float64 { return 1 - (1-a)*(1-b) }

// onLAN lists the machines that are plugged into a site's network.
func (w *World) onLAN(site string) []string {
	var names []string
	for _, n := range w.nodes {
		if n.lan == site {
			names = append(names, n.name)
		}
	}
	return names
}

// loss is what is lost from one machine to another; 1 is everything.
func (w *World) loss(from, to *node) float64 {
	if from.lan != to.lan || !from.runs() || !to.runs() {
		return 1
	}
	return w.state.lan[[2]string{from.name, to.name}]
}

// idle is after how long without a packet a connection of the mesh is gone, and
// dial how long one is tried to make.
const (
	idle       = 20 * time.Second
	dialFor    = 5 * time.Second
	maxWaiting = 8
)

// side is one end of a connection between two observers.
type side struct {
	peer    int // life of the peer's agent that it is connected to; 0: none
	heard   time.Duration
	dialing bool
	waiting [][]byte
}

func (w *World) side(at, to *node) *side {
	key := [2]int{at.index, to.index}
	s := w.sides[key]
	if s == nil {
		s = &side{}
		w.sides[key] = s
	}
	return s
}

// packet carries something from one agent to another, or not.
func (w *World) packet(from, to *node, arrive func()) {
	loss := w.loss(from, to)
	if loss >= 1 && to.frozen() && from.lan == to.lan && w.state.lan[[2]string{from.name, to.name}] == 0 && len(to.held) < 64 {
		loss = 0 // it waits in the socket until the machine goes on
	}
	if w.net.Float64() < loss {
		return
	}
	w.after(200*time.Microsecond+time.Duration(w.net.Int64N(int64(4*time.Millisecond))), func() {
		life := to.life
		to.local(life, arrive)
	})
}

// send is the mesh: datagrams over a connection that may have to be made first.
func (w *World) send(from, to *node, data []byte) {
	w.stats.Packets++
	s := w.side(from, to)
	if s.peer != 0 && w.now-s.heard < idle {
		w.datagram(from, to, s.peer, data)
		return
	}
	s.peer = 0
	if len(s.waiting) < maxWaiting {
		s.waiting = append(s.waiting, data)
	}
	if !s.dialing {
		s.dialing = true
		w.dial(from, to, from.life, w.now, 200*time.Millisecond)
	}
}

// datagram arrives only if the peer still is who it was.
func (w *World) datagram(from, to *node, peer int, data []byte) {
	life := from.life
	w.packet(from, to, func() {
		if to.life != peer {
			return
		}
		if back := w.side(to, from); back.peer == life {
			back.heard = w.now
		}
		if to.agent != nil {
			to.agent.receive(from, data)
		}
	})
}

// dial makes a connection: three flights that must all arrive.
func (w *World) dial(from, to *node, life int, began, pause time.Duration) {
	s := w.side(from, to)
	if from.life != life {
		return
	}
	if s.peer != 0 {
		s.dialing = false // the other side was faster
		w.flush(from, to)
		return
	}
	if w.now-began >= dialFor {
		s.dialing, s.waiting = false, nil
		return
	}
	w.packet(from, to, func() {
		peer := to.life
		if to.agent == nil {
			return
		}
		w.packet(to, from, func() {
			if from.life != life || s.peer != 0 {
				return
			}
			s.peer, s.heard, s.dialing = peer, w.now, false
			w.packet(from, to, func() {
				if to.life == peer {
					other := w.side(to, from)
					other.peer, other.heard = life, w.now
				}
			})
			w.flush(from, to)
		})
	})
	w.after(pause, func() {
		if s.dialing {
			w.dial(from, to, life, began, 2*pause)
		}
	})
}

func (w *World) flush(from, to *node) {
	s := w.side(from, to)
	waiting := s.waiting
	s.waiting = nil
	for _, data := range waiting {
		w.datagram(from, to, s.peer, data)
	}
}

// hangUp forgets the connections of an agent that ended.
func (w *World) hangUp(n *node) {
	for key := range w.sides {
		if key[0] == n.index {
			delete(w.sides, key)
		}
	}
}

// transmit carries one flight of a TCP connection between a node and the cloud:
// it is sent again until it arrives.
func (w *World) transmit(n *node, up bool, until, pause time.Duration, arrive func()) {
	if w.now > until || !n.on() {
		return
	}
	loss := w.state.down[n.name]
	if up {
		loss = w.state.up[n.name]
	}
	if n.runs() && w.net.Float64() >= loss {
		w.after(n.delay+w.state.delay[n.name]+time.Duration(w.net.Int64N(int64(5*time.Millisecond))), arrive)
		return
	}
	w.after(pause, func() { w.transmit(n, up, until, min(2*pause, 3*time.Second), arrive) })
}

// request asks the API server something. done learns whether it was answered
// well; what was not may have been done all the same.
func (w *World) request(n *node, timeout time.Duration, do func() bool, done func(ok bool)) {
	life, finished := n.life, false
	finish := func(ok bool) {
		if !finished {
			finished = true
			n.local(life, func() { done(ok) })
		}
	}
	w.after(timeout, func() { finish(false) })
	// What is on its way when the client gives up may still arrive.
	until := w.now + timeout + time.Second
	w.transmit(n, true, until, 300*time.Millisecond, func() {
		if !w.state.api {
			return
		}
		ok := do()
		w.transmit(n, false, until, 300*time.Millisecond, func() { finish(ok) })
	})
}
