package views

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// errOvertaken means that an event is older than something that was written
// here and shown: its stream began before the link was lost.
var errOvertaken = errors.New("a local write overtook the stream")

// apply writes events of the upstream watch and hands them to the watchers, in
// this order: a client must not know what the store could forget.
func (v *view) apply(ctx context.Context, events []wire.Event) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.vs.current(ctx); err != nil {
		return err
	}
	v.vs.writeMu.Lock()
	defer v.vs.writeMu.Unlock()
	var out []*event
	var changes []func(*store.Batch)
	within := map[store.Key]*event{} // the newest of this batch
	rv, durability := v.rv, store.Lazy
	for i := range events {
		ev := &events[i]
		if ev.Type == watch.Bookmark {
			rv = max(rv, ev.Object.ResourceVersion)
			continue
		}
		o := ev.Object
		if o.ResourceVersion <= rv {
			continue // seen: the stream began earlier
		}
		if o.ResourceVersion <= v.localRV {
			return errOvertaken
		}
		if v.kind == "" {
			v.kind = o.Kind
		}
		e, ops, soon := v.change(ev.Type, o, within)
		changes = append(changes, ops)
		if soon {
			durability = store.Soon
		}
		rv = o.ResourceVersion
		out = append(out, e)
	}
	before := v.rv
	v.rv, v.synced = rv, time.Now()
	if rv == before && len(out) == 0 && !v.unwritten.degraded() {
		v.notify()
		return nil
	}
	b := &store.Batch{}
	v.describe(b)
	try := v.writable(b)
	for _, ops := range changes {
		ops(b)
	}
	b.SetRevision(rv)
	var err error
	if try {
		err = v.vs.st.Apply(b, durability)
	}
	switch {
	case err != nil:
		v.degrade(err)
		fallthrough
	case !try:
		for _, e := range out {
			if e.kind == watch.Deleted {
				v.unwritten.put(e.cur.Key, nil)
			} else {
				v.unwritten.put(e.cur.Key, e.cur)
			}
		}
	default:
		v.described()
		v.written()
		for _, e := range out {
			v.vs.isCloud(e.cur.Key)
		}
	}
	for _, e := range out {
		delete(v.localShown, e.cur.Key)
		delete(v.ahead, e.cur.Key)
		v.deliver(e, false)
	}
	v.notify()
	return nil
}

// goneByName makes the kept GET of an object that is gone say so, if nobody
// follows it: it would be found for ever. A view with a selector does not know
// whether an object is gone or has changed, but for the one of a node's pods, who
// never leave it alive.
func (v *view) goneByName(b *store.Batch, k store.Key, rv uint64) {
	byNode := v.q.Group == "" && v.q.Resource == "pods" && strings.HasPrefix(v.q.FieldSelector, "spec.nodeName=") && !strings.Contains(v.q.FieldSelector, ",")
	if v.q.LabelSelector != "" || v.q.FieldSelector != "" && !byNode {
		return
	}
	q := store.Query{Group: k.Group, Version: k.Version, Resource: k.Resource, Namespace: k.Namespace, FieldSelector: "metadata.name=" + k.Name}
	s, ok, err := v.vs.st.View(q)
	if err != nil || !ok || v.vs.lookup(q) != nil || s.ResourceVersion > rv {
		return
	}
	s.ResourceVersion, s.Synced = rv, time.Now()
	b.SetView(s)
	b.Leave(q, k)
}

// current says whether what the cloud sent may still be written: once the link is
// lost, local writes must not be overwritten by what is on its way.
func (vs *Views) current(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !vs.o.Upstream.Online() {
		return errAway
	}
	return nil
}

// change turns what the cloud sent into an event and into changes of the store.
// within has the events of the same batch, which the store does not have yet. mu
// is held.
func (v *view) change(kind watch.EventType, o store.Object, within map[store.Key]*event) (e *event, ops func(*store.Batch), soon bool) {
	key := o.Key
	prev := v.current(key)
	stored := prev
	if _, covered := v.unwritten.objects[key]; covered {
		stored = nil // whatever it is, it is older
	}
	v.vs.preserve(v, kind, key, prev)
	if prev != nil && !v.showed(prev) {
		prev = nil // another view is ahead: what this one showed is not known
	}
	if before := within[key]; before != nil {
		prev = before.cur
		if before.kind == watch.Deleted {
			prev = nil
		}
	}
	defer func() { within[key] = e }()
	e = &event{kind: kind, rv: o.ResourceVersion, at: time.Now()}
	if v.whole || v.selective > 0 {
		e.prev = prev
	}
	if kind == watch.Deleted {
		e.cur = &o
		return e, func(b *store.Batch) {
			b.Leave(v.q, key)
			v.goneByName(b, key, o.ResourceVersion)
		}, true
	}
	shown := v.vs.rebase(o)
	e.cur = &shown
	if stored != nil {
		v.vs.noteFormer(stored, &o)
	}
	newer := stored != nil && stored.ResourceVersion > o.ResourceVersion && !v.vs.outlived(stored.ResourceVersion) && !v.vs.isLocal(key, stored.ResourceVersion)
	return e, func(b *store.Batch) {
		if !newer {
			b.Put(shown)
		}
		b.Join(v.q, key)
	}, !heartbeat(prev, &shown)
}

