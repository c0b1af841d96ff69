package views

import (
	"errors"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// unwritten is what the store could not take: the disk is full, or broken.
// Watchers get their events all the same. Until the store takes them, the newest
// states lie here and cover the stored ones; the stored view keeps its older
// resourceVersion, so that a restart begins there. When they become too many,
// the view is lost: watches go on, lists are refused rather than shortened, and
// it is listed again when the store can write.
type unwritten struct {
	objects map[store.Key]*store.Object // nil: deleted
	bytes   int64
	lost    bool
	retry   time.Time
	err     error
}

const (
	maxUnwritten   = 1 << 20
	unwrittenRetry = 5 * time.Second
)

var errLost = errors.New("the store cannot keep what arrives")

func (u *unwritten) degraded() bool { return u.objects != nil || u.lost }

// put adds a state that was not written.
func (u *unwritten) put(k store.Key, o *store.Object) {
	if u.lost {
		return
	}
	if u.objects == nil {
		u.objects = map[store.Key]*store.Object{}
	}
	if old, ok := u.objects[k]; ok && old != nil {
		u.bytes -= int64(len(old.Data))
	} else if !ok {
		u.bytes += 300
	}
	if o != nil {
		u.bytes += int64(len(o.Data))
	}
	u.objects[k] = o
	if u.bytes > maxUnwritten {
		u.objects, u.bytes, u.lost = nil, 0, true
	}
}

// degrade notes that a batch was refused: mu is held.
func (v *view) degrade(err error) {
	if v.unwritten.err == nil {
		v.log.Error("the store does not take what the cloud sends; going on from memory", "error", err)
	}
	v.unwritten.err = err
	v.unwritten.retry = time.Now().Add(unwrittenRetry)
	v.vs.m.unwritten.Inc()
}

// writable says whether to try the store; it adds to the batch what was refused
// before. mu is held.
func (v *view) writable(b *store.Batch) bool {
	u := &v.unwritten
	if !u.degraded() {
		return true
	}
	if time.Now().Before(u.retry) {
		return false
	}
	for k, o := range u.objects {
		if o == nil {
			b.Leave(v.q, k)
			continue
		}
		if stored, ok, err := v.vs.st.Get(k); err != nil || !ok || stored.ResourceVersion < o.ResourceVersion {
			b.Put(*o)
		}
		b.Join(v.q, k)
	}
	return true
}

// written notes that the store took a batch which writable has seen: mu is held.
func (v *view) written() {
	u := &v.unwritten
	if !u.degraded() {
		return
	}
	if u.err != nil {
		v.log.Info("the store takes what the cloud sends again")
	}
	v.unwritten = unwritten{lost: u.lost}
	if u.lost {
		v.listAgain() // what was not kept has to be fetched
	}
}

// flush tries to write what was refused.
func (v *view) flush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.unwritten.degraded() || v.listing {
		return
	}
	v.vs.writeMu.Lock()
	defer v.vs.writeMu.Unlock()
	b := &store.Batch{}
	v.describe(b)
	if !v.writable(b) {
		return
	}
	if err := v.vs.st.Apply(b, store.Soon); err != nil {
		v.degrade(err)
		return
	}
	v.written()
}
