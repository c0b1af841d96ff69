package store

import (
	"errors"
	"fmt"
	"time"
)

// txn is a batch being applied: its changes lie in a layer of their own until
// all of it is known to work.
type txn struct {
	s      *Store
	r      reader // staged is its first layer
	staged *layer
	st     state
	growth int64
	views  map[Query]*viewRecord // changed ones; nil: deleted
	joined [][]byte              // object keys that must exist at the end
	loose  [][]byte              // objects that may be in no view
	reset  bool                  // the revision may have gone back
}

// with calls fn with a reader of the present state. The caller holds mu.
func (s *Store) with(fn func(r *reader) error) error {
	return guarded(func() error {
		tx, err := s.db.Begin(false)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		r := &reader{tx: tx, layers: []*layer{&s.active.layer}}
		if s.frozen != nil {
			r.layers = append(r.layers, &s.frozen.layer)
		}
		return fn(r)
	})
}

func (s *Store) begin(r *reader) *txn {
	t := &txn{s: s, staged: &layer{}, st: s.st, views: map[Query]*viewRecord{}}
	t.r = reader{tx: r.tx, layers: append([]*layer{t.staged}, r.layers...)}
	return t
}

// set changes one record, and keeps the account of its table.
func (t *txn) set(b bucket, key, value []byte) {
	if b == bMeta {
		return
	}
	old := t.r.get(b, key)
	switch {
	case old == nil && value != nil:
		t.st.sets[b].add(key, value)
		t.growth += int64(len(key))
	case old != nil && value == nil:
		t.st.sets[b].remove(key, old)
		t.growth -= int64(len(key))
	case old == nil:
		return
	default:
		t.st.sets[b].remove(key, old)
		t.st.sets[b].add(key, value)
	}
	t.growth += int64(len(value) - len(old))
	if b == bViews {
		if q, err := parseQuery(key); err == nil {
			t.views[q] = nil
			if value != nil {
				if v, err := decodeView(key, value); err == nil {
					t.views[q] = v
				}
			}
		}
	}
	t.staged.set(b, string(key), value)
}

// Apply makes the changes of a batch, visible to readers when it returns.
// ErrFull: nothing was changed. Errors about the batch itself (a view that does
// not exist, an impossible name) change nothing either.
func (s *Store) Apply(b *Batch, d Durability) error {
	if s.o.ReadOnly {
		return errors.New("applying changes: the store is open for reading only")
	}
	if len(b.ops) == 0 && d != Durable {
		return nil
	}
	g, err := s.apply(b, d)
	if err != nil {
		return fmt.Errorf("applying changes: %w", err)
	}
	if g == nil {
		return nil
	}
	<-g.done
	return g.err
}

func (s *Store) apply(b *Batch, d Durability) (*generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closed && s.frozen != nil && s.active.over(hardPendingBytes, hardPendingOps) {
		s.room.Wait()
	}
	if s.closed {
		return nil, ErrClosed
	}
	g, err := s.applyLocked(b, d)
	if errors.Is(err, errBolt) {
		s.problems.add("bolt", err.Error())
		if rerr := s.reopen(err); rerr != nil {
			return nil, errors.Join(err, rerr)
		}
		g, err = s.applyLocked(b, d)
	}
	return g, err
}

func (s *Store) applyLocked(b *Batch, d Durability) (g *generation, err error) {
	err = s.with(func(r *reader) error {
		t := s.begin(r)
		for i := range b.ops {
			if err := t.do(&b.ops[i]); err != nil {
				return err
			}
		}
		for _, k := range t.joined {
			if t.r.get(bObjects, k) == nil && t.r.any(bRefs, k) {
				return fmt.Errorf("the object %q is joined to a view and not in the store", k)
			}
		}
		ops := s.active.layer.ops + t.staged.ops
		err := s.space.admit(s.file, int64(s.db.Info().PageSize), t.growth, s.pendingBytes(), ops)
		if err != nil {
			s.problems.add("full", err.Error())
			return err
		}
		if !s.space.full {
			s.problems.clear("full")
		}
		g = s.accept(t, d)
		return nil
	})
	return g, err
}

// accept makes a transaction part of the active generation, and returns that if
// the caller has to wait for its commit.
func (s *Store) accept(t *txn, d Durability) *generation {
	g := s.active
	if t.staged.ops > 0 {
		s.saveForSnapshots(&reader{tx: t.r.tx, layers: t.r.layers[1:]}, t.staged)
	}
	var w *waiter
	if d == Durable {
		w = &waiter{}
		below := reader{tx: t.r.tx, layers: t.r.layers[1:]}
		_ = t.staged.each(func(b bucket, key string, value []byte) error {
			old := below.get(b, []byte(key))
			if old != nil {
				old = append([]byte{}, old...)
			}
			w.before.set(b, key, old)
			w.after.set(b, key, value)
			return nil
		})
	}
	if t.reset {
		s.floor = 0
	}
	if t.staged.ops > 0 || t.st != s.st {
		t.staged.put(bMeta, string(stateKey), t.st.append())
		if s.journal != nil && !s.torn {
			if err := s.journal.append(frame{mark: g.mark, base: g.base, changes: t.staged}); err != nil {
				s.problems.add("journal", fmt.Sprintf("the journal cannot be written, every change is written to the disk at once: %v", err))
				s.torn = true
			}
		}
		if g.empty() && !g.now {
			g.started = time.Now()
		}
		g.layer.merge(t.staged)
		s.shrinkJournal()
		s.st = t.st
		s.index(t)
	}
	if s.torn && d == Soon {
		d = Durable
	}
	switch {
	case d == Durable:
		if w != nil {
			g.waiters = append(g.waiters, w)
		} else {
			g.waiters = append(g.waiters, &waiter{})
		}
		g.now = true
		s.wake()
		return g
	case d == Soon && !g.soon:
		g.soon = true
		s.wake()
	case g.over(maxPendingBytes, maxPendingOps), g.layer.ops == t.staged.ops:
		s.wake()
	}
	return nil
}

// index brings what is kept in memory up to date.
func (s *Store) index(t *txn) {
	for q, v := range t.views {
		if v == nil {
			delete(s.views, q)
		} else {
			s.views[q] = v
		}
	}
	for _, k := range t.loose {
		if t.r.get(bObjects, k) != nil && !t.r.any(bRefs, k) {
			if _, known := s.orphans[string(k)]; !known {
				s.orphans[string(k)] = time.Now()
			}
		}
	}
	for key, value := range t.staged.tables[bQuarantine].values {
		if object, ok := quarantinedObject([]byte(key)); ok {
			if value != nil && t.r.any(bRefs, object) {
				s.dangling[string(object)] = true
			} else {
				delete(s.dangling, string(object))
			}
		}
	}
	for key, value := range t.staged.tables[bOutbox].values {
		if value != nil {
			if e, _, err := decodeEntry([]byte(key), value); err == nil {
				n := entryName{key: e.Key, op: e.Op}
				s.entries[n] = max(s.entries[n], e.Seq)
			}
			continue
		}
		s.dropEntry(t, key)
	}
}

// dropEntry forgets a deleted entry; an older one of the same name takes its
// place.
func (s *Store) dropEntry(t *txn, key string) {
	for n, seq := range s.entries {
		if string(seqKey(seq)) != key {
			continue
		}
		delete(s.entries, n)
		_ = t.r.each(bOutbox, nil, nil, func(k, v []byte) (bool, error) {
			if e, _, err := decodeEntry(k, v); err == nil && e.Key == n.key && e.Op == n.op {
				s.entries[n] = e.Seq
			}
			return true, nil
		})
		return
	}
}
