package detect

import "time"

// State is what an observer knows about a member.
type State uint8

// States of a member.
const (
	// Unknown: nothing has been found out yet.
	Unknown State = iota
	// Alive: it has given a sign of life, and no one doubts it.
	Alive
	// Suspect: it did not answer this observer, or another one. It has some
	// seconds to give a sign of life.
	Suspect
	// Unreachable: it has given none, to this observer or through another.
	Unreachable
)

func (s State) String() string {
	switch s {
	case Unknown:
		return "Unknown"
	case Alive:
		return "Alive"
	case Suspect:
		return "Suspect"
	case Unreachable:
		return "Unreachable"
	}
	return "invalid"
}

// Health is what a member says of itself.
type Health struct {
	KubeletDown bool
	RuntimeDown bool
}

// Member is a node of the site.
type Member struct {
	Name string
	// UID is another one if a node was deleted and made again: what was known
	// about the name is forgotten then.
	UID string
}

// Status is what is known about one member.
type Status struct {
	Name, UID string
	State     State
	// Since is when State began.
	Since time.Time
	// Heard is the last sign of life that this observer had itself: a message
	// of the member, or one that another member fetched for it. Zero: none.
	Heard time.Time
	// Own says that a probe of this observer has failed since Heard.
	Own bool
	// Health is what the member said last.
	Health Health
}

// EventKind says what an Event is about.
type EventKind uint8

// Kinds of events.
const (
	// Changed: the State or the Health of a member is another one.
	Changed EventKind = iota
	// Probed: a probe that Probe asked for has ended.
	Probed
)

// Event is something that happened.
type Event struct {
	Kind EventKind
	At   time.Time
	Name string
	// From and To are the states of a Changed event; equal if only the health
	// changed.
	From, To State
	// Reached is the result of a Probed event. Blind says that there is none,
	// because this observer could not ask anybody.
	Reached, Blind bool
}

// Outgoing is a message to be sent. It may be lost.
type Outgoing struct {
	To      string
	Message Message
}

// Tuning are the times and counts of a Detector. Zero fields take the default.
type Tuning struct {
	// Period is how often a member is probed. Default 1s.
	Period time.Duration
	// Timeout is how long a member may take to answer before others are asked
	// to try; a probe fails after three of them. Default 500ms.
	Timeout time.Duration
	// Helpers is how many others are asked to try. Default 3.
	Helpers int
	// SuspicionMult gives the shortest suspicion: so many periods, times the
	// decimal logarithm of the size of the site. Default 3.
	SuspicionMult int
	// SuspicionMaxMult gives the longest suspicion, in shortest ones. Default 3.
	SuspicionMaxMult int
	// Rings bounds how many members one probes: two for each ring. Default 8.
	Rings int
	// SlowEvery is how many periods pass between probes of unreachable members.
	// Default 5.
	SlowEvery int
	// MinQuestion and MaxQuestion bound how long Probe tries; in between, the
	// loss on the network decides. Default 2.5s and 10s.
	MinQuestion, MaxQuestion time.Duration
	// Settle is after how long a member that this observer does not probe
	// itself, and that nobody doubts, counts as alive. Default 30s.
	Settle time.Duration
}

func (t *Tuning) setDefaults() {
	duration := func(field *time.Duration, value time.Duration) {
		if *field <= 0 {
			*field = value
		}
	}
	number := func(field *int, value int) {
		if *field <= 0 {
			*field = value
		}
	}
	duration(&t.Period, time.Second)
	duration(&t.Timeout, 500*time.Millisecond)
	number(&t.Helpers, 3)
	number(&t.SuspicionMult, 3)
	number(&t.SuspicionMaxMult, 3)
	number(&t.Rings, 8)
	number(&t.SlowEvery, 5)
	duration(&t.MinQuestion, 2500*time.Millisecond)
	duration(&t.MaxQuestion, 10*time.Second)
	duration(&t.Settle, 30*time.Second)
}
