package detect

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Power off: every neighbour finds out, soon, whatever the size of the site.
func TestPowerOff(t *testing.T) {
	for _, test := range []struct {
		nodes int
		bound time.Duration
	}{{2, 7 * time.Second}, {3, 9 * time.Second}, {5, 9 * time.Second}, {17, 12 * time.Second}, {60, 15 * time.Second}} {
		var worst time.Duration
		runs := 5
		if test.nodes > 10 {
			runs = 1
		}
		for seed := range runs {
			s := newSite(t, uint64(seed), test.nodes, Tuning{})
			if took := s.until(2*time.Minute, s.healthy); took == 2*time.Minute {
				t.Fatalf("%d nodes, seed %d: they do not find each other", test.nodes, seed)
			}
			s.run(time.Duration(s.rand.Int64N(int64(5 * time.Second))))
			dead := s.names[s.rand.IntN(len(s.names))]
			s.down[dead] = true
			took := s.until(time.Minute, func() bool { return s.all(dead, Unreachable) })
			if took > test.bound {
				t.Errorf("%d nodes, seed %d: all know after %v that %s is dead, want %v", test.nodes, seed, took, dead, test.bound)
			}
			worst = max(worst, took)
			// It comes back as a new life, and nobody goes on doubting it.
			s.start(dead, 99, Tuning{})
			back := s.until(time.Minute, s.healthy)
			if back > 45*time.Second {
				t.Errorf("%d nodes, seed %d: all know after %v that it is back", test.nodes, seed, back)
			}
			s.seen = func(at string, e Event) {
				if e.Kind == Changed && e.To == Unreachable {
					t.Errorf("%d nodes, seed %d: %s says %+v", test.nodes, seed, at, e)
				}
			}
			s.run(30 * time.Second)
		}
		t.Logf("%d nodes: all know after %v at most", test.nodes, worst)
	}
}

// Loss: nobody who is there is ever called unreachable.
func TestLoss(t *testing.T) {
	for _, test := range []struct {
		nodes int
		share float64
	}{{2, 0.3}, {2, 0.5}, {3, 0.3}, {3, 0.5}, {5, 0.5}, {20, 0.5}} {
		false_, suspected := 0, 0
		for seed := range max(1, 8/test.nodes) {
			s := newSite(t, uint64(seed), test.nodes, Tuning{})
			s.until(time.Minute, s.healthy)
			s.loss(test.share)
			s.seen = func(_ string, e Event) {
				if e.Kind == Changed && e.To == Unreachable {
					false_++
				}
				if e.Kind == Changed && e.To == Suspect {
					suspected++
				}
			}
			s.run(2 * time.Minute)
		}
		t.Logf("%d nodes, %.0f %% loss: %d suspicions, %d wrong", test.nodes, test.share*100, suspected, false_)
		if false_ > 0 {
			t.Errorf("%d nodes, %.0f %% loss: %d times unreachable", test.nodes, test.share*100, false_)
		}
	}
}

func TestOneWayLossIsHelpedOver(t *testing.T) {
	s := newSite(t, 1, 4, Tuning{})
	s.until(time.Minute, s.healthy)
	a, b := s.names[0], s.names[1]
	s.lost = func(from, to string) bool { return from == b && to == a }
	s.seen = func(at string, e Event) {
		if e.Kind == Changed && e.To == Unreachable {
			t.Errorf("%s says %+v", at, e)
		}
	}
	s.run(2 * time.Minute)
	// A question is answered through the others, too.
	reached := false
	s.seen = func(at string, e Event) { reached = reached || (at == a && e.Kind == Probed && e.Reached) }
	s.nodes[a].Probe(s.now, b)
	if took := s.until(10*time.Second, func() bool { return reached }); took > 2*time.Second {
		t.Errorf("the question was answered after %v", took)
	}
}

func TestPartition(t *testing.T) {
	s := newSite(t, 3, 5, Tuning{})
	s.until(time.Minute, s.healthy)
	left := func(name string) bool { return name < s.names[2] }
	s.lost = func(from, to string) bool { return left(from) != left(to) }
	apart := func() bool {
		for _, a := range s.names {
			for _, b := range s.names {
				want := Alive
				if left(a) != left(b) {
					want = Unreachable
				}
				if state, _, _ := s.nodes[a].State(b); a != b && state != want {
					return false
				}
			}
		}
		return true
	}
	if took := s.until(time.Minute, apart); took > 25*time.Second {
		t.Errorf("the halves know of each other after %v", took)
	}
	s.run(time.Minute)
	if !apart() {
		t.Error("the halves have changed their minds")
	}
	s.lost = func(string, string) bool { return false }
	if took := s.until(time.Minute, s.healthy); took > 20*time.Second {
		t.Errorf("the halves have found each other after %v", took)
	}
}

