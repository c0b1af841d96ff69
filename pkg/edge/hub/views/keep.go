package views

import (
	"context"
	"fmt"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// Keeper takes an answer to a GET or LIST that passed through the proxy into the
// store. Not safe for concurrent use.
type Keeper struct {
	vs    *Views
	v     *view                // that follows the query: the list is compared with it
	list  map[store.Key]uint64 // then
	in    *intake
	old   store.View
	count int
}

// NewKeeper is Keep for a list that is too long to hold: Add each item, then Done
// or Abort. If the query is followed, what is kept is that the view has got as far
// as the list. It is nil if the list cannot be kept. node says that the answer was
// given to the node's identity.
func (vs *Views) NewKeeper(q store.Query, kind string, node bool) *Keeper {
	vs.ask(q)
	if isStaging(q) {
		return nil
	}
	if v := vs.lookup(q); v != nil {
		v.mu.Lock()
		followed := v.following
		v.mu.Unlock()
		if followed {
			return &Keeper{vs: vs, v: v, list: map[store.Key]uint64{}}
		}
	}
	return vs.newKeeper(q, kind, node)
}

func (vs *Views) newKeeper(q store.Query, kind string, node bool) *Keeper {
	old, _, err := vs.st.View(q)
	if err != nil {
		vs.log.Error("keeping an answer", "view", q.String(), "error", err)
		return nil
	}
	if vs.outlived(old.ResourceVersion) {
		old.ResourceVersion = 0
	}
	in, err := vs.newIntake(nil, q, kind, node)
	if err != nil {
		vs.log.Error("keeping an answer", "view", q.String(), "error", err)
		return nil
	}
	return &Keeper{vs: vs, in: in, old: old}
}

// has reports whether a followed view answers q, to the node too if node is set.
func (vs *Views) has(q store.Query, node bool) bool {
	uq := vs.upstreamQuery(q)
	for _, v := range vs.all() {
		if v.q != uq && !covers(v.q, q) {
			continue
		}
		v.mu.Lock()
		ok := v.following && v.complete && (v.live || v.q == q) && (v.node || !node) && !v.unwritten.lost
		v.mu.Unlock()
		if ok {
			return true
		}
	}
	return false
}

// Add takes one item, which may be kept in parts until Done.
func (k *Keeper) Add(ctx context.Context, o store.Object) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.v != nil {
		k.list[o.Key] = o.ResourceVersion
		return nil
	}
	k.count++
	return k.in.add(o)
}

// Done makes what was added the view. rv is the list's resourceVersion; 0 if the
// answer had none (a single object, a 404). An answer that is older than the view
// changes nothing.
func (k *Keeper) Done(ctx context.Context, rv uint64) error {
	if k.v != nil {
		return k.v.prove(ctx, rv, k.list)
	}
	err := ctx.Err()
	if err == nil {
		err = k.in.flush()
	}
	if err == nil && rv != 0 && k.old.Complete && rv < k.old.ResourceVersion {
		k.in.abort()
		return nil
	}
	if err != nil {
		k.in.abort()
		return err
	}
	if err := k.in.settle(max(rv, k.old.ResourceVersion)); err != nil {
		k.in.abort()
		return err
	}
	view := store.View{
		Query: k.in.q, Kind: k.in.kind, Node: k.in.node, Complete: true,
		ResourceVersion: max(rv, k.old.ResourceVersion), Synced: time.Now(),
	}
	b := &store.Batch{}
	if gone := k.in.conclude(&store.Batch{}); len(gone) > 0 && rv == 0 {
		// When that happened is not known: no watch may resume across it.
		view.ResourceVersion = 0
	}
	if k.in.broken {
		b.DeleteView(view.Query)
	}
	b.SetView(view)
	k.in.conclude(b)
	b.SetRevision(view.ResourceVersion)
	// The view may have come to be followed meanwhile, and two lists of one view
	// must not be mixed.
	k.vs.keepMu.Lock()
	defer k.vs.keepMu.Unlock()
	v := k.vs.lookup(k.in.q)
	if v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.following {
			k.in.abort()
			return nil
		}
	}
	if err := k.vs.st.Apply(b, store.Soon); err != nil {
		k.in.abort()
		return fmt.Errorf("keeping the answer to %s: %w", k.in.q, err)
	}
	if v != nil { // somebody holds it
		return v.load()
	}
	return nil
}

// Abort drops what was added.
func (k *Keeper) Abort() {
	if k.in != nil {
		k.in.abort()
	}
}

// Keep stores an answer to a GET or LIST that passed through the proxy: all its
// items, or none (a 404 and an empty list are knowledge, too). node says that it
// was given to the node's identity; rv is the list's, or 0.
func (vs *Views) Keep(ctx context.Context, q store.Query, kind string, node bool, rv uint64, items []store.Object) error {
	vs.ask(q)
	if isStaging(q) {
		return nil
	}
	v := vs.lookup(q)
	if v != nil {
		v.mu.Lock()
		if !v.following {
			v = nil
		}
		v.mu.Unlock()
	}
	if v != nil || vs.has(q, node) {
		for _, o := range items {
			if err := vs.Saw(o, store.Soon); err != nil {
				return err
			}
		}
		return nil
	}
	k := vs.newKeeper(q, kind, node)
	if k == nil {
		return nil
	}
	for _, o := range items {
		if err := k.Add(ctx, o); err != nil {
			k.Abort()
			return err
		}
	}
	return k.Done(ctx, rv)
}
