package verdict

import (
	"slices"
	"testing"
	"time"

	"skerry.dev/api/site/v1alpha1"
)

// What is told before a death is confirmed counts, the policy that was read counts,
// and the evaluation of the site is still to come.
func TestConfirm(t *testing.T) {
	doubted := func(t *testing.T) *world {
		w := siteOf(t, 3)
		w.join("/cloud")
		w.silent["a"] = true
		w.within(time.Minute, "a", "Unknown NoAnswer")
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		return w
	}
	for _, row := range []struct {
		name   string
		node   string
		tell   func(w *world)
		policy Policy
		dead   bool
		reason string
	}{
		{"nothing new", "a", func(*world) {}, PolicyOf(nil), true, v1alpha1.ReasonUnreachable},
		{"a heartbeat", "a", func(w *world) { w.beat("a") }, PolicyOf(nil), false, v1alpha1.ReasonHeartbeat},
		{"a neighbour reaches it", "a", func(w *world) { w.say("c", v1alpha1.SelfReport{}, "a=Reachable") }, PolicyOf(nil), false, v1alpha1.ReasonDisagreement},
		{"it is taken back", "a", func(w *world) { w.unsay("b") }, PolicyOf(nil), false, v1alpha1.ReasonNoAnswer},
		{"it speaks itself", "a", func(w *world) { w.say("a", v1alpha1.SelfReport{}) }, PolicyOf(nil), false, v1alpha1.ReasonNodeSpeaks},
		{"another policy", "a", func(*world) {}, Policy{Witnesses: 2}, false, v1alpha1.ReasonTooFewWitnesses},
		{"no such node", "x", func(*world) {}, PolicyOf(nil), false, ""},
		{"a node of the cloud", "cloud", func(*world) {}, PolicyOf(nil), false, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := doubted(t)
			row.tell(w)
			c, dead := w.tracker.Confirm(w.now, row.node, row.policy)
			if dead != row.dead || c.To.Reason != row.reason {
				t.Errorf("%v, %+v; want %v, %s", dead, c, row.dead, row.reason)
			}
			if dead && (c.Node != "a" || c.Site != "west" || c.UID != w.nodes["a"].UID || c.Was != w.nodes["a"].Alive || c.To.Message == "") {
				t.Errorf("%+v", c)
			}
			if due := w.tracker.Due(w.now); !slices.Contains(due, "west") {
				t.Errorf("due: %s", due)
			}
		})
	}
	w := doubted(t)
	if got := w.tracker.Reporters(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("%s report", got)
	}
}
