package report

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/observer/detect"
)

// desk is a reporter with a clock, neighbours that are as a test says, and an
// API that notes what is written.
type desk struct {
	t          *testing.T
	now        time.Time
	reporter   *Reporter
	neighbours map[string]*Neighbour
	blind      bool
	knock      string // what a machine does at whose door is knocked
	knocks     int
	fails      bool
	probes     []string
	writes     []string
	stored     *sitev1.NodeReportSpec
}

func newDesk(t *testing.T, self string, others ...string) *desk {
	d := &desk{
		t: t, now: time.Unix(1_700_000_000, 0), neighbours: map[string]*Neighbour{},
		reporter: New(Options{Self: self, Rand: rand.New(rand.NewPCG(1, detect.Rank(0, self, "")))}),
	}
	for _, name := range others {
		d.neighbours[name] = &Neighbour{Status: detect.Status{Name: name, UID: "uid-" + name, State: detect.Alive, Since: d.now, Heard: d.now}}
	}
	d.reporter.SetOnline(d.now, true)
	d.run(5 * time.Second) // what an earlier life has left is removed
	if len(d.writes) != 1 || d.writes[0] != "delete" {
		t.Fatalf("at first: %v", d.writes)
	}
	d.writes = nil
	return d
}

func (d *desk) set(name string, state detect.State, own bool) {
	n := d.neighbours[name]
	n.State, n.Since, n.Own = state, d.now, own
	if state == detect.Alive {
		n.Heard = d.now
	}
}

func (d *desk) ask(doubts ...sitev1.Doubt) { d.reporter.SetDoubts(d.now, doubts) }

func doubt(name string, reachable, unreachable int32) sitev1.Doubt {
	return sitev1.Doubt{Node: name, UID: types.UID("uid-" + name), Reachable: reachable, Unreachable: unreachable}
}

// run lets time pass. Probes end at once, with what is so.
func (d *desk) run(length time.Duration) {
	for end := d.now.Add(length); d.now.Before(end); d.now = d.now.Add(50 * time.Millisecond) {
		d.step()
	}
}

func (d *desk) step() {
	list := []Neighbour{}
	for _, n := range d.neighbours {
		list = append(list, *n)
	}
	d.reporter.SetNeighbours(d.now, list)
	d.reporter.Tick(d.now)
	for _, name := range d.reporter.Probes() {
		d.probes = append(d.probes, name)
		reached := d.neighbours[name] != nil && d.neighbours[name].State != detect.Unreachable
		if reached {
			d.neighbours[name].Heard = d.now
		}
		d.reporter.Probed(d.now, detect.Event{Kind: detect.Probed, Name: name, Reached: reached && !d.blind, Blind: d.blind})
	}
	for _, name := range d.reporter.Knocks() {
		d.knocks++
		if d.knock != "slow" {
			d.reporter.Knocked(d.now, name, d.knock == "refused")
		}
	}
	action := d.reporter.Action(d.now)
	switch action.Kind {
	case None:
		return
	case Delete:
		d.writes = append(d.writes, "delete")
	case Put:
		if len(action.Spec.Neighbours) > 256 {
			d.t.Errorf("%d neighbours in a report", len(action.Spec.Neighbours))
		}
		d.writes = append(d.writes, describe(action.Spec))
	}
	if again := d.reporter.Action(d.now); again.Kind != None {
		d.t.Error("a second action before the first was done")
	}
	d.reporter.Done(d.now, action, !d.fails)
	if !d.fails {
		d.stored = nil
		if action.Kind == Put {
			d.stored = &action.Spec
		}
	}
	if next := d.reporter.Next(d.now); !next.After(d.now) && d.reporter.pending.Kind == None && d.stored != nil {
		d.t.Errorf("the next time is %v ago", d.now.Sub(next))
	}
}

func describe(spec sitev1.NodeReportSpec) string {
	var parts []string
	if spec.Self != (sitev1.SelfReport{}) {
		parts = append(parts, fmt.Sprintf("self kubelet=%s runtime=%s", spec.Self.Kubelet, spec.Self.Runtime))
	}
	for _, n := range spec.Neighbours {
		parts = append(parts, n.Node+" "+string(n.State))
	}
	return strings.Join(parts, ", ")
}

