package rollout

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// site reads a site from a few letters: + told and ready, o told and old, . not
// told and ready, x not told and not ready, - no child; then c canary, ~ offline,
// ! failed.
func site(text string) Site {
	name, flags, _ := strings.Cut(text, ":")
	s := Site{Name: name, Online: true, OnlineSince: now.Add(-time.Hour), Exists: true, ChangedAt: now.Add(-time.Minute)}
	for _, flag := range flags {
		switch flag {
		case '+':
			s.Updated, s.Ready, s.Finished = true, true, true
		case 'o':
			s.Updated = true
		case 'd': // was ready, is not
			s.Updated, s.Finished = true, true
		case '.':
			s.Ready, s.Finished = true, true
		case 'x':
		case '-':
			s.Exists = false
		case 'c':
			s.Canary = true
		case '~':
			s.Online = false
		case '!':
			s.Updated, s.Failed = true, true
		case 'r':
			s.Refused = "refused"
		case 'l': // late
			s.Updated, s.ChangedAt = true, now.Add(-time.Hour)
		case 'b': // just back
			s.OnlineSince = now.Add(-time.Second)
		}
	}
	return s
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name   string
		sites  string
		policy Policy
		change string
		reason string
		active bool
	}{
		{"nothing", "", Policy{}, "", gridv1.ReasonNoSites, false},
		{"done", "a:+ b:+", Policy{}, "", gridv1.ReasonComplete, false},
		{"first install", "a:- b:- c:-", Policy{}, "a b c", gridv1.ReasonRollingOut, true},
		{"one at a time", "a:. b:. c:.", Policy{}, "a", gridv1.ReasonRollingOut, true},
		{"two at a time", "c:. b:. a:.", Policy{MaxUnavailable: 2}, "a b", gridv1.ReasonRollingOut, true},
		{"wait for one", "a:o b:. c:.", Policy{}, "", gridv1.ReasonRollingOut, true},
		{"one of two is under way", "a:o b:. c:.", Policy{MaxUnavailable: 2}, "b", gridv1.ReasonRollingOut, true},
		{"broken ones first", "a:. b:. c:x", Policy{}, "c", gridv1.ReasonRollingOut, true},
		{"new sites need no turn", "a:o b:. c:-", Policy{}, "c", gridv1.ReasonRollingOut, true},
		{"offline ones are left out", "a:.~ b:.", Policy{}, "b", gridv1.ReasonRollingOut, true},
		{"only offline ones are left", "a:.~ b:+", Policy{}, "", gridv1.ReasonSitesOffline, false},
		{"one that went offline takes no turn", "a:o~ b:.", Policy{}, "b", gridv1.ReasonRollingOut, true},
		{"new and offline", "a:-~ b:+", Policy{}, "a", gridv1.ReasonRollingOut, true},
		{"paused", "a:. b:.", Policy{Paused: true}, "", gridv1.ReasonPaused, false},
		{"paused, first install", "a:- b:-", Policy{Paused: true}, "", gridv1.ReasonPaused, false},
		{"paused, with a new site", "a:+ b:-", Policy{Paused: true}, "b", gridv1.ReasonPaused, false},
		{"canary first", "a:. b:.c c:.", Policy{HasCanary: true, MaxUnavailable: 9}, "b", gridv1.ReasonCanary, true},
		{"canary first, first install", "a:- b:-c c:-", Policy{HasCanary: true}, "b", gridv1.ReasonCanary, true},
		{"canary under way", "a:. b:oc", Policy{HasCanary: true}, "", gridv1.ReasonCanary, true},
		{"canary ready", "a:. b:+c", Policy{HasCanary: true}, "a", gridv1.ReasonRollingOut, true},
		{"canary offline", "a:. b:.c~", Policy{HasCanary: true}, "", gridv1.ReasonCanary, false},
		{"canary selects nothing", "a:. b:.", Policy{HasCanary: true}, "", gridv1.ReasonCanary, false},
		{"canary failed", "a:. b:!c", Policy{HasCanary: true}, "", gridv1.ReasonStopped, false},
		{"canary not well, rolled out", "a:+ b:dc c:-", Policy{HasCanary: true}, "c", gridv1.ReasonRollingOut, true},
		{"failed", "a:! b:.", Policy{}, "", gridv1.ReasonStopped, false},
		{"late", "a:l b:.", Policy{}, "", gridv1.ReasonStopped, false},
		{"late, but just back", "a:lb b:.", Policy{}, "", gridv1.ReasonRollingOut, true},
		{"failed while away", "a:!b b:.", Policy{}, "", gridv1.ReasonRollingOut, true},
		{"late, and away", "a:l~ b:.", Policy{}, "b", gridv1.ReasonRollingOut, true},
		{"failed, tolerated", "a:! b:. c:.", Policy{MaxFailed: 1}, "b", gridv1.ReasonRollingOut, true},
		{"refused", "a:.r b:.", Policy{}, "", gridv1.ReasonStopped, false},
		{"refused, tolerated", "a:.r b:.", Policy{MaxFailed: 1}, "b", gridv1.ReasonRollingOut, true},
		{"failed, nothing left to do, a new site", "a:! b:+ c:-", Policy{}, "c", gridv1.ReasonStopped, false},
		{"failed, a new site before the others", "a:! b:. c:-", Policy{}, "", gridv1.ReasonStopped, false},
		{"not well later is no failure", "a:d b:.", Policy{}, "b", gridv1.ReasonRollingOut, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sites []Site
			for _, text := range strings.Fields(c.sites) {
				sites = append(sites, site(text))
			}
			c.policy.MaxUnavailable = max(1, c.policy.MaxUnavailable)
			c.policy.Deadline = 10 * time.Minute
			plan := Decide(now, sites, c.policy)
			if got := strings.Join(plan.Change, " "); got != c.change || plan.Reason != c.reason || plan.Active != c.active {
				t.Errorf("change %q, %s, active %v: %s\nwant %q, %s, %v", got, plan.Reason, plan.Active, plan.Message, c.change, c.reason, c.active)
			}
		})
	}
}

