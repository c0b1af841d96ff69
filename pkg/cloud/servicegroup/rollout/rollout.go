// Package rollout decides which sites of a grid are to be changed next, and says
// how each of them is doing. It is pure: it must know neither the cluster nor the
// clock, and what a change is is not its business.
package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// Site is what is known about a site of a grid.
type Site struct {
	Name   string
	Canary bool
	// Online says whether a node of the site is Ready, and OnlineSince when that
	// began.
	Online      bool
	OnlineSince time.Time

	// Exists says whether the site has its child. The rest is about that.
	Exists bool
	// Updated says whether the child has been told what the grid says now, and
	// ChangedAt when the child was changed last.
	Updated   bool
	ChangedAt time.Time
	// Ready says whether it runs what it was told, with all pods ready;
	// Finished, whether it did so once since it was told.
	Ready, Finished bool
	// Failed is the child's own word that it does not get ready.
	Failed bool
	// Refused is why the child cannot be what the grid says, "" if it can.
	Refused string
	// Detail is why the child is not ready, as far as it tells.
	Detail string
}

// Policy is how changes go from site to site.
type Policy struct {
	Paused bool
	// MaxUnavailable is how many sites may be changing at once, at least 1.
	MaxUnavailable int
	MaxFailed      int
	// Deadline is how long a site that can be reached may take.
	Deadline time.Duration
	// HasCanary says that sites are named that go first.
	HasCanary bool
}

// Plan is what is to be done.
type Plan struct {
	// Change are the sites whose child is to be made or changed now, in order.
	Change []string
	// Next is when the plan will be another one by itself, zero if it will not.
	Next time.Time
	// Sites is each site, in the order of their names.
	Sites []Outcome
	// Reason and Message say how far the roll-out is, as the Progressing
	// condition does.
	Reason, Message string
	// Active says that sites are changing or about to.
	Active bool
	// Updated, Ready, Failed and Offline count sites.
	Updated, Ready, Failed, Offline int
}

// Outcome is how a site is doing.
type Outcome struct {
	Site
	Phase   gridv1.Phase
	Message string
}

// Decide makes a plan.
func Decide(now time.Time, sites []Site, p Policy) Plan {
	plan := Plan{Sites: make([]Outcome, 0, len(sites))}
	for _, s := range sites {
		o := Outcome{Site: s}
		o.Phase, o.Message = plan.phase(now, s, p.Deadline)
		plan.Sites = append(plan.Sites, o)
	}
	slices.SortFunc(plan.Sites, func(a, b Outcome) int { return cmp.Compare(a.Name, b.Name) })
	t := plan.count()
	t.canaryMissing = p.HasCanary && t.canaries == 0
	plan.choose(t, p)
	plan.explain(t, p)
	return plan
}

// phase says how a site is doing, and notes when that will be another by itself.
func (plan *Plan) phase(now time.Time, s Site, deadline time.Duration) (gridv1.Phase, string) {
	switch {
	case s.Refused != "":
		return gridv1.PhaseFailed, s.Refused
	case s.Exists && s.Updated && s.Ready:
		return gridv1.PhaseReady, ""
	case s.Exists && !s.Online:
		message := "no node of the site is Ready"
		if !s.Updated {
			message += "; it gets the change when it is back"
		}
		return gridv1.PhaseOffline, message
	case !s.Exists:
		return gridv1.PhasePending, "it has no child yet"
	case !s.Updated:
		return gridv1.PhasePending, cmp.Or(s.Detail, "it waits for its turn")
	case s.Finished:
		return gridv1.PhaseNotReady, s.Detail
	}
	// A site that was out of reach gets its time again when it is back.
	start := s.ChangedAt
	if s.OnlineSince.After(start) {
		start = s.OnlineSince
	}
	end := start.Add(deadline)
	switch {
	case s.Failed && !s.OnlineSince.After(s.ChangedAt):
		return gridv1.PhaseFailed, cmp.Or(s.Detail, "it does not become ready")
	case !now.Before(end):
		return gridv1.PhaseFailed, fmt.Sprintf("not ready within %s: %s", deadline, cmp.Or(s.Detail, "no reason is known"))
	}
	if plan.Next.IsZero() || end.Before(plan.Next) {
		plan.Next = end
	}
	return gridv1.PhaseProgressing, s.Detail
}