func (d *desk) wrote(want ...string) {
	d.t.Helper()
	if !slices.Equal(d.writes, want) {
		d.t.Errorf("written: %q, want %q", d.writes, want)
	}
	d.writes = nil
}

// repeat is what is written in a time in which nothing new happens.
func repeat(what string, times int) []string { return slices.Repeat([]string{what}, times) }

func TestNothingToSay(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.run(time.Hour)
	d.wrote()
	if len(d.probes) != 0 {
		t.Errorf("probes: %v", d.probes)
	}
}

func TestUnasked(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.set("west-2", detect.Suspect, true)
	d.run(5 * time.Second)
	d.wrote() // a suspicion is nobody's business
	d.set("west-2", detect.Unreachable, true)
	d.run(25 * time.Second)
	d.wrote(repeat("west-2 Unreachable", 3)...)
	if got := d.stored.Neighbours[0]; got.UID != "uid-west-2" || got.Seconds < 19 || got.Seconds > 21 {
		t.Errorf("%+v", got)
	}
	d.set("west-2", detect.Alive, false)
	d.run(30 * time.Second)
	d.wrote("delete")
	if len(d.probes) != 2 {
		t.Errorf("probes: %v, and each renewal should have one", d.probes)
	}
}

// What only others have found is looked at before it is said.
func TestHearsay(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.set("west-2", detect.Unreachable, false)
	d.run(5 * time.Second)
	d.wrote("west-2 Unreachable")
	if !slices.Equal(d.probes, []string{"west-2"}) {
		t.Errorf("probes: %v", d.probes)
	}
	d = newDesk(t, "west-1", "west-2", "west-3")
	d.set("west-2", detect.Unreachable, false)
	d.blind = true
	d.run(time.Minute)
	d.wrote() // it could not look
}

// A machine that answers that nobody listens lives, though its agent does not.
func TestKnock(t *testing.T) {
	for _, test := range []struct {
		knock string
		asked bool
		want  []string
	}{
		{"nothing", false, repeat("west-2 Unreachable", 2)},
		{"refused", false, repeat("west-2 KubeletDown", 2)},
		{"slow", false, nil},
		{"nothing", true, repeat("west-2 Unreachable", 2)},
		{"refused", true, repeat("west-2 KubeletDown", 2)},
		{"slow", true, nil},
	} {
		d := newDesk(t, "west-1", "west-2", "west-3")
		d.reporter.knock, d.knock = true, test.knock
		d.set("west-2", detect.Unreachable, true)
		if test.asked {
			d.ask(doubt("west-2", 0, 0))
		}
		d.run(15 * time.Second)
		d.wrote(test.want...)
		if test.knock == "refused" { // and then the machine is switched off
			d.knock = "nothing"
			d.run(15 * time.Second)
			if d.writes[len(d.writes)-1] != "west-2 Unreachable" {
				t.Errorf("then: %q", d.writes)
			}
		}
		if d.knocks < 1 || d.knocks > 4 {
			t.Errorf("%+v: %d knocks", test, d.knocks)
		}
		d.set("west-2", detect.Alive, false)
		d.ask()
		d.run(3 * time.Second)
		if d.stored != nil {
			t.Errorf("%+v: something is said still", test)
		}
	}
}

// In a large site three speak, the same for everybody.
func TestSpeakers(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	speak := func(dead ...string) []string {
		var speaking []string
		for _, self := range names {
			if slices.Contains(dead, self) {
				continue
			}
			d := newDesk(t, self, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == self })...)
			for _, name := range dead {
				d.set(name, detect.Unreachable, true)
			}
			d.run(3 * time.Second)
			if slices.ContainsFunc(d.writes, func(w string) bool { return strings.Contains(w, dead[0]+" Unreachable") }) {
				speaking = append(speaking, self)
			}
		}
		return speaking
	}
	first := speak("n07")
	if len(first) != speakers {
		t.Fatalf("%v speak", first)
	}
	// If one of them dies too, another takes its turn.
	second := speak("n07", first[0])
	if len(second) != speakers || slices.Contains(second, first[0]) || !slices.Contains(second, first[1]) {
		t.Errorf("first %v, then %v", first, second)
	}
}

