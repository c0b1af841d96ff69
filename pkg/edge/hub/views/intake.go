package views

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/store"
)

// intake takes a whole list into the store, item by item. Until it is finished,
// the view is what it was, but for objects that are newer: what is new is joined
// to a view of its own first, and what is gone leaves at the end.
type intake struct {
	vs       *Views
	v        *view // nil if nobody follows the view
	q        store.Query
	kind     string
	node     bool
	fresh    bool   // the store has no whole copy
	announce bool   // watchers know a whole copy, and want the differences
	broken   bool   // the store has lost members without a trace
	before   uint64 // what the view had reached, and
	// what of here it had shown.
	localShown map[store.Key]uint64
	restored   bool                 // the cloud's revisions went back
	have       map[store.Key]uint64 // members that the list has not shown yet
	staging    store.Query          // where new members wait; the zero query if there is nothing to spoil
	staged     bool

	pending []change
	bytes   int
	changes []change
	ahead   []store.Object       // the stored copy of which is newer
	loaded  map[store.Key]uint64 // view.ahead
	doubt   bool                 // whether watchers know the same object is not known
	covered map[store.Key]bool   // listed, and unwritten until then
	failed  error                // the store took nothing any more
}

// change is an object that the list changes.
type change struct {
	key     store.Key
	kind    watch.EventType
	rv      uint64
	silent  bool            // watchers have it already
	matched map[string]bool // of the state before
	former  *store.Object   // another one of the same name, which was deleted
	object  *store.Object   // while it is in no store
}

const (
	batchItems = 100
	batchBytes = 512 << 10
	// stagingMark begins the label selector of a staging view. No selector
	// begins like that.
	stagingMark = "!staging "
)

var stagingNumber atomic.Uint64

func (vs *Views) newIntake(v *view, q store.Query, kind string, node bool) (*intake, error) {
	in := &intake{vs: vs, v: v, q: q, kind: kind, node: node, covered: map[store.Key]bool{}}
	vs.keepMu.Lock() // from here on v is followed, and its stored members are its own
	defer vs.keepMu.Unlock()
	old, ok, err := vs.st.View(q)
	if err != nil {
		return nil, fmt.Errorf("reading the view %s: %w", q, err)
	}
	in.fresh = !ok || !old.Complete
	if ok {
		in.kind = first(in.kind, old.Kind)
		in.node = in.node || old.Node
		if in.have, err = vs.st.Versions(q); err != nil {
			vs.log.Warn("a stored view is damaged and is replaced", "view", q.String(), "error", err)
			in.fresh, in.broken, in.have = true, true, nil
		}
	}
	if in.have == nil {
		in.have = map[store.Key]uint64{}
	}
	if v != nil {
		v.mu.Lock()
		in.announce = v.complete && !in.broken
		v.mu.Unlock()
	}
	if !in.fresh || v == nil {
		in.staging = q
		in.staging.LabelSelector = stagingMark + strconv.FormatUint(stagingNumber.Add(1), 10)
	}
	return in, nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// dropStaging removes what an interrupted intake left.
func (vs *Views) dropStaging() error {
	all, err := vs.st.Views("", "")
	if err != nil {
		return fmt.Errorf("reading the views: %w", err)
	}
	b := &store.Batch{}
	for _, v := range all {
		if isStaging(v.Query) {
			b.DeleteView(v.Query)
		}
	}
	if err := vs.st.Apply(b, store.Lazy); err != nil {
		vs.log.Warn("removing interrupted lists", "error", err)
	}
	return nil
}

func isStaging(q store.Query) bool {
	return len(q.LabelSelector) >= len(stagingMark) && q.LabelSelector[:len(stagingMark)] == stagingMark
}

// add takes one item of the list.
func (in *intake) add(o store.Object) error {
	in.kind = first(in.kind, o.Kind)
	key := o.Key
	c := change{key: key, kind: watch.Modified, rv: o.ResourceVersion, object: &o}
	had, member := in.have[key]
	delete(in.have, key)
	u, covered := in.unwritten(key)
	if covered {
		in.covered[key] = true
		if member = u != nil; member {
			had = u.ResourceVersion
			c.silent = had == o.ResourceVersion
		}
	} else if member && had == o.ResourceVersion && !in.restored && !in.vs.isLocal(key, had) && (!in.announce || in.showed(key, had)) {
		return nil
	}
	if !member {
		c.kind = watch.Added
	} else if in.v != nil {
		c.matched = in.v.matchedBy(key)
	}
	in.pending = append(in.pending, c)
	in.bytes += len(o.Data)
	if len(in.pending) >= batchItems || in.bytes >= batchBytes {
		return in.flush()
	}
	return nil
}

func (in *intake) showed(k store.Key, rv uint64) bool {
	in.v.mu.Lock()
	defer in.v.mu.Unlock()
	return in.v.showedVersion(k, rv)
}

// watchersSaw is view.showed as it was before the list.
func (in *intake) watchersSaw(o *store.Object) bool {
	if local, ok := in.localShown[o.Key]; ok {
		return local == o.ResourceVersion
	}
	return o.ResourceVersion <= in.before
}

func (in *intake) unwritten(k store.Key) (o *store.Object, ok bool) {
	if in.v == nil {
		return nil, false
	}
	in.v.mu.Lock()
	defer in.v.mu.Unlock()
	o, ok = in.v.unwritten.objects[k]
	return o, ok
}

// matchedBy evaluates the selectors of the watchers that are here now.
func (v *view) matchedBy(k store.Key) map[string]bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.selective == 0 {
		return nil
	}
	o := v.current(k)
	if o == nil || !v.showed(o) {
		return nil // not what watchers have seen
	}
	known := map[string]bool{}
	for w := range v.watchers {
		if _, ok := known[w.m.key]; !ok && !w.m.everything() {
			if yes, err := w.m.matches(o); err == nil {
				known[w.m.key] = yes
			}
		}
	}
	return known
}

