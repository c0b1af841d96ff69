package verdict

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"skerry.dev/api/site/v1alpha1"
)

// maxStep is the longest time between two calls that counts. If nobody called
// for longer (the process was stopped, the machine suspended, the clock set), the
// tracker was blind, and silence that it could not hear is no silence of nodes.
const maxStep = 5 * time.Second

// Tracker knows everything that verdicts depend on. It is told what changes, and
// each call tells it the time; it must be called, if only with Due, every
// second or so. It is not safe for concurrent use.
type Tracker struct {
	now   time.Time // runs with last, but never back, and never more than maxStep at once
	last  time.Time
	nodes map[string]*entry
	sites map[string]*site
	// strays are Nodes without a site that have a verdict.
	strays map[string]bool
}

// Node is what the tracker has to know of a Node.
type Node struct {
	Name string
	UID  types.UID
	// Site is the value of its label skerry.dev/site, InSite whether it has one.
	Site   string
	InSite bool
	// Alive is its condition skerry.dev/Alive; the zero value if it has none.
	Alive Condition
}

// entry is one name: of a Node, of a lease, of a report, or of all three.
type entry struct {
	name string

	exists    bool
	uid       types.UID
	site      *site // nil: none, a cloud node
	published Condition
	saidAt    time.Time // when a condition by hand was first seen
	moved     bool

	// leased: there is a lease. proven: it was seen to change, at last at seen.
	leased, proven bool
	renewed        time.Time // what the node wrote: only ever compared for equality
	seen           time.Time

	report       *report
	contactSince time.Time
	downSince    time.Time
	downSeen     time.Time

	verdict Verdict
	decided bool
	tally   tally
}

type report struct {
	renewed    time.Time
	self       v1alpha1.SelfReport
	neighbours []v1alpha1.NeighbourReport
	seen       time.Time
	// initial: it was there when this process began, and has not changed since.
	initial bool
}

// tally is what the reports of a site say about one node; scratch of Evaluate.
type tally struct {
	reachable, unreachable, kubeletDown, answered int
}

type site struct {
	name    string
	valid   bool // may be the name of a Site
	members []*entry

	exists     bool
	policy     Policy
	generation int64
	status     v1alpha1.SiteStatus // as published
	asked      map[question]time.Time
	// excused are the questions that, as published, have enough good answers.
	excused map[question]bool

	// heard: the cloud hears a node of the site; since when without a break.
	heard      bool
	heardSince time.Time

	dirty bool
	next  time.Time
}

type question struct {
	node string
	uid  types.UID
}

// New returns a tracker that knows nothing. What it is told to be there already
// (initial) is no evidence before it was seen to change.
func New() *Tracker {
	return &Tracker{nodes: map[string]*entry{}, sites: map[string]*site{}, strays: map[string]bool{}}
}

func (t *Tracker) advance(now time.Time) {
	if t.now.IsZero() {
		t.now, t.last = now, now
	}
	t.now = t.now.Add(min(max(now.Sub(t.last), 0), maxStep))
	t.last = now
}

// wall turns a moment of the tracker's clock into one of the caller's.
func (t *Tracker) wall(at time.Time) time.Time { return t.last.Add(at.Sub(t.now)) }

func (t *Tracker) entry(name string) *entry {
	e := t.nodes[name]
	if e == nil {
		e = &entry{name: name, seen: t.now}
		t.nodes[name] = e
	}
	return e
}

// forget keeps of a name what is not of its Node. It is no evidence about the next
// Node of that name.
func (t *Tracker) forget(e *entry) {
	*e = entry{name: e.name, leased: e.leased, renewed: e.renewed, seen: t.now, report: e.report}
	if e.report != nil {
		old := *e.report
		old.initial = true
		e.report = &old
	}
}

// drop forgets a name of which nothing is left.
func (t *Tracker) drop(e *entry) {
	if !e.exists && !e.leased && e.report == nil {
		delete(t.nodes, e.name)
	}
}

