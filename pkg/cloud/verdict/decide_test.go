package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/api/site/v1alpha1"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// lost is a node of a site of four that was heard 20 s ago, alive by then; all
// neighbours are connected and had time to answer.
func lost(change func(in *Input)) Input {
	in := Input{
		Now: noon, Policy: PolicyOf(nil), Heartbeat: Lost, LastHeard: noon.Add(-20 * time.Second),
		Published:  Condition{Status: corev1.ConditionTrue, Reason: v1alpha1.ReasonHeartbeat},
		Neighbours: 3, Connected: 3,
	}
	if change != nil {
		change(&in)
	}
	return in
}

func dead(reason string) Condition {
	return Condition{Status: corev1.ConditionFalse, Reason: reason, Message: "as it was"}
}

func TestDecide(t *testing.T) {
	for _, row := range []struct {
		name string
		in   Input
		want string // status reason
		says string // part of the message
	}{
		// The rows of the design's table, as far as a decision is concerned.
		{"one node loses the cloud, neighbours see it", lost(func(in *Input) { in.Reachable = 3 }),
			"True NeighboursReachIt", "3 of 3 connected neighbours reach it; heartbeat lost 20 s ago"},
		{"whole site loses the cloud", lost(func(in *Input) { in.Connected = 0 }),
			"Unknown SiteSilent", "the cloud hears none of its 3 neighbours"},
		{"node dies, site connected", lost(func(in *Input) { in.Unreachable = 3 }),
			"False NeighboursCannotReachIt", "3 of 3 connected neighbours cannot reach it; heartbeat lost 20 s ago"},
		{"node dies in a site of one", lost(func(in *Input) { in.Neighbours, in.Connected = 0, 0 }),
			"Unknown NoWitness", "alone in its site"},
		{"node dies in a site of two, the other also cut", lost(func(in *Input) { in.Neighbours, in.Connected = 1, 0 }),
			"Unknown SiteSilent", "none of its 1 neighbour,"},
		{"node dies in a site of two, the other connected", lost(func(in *Input) { in.Neighbours, in.Connected, in.Unreachable = 1, 1, 1 }),
			"False NeighboursCannotReachIt", "1 of 1 connected neighbour cannot reach it"},
		{"site split in two, one half connected", lost(func(in *Input) { in.Connected, in.Unreachable = 1, 1 }),
			"False NeighboursCannotReachIt", "1 of 1 connected neighbour cannot reach it"},
		{"one-way loss: one still reaches it", lost(func(in *Input) { in.Unreachable, in.Reachable = 2, 1 }),
			"Unknown Disagreement", "1 of 3 connected neighbours reaches it, 2 cannot; heartbeat lost"},
		{"flapping: heard again", lost(func(in *Input) { in.Heartbeat, in.Unreachable = Fresh, 3 }),
			"True Heartbeat", ""},
		{"first heartbeat", lost(func(in *Input) { in.Heartbeat, in.Published = Fresh, Condition{} }),
			"True Heartbeat", "hears its heartbeat"},
		{"kubelet dead, said by itself", lost(func(in *Input) { in.Down, in.DownSince = true, noon.Add(-time.Minute) }),
			"Unknown KubeletDown", "down for 60 s; it counts as dead after 5 min (kubeletGrace)"},
		{"kubelet dead, said by neighbours", lost(func(in *Input) { in.KubeletDown, in.DownSince = 2, noon.Add(-time.Minute) }),
			"Unknown KubeletDown", ""},
		{"kubelet dead for longer than its grace", lost(func(in *Input) { in.Down, in.DownSince = true, noon.Add(-5*time.Minute) }),
			"False KubeletDown", "longer than kubeletGrace (5 min)"},
		{"kubelet dead, just short of its grace", lost(func(in *Input) { in.Down, in.DownSince = true, noon.Add(-5*time.Minute+1) }),
			"Unknown KubeletDown", ""},
		{"kubelet dead, grace of the site", lost(func(in *Input) {
			in.KubeletDown, in.DownSince, in.Policy.KubeletGrace = 1, noon.Add(-time.Hour), 2*time.Hour
		}), "Unknown KubeletDown", ""},
		{"controller restarted, node not heard yet", lost(func(in *Input) { in.Heartbeat, in.Unreachable = Unproven, 3 }),
			"True Heartbeat", ""},
		{"controller restarted, node was dead", lost(func(in *Input) { in.Heartbeat, in.Published = Unproven, dead(v1alpha1.ReasonUnreachable) }),
			"False NeighboursCannotReachIt", "as it was"},
		{"controller restarted, no verdict yet", lost(func(in *Input) { in.Heartbeat, in.Published = Unproven, Condition{} }),
			"Unknown Asking (interim)", ""},

		// Answers.
		{"nobody has answered yet", lost(func(in *Input) { in.Waiting = 3 }), "Unknown Asking (interim)", "are being asked"},
		{"one cannot reach it, others have time", lost(func(in *Input) { in.Unreachable, in.Waiting = 1, 2 }), "Unknown Asking (interim)", ""},
		{"one reaches it, others have time", lost(func(in *Input) { in.Reachable, in.Waiting = 1, 2 }), "True NeighboursReachIt", "1 of 3 connected neighbours reaches it"},
		{"nobody says anything", lost(nil), "Unknown NoAnswer", "3 of 3 connected neighbours say nothing about it"},
		{"fewer than witnesses", lost(func(in *Input) { in.Policy.Witnesses, in.Unreachable = 3, 2 }),
			"Unknown TooFewWitnesses", "2 of 3 connected neighbours cannot reach it, and its site asks for 3 witnesses"},
		{"exactly the witnesses", lost(func(in *Input) { in.Policy.Witnesses, in.Unreachable = 3, 3 }), "False NeighboursCannotReachIt", ""},
		{"more witnesses than neighbours", lost(func(in *Input) { in.Policy.Witnesses, in.Unreachable = 4, 3 }), "Unknown TooFewWitnesses", ""},
		{"one reached it, one heard of its kubelet", lost(func(in *Input) { in.Reachable, in.KubeletDown = 1, 1; in.DownSince = noon.Add(-time.Hour) }),
			"Unknown Disagreement", "1 heard from it that its kubelet or container runtime is down"},
		{"kubelet down, others cannot reach it", lost(func(in *Input) { in.Unreachable, in.KubeletDown, in.DownSince = 2, 1, noon }), "Unknown KubeletDown", ""},

		// The node's own word.
		{"it reports itself", lost(func(in *Input) { in.Speaks = true }), "True NodeSpeaks", "its own observer reports"},
		{"it reports itself, neighbours are cut from it", lost(func(in *Input) { in.Speaks, in.Unreachable = true, 3 }), "True NodeSpeaks", ""},
		{"it says well, neighbours heard otherwise before", lost(func(in *Input) { in.Speaks, in.KubeletDown, in.DownSince = true, 2, noon.Add(-time.Hour) }), "True NodeSpeaks", ""},
		{"it says down, neighbours reach it", lost(func(in *Input) { in.Down, in.Reachable, in.DownSince = true, 2, noon.Add(-5*time.Minute) }), "False KubeletDown", ""},

		// The bound on the hold.
		{"holdTimeout not over", lost(func(in *Input) { in.Connected, in.Policy.HoldTimeout = 0, time.Minute }), "Unknown SiteSilent", ""},
		{"holdTimeout over", lost(func(in *Input) {
			in.Connected, in.Policy.HoldTimeout, in.LastHeard = 0, time.Minute, noon.Add(-time.Minute)
		}), "False HoldTimeout", "longer than holdTimeout (60 s)"},
		{"holdTimeout over, alone", lost(func(in *Input) {
			in.Neighbours, in.Connected, in.Policy.HoldTimeout, in.LastHeard = 0, 0, time.Minute, noon.Add(-time.Hour)
		}), "False HoldTimeout", ""},
		{"holdTimeout over, never heard", lost(func(in *Input) {
			in.Heartbeat, in.Policy.HoldTimeout, in.LastHeard = NeverHeard, time.Minute, noon.Add(-time.Hour)
		}), "False HoldTimeout", ""},
		{"holdTimeout over, a neighbour reaches it", lost(func(in *Input) {
			in.Reachable, in.Policy.HoldTimeout, in.LastHeard = 1, time.Minute, noon.Add(-time.Hour)
		}), "True NeighboursReachIt", ""},
		{"holdTimeout over, neighbours disagree", lost(func(in *Input) {
			in.Reachable, in.Unreachable, in.Policy.HoldTimeout, in.LastHeard = 1, 1, time.Minute, noon.Add(-time.Hour)
		}), "Unknown Disagreement", ""},
		{"holdTimeout over, kubelet down for less than its grace", lost(func(in *Input) {
			in.Down, in.DownSince, in.Policy.HoldTimeout, in.LastHeard = true, noon, time.Minute, noon.Add(-time.Hour)
		}), "Unknown KubeletDown", ""},
		{"holdTimeout over, neighbours have time to answer", lost(func(in *Input) {
			in.Waiting, in.Policy.HoldTimeout, in.LastHeard = 2, time.Minute, noon.Add(-time.Hour)
		}), "Unknown Asking (interim)", ""},

		// Dead stays dead until there is a sign of life.
		{"dead, witnesses gone", lost(func(in *Input) { in.Published, in.Connected = dead(v1alpha1.ReasonUnreachable), 0 }),
			"False NeighboursCannotReachIt", "as it was"},
		{"dead, being asked again", lost(func(in *Input) { in.Published, in.Waiting = dead(v1alpha1.ReasonUnreachable), 3 }),
			"False NeighboursCannotReachIt", ""},
		{"dead, heard", lost(func(in *Input) { in.Published, in.Heartbeat = dead(v1alpha1.ReasonUnreachable), Fresh }), "True Heartbeat", ""},
		{"dead, one reaches it", lost(func(in *Input) { in.Published, in.Reachable = dead(v1alpha1.ReasonUnreachable), 1 }), "True NeighboursReachIt", ""},
		{"dead, one of many reaches it", lost(func(in *Input) { in.Published, in.Reachable, in.Unreachable = dead(v1alpha1.ReasonUnreachable), 1, 2 }), "Unknown Disagreement", ""},
		{"dead, its machine comes back without kubelet", lost(func(in *Input) {
			in.Published, in.KubeletDown, in.DownSince = dead(v1alpha1.ReasonUnreachable), 1, noon
		}), "Unknown KubeletDown", ""},
		{"dead kubelet, controller restarted", lost(func(in *Input) { in.Published, in.Down, in.DownSince = dead(v1alpha1.ReasonKubeletDown), true, noon }), "False KubeletDown", ""},
		{"dead kubelet, machine silent too", lost(func(in *Input) { in.Published = dead(v1alpha1.ReasonKubeletDown) }), "False KubeletDown", ""},
		{"dead by timeout, controller restarted", lost(func(in *Input) {
			in.Published, in.Connected, in.Policy.HoldTimeout = dead(v1alpha1.ReasonHoldTimeout), 0, time.Hour
		}), "False HoldTimeout", ""},
		{"dead by timeout, the timeout is taken back", lost(func(in *Input) { in.Published, in.Connected = dead(v1alpha1.ReasonHoldTimeout), 0 }), "Unknown SiteSilent", ""},
		{"dead in the site that it was in", lost(func(in *Input) { in.Published, in.Connected, in.Moved = dead(v1alpha1.ReasonUnreachable), 0, true }), "Unknown SiteSilent", ""},
		{"dead kubelet in the site that it was in", lost(func(in *Input) {
			in.Published, in.Moved, in.Down, in.DownSince = dead(v1alpha1.ReasonKubeletDown), true, true, noon
		}), "Unknown KubeletDown", ""},
		{"moved, not heard yet", lost(func(in *Input) {
			in.Published, in.Moved, in.Heartbeat = dead(v1alpha1.ReasonUnreachable), true, Unproven
		}), "Unknown Asking (interim)", ""},

		// A person's word.
		{"dead by hand", lost(func(in *Input) { in.Published, in.Reachable = dead("ByHand"), 3 }), "False ByHand", "as it was"},
		{"dead by hand, heartbeat from before", lost(func(in *Input) { in.Published, in.Heartbeat = dead("ByHand"), Fresh }), "False ByHand", ""},
		{"dead by hand, heard since", lost(func(in *Input) { in.Published, in.Heartbeat, in.HeardSince = dead("ByHand"), Fresh, true }), "True Heartbeat", ""},
		{"dead by hand, heard since, lost again", lost(func(in *Input) { in.Published, in.HeardSince, in.Connected = dead("ByHand"), true, 0 }), "Unknown SiteSilent", ""},
		{"dead by hand, no reason at all", lost(func(in *Input) { in.Published = dead("") }), "False ", ""},
		{"alive by hand", lost(func(in *Input) {
			in.Published, in.Unreachable = Condition{Status: corev1.ConditionTrue, Reason: "ByHand"}, 3
		}), "True ByHand", ""},
		{"nonsense by hand", lost(func(in *Input) { in.Published, in.Unreachable = Condition{Status: "Perhaps", Reason: "x"}, 3 }), "Perhaps x", ""},
		{"dead by hand in another site", lost(func(in *Input) { in.Published, in.Moved, in.Connected = dead("ByHand"), true, 0 }), "Unknown SiteSilent", ""},
		{"nonsense with a reason of ours", lost(func(in *Input) {
			in.Published, in.Connected = Condition{Status: "Perhaps", Reason: v1alpha1.ReasonHeartbeat}, 0
		}), "Unknown SiteSilent", ""},

		// Edges.
		{"never heard", lost(func(in *Input) { in.Heartbeat, in.Unreachable = NeverHeard, 3 }), "Unknown NeverHeard", "never had a heartbeat"},
		{"no such site, heard", lost(func(in *Input) { in.InvalidSite, in.Heartbeat = true, Fresh }), "True Heartbeat", ""},
		{"no such site, lost", lost(func(in *Input) { in.InvalidSite, in.Unreachable = true, 3 }), "Unknown InvalidSite", "cannot be the name of a site"},
		{"heard in the future", lost(func(in *Input) { in.LastHeard, in.Unreachable = noon.Add(time.Hour), 1 }), "False NeighboursCannotReachIt", "lost 0 s ago"},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := Decide(row.in)
			got := fmt.Sprintf("%s %s", v.Status, v.Reason)
			if v.Interim {
				got += " (interim)"
			}
			if got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
			if !strings.Contains(v.Message, row.says) {
				t.Errorf("message %q does not say %q", v.Message, row.says)
			}
			if v.Held != (row.in.Heartbeat != Fresh && v.Status != corev1.ConditionFalse) {
				t.Errorf("held: %v", v.Held)
			}
		})
	}
}

