package serve

import (
	"sync"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// shelfBytes bounds the lists that are held as they are written, with those
	// that are being written at the moment.
	shelfBytes = 8 << 20
	// shelfTime is how long a list is held after it was last asked for: long
	// enough for clients that start together, as they do after a boot.
	shelfTime = 10 * time.Second
)

// shelf holds lists of shared views in the form in which they are written, so
// that clients that ask for the same are written the same bytes. A list at one
// resourceVersion is always the same list.
type shelf struct {
	limit int
	keep  time.Duration

	mu    sync.Mutex
	bytes int // of all, and of what is being made
	lists map[shelfKey]*shelved
	turn  uint64
}

// shelfKey is all that a list depends on.
type shelfKey struct {
	query    store.Query
	revision uint64
	media    wire.Media
}

type shelved struct {
	key   shelfKey
	list  *wire.Encoded
	bytes int
	users int  // that write it at the moment
	gone  bool // from the shelf
	turn  uint64
	timer *time.Timer
}

func newShelf() *shelf {
	return &shelf{limit: shelfBytes, keep: shelfTime, lists: map[shelfKey]*shelved{}}
}

// take returns a list, to be given back; nil if it is not there.
func (s *shelf) take(key shelfKey) *shelved {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lists[key]
	if l == nil {
		return nil
	}
	s.turn++
	l.users++
	l.turn = s.turn
	l.timer.Reset(s.keep)
	return l
}

// reserve makes room, at the cost of what was not asked for the longest.
func (s *shelf) reserve(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes+n > s.limit {
		var oldest *shelved
		for _, l := range s.lists {
			if l.users == 0 && (oldest == nil || l.turn < oldest.turn) {
				oldest = l
			}
		}
		if oldest == nil {
			return false
		}
		s.drop(oldest)
	}
	s.bytes += n
	return true
}

// release gives room back that was reserved, and not used.
func (s *shelf) release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= n
}

// put shelves a list for which bytes have been reserved. It is taken, too.
func (s *shelf) put(key shelfKey, list *wire.Encoded, bytes int) *shelved {
	l := &shelved{key: key, list: list, bytes: bytes, users: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.lists[key]; old != nil {
		s.drop(old) // two have made it at once
	}
	s.turn++
	l.turn = s.turn
	l.timer = time.AfterFunc(s.keep, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(l)
	})
	s.lists[key] = l
	return l
}

// giveBack ends a use of a list.
func (s *shelf) giveBack(l *shelved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 && l.gone {
		s.bytes -= l.bytes
	}
}

// clear empties the shelf.
func (s *shelf) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lists {
		s.drop(l)
	}
}

// drop is with mu held. What is being written still counts.
func (s *shelf) drop(l *shelved) {
	if l.gone {
		return
	}
	l.gone = true
	l.timer.Stop()
	delete(s.lists, l.key)
	if l.users == 0 {
		s.bytes -= l.bytes
	}
}