func (t *Tracker) site(name string) *site {
	s := t.sites[name]
	if s == nil {
		s = &site{name: name, policy: PolicyOf(nil), asked: map[question]time.Time{}, valid: ValidSite(name)}
		t.sites[name] = s
	}
	return s
}

func (t *Tracker) dropSite(s *site) {
	if !s.exists && len(s.members) == 0 {
		delete(t.sites, s.name)
	}
}

// ValidSite says whether a value of the label skerry.dev/site can be the name of
// a Site.
func ValidSite(name string) bool { return len(validation.IsDNS1123Label(name)) == 0 }

func (e *entry) dirty() {
	if e.site != nil {
		e.site.dirty = true
	}
}

// SetNode tells that a Node is there, or how it changed.
func (t *Tracker) SetNode(now time.Time, n Node) {
	t.advance(now)
	e := t.entry(n.Name)
	if e.exists && e.uid != n.UID {
		// A new machine of the same name, or the old one anew: nothing that is
		// known about the old one is true of it.
		t.leave(e)
		t.forget(e)
	}
	if !e.exists {
		e.exists, e.uid, e.seen = true, n.UID, t.since(e)
	}
	if n.Alive.Status != e.published.Status || n.Alive.Reason != e.published.Reason {
		if n.Alive.ByHand() {
			e.saidAt = t.now
		}
		// It was said just now, so it is about the node where it is now.
		e.moved = e.moved && !n.Alive.ByHand() && !e.matches(n.Alive)
		e.dirty()
	}
	e.published = n.Alive
	var to *site
	if n.InSite {
		to = t.site(n.Site)
	}
	if to != e.site {
		if e.site != nil || e.decided {
			e.moved = true
		}
		t.leave(e)
		e.site, e.decided = to, false
		if to != nil {
			to.members = append(to.members, e)
			to.dirty = true
		}
	}
	if e.site == nil && e.published.Status != "" && !e.published.ByHand() {
		t.strays[e.name] = true
	} else {
		delete(t.strays, e.name)
	}
}

// since is the moment from which a Node that has just appeared is waited for: a
// heartbeat that was already seen counts.
func (t *Tracker) since(e *entry) time.Time {
	if e.proven {
		return e.seen
	}
	return t.now
}

// matches says whether a published condition is the one that was decided last.
func (e *entry) matches(c Condition) bool {
	return e.decided && !e.verdict.Interim && c.Status == e.verdict.Status && c.Reason == e.verdict.Reason
}

// leave takes a node out of its site.
func (t *Tracker) leave(e *entry) {
	if e.site == nil {
		return
	}
	s := e.site
	e.site = nil
	i := slices.Index(s.members, e)
	s.members[i] = s.members[len(s.members)-1]
	s.members = s.members[:len(s.members)-1]
	s.dirty = true
	t.dropSite(s)
}

// DeleteNode tells that a Node is gone.
func (t *Tracker) DeleteNode(now time.Time, name string) {
	t.advance(now)
	e := t.nodes[name]
	if e == nil || !e.exists {
		return
	}
	t.leave(e)
	delete(t.strays, name)
	t.forget(e)
	t.drop(e)
}

// SetLease tells the renewal time of a node's lease. initial: the lease was there
// when the caller began to watch.
func (t *Tracker) SetLease(now time.Time, name string, renewed time.Time, initial bool) {
	t.advance(now)
	e := t.entry(name)
	was := t.connected(e)
	switch {
	case !e.leased && initial:
		e.leased, e.renewed, e.seen = true, renewed, t.now
	case !e.leased, !e.renewed.Equal(renewed):
		// The time may as well have gone back: it is the node's clock.
		e.leased, e.proven, e.renewed, e.seen = true, true, renewed, t.now
	default:
		return
	}
	t.contact(e, was)
	// While the verdict rests on the heartbeat, one more changes nothing.
	if !e.decided || e.verdict.Reason != v1alpha1.ReasonHeartbeat || !e.matches(e.published) {
		e.dirty()
	}
}

