package views

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// View is one client's hold on a shared view, seen through the client's query.
type View struct {
	v       *view
	q       store.Query
	m       *matcher
	caller  identity.Caller
	release sync.Once
}

// Acquire returns the view that answers q. The caller has been authorised.
//
// Online it opens the view upstream, or shares it, and waits until it is whole;
// if that takes long and the store has an older whole copy, for that. Offline it
// is what the store has: the same query, or a wider one (for the node only what
// the node was shown). Errors are apierrors: 503 says what was never
// synchronised, 429 that the caller has too many views, others are upstream's.
func (vs *Views) Acquire(ctx context.Context, caller identity.Caller, q store.Query) (*View, error) {
	if isStaging(q) {
		return nil, apierrors.NewBadRequest("not a selector: " + q.LabelSelector)
	}
	vs.ask(q)
	if !vs.o.Upstream.Online() {
		return vs.acquireStored(caller, q)
	}
	v, err := vs.open(caller, vs.upstreamQuery(q))
	if err != nil {
		return nil, err
	}
	h, err := vs.hold(v, caller, q)
	if err != nil {
		v.leave()
		return nil, err
	}
	vs.ensureFollowed(v)
	err = vs.await(ctx, v)
	if err == nil && caller.Node {
		err = vs.prove(ctx, v, caller, q)
	}
	if err == nil {
		return h, nil
	}
	h.Release()
	if errors.Is(err, errAway) {
		return vs.acquireStored(caller, q)
	}
	return nil, err
}

func (vs *Views) hold(v *view, caller identity.Caller, q store.Query) (*View, error) {
	m, err := newMatcher(q, v.q)
	if err != nil {
		return nil, err
	}
	return &View{v: v, q: q, m: m, caller: caller}, nil
}

// open returns the view of an upstream query, with one more user.
func (vs *Views) open(caller identity.Caller, uq store.Query) (*view, error) {
	for {
		vs.mu.Lock()
		v, owned := vs.table[uq], 0
		for _, other := range vs.table {
			if other.owner == caller.ID() {
				owned++
			}
		}
		vs.mu.Unlock()
		if v == nil {
			if limit := vs.o.MaxViews(caller); owned >= limit {
				vs.m.refused.Inc()
				return nil, apierrors.NewTooManyRequests(fmt.Sprintf("%s follows %d different queries through this node's hub, which is its limit", caller.ID(), limit), 10)
			}
			fresh, err := vs.newView(uq)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			fresh.owner = caller.ID()
			if fresh.whole {
				// The hub mirrors these in its own name.
				fresh.offerCredential(identity.Caller{Node: true})
			}
			vs.mu.Lock()
			if v = vs.table[uq]; v == nil {
				v = fresh
				vs.table[uq] = v
			}
			vs.mu.Unlock()
		}
		v.use(caller)
		v.mu.Lock()
		gone := v.gone
		v.mu.Unlock()
		if !gone {
			return v, nil
		}
		v.leave()
	}
}

// openPermanent follows a query with the node's identity.
func (vs *Views) openPermanent(q store.Query) {
	node := identity.Caller{Node: true}
	v, err := vs.open(node, vs.upstreamQuery(q))
	if err != nil {
		vs.log.Error("following a permanent query", "view", q.String(), "error", err)
		return
	}
	v.mu.Lock()
	v.permanent = true
	v.mu.Unlock()
	vs.ensureFollowed(v)
}

// errAway means that the cloud cannot be waited for.
var errAway = errors.New("the cloud is away")

