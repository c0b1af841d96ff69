package observer

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/report"
)

// maxBatch is how many messages are taken before the clock is looked at again.
const maxBatch = 64

// loop gives the two state machines the time, and what happens.
func (ob *Observer) loop(ctx context.Context, group *sync.WaitGroup) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var refreshed, synced time.Time
	for {
		online := ob.o.Changes()
		now := time.Now()
		news := ob.takeSite(now)
		ob.reporter.SetOnline(now, ob.o.Online())
		// What has arrived comes before what is overdue.
		select {
		case r := <-ob.messages:
			ob.take(r)
		default:
		}
		if due := ob.detector.Next(); !due.After(now) {
			ob.detector.Tick(now)
		}
		changed := ob.takeEvents(now)
		if changed || now.Sub(refreshed) >= refresh {
			refreshed = now
			ob.look(now)
			ob.publish(changed)
		}
		if changed || news || now.Sub(synced) >= refresh/4 {
			synced = now
			ob.reporter.SetNeighbours(now, ob.neighbours())
		}
		ob.reporter.Tick(now)
		for _, name := range ob.reporter.Probes() {
			ob.detector.Probe(now, name)
		}
		for _, name := range ob.reporter.Knocks() {
			group.Go(func() { ob.knock(ctx, name) })
		}
		ob.send()
		if action := ob.reporter.Action(now); action.Kind != report.None {
			group.Go(func() { ob.write(ctx, action) })
		}

		next := ob.detector.Next()
		if other := ob.reporter.Next(now); other.Before(next) {
			next = other
		}
		if other := refreshed.Add(refresh); other.Before(next) {
			next = other
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-online:
		case <-ob.wake:
		case r := <-ob.messages:
			ob.take(r)
		case k := <-ob.knocked:
			ob.reporter.Knocked(time.Now(), k.name, k.refused)
		case w := <-ob.written:
			ob.reporter.Done(time.Now(), w.action, w.err == nil)
		}
	}
}

// take hands a message to the detector, and those that wait behind it.
func (ob *Observer) take(r received) {
	for range maxBatch {
		ob.detector.Receive(time.Now(), r.from, r.message)
		select {
		case r = <-ob.messages:
		default:
			return
		}
	}
	ob.detector.Receive(time.Now(), r.from, r.message)
}

// takeSite notes what the cloud says, and whether it is new.
func (ob *Observer) takeSite(now time.Time) bool {
	health := *ob.health.Load()
	ob.detector.SetHealth(now, health)
	ob.reporter.SetHealth(now, health)
	site := ob.site.Load()
	if site == ob.current {
		return false
	}
	ob.current = site
	members := make([]detect.Member, 0, len(site.Members))
	dead := make(map[string]time.Time)
	for _, m := range site.Members {
		members = append(members, detect.Member{Name: m.Name, UID: m.UID})
		if m.Dead {
			if dead[m.Name] = now; !ob.settled[m.Name].IsZero() {
				dead[m.Name] = ob.settled[m.Name]
			}
		}
	}
	ob.settled = dead
	ob.detector.SetMembers(now, members)
	ob.reporter.SetDoubts(now, site.Doubts)
	ob.reporter.SetWitnesses(site.Witnesses)
	return true
}

// takeEvents says whether something has changed.
func (ob *Observer) takeEvents(now time.Time) bool {
	changed := false
	for _, e := range ob.detector.Events() {
		if e.Kind == detect.Probed {
			ob.reporter.Probed(now, e)
			continue
		}
		changed = true
		switch {
		case e.To == detect.Unreachable:
			ob.log.Warn("a neighbour cannot be reached", "neighbour", e.Name)
		case e.From == detect.Unreachable:
			ob.log.Info("a neighbour is back", "neighbour", e.Name)
		case e.From == e.To:
			ob.log.Info("the health of a neighbour has changed", "neighbour", e.Name)
		default:
			ob.log.Debug("a neighbour", "neighbour", e.Name, "was", e.From.String(), "is", e.To.String())
		}
	}
	return changed
}

func (ob *Observer) neighbours() []report.Neighbour {
	members := ob.detector.Members()
	list := make([]report.Neighbour, len(members))
	for i, m := range members {
		list[i] = report.Neighbour{Status: m, SettledSince: ob.settled[m.Name]}
	}
	return list
}

// send hands the messages of the detector to the connections.
func (ob *Observer) send() {
	m := ob.mesh.Load()
	for _, out := range ob.detector.Take() {
		if m != nil {
			m.Send(out.To, detect.Append(nil, out.Message))
		}
	}
}

// look looks at this node's own network while anybody does not answer.
func (ob *Observer) look(now time.Time) {
	doubt := ob.detector.Blind()
	for _, m := range ob.detector.Members() {
		doubt = doubt || m.State == detect.Suspect || m.State == detect.Unreachable
	}
	if doubt {
		ob.detector.SetBlind(now, ob.blind.look(now, ob.addresses.Load().own))
	}
}

var states = map[detect.State]agentapi.NeighbourState{
	detect.Unknown: agentapi.NeighbourUnknown, detect.Alive: agentapi.NeighbourAlive,
	detect.Suspect: agentapi.NeighbourSuspect, detect.Unreachable: agentapi.NeighbourUnreachable,
}

// publish tells what is known.
func (ob *Observer) publish(changed bool) {
	health := *ob.health.Load()
	known := agentapi.Neighbours{
		Site: ob.current.Name, Blind: ob.detector.Blind(), Isolated: ob.detector.Isolated(),
		KubeletDown: health.KubeletDown, RuntimeDown: health.RuntimeDown,
	}
	var c counts
	members := ob.detector.Members()
	known.Members = make([]agentapi.Neighbour, len(members))
	for i, m := range members {
		known.Members[i] = agentapi.Neighbour{
			Name: m.Name, State: states[m.State], Since: m.Since, Heard: m.Heard,
			KubeletDown: m.Health.KubeletDown, RuntimeDown: m.Health.RuntimeDown,
		}
		c.states[m.State]++
	}
	c.Counts, c.slow, c.loss = ob.detector.Counts(), ob.detector.Slow(), ob.detector.Loss()
	ob.counts.Store(&c)
	ob.mu.Lock()
	defer ob.mu.Unlock()
	ob.known = known
	if changed {
		close(ob.changed)
		ob.changed = make(chan struct{})
	}
}

// addressBook says where the members are.
type addressBook struct {
	byName map[string][]netip.AddrPort
	known  map[netip.Addr]bool
	own    []netip.Addr // this node's
}

func newAddressBook(members []Member, self string, port uint16) *addressBook {
	book := &addressBook{byName: make(map[string][]netip.AddrPort, len(members)), known: make(map[netip.Addr]bool, len(members))}
	for _, m := range members {
		if m.Name == self {
			book.own = m.Addresses
			continue
		}
		var addresses []netip.AddrPort
		for _, a := range m.Addresses {
			addresses = append(addresses, netip.AddrPortFrom(a, port))
			book.known[a.Unmap()] = true
		}
		book.byName[m.Name] = addresses
	}
	return book
}

func (b *addressBook) of(name string) ([]netip.AddrPort, bool) {
	addresses, ok := b.byName[name]
	return addresses, ok
}

func compare(a, b string) int { return strings.Compare(a, b) }