// DeleteLease tells that a lease is gone. That is not a heartbeat, and a node
// that was heard is not forgotten for it.
func (t *Tracker) DeleteLease(now time.Time, name string) {
	t.advance(now)
	if e := t.nodes[name]; e != nil && !e.exists {
		e.leased, e.proven = false, false
		t.drop(e)
	}
}

// contact notes since when the cloud hears a node without a break.
func (t *Tracker) contact(e *entry, was bool) {
	if !was && t.connected(e) {
		e.contactSince = t.now
	}
}

// SetReport tells what a node reports. Only a report whose content or renewal
// time changed is news.
func (t *Tracker) SetReport(now time.Time, r *v1alpha1.NodeReport, initial bool) {
	t.advance(now)
	e := t.entry(r.Name)
	was := t.connected(e)
	if e.report != nil && e.report.renewed.Equal(r.Spec.RenewTime.Time) && e.report.self == r.Spec.Self &&
		slices.Equal(e.report.neighbours, distinct(r.Spec.Neighbours)) {
		return
	}
	e.report = &report{renewed: r.Spec.RenewTime.Time, self: r.Spec.Self, neighbours: distinct(r.Spec.Neighbours),
		seen: t.now, initial: initial && e.report == nil}
	t.contact(e, was)
	e.dirty()
}

// distinct keeps the first word about each neighbour. The API server refuses
// others; that one neighbour is one witness must not depend on it.
func distinct(all []v1alpha1.NeighbourReport) []v1alpha1.NeighbourReport {
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(slices.Clone(all), func(n v1alpha1.NeighbourReport) bool {
		was := seen[n.Node]
		seen[n.Node] = true
		return was
	})
}

// DeleteReport tells that a node has nothing to report any more.
func (t *Tracker) DeleteReport(now time.Time, name string) {
	t.advance(now)
	if e := t.nodes[name]; e != nil && e.report != nil {
		e.report = nil
		e.dirty()
		t.drop(e)
	}
}

// SetSite tells a Site's policy, and the questions in its status: a question is
// asked from the moment it is seen there.
func (t *Tracker) SetSite(now time.Time, object *v1alpha1.Site) {
	t.advance(now)
	s := t.site(object.Name)
	policy := PolicyOf(object)
	if !s.exists || s.policy != policy || s.generation != object.Generation {
		s.dirty = true
	}
	s.exists, s.policy, s.generation = true, policy, object.Generation
	s.status = object.Status
	asked := make(map[question]time.Time, len(object.Status.Doubts))
	excused := map[question]bool{}
	for _, d := range object.Status.Doubts {
		q := question{d.Node, d.UID}
		at, ok := s.asked[q]
		// Who was told that enough reach the node was right to keep silent, and
		// has time to answer from when that is no longer so.
		if !ok || s.excused[q] && d.Reachable < EnoughReachable {
			at = t.now
			s.dirty = true
		}
		asked[q] = at
		if d.Reachable >= EnoughReachable {
			excused[q] = true
		}
	}
	s.asked, s.excused = asked, excused
}

// DeleteSite tells that a Site is gone: the policy is the default again.
func (t *Tracker) DeleteSite(now time.Time, name string) {
	t.advance(now)
	s := t.sites[name]
	if s == nil {
		return
	}
	s.exists, s.policy, s.generation, s.status = false, PolicyOf(nil), 0, v1alpha1.SiteStatus{}
	s.asked, s.excused = map[question]time.Time{}, nil
	s.dirty = true
	t.dropSite(s)
}

// Due returns the sites to evaluate: something changed, or time has come.
func (t *Tracker) Due(now time.Time) []string {
	t.advance(now)
	var due []string
	for name, s := range t.sites {
		if s.dirty || !s.next.IsZero() && !t.now.Before(s.next) {
			due = append(due, name)
		}
	}
	slices.Sort(due)
	return due
}

// Dirty makes each site due.
func (t *Tracker) Dirty() {
	for _, s := range t.sites {
		s.dirty = true
	}
}