// A large site that was split is whole again soon, for all.
func TestLargePartition(t *testing.T) {
	s := newSite(t, 3, 49, Tuning{})
	s.until(time.Minute, s.healthy)
	left := func(name string) bool { return name < s.names[20] }
	s.lost = func(from, to string) bool { return left(from) != left(to) }
	s.run(time.Minute)
	s.lost = func(string, string) bool { return false }
	took := s.until(2*time.Minute, s.healthy)
	t.Logf("whole again after %v", took)
	if took > 30*time.Second {
		t.Errorf("the halves have found each other after %v", took)
	}
	suspected := 0
	s.seen = func(_ string, e Event) {
		if e.To == Suspect {
			suspected++
		}
	}
	s.run(time.Minute)
	if suspected > 49 {
		t.Errorf("%d suspicions after it is healed", suspected)
	}
}

// A site whose nodes are all gone but one: it knows of each.
func TestLastOne(t *testing.T) {
	s := newSite(t, 4, 40, Tuning{})
	s.until(2*time.Minute, s.healthy)
	for _, name := range s.names[1:] {
		s.down[name] = true
	}
	last := s.nodes[s.names[0]]
	took := s.until(10*time.Minute, last.Isolated)
	t.Logf("the last of 40 knows it after %v", took)
	if took > 8*time.Minute {
		t.Errorf("the last one does not know that it is")
	}
}

func TestQuestion(t *testing.T) {
	for _, test := range []struct {
		name   string
		dead   bool
		loss   float64
		within time.Duration
	}{
		{"alive", false, 0, 100 * time.Millisecond},
		{"dead", true, 0, 3 * time.Second},
		{"alive, half is lost", false, 0.5, 10 * time.Second},
		{"dead, half is lost", true, 0.5, 10200 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, 5, 2, Tuning{})
			s.until(time.Minute, s.healthy)
			s.loss(test.loss)
			s.run(2 * time.Minute)
			s.down[s.names[1]] = test.dead
			asked := 0
			for range 20 {
				s.run(time.Second)
				var got *Event
				s.seen = func(at string, e Event) {
					if at == s.names[0] && e.Kind == Probed {
						got = &e
					}
				}
				s.nodes[s.names[0]].Probe(s.now, s.names[1])
				s.collect(s.names[0])
				took := s.until(20*time.Second, func() bool { return got != nil })
				if got == nil || got.Blind || got.Reached == test.dead || took > test.within {
					t.Errorf("after %v: %+v", took, got)
					continue
				}
				asked++
			}
			t.Logf("%d questions", asked)
		})
	}
	s := newSite(t, 6, 2, Tuning{})
	s.nodes[s.names[0]].Probe(s.now, "nobody")
	s.seen = func(string, Event) { t.Error("a question about nobody has an answer") }
	s.collect(s.names[0])
}

// A process that did not run for a while blames nobody for the time.
func TestStall(t *testing.T) {
	s := newSite(t, 7, 3, Tuning{})
	s.until(time.Minute, s.healthy)
	frozen := s.names[0]
	d := s.nodes[frozen]
	s.run(3 * time.Second)
	s.down[frozen] = true // its messages are lost meanwhile
	s.run(time.Minute)
	delete(s.down, frozen)
	s.seen = func(at string, e Event) {
		if at == frozen && e.To == Unreachable {
			t.Errorf("after its sleep it says %+v", e)
		}
	}
	if took := s.until(time.Minute, s.healthy); took > 10*time.Second {
		t.Errorf("all is well again after %v", took)
	}
	if d.Slow() > maxSlow {
		t.Error("too slow")
	}
}

func TestBlind(t *testing.T) {
	s := newSite(t, 8, 3, Tuning{})
	s.until(time.Minute, s.healthy)
	blind := s.names[0]
	d := s.nodes[blind]
	s.lost = func(from, to string) bool { return from == blind || to == blind }
	s.run(2 * time.Second)
	d.SetBlind(s.now, true)
	var events []Event
	s.seen = func(at string, e Event) {
		if at == blind {
			events = append(events, e)
		}
	}
	d.Probe(s.now, s.names[1])
	s.run(time.Minute)
	for _, e := range events {
		if e.To == Unreachable || (e.Kind == Probed && !e.Blind) {
			t.Errorf("a blind observer says %+v", e)
		}
	}
	if !slices.ContainsFunc(events, func(e Event) bool { return e.Kind == Probed && e.Blind }) {
		t.Error("the question had no answer at all")
	}
	if !s.all(blind, Alive) && !func() bool { state, _, _ := s.nodes[s.names[1]].State(blind); return state == Unreachable }() {
		t.Error("the others do not see that it is gone")
	}
	d.SetBlind(s.now, false)
	s.lost = func(string, string) bool { return false }
	if took := s.until(time.Minute, s.healthy); took > 15*time.Second {
		t.Errorf("all is well again after %v", took)
	}
}

// The health of a node reaches everybody, also those it does not talk to.
func TestHealthTravels(t *testing.T) {
	s := newSite(t, 9, 50, Tuning{})
	s.until(2*time.Minute, s.healthy)
	sick := s.names[7]
	for _, health := range []Health{{KubeletDown: true}, {KubeletDown: true, RuntimeDown: true}, {}} {
		s.nodes[sick].SetHealth(s.now, health)
		took := s.until(time.Minute, func() bool {
			for _, name := range s.names {
				for _, m := range s.nodes[name].Members() {
					if m.Name == sick && m.Health != health {
						return false
					}
				}
			}
			return true
		})
		if took > 20*time.Second {
			t.Errorf("%+v is known after %v", health, took)
		}
	}
}