func TestKubeletDown(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.neighbours["west-2"].Health = detect.Health{KubeletDown: true}
	d.run(5 * time.Second)
	d.wrote("west-2 KubeletDown")
	d.ask(doubt("west-2", 0, 0))
	d.run(3 * time.Second)
	d.wrote() // asked, it has said so already
	d.neighbours["west-2"].Health = detect.Health{}
	d.run(3 * time.Second)
	d.wrote("west-2 Reachable")
	d.ask()
	d.run(3 * time.Second)
	d.wrote("delete")
	// This node itself.
	d.reporter.SetHealth(d.now, detect.Health{RuntimeDown: true})
	d.run(15 * time.Second)
	d.wrote(repeat("self kubelet=Working runtime=Down", 2)...)
	if d.stored.Self.DownSeconds != 10 {
		t.Errorf("%+v", d.stored.Self)
	}
	d.reporter.SetHealth(d.now, detect.Health{})
	d.run(time.Second)
	d.wrote("delete")
}

func TestAsked(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.ask(doubt("west-2", 0, 0))
	d.run(500 * time.Millisecond)
	d.wrote("west-2 Reachable")
	d.ask(doubt("west-2", 1, 0)) // its own answer is counted
	d.run(30 * time.Second)
	d.wrote(repeat("west-2 Reachable", 3)...)
	if len(d.probes) != 4 {
		t.Errorf("%d probes: each answer needs a new one", len(d.probes))
	}
	// It dies while it is asked about: that is said without waiting.
	d.set("west-2", detect.Unreachable, true)
	d.run(1500 * time.Millisecond)
	d.wrote("west-2 Unreachable")
	// And it comes back.
	d.set("west-2", detect.Alive, false)
	d.run(1500 * time.Millisecond)
	d.wrote("west-2 Reachable")
	d.ask()
	d.run(time.Minute)
	d.wrote("delete")
}

func TestAskedAboutSomebodyElse(t *testing.T) {
	d := newDesk(t, "west-1", "west-2")
	other := doubt("west-2", 0, 0)
	other.UID = "another" // the Node was deleted and made again
	d.ask(other, doubt("east-1", 0, 0), doubt("west-1", 0, 0))
	d.run(time.Minute)
	d.wrote()
}

func TestSilence(t *testing.T) {
	for _, test := range []struct {
		name                   string
		reachable, unreachable int32
		witnesses              int
		dead                   bool
		speaks                 bool
	}{
		{"nobody has answered", 0, 0, 1, false, true},
		{"one reaches it, too", 1, 0, 1, false, true},
		{"two reach it", 2, 0, 1, false, false},
		{"many do not reach it", 0, 9, 1, false, true},
		{"one reaches it, and it is dead here", 1, 0, 1, true, true},
		{"two do not reach it, either", 0, 2, 1, true, true},
		{"three do not reach it", 0, 3, 1, true, false},
		{"three do not, and five are wanted", 0, 3, 5, true, true},
		{"five do not, and five are wanted", 0, 5, 5, true, false},
	} {
		d := newDesk(t, "west-1", "west-2", "west-3", "west-4", "west-5", "west-6")
		d.reporter.SetWitnesses(test.witnesses)
		if test.dead {
			d.set("west-2", detect.Unreachable, true)
			d.neighbours["west-2"].SettledSince = d.now // so that it does not speak unasked
		}
		d.ask(doubt("west-2", test.reachable, test.unreachable))
		d.run(8 * time.Second)
		if got := len(d.writes) > 0; got != test.speaks {
			t.Errorf("%s: written %q", test.name, d.writes)
		}
	}
}

// Who was silent because others spoke is heard soon after they stop.
func TestOthersStop(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.ask(doubt("west-2", 2, 0))
	d.run(33 * time.Second)
	d.wrote()
	d.ask(doubt("west-2", 0, 2)) // a split, of which this node is on the other side
	d.run(200 * time.Millisecond)
	d.wrote("west-2 Reachable")
}

