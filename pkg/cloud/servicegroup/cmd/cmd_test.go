package cmd

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

func example(reason string, sites ...gridv1.SiteStatus) *grid {
	g := &grid{TypeMeta: metav1.TypeMeta{Kind: "DeploymentGrid"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Generation: 3}}
	g.Status = gridv1.WorkloadGridStatus{
		ObservedGeneration: 3, Phase: gridv1.PhaseProgressing, DesiredSites: int32(len(sites)), UpdatedSites: 1, ReadySites: 1, Sites: sites,
		Conditions: []metav1.Condition{{Type: gridv1.ConditionProgressing, Reason: reason, Message: "waiting for canary site west"}},
	}
	return g
}

var (
	east = gridv1.SiteStatus{Name: "east", Phase: gridv1.PhaseReady, Updated: true, Desired: 2, Ready: 2}
	west = gridv1.SiteStatus{Name: "west", Phase: gridv1.PhaseProgressing, Updated: true, Desired: 2, Ready: 1, Message: "1 of 2\x1b[2J pods\nready"}
)

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := table(&out, example(gridv1.ReasonCanary, east, west), 0); err != nil {
		t.Fatal(err)
	}
	want := `DeploymentGrid shop/web: Progressing, 2 sites: 1 updated, 1 ready; waiting for canary site west
SITE   PHASE         UPDATED   PODS   MESSAGE
east   Ready         yes       2/2    
west   Progressing   yes       1/2    1 of 2 [2J pods ready
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

func TestTableLeavesOutWhatIsReady(t *testing.T) {
	var sites []gridv1.SiteStatus
	for i := range 500 {
		s := gridv1.SiteStatus{Name: fmt.Sprintf("s%03d", i), Phase: gridv1.PhaseReady}
		if i == 321 {
			s.Phase = gridv1.PhaseFailed
		}
		sites = append(sites, s)
	}
	var out bytes.Buffer
	if err := table(&out, example(gridv1.ReasonCanary, sites...), 10); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 13 || !strings.Contains(out.String(), "s321") || !strings.Contains(out.String(), "… and 490 more") {
		t.Errorf("%d lines:\n%s", lines, &out)
	}
}

func TestLinesSayChangesOnce(t *testing.T) {
	var out bytes.Buffer
	f := follower{out: &out, now: func() time.Time { return time.Date(2030, 1, 1, 10, 0, 0, 0, time.UTC) }}
	for range 3 {
		if _, err := f.show(example(gridv1.ReasonRollingOut, east, west)); err != nil {
			t.Fatal(err)
		}
	}
	ready := west
	ready.Phase, ready.Ready, ready.Message = gridv1.PhaseReady, 2, ""
	done, err := f.show(example(gridv1.ReasonComplete, ready))
	if err != nil || !done {
		t.Errorf("done %v, %v", done, err)
	}
	want := []string{"east: Ready, 2/2 pods", "west: Progressing, 1/2 pods, 1 of 2 [2J pods ready", "web: Progressing, 2 sites", "west: Ready, 2/2 pods", "east: gone", "web: Progressing, 1 sites"}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got\n%s", &out)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, "10:00:00 "+want[i]) {
			t.Errorf("line %d is %q, want %q", i, line, want[i])
		}
	}
}

func TestRedrawMovesBack(t *testing.T) {
	var out bytes.Buffer
	f := follower{out: &out, rows: 24}
	for range 2 {
		if err := f.redraw(example(gridv1.ReasonRollingOut, east, west)); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(out.String(), "\x1b[4A") != 1 {
		t.Errorf("%q", &out)
	}
}

func TestWhenItIsOver(t *testing.T) {
	offline := gridv1.SiteStatus{Name: "far", Phase: gridv1.PhaseOffline}
	late := example(gridv1.ReasonComplete, east)
	late.Generation = 4
	for name, c := range map[string]struct {
		grid   *grid
		done   bool
		failed bool
	}{
		"complete":             {example(gridv1.ReasonComplete, east), true, false},
		"complete, one away":   {example(gridv1.ReasonComplete, east, offline), true, false},
		"complete, not ready":  {example(gridv1.ReasonComplete, east, west), false, false},
		"rolling out":          {example(gridv1.ReasonRollingOut, east, west), false, false},
		"stopped":              {example(gridv1.ReasonStopped, east, west), true, true},
		"refused":              {example(gridv1.ReasonInvalid), true, true},
		"paused":               {example(gridv1.ReasonPaused, east), true, true},
		"others are away":      {example(gridv1.ReasonSitesOffline, east, offline), true, false},
		"about an older grid":  {late, false, false},
		"no condition to read": {&grid{}, false, false},
	} {
		f := follower{out: new(bytes.Buffer), now: time.Now}
		done, err := f.show(c.grid)
		if done != c.done || errors.Is(err, errNotReady) != c.failed {
			t.Errorf("%s: done %v, %v", name, done, err)
		}
	}
}
