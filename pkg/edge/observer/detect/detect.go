// Package detect finds out which nodes of a site are alive: the rules by which
// neighbours ask each other, as a state machine without a clock, a network or a
// goroutine. Whoever runs it says what time it is, hands it what was received
// and sends what it wants sent; the same calls with the same seed give the same
// answers, so that a simulation replays exactly.
//
// The rules are those of SWIM (each period one neighbour is probed, through
// others if it does not answer, and is suspected for a while before it counts
// as unreachable) with Lifeguard's additions (a suspicion lasts shorter the more
// neighbours share it; who hears little doubts itself first). Two things are
// its own. Who the members are is not gossiped, but given. And what others say
// makes a member suspect at most: unreachable it becomes only by this
// observer's own count of time without any sign of life.
//
// It must not know what a node, a certificate or the cloud is.
package detect

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Options are what a Detector is made of.
type Options struct {
	// Self is the name of the node it runs on.
	Self string
	// Rand decides whatever is random. Required.
	Rand *rand.Rand
	Tuning
}

// maxEvents bounds the events that nobody fetches.
const maxEvents = 4096

// Detector is the state machine. It is not safe for concurrent use.
type Detector struct {
	tuning Tuning
	self   string
	rand   *rand.Rand

	incarnation uint64
	health      Health
	blind       bool
	slow        int // how much this observer doubts itself: 0..maxSlow

	byName   map[string]*member   // never ranged over
	members  []*member            // by name, without self
	rings    [][]*member          // each a circle that starts after self
	targets  []*member            // whom this observer probes, by name
	inState  [Unreachable + 1]int // how many members are in each state
	fast     lane
	sluggish lane

	probes    []*probe
	relays    []*relay
	gossip    []*rumour
	reminder  int
	sequence  uint32
	periods   uint64
	hope      uint64 // the period until which unreachable members are probed often
	extra     int    // probes of this period beside the usual one
	nextProbe time.Time
	ticked    time.Time
	loss      float64 // of round trips, 0..1

	out    []Outgoing
	events []Event
	counts Counts
}

// Counts are what a Detector has done since it was made.
type Counts struct {
	// Probes that ended, those among them that failed, and messages.
	Probes, Failed, Sent, Received uint64
}

// member is what is known about one of the others.
type member struct {
	Status
	incarnation uint64
	joined      time.Time // when it became a member
	target      bool
	// accused is the incarnation, plus one, that the member must be told it is
	// doubted in; 0 if it need not be told anything.
	accused   uint64
	rumoured  uint64 // the incarnation, plus one, whose doubt was passed on
	suspicion suspicion
}

// New makes a Detector that knows nobody.
func New(options Options) *Detector {
	options.setDefaults()
	return &Detector{
		tuning: options.Tuning, self: options.Self, rand: options.Rand,
		sequence: options.Rand.Uint32(), byName: map[string]*member{},
	}
}

// SetMembers says who the nodes of the site are. Self may be among them.
func (d *Detector) SetMembers(now time.Time, members []Member) {
	byName := make(map[string]*member, len(members))
	list := make([]*member, 0, len(members))
	for _, given := range members {
		if given.Name == d.self || !validName(given.Name) || byName[given.Name] != nil {
			continue
		}
		m := d.byName[given.Name]
		if m == nil || (m.UID != given.UID && m.UID != "" && given.UID != "") {
			if m != nil {
				d.forget(m)
			}
			m = &member{Status: Status{Name: given.Name, Since: now}, joined: now}
		}
		m.UID = given.UID
		byName[m.Name] = m
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *member) int { return strings.Compare(a.Name, b.Name) })
	same := len(list) == len(d.members)
	for i := 0; same && i < len(list); i++ {
		same = list[i] == d.members[i]
	}
	if same {
		return
	}
	for _, m := range d.members {
		if byName[m.Name] != m {
			d.forget(m)
		}
	}
	d.byName, d.members = byName, list
	d.inState = [Unreachable + 1]int{}
	for _, m := range list {
		d.inState[m.State]++
	}
	d.makeRings()
	d.chooseTargets()
}

// forget removes what is under way about a member that is none any more. A
// question that somebody waits for ends without an answer.
func (d *Detector) forget(m *member) {
	m.target = false // it may still stand in line to be probed
	d.probes = slices.DeleteFunc(d.probes, func(p *probe) bool {
		if p.member == m && p.question {
			d.event(Event{Kind: Probed, At: d.ticked, Name: m.Name, Blind: true})
		}
		return p.member == m
	})
	d.relays = slices.DeleteFunc(d.relays, func(r *relay) bool { return r.target == m || r.asker == m })
	d.gossip = slices.DeleteFunc(d.gossip, func(r *rumour) bool { return r.update.Member == m.Name })
}

// SetHealth says how this node is; its neighbours learn it.
func (d *Detector) SetHealth(_ time.Time, health Health) {
	if health == d.health {
		return
	}
	d.health = health
	d.incarnation++
	d.spreadSelf()
}

