package views

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// list reads the whole collection and sends the differences to the watchers.
func (v *view) list(ctx context.Context, c credential) error {
	v.mu.Lock()
	restored, kind, shown := v.restored, v.kind, v.rv
	v.relist, v.listing = false, true
	select {
	case <-v.kick:
	default:
	}
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.listing = false
		v.mu.Unlock()
	}()
	in, err := v.vs.newIntake(v, v.q, kind, c.caller.Node)
	if err != nil {
		return err
	}
	in.restored = restored
	revision, err := v.readPages(ctx, c, in)
	if err == nil {
		err = in.flush()
	}
	if err == nil && revision < shown && !restored {
		v.log.Warn("the cloud's revision went back: it has been restored from a backup", "was", shown, "is", revision)
		in.abort()
		v.mu.Lock()
		v.restored = true
		v.mu.Unlock()
		v.vs.newPeriod()
		return nil
	}
	if err == nil {
		err = in.settle(revision)
	}
	if err == nil {
		err = v.vs.current(ctx)
	}
	if err != nil {
		in.abort()
		v.mu.Lock()
		v.relist = true
		v.mu.Unlock()
		return err
	}
	v.present(in, revision)
	return nil
}

func (v *view) readPages(ctx context.Context, c credential, in *intake) (uint64, error) {
	p := parameters(v.q)
	p.Set("limit", "500")
	for {
		meta, err := v.vs.listPage(ctx, c.caller, v.q, p, in.add)
		if err != nil {
			return 0, err
		}
		if meta.Continue == "" {
			rv, err := strconv.ParseUint(meta.ResourceVersion, 10, 64)
			if err != nil || rv == 0 {
				return 0, fmt.Errorf("the list of %s has the resourceVersion %q", v.q, meta.ResourceVersion)
			}
			return rv, nil
		}
		p.Set("continue", meta.Continue)
	}
}

// present makes the list what clients see.
func (v *view) present(in *intake, revision uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	hidden, lost := v.unwritten.objects, v.unwritten.lost
	for k, o := range hidden {
		if o != nil && !in.covered[k] {
			in.have[k] = o.ResourceVersion // known here, not in the store, and not in the list
		}
	}
	shown := v.shown()
	in.before, in.localShown = v.rv, v.localShown
	in.loaded = v.ahead
	v.localShown, v.ahead = nil, nil
	v.kind, v.node, v.complete = first(v.kind, in.kind), v.node || in.node, true
	v.rv, v.synced, v.relist, v.restored = revision, time.Now(), false, false
	if in.restored || v.localRV <= revision {
		v.localRV = 0
	}
	v.unwritten.lost = false // at least for what describe writes
	b := &store.Batch{}
	v.describe(b)
	gone := in.conclude(b)
	for _, k := range gone {
		v.goneByName(b, k, revision)
	}
	b.SetRevision(revision)
	events := v.differences(in, gone, shown, revision)
	err := in.failed
	if err == nil {
		err = v.vs.st.Apply(b, store.Soon)
	}
	if err == nil {
		v.described()
		v.unwritten = unwritten{}
	} else {
		v.keepUnwritten(in, gone, lost, err)
	}
	switch {
	case in.restored || !in.announce || in.doubt || v.window.from > revision:
		v.forgetEvents(revision)
		for w := range v.watchers {
			w.expire(revision)
		}
	default:
		for _, e := range events {
			v.deliver(e, true)
		}
	}
	v.notify()
}

// keepUnwritten puts a list that the store did not take into memory, if it fits.
func (v *view) keepUnwritten(in *intake, gone []store.Key, lost bool, err error) {
	v.degrade(err)
	u := &v.unwritten
	u.lost = false
	for i := range in.changes {
		c := &in.changes[i]
		if c.object == nil {
			if o, ok, err := v.vs.st.Get(c.key); err == nil && ok {
				c.object = &o
			} else {
				lost = true
			}
		}
		u.put(c.key, c.object)
	}
	for _, k := range gone {
		u.put(k, nil)
	}
	u.lost = u.lost || lost
}