// flush writes what was added.
func (in *intake) flush() error {
	pending := in.pending
	in.pending, in.bytes = nil, 0
	if len(pending) == 0 {
		return nil
	}
	if in.v != nil {
		in.v.mu.Lock()
		defer in.v.mu.Unlock()
		if err := in.vs.current(context.Background()); err != nil {
			return err
		}
	}
	in.vs.writeMu.Lock()
	defer in.vs.writeMu.Unlock()
	b := &store.Batch{}
	to := in.q
	if in.staging == (store.Query{}) {
		if in.broken && len(in.changes) == 0 {
			b.DeleteView(in.q)
		}
		b.SetView(store.View{Query: in.q, Kind: in.kind, Node: in.node})
	} else {
		// Nothing new may be shown before the list is whole.
		in.staged, to = true, in.staging
		b.SetView(store.View{Query: in.staging, Kind: in.kind})
	}
	for i := range pending {
		c := &pending[i]
		prev, ok, err := in.vs.st.Get(c.key)
		if ok = ok && err == nil; ok && c.kind != watch.Added {
			in.vs.preserve(in.v, c.kind, c.key, &prev)
			if in.announce && !c.silent {
				former, doubt := in.v.formerOf(&prev, c.object.UID)
				c.former, in.doubt = former, in.doubt || doubt
			}
		}
		if ok {
			in.vs.noteFormer(&prev, c.object)
		}
		if ok && prev.ResourceVersion > c.rv && !in.restored && !in.vs.outlived(prev.ResourceVersion) && !in.vs.isLocal(c.key, prev.ResourceVersion) {
			in.ahead = append(in.ahead, *c.object)
		} else {
			*c.object = in.vs.rebase(*c.object)
			b.Put(*c.object)
		}
		if c.kind == watch.Added {
			b.Join(to, c.key)
		}
	}
	// A local change must get a resourceVersion above all that is stored.
	for i := range pending {
		b.SetRevision(pending[i].rv)
	}
	err := in.failed
	if err == nil {
		err = in.vs.st.Apply(b, store.Soon)
	}
	if err == nil {
		for i := range pending {
			in.vs.isCloud(pending[i].key)
			pending[i].object = nil
		}
	} else {
		if in.v == nil {
			return fmt.Errorf("keeping the list of %s: %w", in.q, err)
		}
		// Watchers are to have it nevertheless, see unwritten.
		if in.failed == nil {
			in.v.degrade(err)
			in.failed = err
		}
	}
	in.changes = append(in.changes, pending...)
	return nil
}