// SetBlind says that this node cannot reach any neighbour for a reason of its
// own (its network interface is down): until it is taken back, nobody becomes
// suspect or unreachable, and questions have no answer.
func (d *Detector) SetBlind(now time.Time, blind bool) {
	if blind == d.blind {
		return
	}
	d.blind = blind
	for _, m := range d.members {
		if m.State == Suspect {
			d.setState(now, m, Unknown)
		}
	}
	d.probes = slices.DeleteFunc(d.probes, func(p *probe) bool {
		if p.question && blind {
			d.event(Event{Kind: Probed, At: now, Name: p.member.Name, Blind: true})
		}
		return blind || !p.question
	})
}

// stall is how late a Tick may come. One that is later means that this process
// did not run: the time was nobody's fault but its own.
const stall = time.Second

// Tick does what is due.
func (d *Detector) Tick(now time.Time) {
	if due := d.Next(); !due.IsZero() && now.Sub(due) > stall && !d.ticked.IsZero() {
		d.shift(now.Sub(due))
		d.doubtSelf(1)
	}
	d.ticked = now
	d.tickRelays(now)
	d.tickProbes(now)
	d.tickSuspicions(now)
	if d.nextProbe.IsZero() {
		d.nextProbe = now.Add(time.Duration(d.rand.Int64N(int64(d.tuning.Period))))
	}
	if !now.Before(d.nextProbe) {
		d.period(now)
		d.nextProbe = d.nextProbe.Add(d.tuning.Period)
		if d.nextProbe.Before(now) {
			d.nextProbe = now.Add(d.tuning.Period)
		}
	}
}

// shift moves what others had to be done by.
func (d *Detector) shift(by time.Duration) {
	for _, p := range d.probes {
		p.next, p.deadline = p.next.Add(by), p.deadline.Add(by)
	}
	for _, m := range d.members {
		if m.State == Suspect {
			m.suspicion.start = m.suspicion.start.Add(by)
		}
	}
	d.nextProbe = d.nextProbe.Add(by)
}

// Next is when Tick is due. Zero: at once.
func (d *Detector) Next() time.Time {
	next := d.nextProbe
	if next.IsZero() {
		return next
	}
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, p := range d.probes {
		sooner(p.next)
	}
	for _, r := range d.relays {
		sooner(r.next)
	}
	if d.inState[Suspect] == 0 || d.blind {
		return next
	}
	for _, m := range d.members {
		if m.State == Suspect {
			sooner(d.suspicionEnds(m))
		}
	}
	return next
}

// Take returns the messages to be sent since the last call.
func (d *Detector) Take() []Outgoing {
	out := d.out
	d.out = nil
	return out
}

// Events returns what has happened since the last call.
func (d *Detector) Events() []Event {
	events := d.events
	d.events = nil
	return events
}

func (d *Detector) event(e Event) {
	if len(d.events) < maxEvents {
		d.events = append(d.events, e)
	}
}

// State is that of a member; ok is false if there is none of that name.
func (d *Detector) State(name string) (state State, since time.Time, ok bool) {
	if m := d.byName[name]; m != nil {
		return m.State, m.Since, true
	}
	return Unknown, time.Time{}, false
}

// Members are all members but this one, by name.
func (d *Detector) Members() []Status {
	list := make([]Status, len(d.members))
	for i, m := range d.members {
		list[i] = m.Status
	}
	return list
}

// Counts are what has been done so far.
func (d *Detector) Counts() Counts { return d.counts }

// Slow is how much this observer doubts itself, from 0 to 3: its timeouts are
// longer by so many times.
func (d *Detector) Slow() int { return d.slow }

// Loss is the share of round trips that were lost lately, as probes of members
// that did answer in the end show it.
func (d *Detector) Loss() float64 { return d.loss }

// Blind is what SetBlind said.
func (d *Detector) Blind() bool { return d.blind }

// Isolated says that this observer reaches none of at least two others. Then it
// may be this node that is cut off, and not they.
func (d *Detector) Isolated() bool {
	return len(d.members) > 1 && d.inState[Unreachable] == len(d.members)
}

// setState changes the state of a member.
func (d *Detector) setState(now time.Time, m *member, to State) {
	from := m.State
	if from == to {
		return
	}
	m.State, m.Since = to, now
	d.inState[from]--
	d.inState[to]++
	if to != Suspect {
		m.suspicion = suspicion{}
	}
	d.event(Event{Kind: Changed, At: now, Name: m.Name, From: from, To: to})
	if from == Unreachable || to == Unreachable {
		d.chooseTargets()
	}
	if from == Unreachable && to == Alive {
		d.hope = d.periods + hopeFor // where one comes back, others may
	}
}

// setHealth notes what a member says of itself.
func (d *Detector) setHealth(now time.Time, m *member, health Health) {
	if m.Health == health {
		return
	}
	m.Health = health
	d.event(Event{Kind: Changed, At: now, Name: m.Name, From: m.State, To: m.State})
}

const maxSlow = 3

func (d *Detector) doubtSelf(by int) { d.slow = min(maxSlow, max(0, d.slow+by)) }

// timeout is how long an answer may take.
func (d *Detector) timeout() time.Duration {
	return d.tuning.Timeout * time.Duration(1+d.slow)
}

// logSize is the decimal logarithm of the size of the site, at least 1.
func (d *Detector) logSize() float64 { return max(1, math.Log10(float64(len(d.members)+1))) }
