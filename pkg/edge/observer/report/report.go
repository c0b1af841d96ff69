// Package report decides what a node tells the cloud about its neighbours: which
// NodeReport to write, when to write it again, and when to remove it. In steady
// state there is nothing to tell, and nothing is written.
//
// It speaks unasked when a neighbour is in trouble, if this node is one of the
// three whose turn it is, so that a large site does not speak with many mouths.
// It speaks when it is asked (Site.status.doubts), after a probe made for the
// question, unless enough others have said the same.
//
// Like package detect it is a state machine without a clock, a network or a
// goroutine. It must not know how anything is written or probed.
package report

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/observer/detect"
)

const (
	// speakers is how many observers speak about a neighbour without being asked.
	speakers = 3
	// enoughReachable and enoughUnreachable answers make the other observers
	// stay silent.
	enoughReachable, enoughUnreachable = 2, 3
	// crowd is how many may go on answering; of more, some fall silent.
	crowd = 12
	// smallSite is the size up to which all answer at once.
	smallSite = 8
	// headStart is what the speakers have before the others answer, and spread
	// the time in which those do.
	headStart, spread = 700 * time.Millisecond, 1300 * time.Millisecond
	// renewEvery is how often a report is written again while it stands: the
	// cloud forgets one that does not change for 25 s.
	renewEvery = 10 * time.Second
	// writeEvery is the least time between two writes.
	writeEvery = time.Second
	// blindRetry is when a question without an answer is tried again.
	blindRetry = 3 * time.Second
	// settledFor is for how long one goes on speaking about a neighbour that the
	// cloud calls dead.
	settledFor = time.Minute
	// maxBackoff bounds the time between two tries to write.
	maxBackoff = 15 * time.Second
	// maxEntries is the most neighbours in one report.
	maxEntries = 256
)

// Neighbour is what is known about a node of the site.
type Neighbour struct {
	detect.Status
	// SettledSince is when the cloud was first seen to call it dead; zero if it
	// does not.
	SettledSince time.Time
}

// ActionKind says what is to be done.
type ActionKind uint8

// Kinds of actions.
const (
	// None: nothing.
	None ActionKind = iota
	// Put: make the NodeReport, or replace its spec.
	Put
	// Delete: remove the NodeReport, if there is one.
	Delete
)

// Action is what is to be done in the API.
type Action struct {
	Kind ActionKind
	Spec sitev1.NodeReportSpec
}

// Options are what a Reporter is made of.
type Options struct {
	// Self is the name of the node.
	Self string
	// Rand decides whatever is random. Required.
	Rand *rand.Rand
	// Knock says that Knocks is asked, and answered: before a neighbour is called
	// unreachable, its machine is asked whether anybody listens.
	Knock bool
}

// knowledge is what is known about the report in the API.
type knowledge uint8

const (
	perhaps knowledge = iota
	absent
	present
)

// Reporter is the state machine. It is not safe for concurrent use.
type Reporter struct {
	self  string
	rand  *rand.Rand
	knock bool

	online     bool
	health     detect.Health
	downSince  time.Time
	neighbours []Neighbour // by name
	doubts     map[string]sitev1.Doubt
	witnesses  int
	topics     map[string]*topic // never ranged over but through neighbours
	probes     []string
	knocks     []string

	stored  knowledge
	said    sitev1.NodeReportSpec // what was written last, if it is present
	wrote   time.Time
	busy    bool // an action is under way
	pending Action
	backoff time.Duration
	retry   time.Time
}

// New makes a Reporter. It does not know whether there is a report of an earlier
// life, and will have it removed when the cloud is there.
func New(options Options) *Reporter {
	return &Reporter{self: options.Self, rand: options.Rand, knock: options.Knock, doubts: map[string]sitev1.Doubt{}, topics: map[string]*topic{}}
}

// SetOnline says whether the cloud is there.
func (r *Reporter) SetOnline(now time.Time, online bool) {
	if online == r.online {
		return
	}
	r.online, r.backoff, r.retry = online, 0, now
	if online && r.stored == present {
		r.stored = perhaps // the cloud may have removed it meanwhile
	}
	if !online {
		// Whoever asked has given up on this node, and asks again.
		for _, n := range r.neighbours {
			if t := r.topics[n.Name]; t != nil {
				*t = topic{probing: t.probing}
			}
		}
	}
}

// SetHealth says how this node is.
func (r *Reporter) SetHealth(now time.Time, health detect.Health) {
	if health == (detect.Health{}) {
		r.downSince = time.Time{}
	} else if r.downSince.IsZero() {
		r.downSince = now
	}
	r.health = health
}

// SetNeighbours says who the other nodes of the site are, and how.
func (r *Reporter) SetNeighbours(_ time.Time, neighbours []Neighbour) {
	r.neighbours = slices.Clone(neighbours)
	slices.SortFunc(r.neighbours, func(a, b Neighbour) int { return strings.Compare(a.Name, b.Name) })
	topics := make(map[string]*topic, len(r.topics))
	for _, n := range r.neighbours {
		if t := r.topics[n.Name]; t != nil {
			if t.uid != n.UID {
				t = &topic{uid: n.UID}
			}
			topics[n.Name] = t
		}
	}
	r.topics = topics
}

// SetDoubts says whom the cloud asks about.
func (r *Reporter) SetDoubts(_ time.Time, doubts []sitev1.Doubt) {
	r.doubts = make(map[string]sitev1.Doubt, len(doubts))
	for _, d := range doubts {
		r.doubts[d.Node] = d
	}
}

