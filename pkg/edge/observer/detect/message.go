package detect

import (
	"slices"
	"time"
)

// Kind says what a message is.
type Kind uint8

// Kinds of messages.
const (
	// Ping asks for an Ack.
	Ping Kind = 1 + iota
	// Ack answers a Ping, or tells who sent a PingReq that Target answered.
	Ack
	// PingReq asks for a Ping of Target.
	PingReq
	// Nack tells who sent a PingReq that Target has not answered.
	Nack
)

// Message is what observers send each other.
type Message struct {
	Kind Kind
	// Sequence is that of the Ping or PingReq that an answer belongs to.
	Sequence uint32
	// Target is the member that a PingReq or its answer is about, else empty.
	Target string
	// Incarnation is the sender's; Known is the receiver's, as the sender knows
	// it.
	Incarnation, Known uint64
	// Health is the sender's.
	Health Health
	// Updates are news about members.
	Updates []Update
}

// Update is news about one member.
type Update struct {
	Member string
	// State is Alive, Suspect or Unreachable.
	State State
	// Incarnation is the member's own count: it raises it to contradict those
	// who doubt it, and when its health changes.
	Incarnation uint64
	// From is who had no answer; empty if State is Alive.
	From string
	// Health is the member's, if State is Alive.
	Health Health
}

// rumour is an update on its way.
type rumour struct {
	update Update
	sent   int
}

// maxUpdates and maxRumours bound the news in a message, and those that wait.
const (
	maxUpdates = 8
	maxRumours = 512
)

// maxJump bounds how far an incarnation can be raised by one message, so that
// no single one uses them up.
const maxJump = 1 << 32

// send queues a message, with the news that fit in.
func (d *Detector) send(now time.Time, to *member, message Message) {
	message.Incarnation, message.Known, message.Health = d.incarnation, to.incarnation, d.health
	message.Updates = d.news(to, message)
	d.counts.Sent++
	d.out = append(d.out, Outgoing{To: to.Name, Message: message})
}

// news chooses the updates of a message: what the receiver must contradict,
// what has been sent least, and now and then somebody who is not alive, for
// those who have missed it.
func (d *Detector) news(to *member, message Message) []Update {
	updates := message.Updates
	room := MaxMessage - Size(message)
	add := func(u Update) bool {
		if len(updates) >= maxUpdates || u.size() > room {
			return false
		}
		room -= u.size()
		updates = append(updates, u)
		return true
	}
	switch {
	case to.State == Suspect || to.State == Unreachable:
		add(Update{Member: to.Name, State: to.State, Incarnation: to.incarnation, From: d.self})
	case to.accused > 0:
		add(Update{Member: to.Name, State: Suspect, Incarnation: to.accused - 1, From: d.self})
	}
	limit := int(3*d.logSize()*3) + 1
	for i := 0; i < len(d.gossip) && len(updates) < maxUpdates; i++ {
		r := d.gossip[i]
		if r.update.Member != to.Name && add(r.update) {
			r.sent++
		}
	}
	d.gossip = slices.DeleteFunc(d.gossip, func(r *rumour) bool { return r.sent >= limit })
	slices.SortStableFunc(d.gossip, func(a, b *rumour) int { return a.sent - b.sent })
	if len(updates) == 0 && len(d.members) > 0 {
		for range min(16, len(d.members)) {
			d.reminder = (d.reminder + 1) % len(d.members)
			m := d.members[d.reminder]
			if m != to && (m.State == Unreachable || (m.State == Alive && m.Health != Health{})) {
				u := Update{Member: m.Name, State: m.State, Incarnation: m.incarnation, Health: m.Health}
				if m.State == Unreachable {
					u.Health, u.From = Health{}, d.self
				}
				add(u)
				break
			}
		}
	}
	return updates
}

// spread puts news on their way, in place of older ones about the same member.
func (d *Detector) spread(u Update) {
	if i := slices.IndexFunc(d.gossip, func(r *rumour) bool {
		return r.update.Member == u.Member && (r.update.State == Alive || u.State == Alive || r.update.From == u.From || r.update.Incarnation < u.Incarnation)
	}); i >= 0 {
		d.gossip = slices.Delete(d.gossip, i, i+1)
	}
	if len(d.gossip) >= maxRumours {
		d.gossip = d.gossip[:maxRumours-1] // the most sent one
	}
	d.gossip = slices.Insert(d.gossip, 0, &rumour{update: u})
}

func (d *Detector) spreadSelf() {
	d.spread(Update{Member: d.self, State: Alive, Incarnation: d.incarnation, Health: d.health})
}

