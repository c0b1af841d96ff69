package views

import (
	"context"
	"fmt"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// provePatience is how long a list that passed waits for the view to have what it
// has.
const provePatience = 250 * time.Millisecond

// Saw takes an object that the cloud answered a client with, to a GET or to a
// write that passed through: what was shown is stored from then on, though the
// view that follows it has yet to hear of it. An object that is not stored, or
// is another one of the name, is left to the views. When Saw returns with
// store.Durable, the object is on the disk in this state, or a newer one.
func (vs *Views) Saw(o store.Object, d store.Durability) error {
	vs.writeMu.Lock()
	defer vs.writeMu.Unlock()
	stored, ok, err := vs.st.Get(o.Key)
	if err != nil || !ok || stored.UID != o.UID {
		return err
	}
	if vs.isLocal(o.Key, stored.ResourceVersion) {
		return nil // it has what the cloud does not know, and is on the disk
	}
	if stored.ResourceVersion >= o.ResourceVersion && !vs.outlived(stored.ResourceVersion) {
		if d == store.Durable {
			return vs.st.Sync()
		}
		return nil
	}
	vs.preserve(nil, "", o.Key, &stored)
	b := &store.Batch{}
	b.Put(vs.rebase(o))
	b.SetRevision(o.ResourceVersion)
	if err := vs.st.Apply(b, d); err != nil {
		return fmt.Errorf("keeping %s as it was answered: %w", o.Key, err)
	}
	return nil
}

// outlived reports whether a stored resourceVersion is from before the cloud was
// restored: nothing newer than the revision can be stored.
func (vs *Views) outlived(rv uint64) bool { return rv > vs.st.Revision() }

// prove compares a whole list that passed through, at revision, with the view
// that follows the same query: if they are the same, the view has reached that
// revision. It waits a moment for events on their way, and makes a view list
// that does not follow.
func (v *view) prove(ctx context.Context, revision uint64, list map[store.Key]uint64) error {
	timer := time.NewTimer(provePatience)
	defer timer.Stop()
	for {
		proved, changed, err := v.proveNow(revision, list)
		if proved || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("a client was shown the list of %s at %d, and the view has not reached it", v.q, revision)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *view) proveNow(revision uint64, list map[store.Key]uint64) (proved bool, changed <-chan struct{}, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rv >= revision {
		return true, nil, nil
	}
	changed = v.wait()
	if v.listing || !v.complete || v.relist || v.restored || v.unwritten.degraded() || v.localRV > v.rv {
		return false, changed, nil
	}
	members, err := v.vs.st.Versions(v.q)
	if err != nil {
		return false, nil, fmt.Errorf("reading the view %s: %w", v.q, err)
	}
	same := len(members) == len(list)
	for k, rv := range members {
		// One that is newer than the view came from elsewhere: watchers here
		// have yet to be told.
		same = same && list[k] == rv && rv <= v.rv
	}
	if !same {
		if !v.live {
			v.listAgain()
		}
		return false, changed, nil
	}
	v.rv, v.synced = revision, time.Now()
	b := &store.Batch{}
	v.describe(b)
	b.SetRevision(revision)
	if err := v.vs.st.Apply(b, store.Lazy); err != nil {
		return false, nil, fmt.Errorf("keeping how far the view %s is: %w", v.q, err)
	}
	v.described()
	v.notify()
	return true, nil, nil
}
