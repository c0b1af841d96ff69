//go:build e2e

package gridapi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// sites makes sites with one ready node each, named s0, s1, …, and a grid that
// is ready in all of them.
func (w *world) sites(n int, more string) {
	w.Helper()
	var names []string
	for i := range n {
		w.node(fmt.Sprint("n", i), fmt.Sprint("s", i), true)
		names = append(names, fmt.Sprint("web-s", i))
	}
	w.mustApply(web("web:v1", more))
	for range n { // canary sites come first
		w.eventually("a child that is not ready", func() error {
			if len(w.children()) == n {
				return nil
			}
			for _, name := range w.children() {
				w.become(name, true)
			}
			return errors.New("not all children are there")
		})
	}
	slices.Sort(names)
	w.wantChildren(names...)
	for _, name := range names {
		w.become(name, true)
	}
	w.wantPhase(gridv1.PhaseReady)
}

// withImage are the sites that have an image.
func (w *world) withImage(image string) (sites []string) {
	for _, name := range w.children() {
		if w.image(name) == image {
			sites = append(sites, strings.TrimPrefix(name, "web-"))
		}
	}
	return sites
}

func (w *world) wantSites(image string, sites ...string) {
	w.Helper()
	w.eventually(fmt.Sprintf("%s in %v", image, sites), func() error {
		if got := w.withImage(image); !slices.Equal(got, sites) {
			return fmt.Errorf("it is in %v", got)
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond)
	if got := w.withImage(image); !slices.Equal(got, sites) {
		w.Fatalf("%s is in %v, want %v", image, got, sites)
	}
}

func TestCanaryFirstAndFailureStops(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {canary: {sites: [s2]}, maxUnavailable: 2}\n"
	w.sites(4, policy)
	w.mustApply(web("web:broken", policy))
	w.wantSites("web:broken", "s2")
	w.become("web-s2", false)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonCanary, "waiting for canary site s2: 2 of 2 pods ready, 1 updated")
	w.exceed("web-s2")
	w.wantPhase(gridv1.PhaseStopped)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonStopped, "stopped: site s2: 2 of 2 pods ready, 1 updated; ReplicaSet has timed out")
	if c := w.condition(gridv1.ConditionProgressing); c.Status != "False" {
		t.Errorf("Progressing is %s", c.Status)
	}
	if got := w.events(gridv1.ReasonStopped); len(got) != 1 {
		t.Errorf("events: %q", got)
	}
	w.wantSites("web:broken", "s2")
	// The fix goes on, canary first again.
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s2")
	w.become("web-s2", true)
	w.wantSites("web:v2", "s0", "s1", "s2")
	w.become("web-s0", true)
	w.wantSites("web:v2", "s0", "s1", "s2", "s3")
	w.become("web-s1", true)
	w.become("web-s3", true)
	w.wantPhase(gridv1.PhaseReady)
}

func TestCanaryThatSelectsNothing(t *testing.T) {
	w := newWorld(t)
	w.sites(2, "")
	w.mustApply(web("web:v2", "  rollout: {canary: {sites: [lab]}}\n"))
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonCanary, "no site is a canary site")
	w.wantSites("web:v2")
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	w.sites(2, "")
	w.mustApply(web("web:v2", "  rollout: {paused: true}\n"))
	w.wantPhase(gridv1.PhasePaused)
	w.wantSites("web:v2")
	w.mustApply(web("web:v2", "  rollout: {paused: false, maxUnavailable: 100%}\n"))
	w.wantSites("web:v2", "s0", "s1")
}

func TestFailuresAreTolerated(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {maxFailed: 1}\n"
	w.sites(4, policy)
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s0")
	w.exceed("web-s0")
	w.wantSites("web:v2", "s0", "s1")
	w.exceed("web-s1")
	w.wantPhase(gridv1.PhaseStopped)
	w.wantSites("web:v2", "s0", "s1")
	// A failed site recovers: it goes on.
	w.become("web-s1", true)
	w.wantSites("web:v2", "s0", "s1", "s2")
}

func TestProgressDeadline(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {progressDeadlineSeconds: 2}\n"
	w.sites(2, policy)
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s0")
	w.become("web-s0", false)
	w.wantPhase(gridv1.PhaseStopped)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonStopped, "not ready within 2s")
}

func TestOfflineSiteCatchesUp(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {progressDeadlineSeconds: 3}\n"
	w.sites(3, policy)
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s0")
	// Cut in the middle of its change, and another before its own.
	w.become("web-s0", false)
	w.setReady("n0", false)
	w.setReady("n1", false)
	w.wantSites("web:v2", "s0", "s2")
	w.become("web-s2", true)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonSitesOffline, "1 wait until they can be reached")
	time.Sleep(4 * time.Second)
	if s := w.status("web"); s.FailedSites != 0 || s.OfflineSites != 2 {
		t.Errorf("status: %+v", s)
	}
	w.setReady("n0", true)
	w.setReady("n1", true)
	w.become("web-s0", true)
	w.wantSites("web:v2", "s0", "s1", "s2")
	w.become("web-s1", true)
	w.wantPhase(gridv1.PhaseReady)
}

func TestNewSiteInTheMiddle(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {canary: {sites: [s0]}}\n"
	w.sites(2, policy)
	w.mustApply(web("web:broken", policy))
	w.wantSites("web:broken", "s0")
	w.exceed("web-s0")
	w.wantPhase(gridv1.PhaseStopped)
	w.node("n9", "s9", true)
	w.never("a child in the new site", func() bool { return len(w.children()) != 2 })
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s0")
	w.become("web-s0", true)
	w.wantSites("web:v2", "s0", "s1", "s9")
}

func TestNewSiteAfterwards(t *testing.T) {
	w := newWorld(t)
	policy := "  rollout: {canary: {sites: [s0]}}\n"
	w.sites(2, policy)
	w.patchStatus(w.deployment("web-s0"), map[string]any{"readyReplicas": 0, "availableReplicas": 0})
	w.wantPhase(gridv1.PhaseNotReady)
	// The canary is not well, but nothing is being rolled out.
	w.node("n9", "s9", false)
	w.wantChildren("web-s0", "web-s1", "web-s9")
}
