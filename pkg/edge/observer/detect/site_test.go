package detect

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// site is a network of detectors with a clock of its own.
type site struct {
	t       testing.TB
	now     time.Time
	rand    *rand.Rand
	names   []string
	nodes   map[string]*Detector
	down    map[string]bool
	members []Member
	flying  []packet
	// lost says whether a message gets lost.
	lost func(from, to string) bool
	// seen is called with each event.
	seen        func(at string, e Event)
	sent, bytes int
	delay       time.Duration
}

type packet struct {
	at       time.Time
	from, to string
	data     []byte
}

const tick = 10 * time.Millisecond

func newSite(t testing.TB, seed uint64, count int, tuning Tuning) *site {
	s := &site{
		t: t, now: time.Unix(1_700_000_000, 0), rand: rand.New(rand.NewPCG(seed, 1)),
		nodes: map[string]*Detector{}, down: map[string]bool{}, delay: 2 * time.Millisecond,
		lost: func(string, string) bool { return false }, seen: func(string, Event) {},
	}
	for i := range count {
		name := fmt.Sprintf("node-%03d", i)
		s.names = append(s.names, name)
		s.members = append(s.members, Member{Name: name, UID: "uid-" + name})
	}
	for i, name := range s.names {
		s.start(name, seed+uint64(i)+100, tuning)
	}
	return s
}

// start begins a new life of a node.
func (s *site) start(name string, seed uint64, tuning Tuning) {
	d := New(Options{Self: name, Rand: rand.New(rand.NewPCG(seed, 2)), Tuning: tuning})
	d.SetMembers(s.now, s.members)
	s.nodes[name] = d
	delete(s.down, name)
}

func (s *site) run(length time.Duration) {
	s.until(length, func() bool { return false })
}

// until runs until done says so, and returns how long that took.
func (s *site) until(limit time.Duration, done func() bool) time.Duration {
	begin := s.now
	for end := s.now.Add(limit); s.now.Before(end); s.now = s.now.Add(tick) {
		if done() {
			return s.now.Sub(begin)
		}
		s.deliver()
		for _, name := range s.names {
			d := s.nodes[name]
			if s.down[name] || d.Next().After(s.now) {
				continue
			}
			d.Tick(s.now)
			s.collect(name)
		}
	}
	return limit
}

func (s *site) deliver() {
	var late []packet
	flying := s.flying
	s.flying = nil
	for _, p := range flying {
		switch {
		case p.at.After(s.now):
			late = append(late, p)
		case !s.down[p.to]:
			message, err := Decode(p.data)
			if err != nil {
				s.t.Fatalf("a message of %s: %v", p.from, err)
			}
			s.nodes[p.to].Receive(s.now, p.from, message)
			s.collect(p.to)
		}
	}
	s.flying = append(late, s.flying...)
}

func (s *site) collect(name string) {
	d := s.nodes[name]
	for _, out := range d.Take() {
		data := Append(nil, out.Message)
		if len(data) != Size(out.Message) || len(data) > MaxMessage {
			s.t.Fatalf("a message has %d bytes, and should have %d", len(data), Size(out.Message))
		}
		s.sent++
		s.bytes += len(data)
		if s.down[out.To] || s.lost(name, out.To) {
			continue
		}
		s.flying = append(s.flying, packet{at: s.now.Add(s.delay), from: name, to: out.To, data: data})
	}
	for _, e := range d.Events() {
		s.seen(name, e)
	}
}

// all says whether all who are up, but about itself, agree about a member.
func (s *site) all(about string, want State) bool {
	for _, name := range s.names {
		if name == about || s.down[name] {
			continue
		}
		if state, _, _ := s.nodes[name].State(about); state != want {
			return false
		}
	}
	return true
}

// healthy says whether all who are up know each other alive.
func (s *site) healthy() bool {
	for _, name := range s.names {
		if !s.down[name] && !s.all(name, Alive) {
			return false
		}
	}
	return true
}

func (s *site) loss(share float64) {
	s.lost = func(string, string) bool { return s.rand.Float64() < share }
}
