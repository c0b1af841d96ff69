package views

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Watcher is one WATCH of one client. Next is for one goroutine; Stop must be
// called, from any. It outlives the View that it came from.
type Watcher struct {
	v    *view
	m    *matcher
	q    store.Query
	id   string // of the caller, for metrics
	stop sync.Once

	borrowed  bool // the view is not the one of the client's query
	bookmarks bool
	deadline  time.Time
	bookmark  time.Time // when the next one is due
	timer     *time.Timer
	ending    bool // the last bookmark was sent

	mu     sync.Mutex
	queue  []*event
	bytes  int64
	wake   chan struct{}
	last   uint64 // the newest resourceVersion queued
	start  uint64 // what the client knew already
	ahead  bool   // start was newer than the view
	sent   uint64 // the newest resourceVersion that Next returned
	status *metav1.Status
	ended  bool

	initial *initial // until what exists has been sent
	// newer are objects that were sent in a state which the view has yet to
	// hear of: another view was ahead.
	newer map[store.Key]uint64
}

// initial is the first part of a watch that begins with what exists: a snapshot,
// read as the client takes it. What changes meanwhile waits in the queue.
type initial struct {
	snapshot *Snapshot
	announce bool // tell the end with a bookmark
	done     bool

	mu   sync.Mutex // of next and stop
	next func() (store.Object, error, bool)
	stop func()
}

// pull returns the next object.
func (in *initial) pull() (store.Object, error, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.next == nil {
		// Stop ends it, not the context of the Next that began it.
		items := in.snapshot.Items(context.Background(), store.Key{}, 0)
		in.next, in.stop = iter.Pull2(func(yield func(store.Object, error) bool) {
			err := items(func(o store.Object) error {
				o.Data = slices.Clone(o.Data)
				if !yield(o, nil) {
					return errEnd
				}
				return nil
			})
			if err != nil {
				yield(store.Object{}, err)
			}
		})
	}
	return in.next()
}

func (in *initial) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stop != nil {
		in.stop()
	} else {
		in.next = func() (store.Object, error, bool) { return store.Object{}, nil, false }
		in.stop = func() {}
	}
	in.snapshot.Close()
}

// Watch starts a watch, as o says: from a resourceVersion, or with what exists.
// A resourceVersion that is too old ends it with an ERROR event, as in the API
// server. The error is an apierrors one.
func (h *View) Watch(ctx context.Context, o wire.Options) (*Watcher, error) {
	v := h.v
	from, err := parseRV(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	exists := o.SendInitialEvents != nil && *o.SendInitialEvents || o.SendInitialEvents == nil && from == 0
	if exists {
		if err := v.reach(ctx, from); err != nil {
			return nil, err
		}
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = v.vs.o.WatchTimeout + jitter(v.vs.o.WatchTimeout)
	}
	now := time.Now()
	w := &Watcher{
		v: v, m: h.m, q: h.q, borrowed: v.vs.upstreamQuery(h.q) != v.q, id: h.caller.ID(), bookmarks: o.AllowWatchBookmarks, wake: make(chan struct{}, 1),
		deadline: now.Add(timeout), bookmark: now.Add(jitter(v.vs.o.BookmarkEvery)),
	}
	v.vs.ensureFollowed(v)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return nil, v.err
	}
	if err := w.begin(from, exists, o); err != nil {
		return nil, err
	}
	v.watchers[w] = struct{}{}
	if !w.m.everything() {
		v.selective++
	}
	v.users++
	v.vs.m.watchers.WithLabelValues(v.resource()).Inc()
	return w, nil
}

// begin finds out where the watch starts: the view's mu is held.
func (w *Watcher) begin(from uint64, exists bool, o wire.Options) error {
	v := w.v
	shown := v.shown()
	switch {
	case exists:
		s, err := v.snapshot(w.m, w.q)
		if err != nil {
			return err
		}
		w.last = shown
		w.initial = &initial{snapshot: s, announce: w.bookmarks && o.SendInitialEvents != nil && *o.SendInitialEvents}
	case from == 0:
		w.last = shown
	default:
		events, ok := v.window.since(from)
		if w.borrowed && v.vs.isUp() || from > shown && (from <= v.vs.top() || v.vs.outlived(from)) || v.suspicious(from) {
			ok = false // not the cloud's, or of before it was restored
		}
		if !ok {
			w.expire(from)
			return nil
		}
		w.start, w.last, w.sent, w.ahead = from, from, from, from > shown
		for _, e := range events {
			w.offer(e, true)
		}
	}
	return nil
}

// offer queues an event. It never waits: a watcher that does not keep up is
// ended, and its client resumes. The view's mu is held.
func (w *Watcher) offer(e *event, burst bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if w.ahead && e.rv <= w.start && e.until <= w.start {
		return // part of the list that the client has
	}
	w.ahead = false
	if e.rv < w.last || e.rv == w.last && e.until == 0 {
		// A local change was shown under a resourceVersion that the cloud
		// has used for this.
		w.expireLocked(e.rv)
		return
	}
	limit, count := w.v.vs.o.QueueBytes, w.v.vs.o.QueueEvents
	if burst { // all at once, and shared: being slow is no reason
		limit, count = 4*limit, 1<<20
	}
	w.queue = append(w.queue, e)
	w.bytes += e.size()
	w.last = e.rv
	if w.bytes > limit || len(w.queue) > count {
		w.v.vs.m.terminations.WithLabelValues("slow").Inc()
		w.endLocked(nil)
		w.queue, w.bytes = nil, 0
		return
	}
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// end ends the watch: with an error that the client is told, or as a timeout does.
func (w *Watcher) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.endLocked(nil)
		return
	}
	w.v.vs.m.terminations.WithLabelValues("error").Inc()
	w.endLocked(statusOf(err))
}

func (w *Watcher) endLocked(s *metav1.Status) {
	if w.ended {
		return
	}
	w.ended, w.status = true, s
	w.signal()
}

// expire ends the watch with 410: the client lists and comes back.
func (w *Watcher) expire(rv uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expireLocked(rv)
}

func (w *Watcher) expireLocked(rv uint64) {
	w.v.vs.m.terminations.WithLabelValues("expired").Inc()
	err := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", rv, w.v.window.from))
	w.endLocked(&err.ErrStatus)
	w.queue, w.bytes = nil, 0
}

func statusOf(err error) *metav1.Status {
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		s := api.Status()
		return &s
	}
	s := apierrors.NewInternalError(err).ErrStatus
	s.Code = http.StatusInternalServerError
	return &s
}

// Stop ends the watch.
func (w *Watcher) Stop() {
	w.stop.Do(func() {
		v := w.v
		v.mu.Lock()
		if _, ok := v.watchers[w]; ok {
			delete(v.watchers, w)
			if !w.m.everything() {
				v.selective--
			}
			v.users--
			v.idle = time.Now()
			v.vs.m.watchers.WithLabelValues(v.resource()).Dec()
		}
		v.mu.Unlock()
		w.end(nil)
		w.mu.Lock()
		in := w.initial
		w.initial = nil
		w.mu.Unlock()
		if in != nil {
			in.close()
		}
	})
}

// Pending reports whether Next would return an event at once.
func (w *Watcher) Pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) > 0 || w.initial != nil && !w.initial.done
}