// rebase applies local writes that the cloud does not know.
func (vs *Views) rebase(o store.Object) store.Object {
	out, err := vs.o.Rebase(o)
	if err != nil {
		vs.log.Error("applying unsent local writes to what the cloud sent", "object", o.Key.String(), "error", err)
		return o
	}
	return out
}

// isLocal reports whether the stored copy with this resourceVersion was made
// here.
func (vs *Views) isLocal(k store.Key, rv uint64) bool {
	vs.localMu.Lock()
	defer vs.localMu.Unlock()
	known, ok := vs.local[k]
	return ok && (known == 0 || known == rv)
}

// top is what a resourceVersion that was made here is at most.
func (vs *Views) top() uint64 {
	vs.localMu.Lock()
	defer vs.localMu.Unlock()
	return vs.localTop
}

// isCloud notes that the stored copy is the cloud's again.
func (vs *Views) isCloud(k store.Key) {
	vs.localMu.Lock()
	defer vs.localMu.Unlock()
	delete(vs.local, k)
}

// Publish tells watchers of a change that was made here and is in the store
// already, with a resourceVersion above all that clients have seen. old is nil
// for a new object, new for a deleted one.
func (vs *Views) Publish(_ context.Context, old, new *store.Object) error {
	o, kind := new, watch.Modified
	switch {
	case old == nil && new == nil:
		return errors.New("publishing a change: neither an old nor a new object")
	case old == nil:
		kind = watch.Added
	case new == nil:
		o, kind = old, watch.Deleted
	}
	vs.localMu.Lock()
	vs.local[o.Key] = o.ResourceVersion
	vs.localTop = max(vs.localTop, o.ResourceVersion)
	vs.localMu.Unlock()
	var failed error
	for _, v := range vs.all() {
		if v.q.Group != o.Group || v.q.Version != o.Version || v.q.Resource != o.Resource {
			continue
		}
		if err := v.publish(kind, old, o); err != nil {
			failed = fmt.Errorf("publishing a local change of %s: %w", o.Key, err)
		}
	}
	return failed
}

func (v *view) publish(kind watch.EventType, old, o *store.Object) error {
	m, err := newMatcher(v.q, store.Query{Group: v.q.Group, Version: v.q.Version, Resource: v.q.Resource})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.complete || o.ResourceVersion <= v.shown() {
		return nil // it comes with the first list, or was overtaken
	}
	if old != nil && !v.showed(old) {
		old = nil // another view is ahead: what this one showed is not known
	}
	e := &event{kind: kind, rv: o.ResourceVersion, cur: o, prev: old, at: time.Now()}
	seen, ok, err := e.seenBy(m)
	if err != nil || !ok {
		return err
	}
	if seen.Type != watch.Added && !v.has(o.Key) {
		// The store has the object for another view that is behind: here it
		// is gone already.
		return nil
	}
	b := &store.Batch{}
	switch seen.Type {
	case watch.Added:
		b.Join(v.q, o.Key)
	case watch.Deleted:
		b.Leave(v.q, o.Key)
	}
	if b.Len() > 0 {
		if err := v.vs.st.Apply(b, store.Soon); err != nil {
			v.degrade(err)
		}
	}
	if v.unwritten.objects != nil {
		delete(v.unwritten.objects, o.Key)
	}
	v.vs.preserve(v, seen.Type, o.Key, old)
	v.localRV = o.ResourceVersion
	if v.localShown == nil {
		v.localShown = map[store.Key]uint64{}
	}
	v.localShown[o.Key] = o.ResourceVersion
	object := seen.Object
	v.deliver(&event{kind: seen.Type, rv: o.ResourceVersion, cur: &object, prev: old, local: true, at: e.at}, false)
	v.notify()
	return nil
}

// has reports whether the object is a member: mu is held.
func (v *view) has(k store.Key) bool {
	if o, ok := v.unwritten.objects[k]; ok {
		return o != nil
	}
	_, ok, err := v.vs.member(v.q, k)
	return ok || err != nil
}