// formerOf returns the object of the same name that watchers know, if it is
// another one than the one with uid. doubt says that this cannot be known: the
// stored state is one that watchers have not seen, with no trace of what was
// before. The view's mu and writeMu are held.
func (v *view) formerOf(stored *store.Object, uid string) (former *store.Object, doubt bool) {
	known := stored
	if !v.showed(stored) {
		// Another view stored it, or it was changed here before a restart.
		if old := v.vs.replaced(stored.Key, v.rv, v.showed); old != nil {
			known = old
		} else {
			rv, ahead := v.ahead[stored.Key]
			doubt = v.vs.forgot || ahead && rv == stored.ResourceVersion
		}
	}
	if known.UID == uid {
		return nil, doubt
	}
	return known, doubt
}

// replaced returns the object that a view at rv has shown and has not heard to be
// replaced, if there is one: writeMu is held.
func (vs *Views) replaced(k store.Key, rv uint64, showed func(*store.Object) bool) (newest *store.Object) {
	for i := range vs.former[k] {
		f := &vs.former[k][i]
		if f.by > rv && showed(&f.object) && (newest == nil || f.object.ResourceVersion > newest.ResourceVersion) {
			newest = &f.object
		}
	}
	return newest
}

// former is an object that was replaced by another one of the same name, which
// came into being at the resourceVersion by, or before.
type former struct {
	object store.Object
	by     uint64
}

// maxFormer bounds how many replaced objects are remembered.
const maxFormer = 256

// noteFormer remembers an object that is replaced by another one of the same
// name: other views have it, too, and have yet to tell. writeMu is held.
func (vs *Views) noteFormer(stored, by *store.Object) {
	if stored.UID == by.UID {
		return
	}
	if vs.formers >= maxFormer {
		clear(vs.former)
		vs.formers, vs.forgot = 0, true
	}
	vs.former[stored.Key] = append(vs.former[stored.Key], former{*stored, by.ResourceVersion})
	vs.formers++
}

// settle decides about stored copies that are newer than the list: if its
// revision is beyond them, they are not the cloud's, and are replaced.
func (in *intake) settle(revision uint64) error {
	in.vs.writeMu.Lock()
	defer in.vs.writeMu.Unlock()
	b := &store.Batch{}
	for _, o := range in.ahead {
		stored, ok, err := in.vs.st.Get(o.Key)
		if err == nil && ok && stored.ResourceVersion > revision && !in.restored && !in.vs.outlived(stored.ResourceVersion) {
			continue
		}
		b.Put(in.vs.rebase(o))
	}
	in.ahead = nil
	if b.Len() == 0 || in.failed != nil {
		return nil
	}
	if err := in.vs.st.Apply(b, store.Soon); err != nil {
		return fmt.Errorf("keeping the list of %s: %w", in.q, err)
	}
	return nil
}

// abort undoes what can be undone.
func (in *intake) abort() {
	if in.staged {
		b := &store.Batch{}
		b.DeleteView(in.staging)
		if err := in.vs.st.Apply(b, store.Lazy); err != nil {
			in.vs.log.Warn("removing an interrupted list", "error", err)
		}
	}
}

// conclude adds to a batch what makes the list the view: v's mu is held, if there
// is one. It returns who is gone.
func (in *intake) conclude(b *store.Batch) (gone []store.Key) {
	for _, c := range in.changes {
		if c.kind == watch.Added && in.staged {
			b.Join(in.q, c.key)
		}
	}
	for k := range in.have {
		gone = append(gone, k)
	}
	slices.SortFunc(gone, func(a, b store.Key) int {
		if less(a, b) {
			return -1
		}
		return 1
	})
	for _, k := range gone {
		b.Leave(in.q, k)
	}
	if in.staged {
		b.DeleteView(in.staging)
	}
	return gone
}