// A thousand are asked about one: a dozen go on answering, and never none.
func TestCrowd(t *testing.T) {
	desks := map[string]*desk{}
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	for _, self := range names[1:] {
		desks[self] = newDesk(t, self, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == self })...)
		desks[self].ask(doubt(names[0], 0, 0))
	}
	speaking := func() (count int32) {
		for _, d := range desks {
			if d.stored != nil {
				count++
			}
		}
		return count
	}
	// The cloud counts late: nobody hears of the others' answers for two seconds.
	for range 30 {
		count := speaking()
		for range 2 {
			for _, name := range names[1:] {
				desks[name].run(500 * time.Millisecond)
			}
		}
		for _, d := range desks {
			d.ask(doubt(names[0], count, 0))
		}
		if count == 0 && desks[names[1]].now.Sub(time.Unix(1_700_000_000, 0)) > 10*time.Second {
			t.Fatal("nobody answers any more")
		}
	}
	if count := speaking(); count < 2 || count > crowd {
		t.Errorf("%d go on answering", count)
	}
}

// What the cloud has taken note of is not repeated for ever, and its end is told.
func TestSettled(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.set("west-2", detect.Unreachable, true)
	d.run(20 * time.Second)
	d.ask(doubt("west-2", 0, 1))
	d.neighbours["west-2"].SettledSince = d.now
	d.run(2 * time.Minute)
	if d.stored != nil {
		t.Error("it is still said")
	}
	d.writes, d.probes = nil, nil
	d.run(time.Hour)
	d.wrote()
	if len(d.probes) != 0 {
		t.Errorf("%d probes of a node that is known to be dead", len(d.probes))
	}
	d.set("west-2", detect.Alive, false)
	d.run(500 * time.Millisecond)
	d.wrote("west-2 Reachable")
}

func TestOffline(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.reporter.SetOnline(d.now, false)
	d.set("west-2", detect.Unreachable, true)
	d.ask(doubt("west-3", 0, 0))
	d.run(time.Minute)
	d.wrote()
	d.ask()
	d.reporter.SetOnline(d.now, true)
	d.run(time.Second)
	d.wrote("west-2 Unreachable")
	d.reporter.SetOnline(d.now, false)
	d.run(time.Minute)
	d.wrote()
	d.set("west-2", detect.Alive, false)
	d.reporter.SetOnline(d.now, true)
	d.run(time.Minute)
	d.wrote("delete") // what it had said before is there still
}

// Writing that fails is tried again, with patience, and at most once a second.
func TestFailure(t *testing.T) {
	d := newDesk(t, "west-1", "west-2", "west-3")
	d.fails = true
	d.set("west-2", detect.Unreachable, true)
	d.run(2 * time.Minute)
	if count := len(d.writes); count < 6 || count > 25 {
		t.Errorf("%d tries in two minutes", count)
	}
	d.fails, d.writes = false, nil
	d.run(30 * time.Second)
	if len(d.writes) == 0 || d.stored == nil {
		t.Error("it is not written when it can be")
	}
	// A neighbour that comes and goes does not make more than one write a second.
	d.writes = nil
	for range 300 {
		d.set("west-2", detect.Unreachable, true)
		d.run(100 * time.Millisecond)
		d.set("west-2", detect.Alive, false)
		d.run(100 * time.Millisecond)
	}
	if count := len(d.writes); count > 61 {
		t.Errorf("%d writes in a minute", count)
	}
}

func TestManyDead(t *testing.T) {
	names := []string{}
	for i := range 400 {
		names = append(names, fmt.Sprintf("n%03d", i))
	}
	d := newDesk(t, "self", names...)
	for _, name := range names[1:] {
		d.set(name, detect.Unreachable, true)
	}
	d.run(2 * time.Second)
	if d.stored == nil || len(d.stored.Neighbours) != maxEntries {
		t.Errorf("%d writes", len(d.writes))
	}
	// The Node of one is deleted: nothing is said about it any more.
	first := d.stored.Neighbours[0].Node
	delete(d.neighbours, first)
	d.run(2 * time.Second)
	if slices.ContainsFunc(d.stored.Neighbours, func(n sitev1.NeighbourReport) bool { return n.Node == first }) {
		t.Error("a node that is no member any more is reported")
	}
}