// differences are the events that lead from what was shown to the list: mu is
// held, and the store has the old members still.
func (v *view) differences(in *intake, gone []store.Key, shown, revision uint64) []*event {
	now := time.Now()
	events := make([]*event, 0, len(in.changes)+len(gone))
	newest := shown
	former := map[*event]*store.Object{}
	for i := range in.changes {
		c := &in.changes[i]
		if c.kind == watch.Added {
			v.vs.preserve(v, watch.Added, c.key, nil)
		}
		if !in.announce || in.restored || c.silent {
			continue
		}
		o := c.object
		if o == nil {
			stored, ok, err := v.vs.st.Get(c.key)
			if err != nil || !ok || stored.ResourceVersion > revision {
				continue // a newer state comes by the watch
			}
			o = &stored
		}
		newest = max(newest, o.ResourceVersion)
		e := &event{kind: c.kind, rv: o.ResourceVersion, cur: o, matched: c.matched, at: now}
		events = append(events, e)
		if c.former != nil && c.kind == watch.Modified {
			e.kind, e.matched = watch.Added, nil
			former[e] = c.former
		}
	}
	slices.SortStableFunc(events, func(a, b *event) int {
		if a.rv < b.rv {
			return -1
		}
		if a.rv > b.rv {
			return 1
		}
		return 0
	})
	if len(former) > 0 {
		events = v.deleteFirst(in, events, former, shown)
	}
	// Nobody may take a deletion for something that is known already.
	for w := range v.watchers {
		w.mu.Lock()
		newest = max(newest, min(w.last, revision))
		w.mu.Unlock()
	}
	until := revision
	if newest >= revision {
		// No resourceVersion is left to tell who has seen all of them: who
		// resumes at this one gets them once more.
		until++
	}
	for i, k := range gone {
		prev := v.current(k)
		v.vs.preserve(v, watch.Deleted, k, prev)
		if prev != nil && in.announce {
			prev = v.lastKnown(in, prev)
		}
		last := prev
		if prev != nil && !in.watchersSaw(prev) {
			prev = nil // not what watchers have seen
		}
		if _, hidden := v.unwritten.objects[k]; !in.announce || in.restored || hidden && last == nil {
			continue
		}
		rv := min(newest, revision)
		if i == len(gone)-1 {
			rv = revision
		}
		events = append(events, &event{kind: watch.Deleted, rv: rv, cur: v.tombstone(k, last, rv), prev: prev, until: until, at: now})
	}
	return events
}

// lastKnown is the object of that name which watchers know, of one that is gone
// and was stored in another state.
func (v *view) lastKnown(in *intake, stored *store.Object) *store.Object {
	if in.watchersSaw(stored) {
		return stored
	}
	v.vs.writeMu.Lock()
	defer v.vs.writeMu.Unlock()
	if old := v.vs.replaced(stored.Key, in.before, in.watchersSaw); old != nil {
		return old
	}
	rv, ahead := in.loaded[stored.Key]
	in.doubt = in.doubt || v.vs.forgot || ahead && rv == stored.ResourceVersion
	return stored
}

// deleteFirst puts the deletion of an object before the event that adds another
// one of the same name, as the API server would have told it.
func (v *view) deleteFirst(in *intake, events []*event, former map[*event]*store.Object, last uint64) []*event {
	out := make([]*event, 0, len(events)+len(former))
	for _, e := range events {
		if old := former[e]; old != nil {
			gone := &event{kind: watch.Deleted, rv: last, cur: v.tombstone(old.Key, old, last), until: max(e.rv, last+1), at: e.at}
			if in.watchersSaw(old) {
				gone.prev = old
			}
			out = append(out, gone)
		}
		out = append(out, e)
		last = max(last, e.rv)
	}
	return out
}

// tombstone is the object that a deletion carries.
func (v *view) tombstone(k store.Key, prev *store.Object, rv uint64) *store.Object {
	if prev != nil {
		if o, err := wire.WithResourceVersion(*prev, rv); err == nil {
			return &o
		}
	}
	groupVersion := k.Version
	if k.Group != "" {
		groupVersion = k.Group + "/" + k.Version
	}
	body := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"namespace":%q,"resourceVersion":"%d"}}`, groupVersion, v.kind, k.Name, k.Namespace, rv)
	o, err := wire.Decode("application/json", body, k)
	if err != nil {
		o = store.Object{Format: store.FormatJSON, Data: body}
	}
	o.Key, o.Kind, o.ResourceVersion = k, v.kind, min(rv, math.MaxInt64)
	return &o
}
