package verdict

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api/site/v1alpha1"
)

// Enough answers: those who have not answered yet keep silent, so more are not
// counted in public. The Unreachable are at least as many as the site's
// witnesses. Observers know the same numbers.
const (
	EnoughReachable   = 2
	EnoughUnreachable = 3
)

// maxDoubts is how many questions fit into a Site.
const maxDoubts = 1000

// Result is what Evaluate says about a site.
type Result struct {
	Site string
	// Exists: there is a Site object. Valid: there can be one.
	Exists, Valid bool
	// Status is what the Site's status is to be, Changed whether it is not yet.
	Status  v1alpha1.SiteStatus
	Changed bool
	// Nodes are those whose condition is not what it is to be, the urgent first.
	Nodes []Change
	// Failover are the nodes whose pods are to be failed over by force.
	Failover []string
	// Next is when to evaluate again although nothing changes. Zero: never.
	Next time.Time
}

// Change is a condition to write.
type Change struct {
	Node string
	UID  types.UID
	Site string
	// Was is the condition that the Node has.
	Was Condition
	// To is the condition that it is to have; without a status it has to go.
	To Condition
}

// Evaluate decides about each node of a site.
func (t *Tracker) Evaluate(now time.Time, name string) Result {
	t.advance(now)
	s := t.sites[name]
	if s == nil {
		return Result{Site: name}
	}
	s.dirty = false
	v := view{t: t, s: s, next: time.Time{}}
	v.count()
	v.back()
	result := Result{Site: name, Exists: s.exists, Valid: s.valid, Status: v1alpha1.SiteStatus{
		Nodes: int32(len(s.members)), ObservedGeneration: s.generation,
	}}
	for _, e := range s.members {
		e.verdict, e.decided = Decide(v.input(e)), true
		e.moved = e.moved && !e.matches(e.published)
		v.again(e.verdict.Next)
		add(&result.Status, t.heartbeat(e), e.verdict)
		if change, ok := t.Desired(e.name); ok {
			result.Nodes = append(result.Nodes, change)
		}
		if s.policy.Failover && t.Failover(e.name) {
			result.Failover = append(result.Failover, e.name)
		}
	}
	slices.SortFunc(result.Nodes, func(a, b Change) int {
		return cmp.Or(urgency(b.To)-urgency(a.To), cmp.Compare(a.Node, b.Node))
	})
	result.Status.Doubts = v.doubts()
	result.Status.Conditions = slices.Clone(s.status.Conditions)
	meta.SetStatusCondition(&result.Status.Conditions, connectedCondition(&result.Status, s.generation, second(t.last)))
	result.Changed = !equality.Semantic.DeepEqual(result.Status, s.status)
	s.next = v.next
	if !v.next.IsZero() {
		result.Next = t.wall(v.next)
	}
	return result
}

// urgency orders writes when there are many: the dead first, then those who are
// back, then what only explains a hold.
func urgency(c Condition) int {
	switch c.Status {
	case corev1.ConditionFalse:
		return 2
	case corev1.ConditionTrue, "":
		return 1
	}
	return 0
}

// Desired is what has to be written about a node, if anything has to.
func (t *Tracker) Desired(name string) (Change, bool) {
	e := t.nodes[name]
	if e == nil || !e.exists {
		return Change{}, false
	}
	c := Change{Node: name, UID: e.uid, Was: e.published}
	if e.site == nil {
		// A cloud node has no verdict. What a person wrote there is theirs.
		return c, e.published.Status != "" && !e.published.ByHand()
	}
	c.Site, c.To = e.site.name, e.verdict.Condition
	if !e.decided || e.verdict.Interim || e.matches(e.published) {
		return Change{}, false
	}
	return c, true
}

// Confirm decides once more about a node that is to be called dead, by what the
// tracker knows now: the caller has just told it what the API server itself says
// of the node's lease and of all reports, and policy is that of the Site as it
// is there. It returns what is to be written, and whether that still calls the
// node dead.
func (t *Tracker) Confirm(now time.Time, name string, policy Policy) (Change, bool) {
	t.advance(now)
	e := t.nodes[name]
	if e == nil || !e.exists || e.site == nil {
		return Change{}, false
	}
	v := view{t: t, s: e.site}
	v.count()
	v.back()
	in := v.input(e)
	in.Policy = policy
	to := Decide(in)
	return Change{Node: name, UID: e.uid, Site: e.site.name, Was: e.published, To: to.Condition}, to.Dead()
}

