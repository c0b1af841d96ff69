package hold

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"skerry.dev/api"
)

// siteNode is a node of site west that says these things about being alive.
func siteNode(alive ...v1.ConditionStatus) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", Labels: map[string]string{api.SiteLabel: "west"}}}
	for _, s := range alive {
		n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: api.AliveCondition, Status: s, Reason: "R", Message: "M"})
	}
	return n
}

func TestDecide(t *testing.T) {
	cloud := siteNode(v1.ConditionFalse)
	cloud.Labels = map[string]string{v1.LabelTopologyZone: "west"}
	nameless := siteNode()
	nameless.Labels[api.SiteLabel] = ""
	for _, tc := range []struct {
		name   string
		node   *v1.Node
		held   bool
		reason Reason
	}{
		{"no labels at all", &v1.Node{}, false, NoSite},
		{"no site", cloud, false, NoSite},
		{"site without a name is a site", nameless, true, NoVerdict},
		{"no condition", siteNode(), true, NoVerdict},
		{"unknown", siteNode(v1.ConditionUnknown), true, VerdictUnknown},
		{"alive", siteNode(v1.ConditionTrue), true, VerdictAlive},
		{"dead", siteNode(v1.ConditionFalse), false, Dead},
		{"empty status", siteNode(""), true, VerdictUnreadable},
		{"strange status", siteNode("false"), true, VerdictUnreadable},
		{"contradicting itself", siteNode(v1.ConditionFalse, v1.ConditionTrue), true, VerdictUnreadable},
		{"dead twice", siteNode(v1.ConditionFalse, v1.ConditionFalse), true, VerdictUnreadable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.node.DeepCopy()
			d := Decide(tc.node)
			if d.Held != tc.held || d.Reason != tc.reason || d.Detail == "" {
				t.Errorf("%+v, want held %v because of %s", d, tc.held, tc.reason)
			}
			if before.String() != tc.node.String() {
				t.Error("the node was changed")
			}
		})
	}
}

func TestLongConditionIsCut(t *testing.T) {
	n := siteNode(v1.ConditionFalse)
	n.Status.Conditions[0].Message = strings.Repeat("x", 100_000)
	if got := len(Decide(n).Detail); got > 2*maxQuote {
		t.Errorf("detail has %d characters; events are for people", got)
	}
}

// Walks through what a node can go through, one pass a line.
func TestObserve(t *testing.T) {
	ready, lost, notReady := v1.ConditionTrue, v1.ConditionUnknown, v1.ConditionFalse
	replaced := siteNode()
	replaced.UID = "u2"
	cloud := siteNode()
	cloud.Labels = nil
	type pass struct {
		node     *v1.Node // nil: a minute passes
		ready    v1.ConditionStatus
		held     bool
		released bool
		event    string // what the only event begins with
	}
	for _, tc := range []struct {
		name   string
		passes []pass
	}{
		{"held and back", []pass{
			{siteNode(), ready, false, false, ""},
			{siteNode(), lost, true, false, "Warning NodeHeld Heartbeat lost; node of site \"west\" is held: no evidence that it is dead"},
			{siteNode(), lost, true, false, ""},
			{siteNode(v1.ConditionTrue), lost, true, false, ""},
			{siteNode(v1.ConditionTrue), ready, false, false, "Normal NodeHoldEnded Hold ended after 0s: the heartbeat is back (Ready=True)"},
		}},
		{"held, back as not ready", []pass{
			{siteNode(), lost, true, false, "Warning NodeHeld"},
			{siteNode(), notReady, false, false, "Normal NodeHoldEnded Hold ended after 0s: the heartbeat is back (Ready=False)"},
		}},
		{"held, then dead, then held again", []pass{
			{siteNode(), lost, true, false, "Warning NodeHeld"},
			{siteNode(v1.ConditionFalse), lost, false, true, "Normal NodeHoldEnded Hold ended after 0s: it is dead: condition skerry.dev/Alive is False (R: M)"},
			{siteNode(v1.ConditionFalse), lost, false, false, ""},
			{siteNode(v1.ConditionUnknown), lost, true, false, "Warning NodeHeld"},
		}},
		{"held, then out of the site", []pass{
			{siteNode(), lost, true, false, "Warning NodeHeld"},
			{cloud, lost, false, true, "Normal NodeHoldEnded Hold ended after 0s: it is in no site"},
			{cloud, lost, false, false, ""},
		}},
		{"first seen dead: may have been held before a restart", []pass{
			{siteNode(v1.ConditionFalse), lost, false, true, ""},
			{siteNode(v1.ConditionFalse), lost, false, false, ""},
		}},
		{"seen ready before it died: upstream sees that itself", []pass{
			{siteNode(), ready, false, false, ""},
			{siteNode(v1.ConditionFalse), lost, false, false, ""},
		}},
		{"another node of the same name", []pass{
			{siteNode(), lost, true, false, "Warning NodeHeld"},
			{replaced, lost, true, false, "Warning NodeHeld"},
			{replaced, ready, false, false, "Normal NodeHoldEnded"},
		}},
		{"called dead, but not lost", []pass{
			{siteNode(), ready, false, false, ""},
			{siteNode(v1.ConditionFalse), ready, false, false, ""},
			{nil, "", false, false, ""},
			{siteNode(v1.ConditionFalse), ready, false, false, "Warning NodeDeathContradicted Heartbeat is not lost, but for 1m0s it is dead"},
			{nil, "", false, false, ""},
			{siteNode(v1.ConditionFalse), ready, false, false, ""},
		}},
		{"called dead, the verdict was only late", []pass{
			{siteNode(v1.ConditionFalse), ready, false, false, ""},
			{siteNode(v1.ConditionTrue), ready, false, false, ""},
			{nil, "", false, false, ""},
			{siteNode(v1.ConditionFalse), ready, false, false, ""},
		}},
		{"not ready is the kubelet's word", []pass{{siteNode(), notReady, false, false, ""}}},
		{"never in a site", []pass{{cloud, lost, false, false, ""}, {cloud, ready, false, false, ""}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			h, recorder := New(), record.NewFakeRecorder(10)
			for i, p := range tc.passes {
				if p.node == nil {
					time.Sleep(contradictedAfter)
					continue
				}
				held, released := h.Observe(recorder, p.node, p.ready)
				if held != p.held || released != p.released {
					t.Errorf("%s: pass %d: held %v, released %v; want %v, %v", tc.name, i, held, released, p.held, p.released)
				}
				var got []string
				for len(recorder.Events) > 0 {
					got = append(got, <-recorder.Events)
				}
				if (p.event == "" && len(got) > 0) || (p.event != "" && (len(got) != 1 || !strings.HasPrefix(got[0], p.event))) {
					t.Errorf("%s: pass %d: events %q, want %q", tc.name, i, got, p.event)
				}
				if _, inSite := p.node.Labels[api.SiteLabel]; len(h.nodes) > 0 != inSite {
					t.Errorf("%s: pass %d: %d nodes remembered; those of sites are, and no other", tc.name, i, len(h.nodes))
				}
			}
		})
	}
}

func TestNeverUpdatedIsSaidSo(t *testing.T) {
	n := siteNode()
	n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionUnknown, Reason: "NodeStatusNeverUpdated"})
	recorder := record.NewFakeRecorder(1)
	New().Observe(recorder, n, v1.ConditionUnknown)
	if got := <-recorder.Events; !strings.Contains(got, "No heartbeat was ever seen") {
		t.Errorf("event %q", got)
	}
}
