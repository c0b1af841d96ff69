package verdict

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api/site/v1alpha1"
)

func TestMovedNode(t *testing.T) {
	w := siteOf(t, 3)
	w.join("east/x", "east/y")
	w.pass(time.Minute)
	w.silent["a"] = true
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
	w.within(30*time.Second, "a", unreachable)
	move := func(site string) {
		n := w.nodes["a"]
		n.Site, n.InSite = site, site != ""
		w.nodes["a"] = n
		w.tracker.SetNode(w.now, n)
	}
	move("east")
	w.pass(10 * time.Second)
	w.is("a", "Unknown NoAnswer") // its neighbours of before do not count
	w.say("x", v1alpha1.SelfReport{}, "a=Unreachable")
	w.pass(time.Second)
	w.is("a", unreachable)
	if s := w.sites["west"].Status; s.Nodes != 2 || s.Dead != 0 || len(s.Doubts) > 0 {
		t.Errorf("status of the site that it left: %+v", s)
	}
	move("")
	w.settle()
	c, ok := w.tracker.Desired("a")
	if !ok || c.To.Status != "" || c.Was.Status != corev1.ConditionFalse {
		t.Fatalf("the condition stays on a cloud node: %+v", c)
	}
	if got := w.tracker.Strays(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("strays %v", got)
	}
	w.write(c)
	if got := w.tracker.Strays(); len(got) > 0 {
		t.Errorf("strays %v", got)
	}
	if _, ok := w.tracker.Desired("a"); ok {
		t.Error("a cloud node has a verdict")
	}
	move("west")
	w.pass(30 * time.Second)
	w.is("a", unreachable)
	move("West_1")
	w.pass(time.Second)
	w.is("a", "Unknown InvalidSite")
	if r := w.tracker.Evaluate(w.now, "West_1"); r.Valid || len(r.Status.Doubts) > 0 {
		t.Errorf("%+v", r)
	}
	w.silent["a"] = false
	w.within(11*time.Second, "a", well)
}

func TestNodeMadeAnew(t *testing.T) {
	for _, seenGone := range []bool{true, false} {
		w := siteOf(t, 3)
		w.silent["a"] = true
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.within(30*time.Second, "a", unreachable)
		if seenGone {
			w.tracker.DeleteNode(w.now, "a")
			w.pass(time.Second)
			if s := w.sites["west"].Status; s.Nodes != 2 || len(s.Doubts) > 0 {
				t.Errorf("%+v", s)
			}
		}
		w.nodes["a"] = Node{Name: "a", UID: "uid-new", Site: "west", InSite: true}
		w.tracker.SetNode(w.now, w.nodes["a"])
		w.pass(time.Minute)
		// What b says is about the old one, whose lease is still there.
		w.is("a", "Unknown NoAnswer")
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.within(time.Second, "a", unreachable)
		w.silent["a"] = false
		w.within(11*time.Second, "a", well)
	}
}

func TestNeverHeard(t *testing.T) {
	w := siteOf(t, 2)
	w.nodes["new"] = Node{Name: "new", UID: "uid-new", Site: "west", InSite: true}
	w.silent["new"] = true
	w.tracker.SetNode(w.now, w.nodes["new"])
	w.say("a", v1alpha1.SelfReport{}, "new=Unreachable")
	w.pass(time.Minute)
	w.is("new", "Unknown NeverHeard")
	if d := w.sites["west"].Status.Doubts; len(d) > 0 {
		t.Errorf("asked about a node that never was there: %+v", d)
	}
	w.silent["new"] = false
	w.within(11*time.Second, "new", well)
}

// Whoever is connected again just now is waited for.
func TestReconnectedNeighboursAreAsked(t *testing.T) {
	w := siteOf(t, 4)
	for _, name := range []string{"a", "b", "c", "d"} {
		w.silent[name] = true
	}
	w.pass(10 * time.Minute)
	w.is("a", "Unknown SiteSilent")
	w.silent["b"] = false
	w.beat("b")
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable", "c=Reachable", "d=Reachable")
	w.pass(time.Second)
	w.silent["c"] = false
	w.beat("c")
	w.pass(3 * time.Second)
	w.say("c", v1alpha1.SelfReport{}, "a=Reachable")
	w.pass(time.Minute)
	w.is("a", "Unknown Disagreement")
	for _, write := range w.writes {
		if strings.HasPrefix(write, "a=False") {
			t.Errorf("it was dead for a while: %v", w.writes)
		}
	}
}

// Neighbours that come and go cannot put off a death for ever.
func TestFlappingNeighbourDoesNotPutOff(t *testing.T) {
	w := siteOf(t, 4)
	w.silent["a"] = true
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
	start := w.now
	for i := 0; w.nodes["a"].Alive.Status != corev1.ConditionFalse && w.now.Sub(start) < 5*time.Minute; i++ {
		name := []string{"c", "d"}[i%2]
		w.silent["c"], w.silent["d"] = true, true
		w.beat(name)
		w.pass(4 * time.Second)
	}
	if took := w.now.Sub(start); took > HeardFor+QuestionTime+5*time.Second {
		t.Errorf("dead after %s", took)
	}
	w.is("a", unreachable)
}