// each calls f with every combination of the small values of an Input.
func each(f func(in Input)) int {
	bools := []bool{false, true}
	few := []int{0, 1, 2}
	published := []Condition{{}, {Status: corev1.ConditionTrue, Reason: v1alpha1.ReasonHeartbeat}, {Status: corev1.ConditionUnknown, Reason: v1alpha1.ReasonSiteSilent},
		dead(v1alpha1.ReasonUnreachable), dead(v1alpha1.ReasonKubeletDown), dead(v1alpha1.ReasonHoldTimeout), dead("ByHand"), {Status: "Perhaps", Reason: "x"}}
	n := 0
	for _, heartbeat := range []Heartbeat{NeverHeard, Unproven, Fresh, Lost} {
		for _, was := range published {
			for _, bits := range []int{0, 1, 2, 3, 4, 5, 6, 7} {
				for _, speaks := range bools {
					for _, down := range bools {
						for _, long := range bools {
							for _, witnesses := range []int{1, 2} {
								for _, reachable := range few {
									for _, unreachable := range few {
										for _, kubelet := range few[:2] {
											for _, waiting := range few[:2] {
												in := Input{Now: noon, Heartbeat: heartbeat, LastHeard: noon.Add(-time.Hour), Published: was,
													HeardSince: bits&1 > 0, Moved: bits&2 > 0, Speaks: speaks && !down, Down: down, DownSince: noon.Add(-time.Minute),
													Reachable: reachable, Unreachable: unreachable, KubeletDown: kubelet, Waiting: waiting,
													Connected: reachable + unreachable + kubelet + waiting, Neighbours: 7,
													Policy: Policy{Witnesses: witnesses, KubeletGrace: 5 * time.Minute}}
												if bits&4 > 0 {
													in.Policy.HoldTimeout = time.Minute
												}
												if long {
													in.DownSince = noon.Add(-time.Hour)
												}
												n++
												f(in)
											}
										}
									}
								}
							}
						}
					}
				}
			}
		}
	}
	return n
}

