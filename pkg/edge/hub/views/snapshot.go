package views

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Snapshot is a list that stays as it was when it was taken, however slowly it is
// read: what changes meanwhile is kept aside. It must be closed. Not safe for
// concurrent use.
type Snapshot struct {
	v     *view
	m     *matcher
	kind  string
	rv    uint64
	cloud uint64    // the view's own; what is newer comes from elsewhere
	self  *matcher  // what the view itself selects; nil: all
	key   store.Key // of the one object that was asked for, if one
	one   bool

	// Under Views.snapMu:
	aside map[store.Key]aside
	bytes int64
	lost  bool // too much has changed
}

// aside is the state that an object had.
type aside struct {
	object *store.Object // nil: it was not there
	own    bool          // the view itself changed it; else another view did
}

const (
	// maxAside bounds what is kept aside for one slow reader.
	maxAside = 4 << 20
	// waitForRV is how long a list waits for a resourceVersion that the view
	// has not seen, as in the API server.
	waitForRV = 3 * time.Second
)

// Snapshot answers a LIST or GET. The namespace and the selectors are those of
// the view's query; o.ResourceVersion and its match are honoured: 504 if the view
// is not there yet, 410 if it is past it. 503 says that the list cannot be
// complete.
func (h *View) Snapshot(ctx context.Context, o wire.Options) (*Snapshot, error) {
	v := h.v
	wanted, err := parseRV(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if err := v.reach(ctx, wanted); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if o.ResourceVersionMatch == metav1.ResourceVersionMatchExact && wanted != v.shown() {
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("The provided resource version is not available: %d (%d)", wanted, v.shown()))
	}
	return v.snapshot(h.m, h.q)
}

// snapshot is taken with mu held.
func (v *view) snapshot(m *matcher, q store.Query) (*Snapshot, error) {
	if err := v.listable(); err != nil {
		return nil, err
	}
	s := &Snapshot{v: v, m: m, kind: v.kind, rv: v.shown(), aside: map[store.Key]aside{}}
	s.cloud = v.rv
	if v.q.LabelSelector != "" || v.q.FieldSelector != "" {
		var err error
		if s.self, err = newMatcher(v.q, store.Query{Group: v.q.Group, Version: v.q.Version, Resource: v.q.Resource}); err != nil {
			// A selector that only the API server can evaluate.
			s.self = nil
		}
	}
	if name, ok := named(q); ok && q.Namespace != "" {
		s.one, s.key = true, store.Key{Group: q.Group, Version: q.Version, Resource: q.Resource, Namespace: q.Namespace, Name: name}
	}
	for k, o := range v.unwritten.objects {
		s.aside[k] = aside{object: o, own: true}
	}
	vs := v.vs
	vs.snapMu.Lock()
	vs.snaps[s] = struct{}{}
	vs.snapMu.Unlock()
	return s, nil
}

// listable says why the view cannot be listed, if so: mu is held.
func (v *view) listable() error {
	switch {
	case v.unwritten.lost:
		return unavailable(fmt.Sprintf("the list of %s cannot be complete: %v: %v", v.q, errLost, v.unwritten.err))
	case !v.complete:
		return unavailable(fmt.Sprintf("%s has never been synchronised on this node", v.q))
	}
	return nil
}

