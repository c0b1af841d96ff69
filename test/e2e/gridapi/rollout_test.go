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

// rollOut begins to change the image of a grid that is ready in n sites.
func rollOut(t *testing.T, n int, image, more string) *world {
	t.Helper()
	w := newWorld(t)
	w.sites(n, more)
	w.mustApply(web(image, more))
	return w
}

// ready makes sites ready.
func (w *world) ready(sites ...string) {
	w.Helper()
	for _, site := range sites {
		w.become("web-"+site, true)
	}
}

// exceeds fails a site that the roll-out does not stand: it stops, and no more
// sites than these have the image.
func (w *world) exceeds(site, image string, sites ...string) {
	w.Helper()
	w.exceed("web-" + site)
	w.wantPhase(gridv1.PhaseStopped)
	w.wantSites(image, sites...)
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
	policy := "  rollout: {canary: {sites: [s2]}, maxUnavailable: 2}\n"
	w := rollOut(t, 4, "web:broken", policy)
	w.wantSites("web:broken", "s2")
	w.become("web-s2", false)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonCanary, "waiting for canary site s2: 2 of 2 pods ready, 1 updated")
	w.exceeds("s2", "web:broken", "s2")
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonStopped, "stopped: site s2: 2 of 2 pods ready, 1 updated; ReplicaSet has timed out")
	if c := w.condition(gridv1.ConditionProgressing); c.Status != "False" {
		t.Errorf("Progressing is %s", c.Status)
	}
	w.wantEvent(gridv1.ReasonStopped, "")
	// The fix goes on, canary first again.
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s2")
	w.ready("s2")
	w.wantSites("web:v2", "s0", "s1", "s2")
	w.ready("s0")
	w.wantSites("web:v2", "s0", "s1", "s2", "s3")
	w.ready("s1", "s3")
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
	w := rollOut(t, 4, "web:v2", "  rollout: {maxFailed: 1}\n")
	w.wantSites("web:v2", "s0")
	w.exceed("web-s0")
	w.wantSites("web:v2", "s0", "s1")
	w.exceeds("s1", "web:v2", "s0", "s1")
	// A failed site recovers: it goes on.
	w.ready("s1")
	w.wantSites("web:v2", "s0", "s1", "s2")
}

func TestProgressDeadline(t *testing.T) {
	w := rollOut(t, 2, "web:v2", "  rollout: {progressDeadlineSeconds: 2}\n")
	w.wantSites("web:v2", "s0")
	w.become("web-s0", false)
	w.wantPhase(gridv1.PhaseStopped)
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonStopped, "not ready within 2s")
}

func TestOfflineSiteCatchesUp(t *testing.T) {
	w := rollOut(t, 3, "web:v2", "  rollout: {progressDeadlineSeconds: 3}\n")
	w.wantSites("web:v2", "s0")
	// Cut in the middle of its change, and another before its own.
	w.become("web-s0", false)
	w.setReady("n0", false)
	w.setReady("n1", false)
	w.wantSites("web:v2", "s0", "s2")
	w.ready("s2")
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonSitesOffline, "1 wait until they can be reached")
	time.Sleep(4 * time.Second)
	if s := w.status("web"); s.FailedSites != 0 || s.OfflineSites != 2 {
		t.Errorf("status: %+v", s)
	}
	w.setReady("n0", true)
	w.setReady("n1", true)
	w.ready("s0")
	w.wantSites("web:v2", "s0", "s1", "s2")
	w.ready("s1")
	w.wantPhase(gridv1.PhaseReady)
}

func TestNewSiteInTheMiddle(t *testing.T) {
	policy := "  rollout: {canary: {sites: [s0]}}\n"
	w := rollOut(t, 2, "web:broken", policy)
	w.wantSites("web:broken", "s0")
	w.exceeds("s0", "web:broken", "s0")
	w.node("n9", "s9", true)
	w.never("a child in the new site", func() bool { return len(w.children()) != 2 })
	w.mustApply(web("web:v2", policy))
	w.wantSites("web:v2", "s0")
	w.ready("s0")
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
