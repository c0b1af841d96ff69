package verdict

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/api/site/v1alpha1"
)

func TestKubeletGrace(t *testing.T) {
	down := v1alpha1.SelfReport{Kubelet: v1alpha1.ComponentDown, DownSeconds: 1 << 40} // its word on time is not believed
	w := siteOf(t, 3)
	w.silent["a"] = true
	w.say("a", down)
	if took := w.within(10*time.Minute, "a", "False KubeletDown"); took < DefaultKubeletGrace || took > DefaultKubeletGrace+HeardFor+2*step {
		t.Errorf("dead after %s", took)
	}
	if w.tracker.Failover("a") {
		t.Error("failover while its containers may run")
	}
	w.restart()
	w.pass(time.Minute)
	w.is("a", "False KubeletDown")
	w.silent["a"] = false
	w.unsay("a")
	w.within(11*time.Second, "a", well)

	// A kubelet that comes and goes has a grace each time.
	for range 3 {
		w.silent["a"] = true
		w.say("a", down)
		w.pass(4 * time.Minute)
		w.is("a", "Unknown KubeletDown")
		w.silent["a"] = false
		w.unsay("a")
		w.pass(time.Minute)
		w.is("a", well)
	}
}

func TestHoldTimeout(t *testing.T) {
	w := siteOf(t, 1)
	w.sites["west"].Spec.HoldTimeout = &metav1.Duration{Duration: 10 * time.Minute}
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	w.silent["a"] = true
	w.within(30*time.Second, "a", "Unknown NoWitness")
	if took := w.within(20*time.Minute, "a", "False HoldTimeout"); took > 10*time.Minute || took < 9*time.Minute+30*time.Second {
		t.Errorf("dead after another %s", took)
	}
	if w.tracker.Failover("a") {
		t.Error("failover without evidence")
	}
	w.sites["west"].Spec.HoldTimeout = nil
	w.sites["west"].Generation++
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	w.within(time.Second, "a", "Unknown NoWitness")
}

// The clock of what was lost before a restart goes on: the Site says since when.
func TestHoldTimeoutOverRestarts(t *testing.T) {
	w := siteOf(t, 2)
	w.sites["west"].Spec.HoldTimeout = &metav1.Duration{Duration: 10 * time.Minute}
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	w.silent["a"], w.silent["b"] = true, true
	start := w.now
	for range 9 {
		w.pass(time.Minute)
		w.restart()
	}
	w.is("a", "Unknown SiteSilent")
	w.within(2*time.Minute, "a", "False HoldTimeout")
	if took := w.now.Sub(start); took > 10*time.Minute+HeardFor {
		t.Errorf("dead after %s", took)
	}
}

// A heartbeat while no controller ran is a heartbeat: the bound counts from there,
// at the earliest.
func TestHeardDuringARestart(t *testing.T) {
	w := siteOf(t, 2)
	w.sites["west"].Spec.HoldTimeout = &metav1.Duration{Duration: 10 * time.Minute}
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	w.silent["a"], w.silent["b"] = true, true
	w.pass(9 * time.Minute)
	w.is("a", "Unknown SiteSilent")
	w.leases["a"] = w.now
	w.restart()
	w.pass(9 * time.Minute)
	w.is("a", "Unknown SiteSilent")
	w.is("b", "False HoldTimeout")
	w.within(2*time.Minute, "a", "False HoldTimeout")
}

func TestRestart(t *testing.T) {
	t.Run("nothing known before is evidence", func(t *testing.T) {
		w := siteOf(t, 3)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.mute["b"] = true // the report stays as it is, and is older than it looks
		w.restart()
		w.pass(time.Minute)
		w.is("a", "Unknown NoAnswer")
	})
	t.Run("in the middle of a decision", func(t *testing.T) {
		w := siteOf(t, 3)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.say("c", v1alpha1.SelfReport{}, "a=Unreachable")
		w.pass(10 * time.Second)
		w.restart()
		w.is("a", well)
		if took := w.within(time.Minute, "a", unreachable); took > HeardFor+HeardFor {
			t.Errorf("dead %s after the restart", took)
		}
	})
	t.Run("writes nothing", func(t *testing.T) {
		w := siteOf(t, 5)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.pass(time.Minute)
		w.is("a", unreachable)
		before, status := len(w.writes), fmt.Sprint(w.sites["west"].Status)
		for range 5 {
			w.restart()
			w.pass(40 * time.Second)
			w.is("a", unreachable)
		}
		if got := w.writes[before:]; len(got) > 0 {
			t.Errorf("written: %v", got)
		}
		if got := fmt.Sprint(w.sites["west"].Status); got != status {
			t.Errorf("status is %s, was %s", got, status)
		}
	})
	t.Run("reports that were left behind say nothing", func(t *testing.T) {
		w := siteOf(t, 3)
		w.say("a", v1alpha1.SelfReport{}, "b=Reachable", "c=Unreachable")
		w.say("b", v1alpha1.SelfReport{Kubelet: v1alpha1.ComponentDown}, "a=KubeletDown")
		for _, name := range []string{"a", "b", "c"} {
			w.silent[name], w.mute[name] = true, true
		}
		w.pass(2 * time.Minute)
		w.is("a", "Unknown SiteSilent")
		before := len(w.writes)
		w.restart()
		w.pass(2 * time.Minute)
		if got := w.writes[before:]; len(got) > 0 {
			t.Errorf("written: %v", got)
		}
	})
	t.Run("every ten seconds, so nothing is ever seen for long", func(t *testing.T) {
		w := siteOf(t, 3)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		for range 30 {
			w.pass(10 * time.Second)
			w.restart()
		}
		w.is("a", well) // held, and nobody claims to know better
	})
}

func TestClocks(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		w := newWorld(t)
		w.skew["a"], w.skew["b"] = skew, -skew
		w.join("west/a", "west/b", "west/c")
		w.pass(time.Minute)
		w.is("a", well)
		w.skew["a"] = 0 // a step of an hour
		w.pass(time.Minute)
		w.is("a", well)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.within(HeardFor+AnswerTime+step, "a", unreachable)
	}
}

// The controller's own clock jumps, or its process stood still: silence that
// nobody listened to is no evidence.
func TestOwnClockJumps(t *testing.T) {
	w := siteOf(t, 3)
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
	w.say("c", v1alpha1.SelfReport{}, "a=Unreachable")
	w.now = w.now.Add(time.Hour)
	w.settle()
	for _, name := range []string{"a", "b", "c"} {
		w.is(name, well)
	}
	w.pass(time.Minute)
	w.is("a", well)
	w.now = w.now.Add(-2 * time.Hour)
	w.pass(time.Minute)
	w.is("a", well)
	w.silent["a"] = true
	w.within(HeardFor+AnswerTime+step, "a", unreachable)
	w.silent["a"] = false
	w.now = w.now.Add(-time.Hour)
	w.within(11*time.Second, "a", well)
}