// reach waits until the view shows rv.
func (v *view) reach(ctx context.Context, rv uint64) error {
	timeout := time.NewTimer(waitForRV)
	defer timeout.Stop()
	for {
		v.mu.Lock()
		shown, live, changed := v.shown(), v.live, v.wait()
		v.mu.Unlock()
		if shown >= rv {
			return nil
		}
		if !live {
			return tooLarge(rv, shown)
		}
		select {
		case <-changed:
		case <-timeout.C:
			return tooLarge(rv, shown)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends the snapshot.
func (s *Snapshot) Close() {
	vs := s.v.vs
	vs.snapMu.Lock()
	defer vs.snapMu.Unlock()
	delete(vs.snaps, s)
}

// ResourceVersion is the list's.
func (s *Snapshot) ResourceVersion() uint64 { return s.rv }

// Kind is that of one object ("Pod"); "" if none was ever seen.
func (s *Snapshot) Kind() string { return s.kind }

var (
	errEnd   = errors.New("no more is wanted")
	errMoved = errors.New("the stored list changed too much while it was read")
)

// Items yields the objects behind after, at most limit (0: all), in the order of
// namespace and name. What it returns may be called several times and yields the
// same objects. Data is valid until yield returns.
func (s *Snapshot) Items(ctx context.Context, after store.Key, limit int64) wire.Items {
	var seen []uint64 // resourceVersions of the first pass
	whole := false
	return func(yield func(store.Object) error) error {
		n, first := 0, !whole
		if first {
			seen = seen[:0]
		}
		err := s.each(ctx, after, func(o store.Object) error {
			if limit > 0 && int64(n) == limit {
				return errEnd
			}
			switch {
			case first:
				seen = append(seen, o.ResourceVersion)
			case n >= len(seen) || seen[n] != o.ResourceVersion:
				return errMoved
			}
			n++
			return yield(o)
		})
		if err != nil && !errors.Is(err, errEnd) {
			return err
		}
		if n != len(seen) {
			return errMoved
		}
		whole = true
		return nil
	}
}

// each calls fn with what matches.
func (s *Snapshot) each(ctx context.Context, after store.Key, fn func(store.Object) error) error {
	match := func(o *store.Object) error {
		ok, err := s.m.matches(o)
		if ok && err == nil && o.ResourceVersion > s.cloud && s.self != nil {
			// Another view is ahead, and the object may have left this one.
			ok, err = s.self.matches(o)
		}
		if err != nil || !ok {
			return err
		}
		return fn(*o)
	}
	if s.one {
		return s.single(match)
	}
	var extra []store.Object
	var replaced map[store.Key]aside
	begun := false
	// What has changed since the snapshot is looked up after the scan has
	// chosen its moment: what changes later does not concern it.
	begin := func() {
		if !begun {
			begun = true
			extra, replaced = s.changed(after)
		}
	}
	err := s.v.vs.st.Scan(ctx, s.v.q, after, func(o store.Object) error {
		begin()
		for len(extra) > 0 && less(extra[0].Key, o.Key) {
			if err := match(&extra[0]); err != nil {
				return err
			}
			extra = extra[1:]
		}
		if a, ok := replaced[o.Key]; ok {
			if a.own || a.object == nil {
				return nil // among the extra, or not there yet
			}
			o = *a.object
		}
		return match(&o)
	})
	begin()
	for i := 0; i < len(extra) && err == nil; i++ {
		err = match(&extra[i])
	}
	if err != nil {
		return s.v.unreadable(err)
	}
	s.v.vs.snapMu.Lock()
	defer s.v.vs.snapMu.Unlock()
	if s.lost {
		return s.v.unreadable(errMoved)
	}
	return nil
}

func (s *Snapshot) single(match func(*store.Object) error) error {
	o, ok, err := s.v.vs.member(s.v.q, s.key)
	if err != nil {
		return s.v.unreadable(err)
	}
	s.v.vs.snapMu.Lock()
	if a, kept := s.aside[s.key]; kept {
		if ok = a.object != nil && (ok || a.own); ok {
			o = *a.object
		}
	}
	s.v.vs.snapMu.Unlock()
	if !ok {
		return nil
	}
	return match(&o)
}

// changed returns what has changed since the snapshot: the objects behind after
// that the view itself changed, in order, and all by key.
func (s *Snapshot) changed(after store.Key) (extra []store.Object, all map[store.Key]aside) {
	s.v.vs.snapMu.Lock()
	defer s.v.vs.snapMu.Unlock()
	if len(s.aside) == 0 {
		return nil, nil
	}
	for k, a := range s.aside {
		if a.own && a.object != nil && (after == store.Key{} || less(after, k)) {
			extra = append(extra, *a.object)
		}
	}
	slices.SortFunc(extra, func(a, b store.Object) int {
		if less(a.Key, b.Key) {
			return -1
		}
		return 1
	})
	return extra, maps.Clone(s.aside)
}

// preserve keeps the state of an object aside for open snapshots, before it
// changes. v is the view that changes it.
func (vs *Views) preserve(v *view, kind watch.EventType, k store.Key, prev *store.Object) {
	vs.snapMu.Lock()
	defer vs.snapMu.Unlock()
	for s := range vs.snaps {
		if s.v.q.Group != k.Group || s.v.q.Resource != k.Resource || s.v.q.Version != k.Version {
			continue
		}
		own := s.v == v
		if old, ok := s.aside[k]; ok {
			if own && !old.own {
				// Another view wrote it before; only now it is known whether
				// it was a member here.
				old.own = true
				if kind == watch.Added {
					old.object = nil
				}
				s.aside[k] = old
			}
			continue
		}
		switch {
		case own && kind == watch.Added:
			s.aside[k] = aside{own: true}
		case prev != nil:
			s.aside[k] = aside{object: prev, own: own}
			s.bytes += int64(len(prev.Data)) + 300
		}
		s.lost = s.lost || s.bytes > maxAside
	}
}

// member returns one object of a view.
func (vs *Views) member(q store.Query, k store.Key) (o store.Object, ok bool, err error) {
	before := k
	if n := len(before.Name); n > 0 {
		// A key just below k, so that little is read.
		before.Name = before.Name[:n-1] + string(before.Name[n-1]-1) + "\U0010ffff"
	}
	err = vs.st.Scan(context.Background(), q, before, func(found store.Object) error {
		switch {
		case found.Key == k:
			o, ok = found, true
			o.Data = slices.Clone(found.Data)
			return errEnd
		case less(k, found.Key):
			return errEnd
		}
		return nil
	})
	if errors.Is(err, errEnd) {
		err = nil
	}
	return o, ok, err
}

// unreadable makes a damaged view be listed again, and says what a client is
// told.
func (v *view) unreadable(err error) error {
	if errors.Is(err, store.ErrIncomplete) || errors.Is(err, store.ErrDamaged) {
		v.mu.Lock()
		v.listAgain()
		v.mu.Unlock()
		return unavailable(fmt.Sprintf("the stored list of %s is damaged", v.q))
	}
	if errors.Is(err, store.ErrChanged) || errors.Is(err, errMoved) {
		return unavailable(fmt.Sprintf("reading the list of %s: %v", v.q, errMoved))
	}
	return err
}

// List is Snapshot in one pass.
func (h *View) List(ctx context.Context, o wire.Options, after store.Key, fn func(store.Object) error) (rv uint64, err error) {
	s, err := h.Snapshot(ctx, o)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.rv, s.Items(ctx, after, 0)(fn)
}

func parseRV(rv string) (uint64, error) {
	if rv == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest("invalid resource version: " + strconv.Quote(rv))
	}
	return n, nil
}

// tooLarge is the API server's answer for a resourceVersion of the future.
func tooLarge(rv, shown uint64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", rv, shown), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

// unavailable is a 503 that clients try again.
func unavailable(why string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable,
		Message: why, Details: &metav1.StatusDetails{RetryAfterSeconds: 1},
	}}
}