// tally is what the choice depends on.
type tally struct {
	changing, waiting, missing int
	canaries, canariesReady    int
	canaryMissing              bool
	canaryInTheWay             *Outcome
	// settled: each site that can be reached and is not a canary has been told
	// what the grid says now, so that a new one is not the first.
	settled bool
}

func (plan *Plan) count() tally {
	t := tally{}
	told, untold := 0, 0
	for i := range plan.Sites {
		o := &plan.Sites[i]
		switch o.Phase {
		case gridv1.PhaseReady:
			plan.Ready++
		case gridv1.PhaseFailed:
			plan.Failed++
		case gridv1.PhaseProgressing:
			t.changing++
		}
		if !o.Online {
			plan.Offline++
		}
		switch {
		case o.Exists && o.Updated:
			plan.Updated++
			if !o.Canary {
				told++
			}
		case !o.Exists:
			t.missing++
		default:
			if o.Online {
				t.waiting++
				if !o.Canary {
					untold++
				}
			}
		}
		if o.Canary {
			t.canaries++
			if o.Phase == gridv1.PhaseReady {
				t.canariesReady++
			} else if t.canaryInTheWay == nil {
				t.canaryInTheWay = o
			}
		}
	}
	t.settled = told > 0 && untold == 0
	return t
}

func (t tally) gateOpen() bool { return !t.canaryMissing && t.canariesReady == t.canaries }

// stopped says that too many sites have failed.
func (plan *Plan) stopped(p Policy) bool { return plan.Failed > p.MaxFailed }

func (plan *Plan) choose(t tally, p Policy) {
	held := p.Paused || plan.stopped(p)
	// New sites have nothing to lose: they need no turn.
	for _, o := range plan.Sites {
		if !o.Exists && o.Refused == "" && (t.settled || !held && (o.Canary || t.gateOpen())) {
			plan.Change = append(plan.Change, o.Name)
		}
	}
	if held {
		return
	}
	free := p.MaxUnavailable - t.changing
	// What is broken already goes first: it cannot get worse.
	for _, broken := range []bool{true, false} {
		for _, o := range plan.Sites {
			if free <= 0 {
				return
			}
			if !o.Exists || o.Updated || !o.Online || o.Refused != "" || o.Ready == broken || !o.Canary && !t.gateOpen() {
				continue
			}
			plan.Change = append(plan.Change, o.Name)
			free--
		}
	}
}

func (plan *Plan) explain(t tally, p Policy) {
	total := len(plan.Sites)
	progress := fmt.Sprintf("%d of %d sites updated, %d ready", plan.Updated, total, plan.Ready)
	pending := total - plan.Updated
	switch {
	case total == 0:
		plan.Reason, plan.Message = gridv1.ReasonNoSites, "no node has a value of the grid's key that is selected"
	case plan.stopped(p) && (pending > 0 || plan.Failed > 0):
		plan.Reason, plan.Message = gridv1.ReasonStopped, fmt.Sprintf("%s; stopped: %s", progress, plan.firstFailure())
	case p.Paused && pending > 0:
		plan.Reason, plan.Message = gridv1.ReasonPaused, progress+"; paused"
	case pending > 0 && t.canaryMissing:
		plan.Reason, plan.Message = gridv1.ReasonCanary, progress+"; no site is a canary site: rollout.canary selects none of them"
	case pending > 0 && !t.gateOpen() && !t.settled:
		plan.Reason, plan.Active = gridv1.ReasonCanary, t.canaryInTheWay.Phase != gridv1.PhaseOffline
		plan.Message = fmt.Sprintf("%s; waiting for canary site %s: %s", progress, t.canaryInTheWay.Name, cmp.Or(t.canaryInTheWay.Message, string(t.canaryInTheWay.Phase)))
	case t.changing+t.waiting+t.missing > 0:
		plan.Reason, plan.Message, plan.Active = gridv1.ReasonRollingOut, progress, true
	case pending > 0:
		plan.Reason, plan.Message = gridv1.ReasonSitesOffline, fmt.Sprintf("%s; %d wait until they can be reached", progress, pending)
	default:
		plan.Reason, plan.Message = gridv1.ReasonComplete, progress
	}
}

func (plan *Plan) firstFailure() string {
	for _, o := range plan.Sites {
		if o.Phase == gridv1.PhaseFailed {
			text := fmt.Sprintf("site %s: %s", o.Name, o.Message)
			if plan.Failed > 1 {
				text += fmt.Sprintf(" (and %d more)", plan.Failed-1)
			}
			return text
		}
	}
	return ""
}