func TestByHand(t *testing.T) {
	w := siteOf(t, 3)
	say := func(status corev1.ConditionStatus) {
		n := w.nodes["a"]
		n.Alive = Condition{Status: status, Reason: "ByHand", Message: "said Jo"}
		w.nodes["a"] = n
		w.tracker.SetNode(w.now, n)
	}
	w.silent["a"], w.silent["b"], w.silent["c"] = true, true, true
	w.pass(time.Minute)
	say(corev1.ConditionFalse)
	w.pass(time.Hour)
	w.is("a", "False ByHand")
	w.restart()
	w.pass(time.Hour)
	w.is("a", "False ByHand")
	say(corev1.ConditionUnknown) // taken back
	w.pass(time.Hour)
	w.is("a", "Unknown ByHand")
	w.silent["a"] = false
	w.within(11*time.Second, "a", well)
	// Said of a node that is heard: the next heartbeat proves the contrary.
	say(corev1.ConditionFalse)
	w.settle()
	w.is("a", "False ByHand")
	w.within(11*time.Second, "a", well)
}

func TestFailover(t *testing.T) {
	w := siteOf(t, 3)
	w.silent["a"] = true
	w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
	w.within(30*time.Second, "a", unreachable)
	if w.tracker.Failover("a") {
		t.Error("failover is on by default")
	}
	w.sites["west"].Spec.Failover = v1alpha1.FailoverOn
	w.tracker.SetSite(w.now, w.sites["west"].DeepCopy())
	if !w.tracker.Failover("a") || w.tracker.Failover("b") || w.tracker.Failover("nobody") {
		t.Error("failover of the dead node only")
	}
	if r := w.tracker.Evaluate(w.now, "west"); !slices.Equal(r.Failover, []string{"a"}) {
		t.Errorf("%+v", r.Failover)
	}
	w.silent["a"] = false
	w.within(11*time.Second, "a", well)
	if w.tracker.Failover("a") {
		t.Error("failover of a node that is back")
	}
}

func TestSilentReports(t *testing.T) {
	w := siteOf(t, 2)
	w.say("a", v1alpha1.SelfReport{}, "b=Unreachable")
	w.say("gone", v1alpha1.SelfReport{}, "b=Unreachable")
	w.mute["gone"] = true
	if got := w.tracker.Silent(w.now, 5*time.Minute); len(got) > 0 {
		t.Errorf("%v", got)
	}
	w.pass(ReportFor)
	if got := w.tracker.Silent(w.now, 5*time.Minute); !slices.Equal(got, []string{"gone"}) {
		t.Errorf("%v", got)
	}
	w.mute["a"] = true
	w.pass(5*time.Minute + 10*time.Second)
	if got := w.tracker.Silent(w.now, 5*time.Minute); !slices.Equal(got, []string{"a", "gone"}) {
		t.Errorf("%v", got)
	}
}

func TestConnectedCondition(t *testing.T) {
	w := siteOf(t, 2)
	is := func(want string) {
		t.Helper()
		c := w.sites["west"].Status.Conditions
		if len(c) != 1 || c[0].Type != "Connected" || string(c[0].Status)+" "+c[0].Reason != want {
			t.Errorf("%+v, want %s", c, want)
		}
	}
	is("True NodesHeard")
	w.silent["a"], w.silent["b"] = true, true
	w.pass(30 * time.Second)
	is("False NoNodeHeard")
	since := w.sites["west"].Status.Conditions[0].LastTransitionTime
	w.pass(time.Hour)
	if got := w.sites["west"].Status.Conditions[0].LastTransitionTime; !got.Equal(&since) {
		t.Errorf("since %s, was %s", got, since)
	}
	w.tracker.DeleteNode(w.now, "a")
	w.tracker.DeleteNode(w.now, "b")
	delete(w.nodes, "a")
	delete(w.nodes, "b")
	w.pass(time.Second)
	is("Unknown NoNodes")
}

// Nothing is kept of what is gone.
func TestForgets(t *testing.T) {
	w := siteOf(t, 3)
	w.say("a", v1alpha1.SelfReport{}, "b=Unreachable")
	for _, name := range []string{"a", "b", "c"} {
		w.tracker.DeleteNode(w.now, name)
		w.tracker.DeleteLease(w.now, name)
	}
	w.tracker.DeleteReport(w.now, "a")
	w.tracker.DeleteReport(w.now, "nobody")
	w.tracker.DeleteNode(w.now, "nobody")
	w.tracker.DeleteLease(w.now, "nobody")
	w.tracker.DeleteSite(w.now, "nowhere")
	w.tracker.DeleteSite(w.now, "west")
	if len(w.tracker.nodes) > 0 || len(w.tracker.sites) > 0 {
		t.Errorf("%d names, %d sites", len(w.tracker.nodes), len(w.tracker.sites))
	}
}

func TestDoubtsAreBounded(t *testing.T) {
	tr := New()
	now := noon
	const n = 1500
	for i := range n {
		name := fmt.Sprintf("n%04d", i)
		tr.SetNode(now, Node{Name: name, UID: types.UID(name), Site: "big", InSite: true, Alive: Condition{Status: corev1.ConditionTrue, Reason: v1alpha1.ReasonHeartbeat}})
		tr.SetLease(now, name, now, false)
	}
	tr.SetNode(now, Node{Name: "dead", UID: "dead", Site: "big", InSite: true, Alive: dead(v1alpha1.ReasonUnreachable)})
	tr.SetLease(now, "dead", now, true)
	tr.SetSite(now, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "big"}})
	for range 20 {
		now = now.Add(time.Second)
		tr.Due(now)
	}
	r := tr.Evaluate(now, "big")
	if len(r.Status.Doubts) != maxDoubts || slices.ContainsFunc(r.Status.Doubts, func(d v1alpha1.Doubt) bool { return d.Node == "dead" }) {
		t.Errorf("%d doubts", len(r.Status.Doubts))
	}
	if r.Status.Nodes != n+1 || r.Status.Held != n || r.Status.Dead != 1 {
		t.Errorf("%+v", r.Status.Nodes)
	}
}