// await waits until the view is live, or as good as that.
func (vs *Views) await(ctx context.Context, v *view) error {
	timeout := time.NewTimer(vs.o.FirstSync)
	defer timeout.Stop()
	patient := false
	for {
		v.mu.Lock()
		live, complete, err, changed := v.live, v.complete, v.err, v.wait()
		v.mu.Unlock()
		switch {
		case err != nil:
			return err
		case live && complete:
			return nil
		case complete && patient:
			return nil // slow is not down: the older copy will do
		}
		g := vs.currentGate()
		select {
		case <-changed:
		case <-timeout.C:
			patient = true
		case <-g.ctx.Done():
			if !vs.o.Upstream.Online() {
				return errAway
			}
			// The link came back in between.
			select {
			case <-changed:
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// prove makes sure that the node itself may see a view which somebody else
// opened: the hub shows the node only what the cloud showed the node.
func (vs *Views) prove(ctx context.Context, v *view, caller identity.Caller, q store.Query) error {
	v.mu.Lock()
	seen := v.node
	v.mu.Unlock()
	if seen {
		return nil
	}
	wait := backoff{min: vs.o.RetryMin, max: vs.o.RetryMax}
	giveUp := time.Now().Add(vs.o.FirstSync)
	for {
		_, err := vs.revision(ctx, caller, q)
		var api apierrors.APIStatus
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &api):
			return err
		case !vs.o.Upstream.Online() || time.Now().After(giveUp):
			return errAway
		default: // the connection broke: try another
			t := time.NewTimer(wait.next())
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		break
	}
	if q == v.q {
		v.seenByNode()
	}
	return nil
}

// acquireStored answers from the store.
func (vs *Views) acquireStored(caller identity.Caller, q store.Query) (*View, error) {
	stored, ok := vs.Cover(q, func(s store.View) bool { return s.Node || !caller.Node })
	if !ok {
		return nil, unavailable(fmt.Sprintf("the API server cannot be reached, and %s was never synchronised to this node", q))
	}
	v, err := vs.open(caller, stored.Query)
	if err != nil {
		return nil, err
	}
	h, err := vs.hold(v, caller, q)
	if err != nil {
		v.leave()
		return nil, err
	}
	return h, nil
}

// Cover returns the best stored, complete view that answers q, among those that
// allow accepts: the same query, or a wider one if that is fresher.
func (vs *Views) Cover(q store.Query, allow func(store.View) bool) (store.View, bool) {
	all, err := vs.st.Views(q.Group, q.Resource)
	if err != nil {
		vs.log.Error("reading the views", "error", err)
		return store.View{}, false
	}
	var best store.View
	found := false
	for _, s := range all {
		if !s.Complete || isStaging(s.Query) || !covers(s.Query, q) || allow != nil && !allow(s) {
			continue
		}
		if s.Query != q {
			if _, err := newMatcher(q, s.Query); err != nil {
				continue // a selector that only the API server can evaluate
			}
		}
		// The cloud's revisions are a clock that cannot be wrong. A kept GET
		// may have none; then the node's own clock has to do.
		better := s.ResourceVersion > best.ResourceVersion
		if s.ResourceVersion == best.ResourceVersion || s.ResourceVersion == 0 || best.ResourceVersion == 0 {
			better = s.Synced.After(best.Synced) || s.Synced.Equal(best.Synced) && s.Query == q
		}
		if !found || better {
			best, found = s, true
		}
	}
	if found {
		vs.ask(best.Query)
	}
	return best, found
}

// Live reports whether a view that answers q is being followed now: an answer to
// q need not be kept then.
func (vs *Views) Live(q store.Query) bool {
	v := vs.lookup(vs.upstreamQuery(q))
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live && v.complete
}

func (vs *Views) lookup(q store.Query) *view {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.table[q]
}

// Release gives the view back. Watchers that came from it go on.
func (h *View) Release() {
	h.release.Do(h.v.leave)
}

// Kind is that of one object ("Pod"); "" if the view has never had one.
func (h *View) Kind() string {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return h.v.kind
}

// Live reports whether the cloud is being followed at this moment.
func (h *View) Live() bool {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return h.v.live
}

// Synced is when the view was last known to be up to date.
func (h *View) Synced() time.Time {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	if h.v.live {
		return time.Now()
	}
	return h.v.synced
}

// Fresh waits until the view has seen what the cloud knows now: it asks for the
// current revision, and waits for the view to reach it or, since most revisions
// are about something else, for as long as events are on their way. An error
// means that freshness could not be proved.
func (h *View) Fresh(ctx context.Context) error {
	v := h.v
	c, ok := v.credential()
	if !ok || !h.Live() {
		return unavailable(fmt.Sprintf("%s is not being followed", v.q))
	}
	revision, err := v.vs.revision(ctx, c.caller, v.q)
	if err != nil {
		return err
	}
	timer := time.NewTimer(v.vs.o.Freshness)
	defer timer.Stop()
	for {
		v.mu.Lock()
		rv, live, changed := v.rv, v.live, v.wait()
		v.mu.Unlock()
		switch {
		case rv >= revision:
			return nil
		case !live:
			return unavailable(fmt.Sprintf("%s is not being followed any more", v.q))
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
