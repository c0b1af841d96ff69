package upstream

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// State is what is known about the link.
type State struct {
	Online      bool
	Since       time.Time // when that began
	LastContact time.Time // the last answer of an API server; zero if none yet
	Server      string    // the URL in use, or that was used last
	Reason      string    // why it is not online
}

// link holds the state and tells those who wait for it.
type link struct {
	isOnline atomic.Bool
	contact  atomic.Int64 // UnixNano of the last answer
	start    time.Time
	heard    atomic.Int64 // nanoseconds after start, of the last bytes on any connection

	mu      sync.Mutex
	state   State
	outage  time.Duration // finished outages
	change  chan struct{}
	drops   []time.Time // when it went offline, the last minute
	streams map[*subscription]struct{}
}

func (l *link) init() {
	l.start = time.Now()
	l.state = State{Since: l.start, Reason: "not tried yet"}
	l.change = make(chan struct{})
	l.streams = map[*subscription]struct{}{}
}

func (l *link) get() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	if at := l.contact.Load(); at != 0 {
		s.LastContact = time.Unix(0, at)
	}
	return s
}

// answered notes an answer of an API server.
func (l *link) answered() {
	l.contact.Store(time.Now().UnixNano())
	l.hear()
}

// hear notes that something was received. It counts from start, which has a
// monotonic reading: the node's clock may be set meanwhile.
func (l *link) hear() { l.heard.Store(int64(time.Since(l.start))) }

// silence is how long nothing at all has been received.
func (l *link) silence() time.Duration { return time.Since(l.start) - time.Duration(l.heard.Load()) }

// set changes the state and reports whether Online changed.
func (l *link) set(online bool, reason string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Reason = reason
	if l.state.Online == online {
		return false
	}
	now := time.Now()
	if online {
		l.outage += now.Sub(l.state.Since)
	} else {
		l.drops = append(l.recentDrops(now), now)
	}
	l.state.Online, l.state.Since = online, now
	l.isOnline.Store(online)
	close(l.change)
	l.change = make(chan struct{})
	for s := range l.streams {
		s.push(online)
	}
	return true
}

func (l *link) recentDrops(now time.Time) []time.Time {
	for len(l.drops) > 0 && now.Sub(l.drops[0]) > time.Minute {
		l.drops = l.drops[1:]
	}
	return l.drops
}

// flapping reports whether the link went away three times within a minute.
func (l *link) flapping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.recentDrops(time.Now())) >= 3
}

// outageSeconds counts the present outage, too.
func (l *link) outageSeconds() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := l.outage
	if !l.state.Online {
		total += time.Since(l.state.Since)
	}
	return total.Seconds()
}

func (l *link) changes() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change
}

// subscription hands changes to one subscriber in order. They queue up while it
// works; a link does not flap fast enough for the queue to matter.
type subscription struct {
	mu      sync.Mutex
	queue   []bool
	wake    chan struct{}
	stopped chan struct{}
}

func (s *subscription) push(online bool) {
	s.mu.Lock()
	s.queue = append(s.queue, online)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) next() (online, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return false, false
	}
	online, s.queue = s.queue[0], s.queue[1:]
	return online, true
}

func (l *link) subscribe(fn func(online bool)) (cancel func()) {
	s := &subscription{wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	l.mu.Lock()
	s.push(l.state.Online)
	l.streams[s] = struct{}{}
	l.mu.Unlock()
	go func() {
		for {
			select {
			case <-s.stopped:
				return
			case <-s.wake:
			}
			for online, ok := s.next(); ok; online, ok = s.next() {
				select {
				case <-s.stopped:
					return
				default:
					fn(online)
				}
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			delete(l.streams, s)
			l.mu.Unlock()
			close(s.stopped)
		})
	}
}

// offlineError is ErrOffline with the story.
func (l *link) offlineError() error {
	s := l.get()
	return &offlineError{since: s.Since, reason: s.Reason}
}

type offlineError struct {
	since  time.Time
	reason string
	cause  error // of a request that was under way
}

func (e *offlineError) Error() string {
	return fmt.Sprintf("%v since %s: %s", ErrOffline, e.since.UTC().Format(time.RFC3339), e.reason)
}

func (e *offlineError) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrOffline}
	}
	return []error{ErrOffline, e.cause}
}
