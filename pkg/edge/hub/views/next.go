package views

import (
	"context"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Next waits for the next event. io.EOF ends the watch as its timeout does; an
// ERROR event is the last one before it. Events of the initial part have a
// resourceVersion of any order, all others one that never goes back.
func (w *Watcher) Next(ctx context.Context) (wire.Event, error) {
	for {
		e, ok, err := w.step(ctx)
		if err != nil || ok {
			return e, err
		}
		if err := w.rest(ctx); err != nil {
			return wire.Event{}, err
		}
	}
}

// step returns what can be sent without waiting.
func (w *Watcher) step(ctx context.Context) (wire.Event, bool, error) {
	for {
		w.mu.Lock()
		switch {
		case w.initial != nil:
			w.mu.Unlock()
			e, ok, err := w.begins()
			if err != nil {
				return w.broken(ctx, err)
			}
			if ok {
				return e, true, nil
			}
			continue
		case len(w.queue) > 0:
			e := w.queue[0]
			w.queue[0] = nil
			w.queue = w.queue[1:]
			w.bytes -= e.size()
			if len(w.queue) == 0 {
				w.queue = nil
			}
			w.sent = max(w.sent, e.rv)
			known := w.has(e)
			w.mu.Unlock()
			if known {
				continue
			}
			out, ok, err := e.seenBy(w.m)
			if err != nil {
				return w.broken(ctx, err)
			}
			if ok {
				return out, true, nil
			}
			continue
		case w.ended:
			s := w.status
			w.status = nil
			w.mu.Unlock()
			if s != nil {
				return wire.Event{Type: watch.Error, Status: s}, true, nil
			}
			return wire.Event{}, false, io.EOF
		}
		w.mu.Unlock()
		return w.tick()
	}
}

// has reports whether the client got the object in this state, or a newer one,
// with the initial events: mu is held.
func (w *Watcher) has(e *event) bool {
	newer, ok := w.newer[e.cur.Key]
	switch {
	case !ok:
		return false
	case e.until != 0:
		return e.until <= newer
	case e.kind == watch.Deleted:
		return e.rv < newer
	}
	return e.rv <= newer
}

// broken tells the client of an error of ours and ends.
func (w *Watcher) broken(ctx context.Context, err error) (wire.Event, bool, error) {
	if ctx.Err() != nil {
		return wire.Event{}, false, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue, w.bytes = nil, 0
	w.endLocked(statusOf(err))
	w.status = nil
	return wire.Event{Type: watch.Error, Status: statusOf(err)}, true, nil
}

// tick sends the bookmarks, and ends the watch at its time.
func (w *Watcher) tick() (wire.Event, bool, error) {
	now := time.Now()
	over := !now.Before(w.deadline)
	if w.bookmarks && !w.ending && (over || !now.Before(w.bookmark)) {
		w.bookmark = now.Add(jitter(w.v.vs.o.BookmarkEvery))
		w.ending = over
		if e, ok := w.bookmarkEvent(); ok {
			return e, true, nil
		}
	}
	if over {
		return wire.Event{}, false, io.EOF
	}
	return wire.Event{}, false, nil
}

// bookmarkEvent is a bookmark, if it tells the client anything.
func (w *Watcher) bookmarkEvent() (wire.Event, bool) {
	v := w.v
	v.mu.Lock()
	defer v.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	rv := v.shown()
	if len(w.queue) > 0 || w.ended || rv <= w.sent || rv < w.last {
		return wire.Event{}, false
	}
	w.sent, w.last = rv, rv
	return w.bookmarkAt(rv), true
}

func (w *Watcher) bookmarkAt(rv uint64) wire.Event {
	q := w.v.q
	return wire.Event{Type: watch.Bookmark, Object: store.Object{
		Key:  store.Key{Group: q.Group, Version: q.Version, Resource: q.Resource},
		Kind: w.v.kind, ResourceVersion: rv,
	}}
}

// rest waits until there may be something to send.
func (w *Watcher) rest(ctx context.Context) error {
	until := w.deadline
	if w.bookmarks && w.bookmark.Before(until) {
		until = w.bookmark
	}
	if w.timer == nil {
		w.timer = time.NewTimer(time.Until(until))
	} else {
		w.timer.Reset(time.Until(until))
	}
	select {
	case <-w.wake:
	case <-w.timer.C:
	case <-ctx.Done():
		w.timer.Stop()
		return ctx.Err()
	}
	w.timer.Stop()
	return nil
}

// begins returns the next of what exists; false when it has to be asked again.
func (w *Watcher) begins() (wire.Event, bool, error) {
	w.mu.Lock()
	in, ended := w.initial, w.ended
	w.mu.Unlock()
	if in == nil {
		return wire.Event{}, false, nil
	}
	if ended { // what is left would be shortened
		w.mu.Lock()
		w.initial = nil
		w.mu.Unlock()
		in.close()
		return wire.Event{}, false, nil
	}
	if in.done {
		return w.begun(in)
	}
	o, err, ok := in.pull()
	if err != nil {
		return wire.Event{}, false, err
	}
	if !ok {
		w.mu.Lock()
		in.done = true
		w.mu.Unlock()
		in.close()
		return wire.Event{}, false, nil
	}
	if o.ResourceVersion > in.snapshot.rv {
		w.mu.Lock()
		if w.newer == nil {
			w.newer = map[store.Key]uint64{}
		}
		w.newer[o.Key] = o.ResourceVersion
		w.mu.Unlock()
	}
	return wire.Event{Type: watch.Added, Object: o}, true, nil
}

// begun ends the initial part. What came meanwhile and is queued goes before the
// bookmark, as it is part of what exists at its resourceVersion.
func (w *Watcher) begun(in *initial) (wire.Event, bool, error) {
	v := w.v
	v.mu.Lock()
	defer v.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.initial == nil || w.ended {
		return wire.Event{}, false, nil
	}
	for len(w.queue) > 0 {
		e := w.queue[0]
		w.queue = w.queue[1:]
		w.bytes -= e.size()
		if w.has(e) {
			continue
		}
		out, ok, err := e.seenBy(w.m)
		if err != nil {
			return wire.Event{}, false, err
		}
		if ok {
			return out, true, nil
		}
	}
	w.queue = nil
	if !in.announce {
		w.sent, w.initial = w.last, nil
		return wire.Event{}, false, nil
	}
	rv := max(v.shown(), w.last)
	w.sent, w.last, w.initial = rv, rv, nil
	e := w.bookmarkAt(rv)
	e.InitialEventsEnd = true
	return e, true, nil
}