// Reporters are the names of which there is a report.
func (t *Tracker) Reporters() []string {
	var names []string
	for name, e := range t.nodes {
		if e.report != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Strays are the nodes without a site that still have a verdict: Desired says that
// it has to go.
func (t *Tracker) Strays() []string { return slices.Sorted(maps.Keys(t.strays)) }

// Verdict is what was decided about a node when its site was last evaluated.
func (t *Tracker) Verdict(name string) (Verdict, bool) {
	if e := t.nodes[name]; e != nil && e.decided {
		return e.verdict, true
	}
	return Verdict{}, false
}

// Failover says whether a node's pods are to be failed over by force: its site
// wants it, and the Node says that it is dead for a reason that leaves no doubt.
// A node whose kubelet is down may still run its containers, and a bound on
// the hold proves nothing.
func (t *Tracker) Failover(name string) bool {
	e := t.nodes[name]
	if e == nil || e.site == nil || !e.site.policy.Failover || !e.published.Dead() || e.moved {
		return false
	}
	return e.published.Reason == v1alpha1.ReasonUnreachable || e.published.ByHand()
}

// Silent says whether there is a report that has not changed for so long, or
// whose node is gone: nobody will miss it.
func (t *Tracker) Silent(now time.Time, longer time.Duration) []string {
	t.advance(now)
	var names []string
	for name, e := range t.nodes {
		if e.report != nil && (t.now.Sub(e.report.seen) >= longer || !e.exists && t.now.Sub(e.report.seen) >= ReportFor) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// add counts a node. Connected, held and dead are all nodes, but those about
// which nothing can be said yet.
func add(status *v1alpha1.SiteStatus, heartbeat Heartbeat, v Verdict) {
	switch {
	case v.Dead():
		status.Dead++
	case heartbeat == Fresh, heartbeat == Unproven && v.Status == corev1.ConditionTrue:
		status.Connected++
	case heartbeat == Unproven && v.Interim:
	default:
		status.Held++
		if v.Status != corev1.ConditionTrue && !v.Interim {
			status.Unknown++
		}
	}
}

func connectedCondition(status *v1alpha1.SiteStatus, generation int64, now metav1.Time) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionConnected, ObservedGeneration: generation, LastTransitionTime: now}
	switch {
	case status.Nodes == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, v1alpha1.ReasonNoNodes, "no Node has this site's label"
	case status.Connected > 0:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonConnected, "the cloud hears nodes of the site"
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonSilent, "the cloud hears no node of the site"
	}
	return c
}

// view is what one evaluation of a site works with.
type view struct {
	t         *Tracker
	s         *site
	connected int
	fresh     []*entry // connected, but only just: they have time to answer
	next      time.Time
}

// again notes a time to look again, if it is still to come.
func (v *view) again(at time.Time) {
	if at.After(v.t.now) && (v.next.IsZero() || at.Before(v.next)) {
		v.next = at
	}
}

// count goes through the reports of the site once.
func (v *view) count() {
	t := v.t
	for _, e := range v.s.members {
		e.tally = tally{}
	}
	for _, e := range v.s.members {
		if e.leased {
			v.again(e.seen.Add(HeardFor))
		}
		if e.report != nil {
			v.again(e.report.seen.Add(ContactFor))
			v.again(e.report.seen.Add(ReportFor))
		}
		if !t.connected(e) {
			continue
		}
		v.connected++
		if t.now.Sub(e.contactSince) < AnswerTime {
			v.fresh = append(v.fresh, e)
			v.again(e.contactSince.Add(AnswerTime))
		}
		if !t.counts(e) {
			continue
		}
		for i := range e.report.neighbours {
			about := &e.report.neighbours[i]
			if x := t.nodes[about.Node]; x != nil {
				v.tally(e, x, about)
			}
		}
	}
}

// back notes since when the cloud hears the site at all.
func (v *view) back() {
	heard := v.connected > 0
	if heard && !v.s.heard {
		v.s.heardSince = v.t.now
	}
	v.s.heard = heard
}

// tally counts one word of one node about another.
func (v *view) tally(e, x *entry, about *v1alpha1.NeighbourReport) {
	if x == e || x.site != v.s || about.UID != x.uid && (about.UID != "" || about.State == v1alpha1.NeighbourUnreachable) {
		return
	}
	switch about.State {
	case v1alpha1.NeighbourReachable:
		x.tally.reachable++
	case v1alpha1.NeighbourKubeletDown:
		x.tally.kubeletDown++
	case v1alpha1.NeighbourUnreachable:
		x.tally.unreachable++
	default:
		return
	}
	x.tally.answered++
}

// input gathers what Decide has to know about a node.
func (v *view) input(e *entry) Input {
	t := v.t
	in := Input{
		Now: t.now, Policy: v.s.policy, InvalidSite: !v.s.valid, Heartbeat: t.heartbeat(e), LastHeard: e.seen,
		Published: e.published, Moved: e.moved,
		HeardSince: e.proven && e.seen.After(e.saidAt),
	}
	if in.Heartbeat == Fresh {
		e.downSince, e.downSeen = time.Time{}, time.Time{}
		return in
	}
	in.LastHeard = t.lastHeard(e)
	in.Neighbours = len(v.s.members) - 1
	in.Connected = v.connected
	if t.connected(e) {
		in.Connected--
	}
	in.Reachable, in.Unreachable, in.KubeletDown = e.tally.reachable, e.tally.unreachable, e.tally.kubeletDown
	if t.counts(e) {
		in.Down = e.report.self.Kubelet == v1alpha1.ComponentDown || e.report.self.Runtime == v1alpha1.ComponentDown
		in.Speaks = !in.Down
	}
	v.down(e, &in)
	in.Waiting = v.waiting(e, in.Connected)
	return in
}

// down keeps since when a kubelet is known to be down.
func (v *view) down(e *entry, in *Input) {
	now := v.t.now
	if in.kubeletDown() {
		if e.downSince.IsZero() {
			e.downSince = now
		}
		e.downSeen = now
	} else if !e.downSince.IsZero() && now.Sub(e.downSeen) >= downMemory {
		e.downSince = time.Time{}
	}
	in.DownSince = e.downSince
}

// waiting counts the connected neighbours that have said nothing about a node
// and still have time to.
func (v *view) waiting(e *entry, connected int) int {
	now := v.t.now
	// A site that was silent comes back node by node, within a heartbeat. The
	// first may be the one that sees least.
	if end := v.s.heardSince.Add(HeardFor); connected > 0 && now.Before(end) {
		v.again(end)
		return max(connected-e.tally.answered, 1)
	}
	asked, ok := v.s.asked[question{e.name, e.uid}]
	if !ok {
		return max(connected-e.tally.answered, 0)
	}
	if v.s.excused[question{e.name, e.uid}] {
		// They see that it is not so any more as soon as the Site is written.
		return max(connected-e.tally.answered, 0)
	}
	if end := asked.Add(AnswerTime); now.Before(end) {
		v.again(end)
		return max(connected-e.tally.answered, 0)
	}
	if !now.Before(asked.Add(QuestionTime)) {
		return 0
	}
	waiting := 0
	for _, o := range v.fresh {
		if o != e && !v.answered(o, e) {
			waiting++
		}
	}
	return waiting
}

func (v *view) answered(o, e *entry) bool {
	return v.t.counts(o) && slices.ContainsFunc(o.report.neighbours, func(n v1alpha1.NeighbourReport) bool { return n.Node == e.name })
}

// doubts are the questions of the site. Those that stand keep their Since.
func (v *view) doubts() []v1alpha1.Doubt {
	if !v.s.valid || len(v.s.members) < 2 {
		return nil
	}
	published := make(map[question]*v1alpha1.Doubt, len(v.s.status.Doubts))
	for i := range v.s.status.Doubts {
		d := &v.s.status.Doubts[i]
		published[question{d.Node, d.UID}] = d
	}
	var all []v1alpha1.Doubt
	for _, e := range v.s.members {
		heartbeat := v.t.heartbeat(e)
		was, stood := published[question{e.name, e.uid}]
		if heartbeat != Lost && (heartbeat != Unproven || !stood) {
			continue
		}
		d := v1alpha1.Doubt{Node: e.name, UID: e.uid,
			Reachable:   int32(min(e.tally.reachable+e.tally.kubeletDown, EnoughReachable)),
			Unreachable: int32(min(e.tally.unreachable, max(EnoughUnreachable, v.s.policy.Witnesses))),
		}
		if stood && e.stillSays(was.RenewTime) {
			d.Since, d.RenewTime = was.Since, was.RenewTime
		} else {
			d.Since, d.RenewTime = second(v.t.wall(v.t.lastHeard(e))), &metav1.MicroTime{Time: e.renewed.Truncate(time.Microsecond)}
		}
		all = append(all, d)
	}
	// If there are too many, those that are decided can wait.
	slices.SortFunc(all, func(a, b v1alpha1.Doubt) int {
		return cmp.Or(v.decided(a)-v.decided(b), cmp.Compare(a.Node, b.Node))
	})
	all = all[:min(len(all), maxDoubts)]
	slices.SortFunc(all, func(a, b v1alpha1.Doubt) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

func (v *view) decided(d v1alpha1.Doubt) int {
	if v.t.nodes[d.Node].published.Dead() {
		return 1
	}
	return 0
}