func TestNext(t *testing.T) {
	plan := Decide(now, []Site{site("a:o"), site("b:o"), site("c:+")}, Policy{MaxUnavailable: 1, Deadline: 10 * time.Minute})
	if want := now.Add(9 * time.Minute); !plan.Next.Equal(want) {
		t.Errorf("next at %s, want %s", plan.Next, want)
	}
	if plan := Decide(now, []Site{site("c:+")}, Policy{MaxUnavailable: 1, Deadline: time.Minute}); !plan.Next.IsZero() {
		t.Errorf("in steady state the next look is at %s", plan.Next)
	}
}

// Random roll-outs, with sites that fail, go away and come back: never more
// changing than allowed, nothing beyond the canary before it is ready, nothing
// after too many failures; and when all are well, it ends.
func TestProperties(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		policy := Policy{MaxUnavailable: 1 + r.IntN(4), MaxFailed: r.IntN(2), Deadline: time.Minute, HasCanary: r.IntN(2) == 0}
		sites := make([]Site, 1+r.IntN(20))
		for i := range sites {
			sites[i] = Site{Name: fmt.Sprintf("s%02d", i), Exists: true, Ready: true, Finished: true, Online: true, Canary: policy.HasCanary && i < 2}
		}
		clock, bad := now, r.IntN(3) == 0
		for step := range 2000 {
			clock = clock.Add(time.Second)
			plan := Decide(clock, slices.Clone(sites), policy)
			changing := 0
			for _, o := range plan.Sites {
				if o.Phase == gridv1.PhaseProgressing {
					changing++
				}
			}
			gate := true
			for _, s := range sites {
				gate = gate && (!s.Canary || s.Updated && s.Ready)
			}
			if changing+len(plan.Change) > policy.MaxUnavailable && len(plan.Change) > 0 {
				t.Fatalf("seed %d: %d changing and %d more, of %d", seed, changing, len(plan.Change), policy.MaxUnavailable)
			}
			if plan.Failed > policy.MaxFailed && len(plan.Change) > 0 {
				t.Fatalf("seed %d: it goes on after %d failures", seed, plan.Failed)
			}
			for i := range sites {
				s := &sites[i]
				if slices.Contains(plan.Change, s.Name) {
					if !s.Canary && !gate {
						t.Fatalf("seed %d: %s before the canary", seed, s.Name)
					}
					if !s.Online {
						t.Fatalf("seed %d: %s is changed while offline", seed, s.Name)
					}
					s.Updated, s.Ready, s.Finished, s.ChangedAt = true, false, false, clock
				} else if s.Updated && !s.Ready && s.Online && r.IntN(5) == 0 {
					s.Ready, s.Finished = true, true
				}
				if bad && step < 500 && r.IntN(50) == 0 {
					s.Online = !s.Online
					s.OnlineSince = clock
				}
				if step == 500 && !s.Online {
					s.Online, s.OnlineSince = true, clock
				}
			}
		}
		if plan := Decide(clock, sites, policy); plan.Ready != len(sites) || plan.Reason != gridv1.ReasonComplete {
			t.Errorf("seed %d does not end: %s %s", seed, plan.Reason, plan.Message)
		}
	}
}
