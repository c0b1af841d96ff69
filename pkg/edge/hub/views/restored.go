package views

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// ErrRestored means that the cloud's revision is behind what it has shown itself,
// or so far behind what was shown here that renewals cannot make up for it: it has
// been restored from a backup. The error is a *RestoredError.
var ErrRestored = errors.New("the cloud's revision went back")

// RestoredError is ErrRestored with the revisions.
type RestoredError struct {
	Revision uint64 // the cloud's
	Shown    uint64 // what clients of this node have seen
}

func (e *RestoredError) Error() string {
	return fmt.Sprintf("%v: it is %d, and clients of this node have seen %d", ErrRestored, e.Revision, e.Shown)
}

// Is reports whether target is ErrRestored.
func (e *RestoredError) Is(target error) bool { return target == ErrRestored }

// CatchUp is the function CatchUp with what this node's clients have seen, and
// what the cloud itself has shown.
func (vs *Views) CatchUp(ctx context.Context, do Do, nodeName string) (revision uint64, err error) {
	stored, err := vs.st.Views("", "")
	if err != nil {
		return 0, fmt.Errorf("reading the views: %w", err)
	}
	cloud := uint64(0)
	for _, v := range stored {
		cloud = max(cloud, v.ResourceVersion)
	}
	return CatchUp(ctx, do, nodeName, vs.st.Revision(), cloud)
}

// sameHistory looks, after a stream broke while the link stayed, whether the cloud
// has been restored meanwhile: an API server takes a watch from a revision that it
// has not reached, and says nothing until it has. One look serves all views.
func (v *view) sameHistory(ctx context.Context, c credential) error {
	vs := v.vs
	vs.mu.Lock()
	known := !vs.checked.Before(v.brokeAt)
	vs.mu.Unlock()
	if known {
		return nil
	}
	reached := uint64(0)
	for _, other := range vs.all() {
		other.mu.Lock()
		reached = max(reached, other.rv)
		other.mu.Unlock()
	}
	now := time.Now()
	revision, err := vs.revision(ctx, c.caller, v.q)
	if err != nil {
		return err
	}
	if revision < reached {
		v.log.Warn("the cloud's revision went back: it has been restored from a backup", "was", reached, "is", revision)
		vs.newPeriod()
		return errAway
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if now.After(vs.checked) {
		vs.checked = now
	}
	return nil
}

// startOver begins a new history, in which the cloud is at revision: no stored
// resourceVersion is known any more, so that whatever comes replaces what is
// stored, and each view is listed anew and its watches end with a 410, once. What
// is stored stays, for an outage that begins now. Done again after a crash in
// the middle.
func (vs *Views) startOver(err error) error {
	var restored *RestoredError
	revision := uint64(0)
	if errors.As(err, &restored) {
		revision = restored.Revision
	}
	all := vs.all()
	for _, v := range all {
		v.mu.Lock()
		v.restored, v.rv, v.localRV, v.localShown, v.ahead = true, 0, 0, nil, nil
		v.storedRV = 0
		v.forgetEvents(^uint64(0))
		v.mu.Unlock()
	}
	stored, err := vs.st.Views("", "")
	if err != nil {
		return fmt.Errorf("reading the views: %w", err)
	}
	done := map[store.Key]bool{}
	for _, s := range stored {
		if err := vs.unknow(s, done); err != nil {
			return fmt.Errorf("making the stored resourceVersions unknown: %w", err)
		}
	}
	b := &store.Batch{}
	b.ResetRevision(revision)
	if err := vs.st.Apply(b, store.Durable); err != nil {
		return fmt.Errorf("noting the cloud's new revision: %w", err)
	}
	vs.localMu.Lock()
	vs.localTop = 0 // none has been made in this history
	vs.localMu.Unlock()
	vs.writeMu.Lock()
	clear(vs.former)
	vs.formers, vs.forgot = 0, false
	vs.writeMu.Unlock()
	for _, v := range all {
		v.mu.Lock()
		v.suspectFrom, v.suspectTo = 0, 0
		v.mu.Unlock()
	}
	return nil
}

// unknow makes a view and its members have resourceVersion 0.
func (vs *Views) unknow(s store.View, done map[store.Key]bool) error {
	members, err := vs.st.Versions(s.Query)
	if err != nil {
		// Damaged: it is replaced as a whole.
		vs.log.Warn("a stored view is damaged and will be listed again", "view", s.Query.String(), "error", err)
	}
	vs.writeMu.Lock()
	defer vs.writeMu.Unlock()
	b, size := &store.Batch{}, 0
	for k, rv := range members {
		if done[k] || rv == 0 {
			continue
		}
		done[k] = true
		o, ok, err := vs.st.Get(k)
		if err != nil || !ok {
			continue // reported where it is read
		}
		o.ResourceVersion = 0
		b.Put(o)
		if size += len(o.Data); b.Len() >= batchItems || size >= batchBytes {
			if err := vs.st.Apply(b, store.Soon); err != nil {
				return err
			}
			b, size = &store.Batch{}, 0
		}
	}
	s.ResourceVersion = 0
	b.SetView(s)
	return vs.st.Apply(b, store.Soon)
}
