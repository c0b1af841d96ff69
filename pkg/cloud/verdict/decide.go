// Package verdict decides which nodes whose heartbeat is lost are dead. Decide
// is the decision itself, a function of a handful of numbers; Tracker gathers
// them from Nodes, leases, reports and Sites as they change.
//
// The package has no clock, no goroutine and no client: whoever uses it (the
// controllers of pkg/cloud/site, simulations) says what changed and what time
// it is. It must not know how either is found out.
//
// docs/verdict.md tells people the same.
package verdict

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skerry.dev/api/site/v1alpha1"
)

// Timing of the decision. All of it is measured by the clock of this process,
// from the moment at which it saw something change: no time that a node wrote
// is ever compared with anything.
const (
	// HeardFor is how long a change of a node's lease proves that the cloud
	// hears the node. Kubelets renew every 10 s.
	HeardFor = 15 * time.Second
	// ReportFor is how long a report counts after it changed. Observers renew
	// theirs every 10 s.
	ReportFor = 25 * time.Second
	// ContactFor is how long a change of a report proves that the cloud hears
	// its writer, as a heartbeat would.
	ContactFor = 15 * time.Second
	// AnswerTime is how long connected neighbours have to answer, from the
	// moment at which the question is in the Site, or they are connected.
	AnswerTime = 5 * time.Second
	// QuestionTime bounds how long neighbours that have just been connected
	// can put off the end of a question.
	QuestionTime = time.Minute
	// downMemory is how long nobody may say that a kubelet is down before its
	// grace begins anew.
	downMemory = 30 * time.Second
)

// Defaults of a Site's policy.
const (
	DefaultWitnesses    = 1
	DefaultKubeletGrace = 5 * time.Minute
)

// Policy is the policy of a site.
type Policy struct {
	Witnesses    int
	HoldTimeout  time.Duration // 0: no bound
	KubeletGrace time.Duration
	Failover     bool
}

// PolicyOf reads a Site's policy. Nil, and what is out of bounds, is the default:
// a policy that nobody checked must not make death easier.
func PolicyOf(site *v1alpha1.Site) Policy {
	p := Policy{Witnesses: DefaultWitnesses, KubeletGrace: DefaultKubeletGrace}
	if site == nil {
		return p
	}
	if w := site.Spec.Witnesses; w != nil && *w >= 1 {
		p.Witnesses = int(*w)
	}
	if d := site.Spec.HoldTimeout; d != nil && d.Duration >= time.Minute {
		p.HoldTimeout = d.Duration
	}
	if d := site.Spec.KubeletGrace; d != nil && d.Duration >= time.Minute {
		p.KubeletGrace = d.Duration
	}
	p.Failover = site.Spec.Failover == v1alpha1.FailoverOn
	return p
}

// Heartbeat is what is known about a node's heartbeat.
type Heartbeat int

const (
	// NeverHeard: the node has no lease.
	NeverHeard Heartbeat = iota
	// Unproven: there is a lease, which was not seen to change yet, and which
	// this process has not known for long enough to call it lost.
	Unproven
	// Fresh: the lease was seen to change within HeardFor.
	Fresh
	// Lost: it was not.
	Lost
)

// Condition is the condition skerry.dev/Alive. Without a status there is none.
type Condition struct {
	Status  corev1.ConditionStatus
	Reason  string
	Message string
}

// ours are the reasons that the controller gives.
var ours = []string{
	v1alpha1.ReasonHeartbeat, v1alpha1.ReasonNodeSpeaks, v1alpha1.ReasonNeighboursReachIt,
	v1alpha1.ReasonUnreachable, v1alpha1.ReasonKubeletDown, v1alpha1.ReasonHoldTimeout,
	v1alpha1.ReasonAsking, v1alpha1.ReasonDisagreement, v1alpha1.ReasonNoWitness, v1alpha1.ReasonSiteSilent,
	v1alpha1.ReasonNoAnswer, v1alpha1.ReasonTooFewWitnesses, v1alpha1.ReasonNeverHeard, v1alpha1.ReasonInvalidSite,
}

// ByHand says whether a person set the condition, not the controller.
func (c Condition) ByHand() bool { return c.Status != "" && !slices.Contains(ours, c.Reason) }

// Dead says whether the condition calls the node dead.
func (c Condition) Dead() bool { return c.Status == corev1.ConditionFalse }

// Input is what a decision depends on.
type Input struct {
	Now    time.Time
	Policy Policy
	// InvalidSite: the site's name cannot be that of a Site, so nobody is asked.
	InvalidSite bool

	Heartbeat Heartbeat
	// LastHeard is when the lease changed last, or when this process began to
	// wait for it.
	LastHeard time.Time

	// Published is the condition that the Node has. A word by hand stands until
	// the node is heard: HeardSince says that it was, after the word was seen.
	Published  Condition
	HeardSince bool
	// Moved: the published condition was about the node in another site.
	Moved bool

	// Speaks: a report of the node itself counts and finds nothing wrong. Down:
	// it says that kubelet or runtime are down. DownSince is since when that,
	// or the same from a neighbour, is known without a gap.
	Speaks    bool
	Down      bool
	DownSince time.Time

	// Neighbours are the other nodes of the site, Connected those of them that
	// the cloud hears. Of the connected, so many say this about the node, and
	// so many have said nothing and still have time to.
	Neighbours  int
	Connected   int
	Reachable   int
	Unreachable int
	KubeletDown int
	Waiting     int
}

