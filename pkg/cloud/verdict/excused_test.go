package verdict

import (
	"strings"
	"testing"
	"time"

	"skerry.dev/api/site/v1alpha1"
)

// Who was told that enough others reach the node kept silent. When those can no
// longer reach it, the silent ones are waited for.
func TestExcusedSilenceIsNoAnswer(t *testing.T) {
	flip := func(t *testing.T) *world {
		w := siteOf(t, 5)
		w.silent["a"] = true
		w.pass(20 * time.Second)
		w.say("b", v1alpha1.SelfReport{}, "a=Reachable")
		w.say("c", v1alpha1.SelfReport{}, "a=Reachable")
		w.pass(90 * time.Second)
		w.is("a", "True NeighboursReachIt")
		w.say("b", v1alpha1.SelfReport{}, "a=Unreachable")
		w.say("c", v1alpha1.SelfReport{}, "a=Unreachable")
		w.pass(4 * time.Second)
		for _, write := range w.writes {
			if strings.HasPrefix(write, "a=False") {
				t.Errorf("dead before the silent ones could answer: %s", w.writes)
			}
		}
		return w
	}
	t.Run("one of them reaches it", func(t *testing.T) {
		w := flip(t)
		w.say("d", v1alpha1.SelfReport{}, "a=Reachable")
		w.pass(time.Minute)
		w.is("a", "Unknown Disagreement")
	})
	t.Run("none does", func(t *testing.T) {
		w := flip(t)
		w.within(AnswerTime, "a", "False "+v1alpha1.ReasonUnreachable)
	})
}
