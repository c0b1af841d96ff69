package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skerry.dev/api/site/v1alpha1"
)

func TestPowerOff(t *testing.T) {
	for _, n := range []int{2, 3, 5, 20} {
		for moment := range 20 { // where in the heartbeat's period it falls
			w := siteOf(t, n)
			w.pass(time.Duration(moment) * step)
			w.silent["a"] = true
			before := len(w.writes)
			off := w.now
			w.pass(3 * time.Second)
			for i := 1; i < min(n, 4); i++ { // the three that speak unasked
				w.say(string(rune('a'+i)), v1alpha1.SelfReport{}, "a=Unreachable")
			}
			w.within(30*time.Second, "a", unreachable)
			if took := w.now.Sub(off); took > HeardFor+AnswerTime+step {
				t.Errorf("site of %d, moment %d: dead after %s", n, moment, took)
			}
			w.pass(2 * time.Minute)
			w.is("a", unreachable)
			if got := w.writes[before:]; len(got) != 1 {
				t.Errorf("site of %d: %d conditions written: %v", n, len(got), got)
			}
			s := w.sites["west"].Status
			if int(s.Nodes) != n || int(s.Connected) != n-1 || s.Dead != 1 || s.Held != 0 || s.Unknown != 0 {
				t.Errorf("site of %d: %+v", n, s)
			}
		}
	}
}

// In steady state nothing is written, and nothing is asked.
func TestSteadyState(t *testing.T) {
	w := siteOf(t, 5)
	before, status := len(w.writes), w.sites["west"].Status.DeepCopy()
	w.pass(time.Hour)
	if got := w.writes[before:]; len(got) > 0 {
		t.Errorf("written: %v", got)
	}
	if got := w.sites["west"].Status; fmt.Sprint(got) != fmt.Sprint(*status) || got.Connected != 5 || len(got.Doubts) > 0 {
		t.Errorf("status %+v, was %+v", got, status)
	}
}

func TestQuestion(t *testing.T) {
	w := siteOf(t, 4)
	w.silent["a"] = true
	w.pass(16 * time.Second)
	for len(w.sites["west"].Status.Doubts) == 0 && w.now.Sub(noon) < 2*time.Minute {
		w.pass(step)
	}
	d := w.sites["west"].Status.Doubts
	if len(d) != 1 || d[0].Node != "a" || d[0].UID != "uid-a" || d[0].Reachable != 0 || d[0].Unreachable != 0 {
		t.Fatalf("doubts %+v", d)
	}
	if age := w.now.Sub(d[0].Since.Time); age < HeardFor || age > HeardFor+2*time.Second {
		t.Errorf("last heard %s ago", age)
	}
	since := d[0].Since
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
	w.say("c", v1alpha1.SelfReport{}, "a=Reachable")
	w.pass(time.Second)
	if d = w.sites["west"].Status.Doubts; d[0].Reachable != 1 || d[0].Unreachable != 1 || !d[0].Since.Equal(&since) {
		t.Errorf("doubts %+v", d)
	}
	w.pass(AnswerTime)
	w.is("a", "Unknown Disagreement")
	w.unsay("c")
	// What c said is taken back, and its time to answer is long over.
	w.pass(time.Second)
	w.is("a", unreachable)
	w.silent["a"] = false
	w.within(11*time.Second, "a", well)
	if d = w.sites["west"].Status.Doubts; len(d) > 0 {
		t.Errorf("doubts %+v of a node that is heard", d)
	}
}

func TestAnswersInPublicAreBounded(t *testing.T) {
	w := siteOf(t, 20)
	five := int32(5)
	w.sites["west"].Spec.Witnesses = &five
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	w.silent["a"] = true
	for i := 1; i < 20; i++ {
		state := "a=Unreachable"
		if i%2 == 0 {
			state = "a=Reachable"
		}
		w.say(string(rune('a'+i)), v1alpha1.SelfReport{}, state)
	}
	w.pass(30 * time.Second)
	if d := w.sites["west"].Status.Doubts[0]; d.Reachable != EnoughReachable || d.Unreachable != 5 {
		t.Errorf("%+v", d)
	}
	w.is("a", "Unknown Disagreement")
}

