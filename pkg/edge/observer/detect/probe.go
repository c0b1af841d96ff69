package detect

import (
	"math"
	"slices"
	"time"
)

const (
	// maxProbes, maxRelays and maxAskerRelays bound what is under way.
	maxProbes      = 64
	maxQuestions   = 256
	maxRelays      = 128
	maxAskerRelays = 16
	// suspectsPerPeriod bounds the extra probes of suspects.
	suspectsPerPeriod = 2
	// hopeFor is how many periods after one member has come back the unreachable
	// ones are probed as often as the others: a split may have healed.
	hopeFor = 20
)

// probe is a question to one member that has no answer yet.
type probe struct {
	member   *member
	sequence uint32
	step     int       // in half timeouts
	next     time.Time // of the next step
	deadline time.Time
	question bool // asked for by Probe
	helpers  []*member
	nacks    int
	sent     int
}

// relay is a probe on behalf of another member.
type relay struct {
	asker, target *member
	asked         uint32 // the asker's sequence
	sequence      uint32
	step          int
	next          time.Time
}

// period starts the probes of one period.
func (d *Detector) period(now time.Time) {
	d.periods++
	d.extra = 0
	if d.blind {
		return
	}
	if m := d.fast.take(d.rand, d.targets, func(m *member) bool { return m.target && m.State != Unreachable && !d.probing(m) }); m != nil {
		d.start(now, m, false)
	}
	for _, m := range d.targets {
		if m.State == Suspect {
			d.startExtra(now, m)
		}
	}
	hope := d.periods < d.hope
	if d.inState[Unreachable] > 0 && (hope || d.periods%uint64(d.tuning.SlowEvery) == 0) {
		if m := d.sluggish.take(d.rand, d.members, func(m *member) bool {
			return (m.target || hope) && m.State == Unreachable && !d.probing(m)
		}); m != nil {
			d.start(now, m, false)
		}
	}
}

// startExtra probes a member out of turn, if that has not been done too often in
// this period.
func (d *Detector) startExtra(now time.Time, m *member) {
	if d.extra < suspectsPerPeriod && !d.probing(m) {
		d.extra++
		d.start(now, m, false)
	}
}

func (d *Detector) probing(m *member) bool {
	return slices.ContainsFunc(d.probes, func(p *probe) bool { return p.member == m })
}

// Probe tries to reach a member afresh, longer and harder than a usual probe. The
// result is an event Probed; of a name that is no member there is none.
func (d *Detector) Probe(now time.Time, name string) {
	m := d.byName[name]
	if m == nil || slices.ContainsFunc(d.probes, func(p *probe) bool { return p.member == m && p.question }) {
		return
	}
	questions := 0
	for _, p := range d.probes {
		if p.question {
			questions++
		}
	}
	if d.blind || questions >= maxQuestions {
		d.event(Event{Kind: Probed, At: now, Name: name, Blind: true})
		return
	}
	d.start(now, m, true)
}

// questionTime is how long a question tries: until a member that is there would
// have been missed once in 10,000 times at the loss seen lately.
func (d *Detector) questionTime() time.Duration {
	loss := min(max(d.loss, 0.01), 0.99)
	tries := math.Log(1e-4) / math.Log(loss)
	wanted := time.Duration(tries * float64(d.tuning.Timeout/2))
	return min(d.tuning.MaxQuestion, max(d.tuning.MinQuestion, wanted))
}

func (d *Detector) start(now time.Time, m *member, question bool) {
	if !question && len(d.probes) >= maxProbes {
		return
	}
	d.sequence++
	p := &probe{member: m, sequence: d.sequence, next: now, question: question, deadline: now.Add(3 * d.timeout())}
	if question {
		p.deadline = now.Add(d.questionTime())
	}
	d.probes = append(d.probes, p)
	d.advance(now, p)
}

