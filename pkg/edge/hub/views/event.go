package views

import (
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// event is a change of one object of a view. It is shared by all watchers and
// never changed after it was made.
type event struct {
	kind watch.EventType // ADDED, MODIFIED, DELETED
	rv   uint64
	cur  *store.Object // of DELETED the last state, with the deletion's resourceVersion
	prev *store.Object // nil when it is not known, or was never there
	// matched has, for matcher keys, whether the previous state matched. It
	// stands in for prev where that would be too much to keep.
	matched map[string]bool
	// until is set in the deletions that a relist found out: the cloud did not
	// say when they happened. They share a resourceVersion with other events,
	// and only who has seen this one surely has seen them.
	until uint64
	local bool // made here
	at    time.Time
}

// size is what the event costs to keep.
func (e *event) size() int64 {
	n := int64(300)
	if e.cur != nil {
		n += int64(len(e.cur.Data))
	}
	if e.prev != nil {
		n += int64(len(e.prev.Data))
	}
	return n
}

// seenBy translates the event for a client: an object that begins to match is
// added, one that ceases to match is deleted, as the API server does it.
func (e *event) seenBy(m *matcher) (wire.Event, bool, error) {
	if m.everything() {
		return wire.Event{Type: e.kind, Object: *e.cur}, true, nil
	}
	if m.namespace != "" && e.cur.Namespace != m.namespace {
		return wire.Event{}, false, nil
	}
	now, before := false, false
	var err error
	if e.kind != watch.Deleted {
		if now, err = m.matches(e.cur); err != nil {
			return wire.Event{}, false, err
		}
	}
	if e.kind != watch.Added {
		if before, err = e.before(m); err != nil {
			return wire.Event{}, false, err
		}
	}
	switch {
	case now && before:
		return wire.Event{Type: watch.Modified, Object: *e.cur}, true, nil
	case now:
		return wire.Event{Type: watch.Added, Object: *e.cur}, true, nil
	case before:
		last := e.cur
		if e.kind != watch.Deleted && e.prev != nil {
			o, err := wire.WithResourceVersion(*e.prev, e.rv)
			if err != nil {
				return wire.Event{}, false, err
			}
			last = &o
		}
		return wire.Event{Type: watch.Deleted, Object: *last}, true, nil
	}
	return wire.Event{}, false, nil
}

// before says whether the previous state matched. When nobody knows it did: a
// client takes a change or a deletion of an object that it has not for what it
// is, but would miss the deletion of one that it has.
func (e *event) before(m *matcher) (bool, error) {
	if e.prev != nil {
		return m.matches(e.prev)
	}
	if known, ok := e.matched[m.key]; ok {
		return known, nil
	}
	if e.kind == watch.Deleted && e.until == 0 {
		// The last state is what upstream's deletion carries.
		return m.matches(e.cur)
	}
	return true, nil
}

// window is the newest events of a view, oldest first, for watches that resume.
type window struct {
	events []*event
	bytes  int64
	from   uint64 // a watch can resume from this resourceVersion and later ones
}

// maxWindowAge bounds how long an event is of use: clients resume at once, and
// bookmarks move them on.
const maxWindowAge = 10 * time.Minute

func (v *view) remember(e *event) {
	w := &v.window
	last := w.from
	if n := len(w.events); n > 0 {
		last = w.events[n-1].rv
	}
	if e.rv < last || e.rv == last && e.until == 0 {
		// Out of order, or a resourceVersion that a local change has used:
		// nobody may resume across it.
		v.forgetEvents(max(v.shown(), e.rv))
		return
	}
	size := e.size()
	w.events = append(w.events, e)
	w.bytes += size
	total := v.vs.windowBytes.Add(size)
	limit := v.vs.o.WindowBytes
	if total > v.vs.o.AllWindowBytes {
		limit /= 8
	}
	drop := 0
	for bytes := w.bytes; drop < len(w.events); drop++ {
		old := w.events[drop]
		if len(w.events)-drop <= v.vs.o.WindowEvents && bytes <= limit && e.at.Sub(old.at) < maxWindowAge {
			break
		}
		bytes -= old.size()
	}
	v.dropEvents(drop)
}

func (v *view) dropEvents(n int) {
	if n == 0 {
		return
	}
	w := &v.window
	for _, e := range w.events[:n] {
		size := e.size()
		w.bytes -= size
		v.vs.windowBytes.Add(-size)
	}
	last := w.events[n-1]
	w.from = max(w.from, last.rv)
	w.from = max(w.from, last.until)
	rest := w.events[n:]
	if len(rest) == 0 {
		w.events = nil
		return
	}
	// A copy now and then, so that dropped events can be collected.
	if n > len(rest) {
		rest = append(make([]*event, 0, len(rest)+8), rest...)
	} else {
		clear(w.events[:n])
	}
	w.events = rest
}

// forgetEvents empties the window: watches resume from rv on only.
func (v *view) forgetEvents(rv uint64) {
	v.dropEvents(len(v.window.events))
	v.window.from = rv
}

// since returns the events that a watch from rv has not seen; false if some are
// not known any more.
func (w *window) since(rv uint64) ([]*event, bool) {
	if rv < w.from {
		return nil, false
	}
	i := len(w.events)
	for i > 0 && (w.events[i-1].rv > rv || w.events[i-1].until > rv) {
		i--
	}
	return w.events[i:], true
}