func TestMembership(t *testing.T) {
	s := newSite(t, 10, 3, Tuning{})
	s.until(time.Minute, s.healthy)
	d := s.nodes[s.names[0]]
	s.down[s.names[2]] = true
	s.until(time.Minute, func() bool { return s.all(s.names[2], Unreachable) })
	// The Node is deleted and made again: nothing is known about the new one.
	d.SetMembers(s.now, []Member{{Name: s.names[1], UID: "uid-" + s.names[1]}, {Name: s.names[2], UID: "another"}, {Name: s.names[0]}, {Name: "Not A Name"}})
	if state, _, ok := d.State(s.names[2]); !ok || state != Unknown {
		t.Errorf("the new node is %v, %v", state, ok)
	}
	if state, _, _ := d.State(s.names[1]); state != Alive {
		t.Errorf("the other is %v", state)
	}
	d.Probe(s.now, s.names[2])
	d.SetMembers(s.now, nil)
	if len(d.Members()) != 0 || len(d.probes) != 0 {
		t.Error("something is left of those who are gone")
	}
	// Who is no member learns that this node is alive, and nothing else.
	d.Take()
	d.Receive(s.now, s.names[1], Message{Kind: Ping, Sequence: 5, Known: 1 << 20, Updates: []Update{{Member: d.self, State: Suspect, Incarnation: 9, From: s.names[1]}}})
	d.Receive(s.now, s.names[1], Message{Kind: PingReq, Target: s.names[2]})
	d.Receive(s.now, d.self, Message{Kind: Ping})
	if out := d.Take(); len(out) != 1 || out[0].To != s.names[1] || out[0].Message.Kind != Ack || out[0].Message.Sequence != 5 || len(out[0].Message.Updates) != 0 || d.incarnation != 0 {
		t.Errorf("to a node that is no member: %+v", out)
	}
}

// Messages per node and second do not grow with the site.
func TestConstantCost(t *testing.T) {
	rate := func(count int) float64 {
		s := newSite(t, 11, count, Tuning{})
		s.run(10 * time.Second)
		s.sent = 0
		s.run(20 * time.Second)
		return float64(s.sent) / 20 / float64(count)
	}
	small, large := rate(3), rate(60)
	t.Logf("messages per node and second: %.2f among 3, %.2f among 60", small, large)
	if large > 1.2*small {
		t.Error("the cost grows with the site")
	}
}

// The same seed gives the same messages.
func TestDeterministic(t *testing.T) {
	trace := func() []byte {
		s := newSite(t, 12, 9, Tuning{})
		s.loss(0.3)
		var all []byte
		s.seen = func(at string, e Event) { all = append(all, (at + e.Name + e.To.String() + e.At.String())...) }
		s.run(time.Minute)
		s.down[s.names[4]] = true
		s.run(time.Minute)
		return append(all, byte(s.sent), byte(s.sent>>8), byte(s.bytes), byte(s.bytes>>8))
	}
	if !slices.Equal(trace(), trace()) {
		t.Error("two runs of one seed differ")
	}
}

// What a member that lies can do: make another one suspect, for a moment.
func TestLiar(t *testing.T) {
	s := newSite(t, 13, 4, Tuning{})
	s.until(time.Minute, s.healthy)
	liar := s.names[3]
	s.seen = func(at string, e Event) {
		if e.Kind == Changed && e.To == Unreachable {
			t.Errorf("%s believes it: %+v", at, e)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 600 {
		to := s.names[r.IntN(3)]
		s.nodes[to].Receive(s.now, liar, Message{Kind: Ping, Incarnation: r.Uint64(), Known: r.Uint64(), Updates: []Update{
			{Member: s.names[r.IntN(3)], State: Unreachable, Incarnation: r.Uint64N(1 << 33), From: s.names[r.IntN(4)]},
			{Member: s.names[r.IntN(3)], State: Suspect, Incarnation: s.nodes[s.names[0]].incarnation, From: liar},
		}})
		s.run(100 * time.Millisecond)
	}
	s.seen = func(string, Event) {}
	if took := s.until(time.Minute, s.healthy); took > 10*time.Second {
		t.Errorf("all is well again after %v", took)
	}
	// And it cannot keep a dead one alive for an observer that asks by itself.
	dead := s.names[0]
	s.down[dead] = true
	var got *Event
	s.seen = func(at string, e Event) {
		if at == s.names[1] && e.Kind == Probed {
			got = &e
		}
	}
	s.run(30 * time.Second)
	s.nodes[s.names[1]].Probe(s.now, dead)
	for range 50 {
		s.nodes[s.names[1]].Receive(s.now, liar, Message{Kind: Ack, Sequence: r.Uint32(), Target: dead})
		s.run(100 * time.Millisecond)
	}
	if got == nil || got.Reached {
		t.Errorf("the question was answered %+v", got)
	}
}