func TestDeathNeedsEvidence(t *testing.T) {
	down := v1alpha1.SelfReport{Kubelet: v1alpha1.ComponentDown}
	for _, row := range []struct {
		name string
		n    int
		do   func(w *world)
		want string
	}{
		{"site of one", 1, func(*world) {}, "Unknown NoWitness"},
		{"whole site silent", 3, func(w *world) { w.silent["b"], w.silent["c"] = true, true }, "Unknown SiteSilent"},
		{"observers missing", 3, func(*world) {}, "Unknown NoAnswer"},
		{"neighbours reach it", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Reachable")
			w.say("c", v1alpha1.SelfReport{}, "a=Reachable")
		}, "True NeighboursReachIt"},
		{"one reaches it", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.say("c", v1alpha1.SelfReport{}, "a=Reachable")
		}, "Unknown Disagreement"},
		{"too few witnesses", 3, func(w *world) {
			two := int32(2)
			w.sites["west"].Spec.Witnesses = &two
			w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		}, "Unknown TooFewWitnesses"},
		{"the same witness twice", 3, func(w *world) {
			two := int32(2)
			w.sites["west"].Spec.Witnesses = &two
			w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable", "a=Unreachable")
		}, "Unknown TooFewWitnesses"},
		{"a word that is none", 3, func(w *world) { w.say("b", v1alpha1.SelfReport{}, "a=Gone") }, "Unknown NoAnswer"},
		{"witness of another site", 2, func(w *world) {
			w.join("east/x")
			w.say("x", v1alpha1.SelfReport{}, "a=Unreachable")
		}, "Unknown NoAnswer"},
		{"witness without a site", 2, func(w *world) {
			w.join("/x")
			w.say("x", v1alpha1.SelfReport{}, "a=Unreachable")
		}, "Unknown NoAnswer"},
		{"witness without a Node", 2, func(w *world) {
			w.say("x", v1alpha1.SelfReport{}, "a=Unreachable")
		}, "Unknown NoAnswer"},
		{"witness that left the site", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			n := w.nodes["b"]
			n.Site = "east"
			w.nodes["b"] = n
			w.tracker.SetNode(w.now, n)
		}, "Unknown NoAnswer"},
		{"about the node that had the name before", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.reports["b"].Spec.Neighbours[0].UID = "uid-older"
			w.renew("b")
		}, "Unknown NoAnswer"},
		{"about no node in particular", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.reports["b"].Spec.Neighbours[0].UID = ""
			w.renew("b")
		}, "Unknown NoAnswer"},
		{"about itself", 2, func(w *world) { w.say("a", v1alpha1.SelfReport{}, "a=Unreachable"); w.mute["a"] = true }, "Unknown NoAnswer"},
		{"witness that is itself not heard", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.silent["b"], w.mute["b"] = true, true
		}, "Unknown NoAnswer"},
		{"witness whose report is old", 3, func(w *world) {
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.pass(step)
			w.mute["b"] = true
			w.silent["a"] = false
			w.pass(ReportFor)
			w.silent["a"] = true
		}, "Unknown NoAnswer"},
		{"witness without a heartbeat that reports", 2, func(w *world) {
			w.silent["b"] = true
			w.say("b", down, "a=Unreachable")
		}, unreachable},
		{"its own observer reports", 3, func(w *world) {
			w.say("a", v1alpha1.SelfReport{}, "b=Unreachable")
			w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
			w.say("c", v1alpha1.SelfReport{}, "a=Unreachable")
		}, "True NodeSpeaks"},
		{"its kubelet is down", 3, func(w *world) { w.say("a", down) }, "Unknown KubeletDown"},
		{"its runtime is down", 3, func(w *world) { w.say("a", v1alpha1.SelfReport{Runtime: v1alpha1.ComponentDown}) }, "Unknown KubeletDown"},
		{"its kubelet is down, neighbours say", 3, func(w *world) { w.say("b", v1alpha1.SelfReport{}, "a=KubeletDown") }, "Unknown KubeletDown"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := siteOf(t, row.n)
			w.silent["a"] = true
			row.do(w)
			w.pass(45 * time.Second)
			w.is("a", row.want)
			for _, write := range w.writes {
				if strings.HasPrefix(write, "a=False") && row.want != unreachable {
					t.Errorf("it was dead for a while: %v", w.writes)
				}
			}
			// Every state heals.
			w.silent, w.mute = map[string]bool{}, map[string]bool{}
			for name := range w.reports {
				w.unsay(name)
			}
			w.pass(11 * time.Second)
			for name, n := range w.nodes {
				if n.InSite {
					w.is(name, well)
				}
			}
		})
	}
}
