package report

import (
	"time"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/observer/detect"
)

// answer is what a probe made for a question has found.
type answer uint8

const (
	noAnswer answer = iota
	reachable
	unreachable
)

// topic is what this node may have to say about one neighbour.
type topic struct {
	uid  string
	live bool // there is a question, or the neighbour is in trouble

	asked   bool
	settled bool // silent, because the cloud knows
	spared  bool // silent, because enough others have answered
	probing bool
	answer  answer
	found   time.Time // when the answer was found last
	since   time.Time // since when it is this answer
	again   time.Time // when to probe next

	knocking, refused bool
	knocked           time.Time

	says      sitev1.NeighbourState // what the report says; empty: nothing
	saysSince time.Time
}

func (t *topic) setAnswer(now time.Time, a answer) {
	t.found = now
	if t.answer != a {
		t.answer, t.since, t.knocked = a, now, time.Time{}
	}
}

func (t *topic) say(now time.Time, state sitev1.NeighbourState, since time.Time) {
	if t.says == state {
		return
	}
	if since.IsZero() {
		since = now
	}
	t.says, t.saysSince = state, since
}

func (t *topic) silence() { t.says, t.saysSince = "", time.Time{} }

// consider works out what to say about a neighbour.
func (r *Reporter) consider(now time.Time, n *Neighbour) {
	doubt, asked := r.doubts[n.Name]
	if asked && doubt.UID != "" && n.UID != "" && string(doubt.UID) != n.UID {
		asked = false // another node of that name
	}
	trouble := n.State == detect.Unreachable || (n.State == detect.Alive && n.Health != detect.Health{})
	t := r.topics[n.Name]
	if !r.online || (!asked && !trouble) {
		if t != nil {
			t.live, t.asked, t.answer, t.knocked = false, false, noAnswer, time.Time{}
			t.silence()
			if !t.probing {
				delete(r.topics, n.Name)
			}
		}
		return
	}
	if t == nil {
		t = &topic{uid: n.UID}
		r.topics[n.Name] = t
	}
	if asked != t.asked || !t.live {
		t.asked, t.live = asked, true
		t.again = now
		if asked && t.says == "" {
			t.again = now.Add(r.delay(n))
		}
	}
	if asked {
		r.considerAsked(now, n, t, doubt)
	} else {
		r.considerUnasked(now, n, t)
	}
}

// delay is how long this node waits before it answers a question: not at all if
// it is one of the few that speak first.
func (r *Reporter) delay(n *Neighbour) time.Duration {
	if len(r.neighbours)+1 <= smallSite || r.isSpeaker(n) {
		return 0
	}
	return headStart + time.Duration(r.rand.Int64N(int64(spread)))
}

// isSpeaker says whether this node is one of the three that speak first about
// another, among those that seem to be alive. All observers find the same three,
// as far as they know the same.
func (r *Reporter) isSpeaker(about *Neighbour) bool {
	own, before := detect.Rank(speakers, about.Name, r.self), 0
	for i := range r.neighbours {
		n := &r.neighbours[i]
		if n.Name != about.Name && n.State != detect.Unreachable && detect.Rank(speakers, about.Name, n.Name) < own {
			if before++; before == speakers {
				return false
			}
		}
	}
	return true
}

// isSettled says whether the cloud has called a neighbour dead long enough not to
// need to be told again.
func (r *Reporter) isSettled(now time.Time, n *Neighbour) bool {
	return !n.SettledSince.IsZero() && now.Sub(n.SettledSince) > settledFor
}

// probe asks for a probe.
func (r *Reporter) probe(n *Neighbour, t *topic) {
	t.probing = true
	r.probes = append(r.probes, n.Name)
}