// SetWitnesses says how many observers the cloud wants to hear before it calls a
// node dead.
func (r *Reporter) SetWitnesses(count int) { r.witnesses = count }

// Probed takes the result of a probe that Probes asked for.
func (r *Reporter) Probed(now time.Time, event detect.Event) {
	t := r.topics[event.Name]
	if event.Kind != detect.Probed || t == nil || !t.probing {
		return
	}
	t.probing = false
	switch {
	case event.Blind:
		t.answer, t.again = noAnswer, now.Add(blindRetry)
	case event.Reached:
		t.setAnswer(now, reachable)
		t.again = now.Add(renewEvery)
	default:
		t.setAnswer(now, unreachable)
		t.again = now.Add(renewEvery)
	}
}

// Probes are the neighbours to be probed for a question; each is returned once.
func (r *Reporter) Probes() []string {
	probes := r.probes
	r.probes = nil
	return probes
}

// Knocks are the neighbours at whose door to knock: whose machines are to be
// asked, without any proof of who answers, whether an observer listens. Each is
// returned once, and Knocked must be called for it.
func (r *Reporter) Knocks() []string {
	knocks := r.knocks
	r.knocks = nil
	return knocks
}

// Knocked takes what came of it. Refused says that the machine answered that
// nobody listens: it is alive, and only its agent is not. Then it is not called
// unreachable, for its pods may run.
func (r *Reporter) Knocked(now time.Time, name string, refused bool) {
	if t := r.topics[name]; t != nil && t.knocking {
		t.knocking, t.refused, t.knocked = false, refused, now
	}
}

// Tick works out what there is to say now.
func (r *Reporter) Tick(now time.Time) {
	for i := range r.neighbours {
		r.consider(now, &r.neighbours[i])
	}
	if r.busy || !r.online || now.Before(r.retry) {
		return
	}
	spec := r.spec(now)
	empty := len(spec.Neighbours) == 0 && spec.Self == (sitev1.SelfReport{})
	switch {
	case now.Sub(r.wrote) < writeEvery && !r.wrote.IsZero():
	case empty && r.stored != absent:
		r.pending = Action{Kind: Delete}
	case empty:
	case r.stored != present, !same(spec, r.said), now.Sub(r.wrote) >= renewEvery:
		r.pending = Action{Kind: Put, Spec: spec}
	}
}

// Action returns what is to be done, once; after it was tried, Done must be
// called, and until then there is nothing else.
func (r *Reporter) Action(now time.Time) Action {
	action := r.pending
	r.pending = Action{}
	if action.Kind != None {
		r.busy, r.wrote = true, now
		r.said = action.Spec
	}
	return action
}

// Done says whether the last Action was done. If not, or not surely, it is tried
// again soon.
func (r *Reporter) Done(now time.Time, action Action, ok bool) {
	r.busy = false
	if !ok {
		r.stored = perhaps
		r.backoff = min(maxBackoff, max(writeEvery, 2*r.backoff))
		r.retry = now.Add(r.backoff/2 + time.Duration(r.rand.Int64N(int64(r.backoff))))
		return
	}
	r.backoff = 0
	if action.Kind == Put {
		r.stored = present
		return
	}
	r.stored = absent
}

// Next is when Tick is due at the latest, unless something is set before.
func (r *Reporter) Next(now time.Time) time.Time {
	next := now.Add(time.Minute)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, n := range r.neighbours {
		if t := r.topics[n.Name]; t != nil && !t.probing && t.live {
			sooner(t.again)
		}
	}
	if !r.online || r.busy {
		return next
	}
	switch {
	case now.Before(r.retry):
		sooner(r.retry)
	case now.Sub(r.wrote) < writeEvery:
		sooner(r.wrote.Add(writeEvery))
	case r.stored == present:
		sooner(r.wrote.Add(renewEvery))
	case r.stored == perhaps:
		sooner(now)
	}
	return next
}

// spec is what there is to say.
func (r *Reporter) spec(now time.Time) sitev1.NodeReportSpec {
	spec := sitev1.NodeReportSpec{RenewTime: metav1.NewMicroTime(now)}
	if r.health != (detect.Health{}) {
		component := func(down bool) sitev1.ComponentState {
			if down {
				return sitev1.ComponentDown
			}
			return sitev1.ComponentWorking
		}
		spec.Self = sitev1.SelfReport{
			Kubelet: component(r.health.KubeletDown), Runtime: component(r.health.RuntimeDown),
			DownSeconds: seconds(now.Sub(r.downSince)),
		}
	}
	for _, asked := range []bool{true, false} {
		for _, n := range r.neighbours {
			t := r.topics[n.Name]
			if t == nil || t.asked != asked || t.says == "" || len(spec.Neighbours) == maxEntries {
				continue
			}
			spec.Neighbours = append(spec.Neighbours, sitev1.NeighbourReport{
				Node: n.Name, UID: types.UID(n.UID), State: t.says, Seconds: seconds(now.Sub(t.saysSince)),
			})
		}
	}
	return spec
}

func seconds(d time.Duration) int64 { return max(0, int64(d/time.Second)) }

// same says whether two reports say the same, whenever they were written.
func same(a, b sitev1.NodeReportSpec) bool {
	return a.Self.Kubelet == b.Self.Kubelet && a.Self.Runtime == b.Self.Runtime &&
		slices.EqualFunc(a.Neighbours, b.Neighbours, func(a, b sitev1.NeighbourReport) bool {
			return a.Node == b.Node && a.UID == b.UID && a.State == b.State
		})
}