// Verdict is the decision about one node.
type Verdict struct {
	Condition
	// Interim verdicts are not published: they are over within seconds.
	Interim bool
	// Held: the heartbeat is lost and the node keeps its pods.
	Held bool
	// Next is when the same facts decide differently, because time passed. Zero:
	// never.
	Next time.Time
}

// Decide decides about one node.
func Decide(in Input) Verdict {
	v := decide(in)
	v.Held = in.Heartbeat != Fresh && !v.Dead()
	if v.Message == "" && v.Condition != in.Published {
		v.Message = message(in, v)
	}
	return v
}

func decide(in Input) Verdict {
	// Neither a person's word, nor what was concluded before this process began
	// to watch, is changed for nothing.
	if in.Published.ByHand() && !in.HeardSince && !in.Moved {
		return Verdict{Condition: in.Published}
	}
	switch {
	case in.Heartbeat == Fresh:
		return is(corev1.ConditionTrue, v1alpha1.ReasonHeartbeat)
	case in.Heartbeat == Unproven && (in.Published.Status == "" || in.Moved):
		return interim()
	case in.Heartbeat == Unproven:
		return Verdict{Condition: in.Published}
	}
	if in.InvalidSite {
		return is(corev1.ConditionUnknown, v1alpha1.ReasonInvalidSite)
	}
	if v, ok := living(in); ok {
		return v
	}
	// Nobody knows of any life.
	if v, ok := stillDead(in); ok {
		return v
	}
	if in.Heartbeat == Lost && in.Waiting == 0 && in.Unreachable >= in.Policy.Witnesses {
		return is(corev1.ConditionFalse, v1alpha1.ReasonUnreachable)
	}
	v := unknown(in)
	if timeout := in.Policy.HoldTimeout; timeout > 0 && in.Waiting == 0 {
		v.Next = in.LastHeard.Add(timeout)
		if !in.Now.Before(v.Next) {
			return is(corev1.ConditionFalse, v1alpha1.ReasonHoldTimeout)
		}
	}
	return v
}

// kubeletDown says whether it is known that the machine lives and its kubelet or
// runtime does not. The node's own word goes before its neighbours', which is
// older; neighbours that disagree know nothing.
func (in Input) kubeletDown() bool {
	return in.Down || in.KubeletDown > 0 && in.Reachable == 0 && !in.Speaks
}

// living decides about a node whose machine is known to live although its
// heartbeat is lost.
func living(in Input) (Verdict, bool) {
	switch {
	case in.kubeletDown():
		v := is(corev1.ConditionUnknown, v1alpha1.ReasonKubeletDown)
		v.Next = in.DownSince.Add(in.Policy.KubeletGrace)
		// What was published before a restart of the controller stays.
		still := in.Published.Dead() && in.Published.Reason == v1alpha1.ReasonKubeletDown && !in.Moved
		if still || !in.Now.Before(v.Next) {
			return is(corev1.ConditionFalse, v1alpha1.ReasonKubeletDown), true
		}
		return v, true
	case in.Speaks:
		return is(corev1.ConditionTrue, v1alpha1.ReasonNodeSpeaks), true
	case in.Reachable > 0 && in.Unreachable+in.KubeletDown > 0:
		return is(corev1.ConditionUnknown, v1alpha1.ReasonDisagreement), true
	case in.Reachable > 0:
		return is(corev1.ConditionTrue, v1alpha1.ReasonNeighboursReachIt), true
	}
	return Verdict{}, false
}

// stillDead keeps a node dead that was found dead: that there are fewer
// witnesses now, or that the controller was restarted, is no sign of life. A
// bound on the hold is no evidence, and goes with the policy that set it.
func stillDead(in Input) (Verdict, bool) {
	if !in.Published.Dead() || in.Published.ByHand() || in.Moved {
		return Verdict{}, false
	}
	if in.Published.Reason == v1alpha1.ReasonHoldTimeout && in.Policy.HoldTimeout == 0 {
		return Verdict{}, false
	}
	return Verdict{Condition: in.Published}, true
}

// unknown names what is missing.
func unknown(in Input) Verdict {
	reason := v1alpha1.ReasonTooFewWitnesses
	switch {
	case in.Heartbeat == NeverHeard:
		reason = v1alpha1.ReasonNeverHeard
	case in.Neighbours == 0:
		reason = v1alpha1.ReasonNoWitness
	case in.Connected == 0:
		reason = v1alpha1.ReasonSiteSilent
	case in.Waiting > 0:
		v := is(corev1.ConditionUnknown, v1alpha1.ReasonAsking)
		v.Interim = true
		return v
	case in.Unreachable == 0:
		reason = v1alpha1.ReasonNoAnswer
	}
	return is(corev1.ConditionUnknown, reason)
}

func is(status corev1.ConditionStatus, reason string) Verdict {
	return Verdict{Condition: Condition{Status: status, Reason: reason}}
}

// interim is the verdict while nothing can be said yet.
func interim() Verdict {
	v := is(corev1.ConditionUnknown, v1alpha1.ReasonAsking)
	v.Interim = true
	return v
}