// unreachable says that a neighbour cannot be reached, or that only its kubelet
// is down, if its machine answers that nobody listens. It is asked first, and
// again each time that the report is renewed.
func (r *Reporter) unreachable(now time.Time, n *Neighbour, t *topic, since time.Time) {
	if r.knock && !t.knocking && (t.knocked.IsZero() || now.Sub(t.knocked) >= renewEvery) {
		t.knocking = true
		r.knocks = append(r.knocks, n.Name)
	}
	switch {
	case !r.knock:
		t.say(now, sitev1.NeighbourUnreachable, since)
	case t.knocked.IsZero(): // not known yet
	case t.refused:
		t.say(now, sitev1.NeighbourKubeletDown, since)
	default:
		t.say(now, sitev1.NeighbourUnreachable, since)
	}
}

// considerUnasked: who is not asked speaks when it is its turn, about what its
// own probes have found.
func (r *Reporter) considerUnasked(now time.Time, n *Neighbour, t *topic) {
	if !r.isSpeaker(n) || (n.State == detect.Unreachable && r.isSettled(now, n)) {
		t.silence()
		t.again = now.Add(renewEvery)
		return
	}
	if n.State == detect.Alive {
		t.answer = noAnswer
		if !t.probing && !now.Before(t.again) {
			if t.says != "" {
				r.probe(n, t) // good news is not repeated, and may have been missed
			}
			t.again = now.Add(renewEvery)
		}
		t.say(now, sitev1.NeighbourKubeletDown, n.Since)
		return
	}
	if !t.probing && !now.Before(t.again) {
		if !n.Own || t.says != "" {
			r.probe(n, t) // only others say so yet, or it was long ago
		}
		t.again = now.Add(renewEvery)
	}
	if n.Own || t.answer == unreachable {
		r.unreachable(now, n, t, n.Since)
	}
}

// considerAsked: who is asked probes, and says what it found, and does so again
// as long as the question stands.
func (r *Reporter) considerAsked(now time.Time, n *Neighbour, t *topic, doubt sitev1.Doubt) {
	if n.State == detect.Unreachable && r.isSettled(now, n) {
		t.silence() // until it is heard again
		t.settled, t.answer, t.again = true, noAnswer, now.Add(renewEvery)
		return
	}
	if t.settled {
		t.settled, t.again = false, now
	}
	// What is heard of it, or is not, between two probes.
	switch {
	case n.Heard.After(t.found) && t.answer == unreachable && n.State == detect.Alive:
		t.setAnswer(now, reachable)
	case t.answer == reachable && n.State == detect.Unreachable && n.Since.After(t.found) && !t.probing:
		t.again = now
	}
	enough := t.says == "" && doubt.Reachable >= enoughReachable
	if t.spared && !enough && !t.probing {
		t.again = now.Add(r.delay(n) / 4) // those who spoke for this node have stopped
	}
	t.spared = enough
	if !t.probing && !now.Before(t.again) {
		switch {
		case enough:
			t.again = now.Add(renewEvery) // whatever this node finds changes nothing
		case r.leaves(t, doubt):
			t.silence()
			t.answer, t.again = noAnswer, now.Add(renewEvery)
			return
		default:
			r.probe(n, t)
		}
	}
	switch t.answer {
	case reachable:
		switch {
		case enough:
		case n.Health != detect.Health{}:
			t.say(now, sitev1.NeighbourKubeletDown, t.since)
		default:
			t.say(now, sitev1.NeighbourReachable, t.since)
		}
	case unreachable:
		if t.says == "" && int(doubt.Unreachable) >= max(enoughUnreachable, r.witnesses) {
			return
		}
		r.unreachable(now, n, t, t.since)
	case noAnswer:
		if !t.probing {
			t.silence() // it was blind
		}
	}
}

// leaves says whether this node, which has answered, may leave it to others:
// so that after a question to a large site a dozen go on, and never all stop.
func (r *Reporter) leaves(t *topic, doubt sitev1.Doubt) bool {
	count := int(doubt.Unreachable)
	if t.answer == reachable {
		count = int(doubt.Reachable)
	}
	return t.says != "" && count > crowd && r.rand.IntN(count) >= crowd
}