// What must hold whatever is known: the reasons for which a node may be dead.
func TestDeadOnlyWithEvidence(t *testing.T) {
	died := 0
	n := each(func(in Input) {
		v := Decide(in)
		fail := func(why string) { t.Fatalf("%s: %+v\nfrom %+v", why, v, in) }
		switch v.Status {
		case corev1.ConditionTrue, corev1.ConditionUnknown, corev1.ConditionFalse:
		default:
			if v.Condition != in.Published {
				fail("a status that is none")
			}
		}
		if v.Message == "" && v.Condition != in.Published {
			fail("no message")
		}
		if !v.Dead() {
			return
		}
		died++
		stood := in.Published.Dead() && v.Reason == in.Published.Reason
		byHand := in.Published.ByHand() && !in.HeardSince && !in.Moved
		if v.Interim {
			fail("death in the interim")
		}
		if byHand {
			return
		}
		if in.Heartbeat == Fresh {
			fail("dead with a heartbeat")
		}
		if in.Heartbeat == Unproven && (!stood || in.Moved) {
			fail("dead although nothing was seen to change")
		}
		if in.Heartbeat == Unproven {
			return
		}
		switch v.Reason {
		case v1alpha1.ReasonUnreachable:
			if in.Reachable > 0 || in.KubeletDown > 0 || in.Speaks || in.Down {
				fail("dead although somebody reaches it")
			}
			if !stood && (in.Unreachable < in.Policy.Witnesses || in.Waiting > 0 || in.Heartbeat != Lost) {
				fail("dead without witnesses")
			}
			if !stood && in.Connected < in.Unreachable {
				fail("witnesses that are not connected")
			}
		case v1alpha1.ReasonKubeletDown:
			if !stood && !in.Down && in.KubeletDown == 0 {
				fail("nobody says that the kubelet is down")
			}
			if !stood && in.Now.Sub(in.DownSince) < in.Policy.KubeletGrace {
				fail("before its grace")
			}
			if !in.Down && (in.Reachable > 0 || in.Speaks) {
				fail("dead although somebody finds nothing wrong")
			}
		case v1alpha1.ReasonHoldTimeout:
			if in.Policy.HoldTimeout == 0 {
				fail("dead by a timeout that is not there")
			}
			if in.Reachable > 0 || in.KubeletDown > 0 || in.Speaks || in.Down {
				fail("dead although somebody reaches it")
			}
		default:
			fail("dead for a reason that is not one")
		}
		if in.Moved && stood && in.Unreachable < in.Policy.Witnesses && v.Reason == v1alpha1.ReasonUnreachable {
			fail("dead by evidence of another site")
		}
	})
	t.Logf("%d combinations, %d dead", n, died)
	if died == 0 || died == n {
		t.Error("the test shows nothing")
	}
}