// advance does the steps of a probe that are due: pings at 0, 1/2, 1 and 2
// timeouts, help after one. A question pings every half timeout, and asks
// others for help every two.
func (d *Detector) advance(now time.Time, p *probe) {
	half := d.timeout() / 2
	if p.question {
		half = d.tuning.Timeout / 2
	}
	for !p.next.After(now) {
		if p.question || p.step < 3 || p.step == 4 {
			p.sent++
			d.send(now, p.member, Message{Kind: Ping, Sequence: p.sequence})
		}
		if p.step == 2 || (p.question && p.step%4 == 2) {
			for _, helper := range d.chooseHelpers(p.member) {
				if !slices.Contains(p.helpers, helper) {
					p.helpers = append(p.helpers, helper)
				}
				d.send(now, helper, Message{Kind: PingReq, Sequence: p.sequence, Target: p.member.Name})
			}
		}
		p.step++
		p.next = p.next.Add(half)
	}
	if p.next.After(p.deadline) {
		p.next = p.deadline
	}
}

// chooseHelpers picks others to try, from those that this observer talks to.
func (d *Detector) chooseHelpers(about *member) []*member {
	var able []*member
	for _, m := range d.targets {
		if m != about && m.State == Alive {
			able = append(able, m)
		}
	}
	d.rand.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	return able[:min(len(able), d.tuning.Helpers)]
}

func (d *Detector) tickProbes(now time.Time) {
	var failed []*probe
	d.probes = slices.DeleteFunc(d.probes, func(p *probe) bool {
		if now.Before(p.deadline) {
			return false
		}
		failed = append(failed, p)
		return true
	})
	for _, p := range failed {
		d.fail(now, p)
	}
	for _, p := range d.probes {
		if !p.next.After(now) {
			d.advance(now, p)
		}
	}
}

// fail ends a probe that had no answer.
func (d *Detector) fail(now time.Time, p *probe) {
	d.counts.Probes++
	d.counts.Failed++
	m := p.member
	m.Own = true
	if p.question {
		d.event(Event{Kind: Probed, At: now, Name: m.Name})
	}
	if m.State == Unreachable {
		return
	}
	// Helpers that say "no answer either" prove that this observer is heard.
	if len(p.helpers) == 0 {
		d.doubtSelf(1)
	} else if p.nacks == 0 {
		d.doubtSelf(1)
	}
	d.suspect(now, m, d.self)
}

// succeed ends the probes of a member that gave a sign of life.
func (d *Detector) succeed(now time.Time, m *member) {
	d.probes = slices.DeleteFunc(d.probes, func(p *probe) bool {
		if p.member != m {
			return false
		}
		d.counts.Probes++
		d.doubtSelf(-1)
		d.loss += 0.1 * (float64(p.sent-1)/float64(p.sent) - d.loss)
		if p.question {
			d.event(Event{Kind: Probed, At: now, Name: m.Name, Reached: true})
		}
		return true
	})
}

// help probes a member for another one.
func (d *Detector) help(now time.Time, asker *member, message Message) {
	target := d.byName[message.Target]
	if target == nil || target == asker {
		return
	}
	count := 0
	for _, r := range d.relays {
		if r.asker != asker {
			continue
		}
		count++
		if r.target == target {
			r.asked, r.step = message.Sequence, 0 // asked again
			return
		}
	}
	if count >= maxAskerRelays || len(d.relays) >= maxRelays {
		return
	}
	d.sequence++
	r := &relay{asker: asker, target: target, asked: message.Sequence, sequence: d.sequence, next: now}
	d.relays = append(d.relays, r)
	d.tickRelays(now)
}

// tickRelays pings for others, at 0, 1/2 and 1 timeout, and says after 3/2 that
// there was no answer: before the asker's own time is over.
func (d *Detector) tickRelays(now time.Time) {
	d.relays = slices.DeleteFunc(d.relays, func(r *relay) bool {
		for !r.next.After(now) {
			if r.step == 3 {
				d.send(now, r.asker, Message{Kind: Nack, Sequence: r.asked, Target: r.target.Name})
				return true
			}
			d.send(now, r.target, Message{Kind: Ping, Sequence: r.sequence})
			r.step++
			r.next = r.next.Add(d.tuning.Timeout / 2)
		}
		return false
	})
}

// deliver tells those who asked for a member that it answers.
func (d *Detector) deliver(now time.Time, m *member) {
	d.relays = slices.DeleteFunc(d.relays, func(r *relay) bool {
		if r.target == m {
			d.send(now, r.asker, Message{Kind: Ack, Sequence: r.asked, Target: m.Name, Updates: []Update{
				{Member: m.Name, State: Alive, Incarnation: m.incarnation, Health: m.Health},
			}})
		}
		return r.target == m
	})
}