// Receive takes a message. from is who sent it, as the transport has proved it.
// Who is no member is told that this node is alive, if it asks, and nothing it
// says is believed: it may have joined the site since this node has last heard
// who belongs to it, and must not take it for dead.
func (d *Detector) Receive(now time.Time, from string, message Message) {
	m := d.byName[from]
	if m == nil {
		if message.Kind == Ping && from != d.self && validName(from) {
			d.counts.Sent++
			d.out = append(d.out, Outgoing{To: from, Message: Message{
				Kind: Ack, Sequence: message.Sequence, Incarnation: d.incarnation, Health: d.health,
			}})
		}
		return
	}
	d.counts.Received++
	if message.Known > d.incarnation && message.Known-d.incarnation <= maxJump {
		// It knows this node from before a restart.
		d.incarnation = message.Known + 1
		d.spreadSelf()
	}
	if message.Incarnation >= m.incarnation && message.Incarnation-m.incarnation <= maxJump {
		newer := message.Incarnation > m.incarnation
		m.incarnation = message.Incarnation
		d.setHealth(now, m, message.Health)
		if newer {
			m.accused = 0
			d.spread(Update{Member: m.Name, State: Alive, Incarnation: m.incarnation, Health: m.Health})
		}
	}
	d.heard(now, m)
	d.succeed(now, m)
	d.deliver(now, m)
	for i, u := range message.Updates {
		if i < maxUpdates {
			d.apply(now, u)
		}
	}
	switch message.Kind {
	case Ping:
		d.send(now, m, Message{Kind: Ack, Sequence: message.Sequence})
	case PingReq:
		d.help(now, m, message)
	case Ack, Nack:
		if message.Target != "" {
			d.answered(now, m, message)
		}
	}
}

// answered takes what a helper found out.
func (d *Detector) answered(now time.Time, helper *member, message Message) {
	i := slices.IndexFunc(d.probes, func(p *probe) bool {
		return p.sequence == message.Sequence && p.member.Name == message.Target && slices.Contains(p.helpers, helper)
	})
	if i < 0 {
		return
	}
	p := d.probes[i]
	if message.Kind == Nack {
		p.nacks++
		return
	}
	d.heard(now, p.member)
	d.succeed(now, p.member)
}

// apply takes news.
func (d *Detector) apply(now time.Time, u Update) {
	if u.Member == d.self {
		d.contradict(u)
		return
	}
	m := d.byName[u.Member]
	if m == nil || (u.Incarnation > m.incarnation && u.Incarnation-m.incarnation > maxJump) {
		return
	}
	if u.State == Alive {
		d.applyAlive(now, m, u)
		return
	}
	if u.Incarnation < m.incarnation {
		if m.State == Alive {
			// Whoever says this has missed that it was contradicted.
			d.spread(Update{Member: m.Name, State: Alive, Incarnation: m.incarnation, Health: m.Health})
		}
		return
	}
	m.incarnation = u.Incarnation
	if d.blind {
		return
	}
	// Who has just been heard here is not suspect here, but must hear of it. That
	// somebody has called it unreachable for long is older news than that it does
	// not answer.
	fresh := 2 * d.tuning.Period
	if u.State == Unreachable {
		fresh = 20 * d.tuning.Period
	}
	if m.State == Alive && !m.Heard.IsZero() && now.Sub(m.Heard) < fresh {
		if m.accused != u.Incarnation+1 {
			d.startExtra(now, m)
		}
		m.accused = u.Incarnation + 1
		if m.rumoured != m.accused {
			m.rumoured = m.accused
			d.spread(Update{Member: m.Name, State: Suspect, Incarnation: u.Incarnation, From: u.From})
		}
		return
	}
	d.suspect(now, m, u.From)
}

// applyAlive takes a contradiction, or a change of a member's health.
func (d *Detector) applyAlive(now time.Time, m *member, u Update) {
	switch {
	case u.Incarnation > m.incarnation:
		m.incarnation, m.accused = u.Incarnation, 0
		d.setHealth(now, m, u.Health)
		d.setState(now, m, Alive)
		d.spread(u)
		// It has spoken after it was asked for: that is an answer, too.
		if slices.ContainsFunc(d.probes, func(p *probe) bool { return p.member == m && p.question }) {
			d.succeed(now, m)
		}
	case u.Incarnation == m.incarnation && m.State == Unknown:
		d.setHealth(now, m, u.Health)
		d.setState(now, m, Alive)
	}
}

// contradict tells all who doubt this node, or know a later life of it, that it
// is there.
func (d *Detector) contradict(u Update) {
	later := u.Incarnation > d.incarnation
	if u.Incarnation-d.incarnation > maxJump && later {
		return
	}
	switch {
	case u.State != Alive && u.Incarnation >= d.incarnation:
		d.doubtSelf(1)
	case !later:
		return
	}
	d.incarnation = u.Incarnation + 1
	d.spreadSelf()
}