// A node that is heard is alive at once, whatever was said before.
func TestHeardIsAlive(t *testing.T) {
	each(func(in Input) {
		if in.Heartbeat != Fresh || in.Published.ByHand() && !in.HeardSince && !in.Moved {
			return
		}
		if v := Decide(in); v.Status != corev1.ConditionTrue || v.Reason != v1alpha1.ReasonHeartbeat || v.Held {
			t.Fatalf("%+v from %+v", v, in)
		}
	})
}

func TestPolicyOf(t *testing.T) {
	number := func(n int32) *int32 { return &n }
	length := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	standard := Policy{Witnesses: 1, KubeletGrace: 5 * time.Minute}
	for _, row := range []struct {
		name string
		spec v1alpha1.SiteSpec
		want Policy
	}{
		{"nothing", v1alpha1.SiteSpec{}, standard},
		{"all", v1alpha1.SiteSpec{Witnesses: number(3), HoldTimeout: length(time.Hour), KubeletGrace: length(time.Minute), Failover: v1alpha1.FailoverOn},
			Policy{Witnesses: 3, HoldTimeout: time.Hour, KubeletGrace: time.Minute, Failover: true}},
		{"out of bounds", v1alpha1.SiteSpec{Witnesses: number(0), HoldTimeout: length(-1), KubeletGrace: length(0), Failover: "Yes"}, standard},
		{"short", v1alpha1.SiteSpec{HoldTimeout: length(time.Second), KubeletGrace: length(time.Second)}, standard},
	} {
		if got := PolicyOf(&v1alpha1.Site{Spec: row.spec}); got != row.want {
			t.Errorf("%s: %+v, want %+v", row.name, got, row.want)
		}
	}
	if got := PolicyOf(nil); got != standard {
		t.Errorf("no Site: %+v", got)
	}
}

func TestLength(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 s", 42*time.Second + 300*time.Millisecond: "42 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min",
		90 * time.Minute: "90 min", 3 * time.Hour: "3 h", 72 * time.Hour: "3 d",
	} {
		if got := length(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
