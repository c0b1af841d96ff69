package store

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// generation is what one commit writes.
type generation struct {
	layer   layer
	mark    mark
	base    uint64 // nonce of the commit before
	started time.Time
	soon    bool // has changes that must not wait for LazyInterval
	now     bool // has changes that somebody waits for
	waiters []*waiter
	done    chan struct{}
	err     error
	with    []*generation // earlier ones that are tried again as a part of this
}

// finish tells everybody who waits.
func (g *generation) finish(err error) {
	g.err = err
	close(g.done)
	for _, w := range g.with {
		w.finish(err)
	}
}

// waiter is a Durable batch. If its commit fails it is taken back.
type waiter struct {
	before, after layer // the records that it changed
}

func newGeneration(gen, base uint64) *generation {
	return &generation{mark: mark{gen: gen, nonce: random64()}, base: base, done: make(chan struct{})}
}

func random64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (g *generation) empty() bool { return g.layer.ops == 0 }

func (g *generation) over(bytes int64, ops int) bool {
	return g.layer.bytes > bytes || g.layer.ops > ops
}

// due is when the generation is to be committed; zero means not at all.
func (g *generation) due(o Options) time.Time {
	switch {
	case g.empty() && !g.now:
		return time.Time{}
	case g.now || g.over(maxPendingBytes, maxPendingOps):
		return time.Unix(0, 0) // at once
	case g.soon:
		return g.started.Add(o.CommitInterval)
	default:
		return g.started.Add(o.LazyInterval)
	}
}

func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// commits runs until the store is closed. It is the only writer of the file.
func (s *Store) commits() {
	defer close(s.stopped)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	backoff := time.Duration(0)
	var retry time.Time
	collect := time.Now().Add(orphanAge)
	for {
		s.mu.Lock()
		closed, due, now := s.closed, s.active.due(s.o), s.active.now
		if time.Now().After(collect) {
			s.collect(time.Now().Add(-orphanAge))
			collect = time.Now().Add(orphanAge)
		}
		s.mu.Unlock()
		if closed {
			return
		}
		if !now && due.Before(retry) && !due.IsZero() {
			due = retry
		}
		wait := time.Until(collect)
		if !due.IsZero() {
			wait = min(wait, time.Until(due))
			if wait <= 0 || now {
				if err := s.commit(); err != nil {
					backoff = min(max(2*backoff, time.Second), 30*time.Second)
					retry = time.Now().Add(backoff)
				} else {
					backoff, retry = 0, time.Time{}
				}
				continue
			}
		}
		timer.Reset(max(wait, 0))
		select {
		case <-timer.C:
		case <-s.kick:
		}
	}
}

// commit writes the active generation to the file.
func (s *Store) commit() error {
	s.mu.Lock()
	g := s.active
	if g.empty() {
		// Everything is in the file already.
		s.active = newGeneration(g.mark.gen, g.base)
		s.mu.Unlock()
		g.finish(nil)
		return nil
	}
	s.frozen = g
	s.active = newGeneration(g.mark.gen+1, g.mark.nonce)
	offset := int64(0)
	if s.journal != nil {
		offset = s.journal.size
	}
	db := s.db
	s.mu.Unlock()

	s.writing.Lock()
	wrote, err := writeLayer(db, &g.layer, g.mark)
	s.writing.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.room.Broadcast()
	if err != nil {
		s.failed(g, err)
		return err
	}
	s.frozen = nil
	s.space.failing, s.space.noSpace = false, false
	s.committed = g.mark
	s.space.written += wrote
	s.space.commits++
	s.space.measure(s.db)
	if time.Since(s.forgotten) > time.Minute {
		s.forgotten = time.Now()
		s.forget()
	}
	if s.journal != nil {
		s.trimJournal(offset)
	}
	s.problems.clear("commit")
	g.finish(nil)
	return nil
}

func (s *Store) trimJournal(offset int64) {
	if s.torn && !s.active.empty() {
		return // the rest is whole only after the next commit
	}
	if err := s.journal.dropBefore(offset); err != nil {
		s.problems.add("journal", fmt.Sprintf("the journal cannot be written, every change is written to the disk at once: %v", err))
		s.torn = true
		return
	}
	s.torn = false
	s.problems.clear("journal")
}

// shrinkJournal replaces what has been overwritten many times by what it is now:
// heartbeats that wait a minute for a commit must not fill the tmpfs.
func (s *Store) shrinkJournal() {
	if s.journal == nil || s.torn || s.frozen != nil || s.journal.size <= maxJournalBytes {
		return
	}
	g := s.active
	if err := s.journal.rewrite(s.ident.id, frame{mark: g.mark, base: g.base, changes: &g.layer}); err != nil {
		s.torn, g.now = true, true
		s.wake()
	}
}

// failed puts a generation that could not be written back under what has been
// applied since, and takes its Durable batches back: their callers are told.
func (s *Store) failed(g *generation, err error) {
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	s.space.failing, s.space.noSpace = true, full
	s.problems.add("commit", fmt.Sprintf("changes cannot be written to the disk, they are kept in memory: %v", err))
	next := s.active
	merged := newGeneration(next.mark.gen, next.base)
	merged.mark = next.mark
	merged.layer = g.layer
	merged.layer.merge(&next.layer)
	merged.started, merged.soon, merged.now = g.started, g.soon || next.soon, next.now
	merged.waiters, merged.done = next.waiters, next.done
	s.active, s.frozen = merged, nil
	// A commit that failed half-way leaves bbolt unsure of its pages, and a
	// damaged page fails every commit: start again from the file.
	rerr := s.reopen(err)
	if rerr != nil {
		s.problems.add("reopen", fmt.Sprintf("the store cannot be opened again: %v", rerr))
	}
	if rerr == nil && errors.Is(err, errBolt) && len(g.with) == 0 {
		// The damage is repaired: once more.
		merged.waiters = append(slices.Clone(g.waiters), merged.waiters...)
		merged.with = append(slices.Clone(next.with), g)
		merged.now = true
		return
	}
	for i := len(g.waiters) - 1; i >= 0; i-- {
		s.takeBack(g.waiters[i])
	}
	if full {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	g.finish(fmt.Errorf("committing: %w", err))
}

// takeBack undoes a Durable batch, unless something later has built on it.
func (s *Store) takeBack(w *waiter) {
	if w.after.ops == 0 {
		return
	}
	_ = s.with(func(r *reader) error {
		same := true
		_ = w.after.each(func(b bucket, key string, value []byte) error {
			now := r.get(b, []byte(key))
			if (now == nil) != (value == nil) || !bytes.Equal(now, value) {
				same = false
			}
			return nil
		})
		if !same {
			return nil
		}
		t := s.begin(r)
		_ = w.before.each(func(b bucket, key string, value []byte) error {
			t.set(b, []byte(key), value)
			return nil
		})
		s.accept(t, Soon)
		return nil
	})
}

// errBolt wraps a panic inside bbolt: the file's pages make no sense.
var errBolt = errors.New("the database file is damaged")

// guarded runs fn, turning panics and memory faults (a page that the disk
// cannot deliver) into errBolt.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errBolt, p)
		}
	}()
	return fn()
}

// writeLayer writes changes in one transaction, and returns how many bytes went
// to the disk: every page that the transaction allocated, and the meta page.
func writeLayer(db *bolt.DB, l *layer, m mark) (wrote int64, err error) {
	err = guarded(func() error {
		tx, err := db.Begin(true)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		var table *bolt.Bucket
		last := nBuckets
		err = l.each(func(b bucket, key string, value []byte) error {
			if b != last {
				if table = tx.Bucket([]byte(bucketNames[b])); table == nil {
					return fmt.Errorf("%w: the table %s is missing", errBolt, b)
				}
				last = b
			}
			var err error
			if value == nil {
				err = table.Delete([]byte(key))
			} else {
				err = table.Put([]byte(key), value)
			}
			if err != nil {
				// The disk is not written yet: the pages are wrong.
				return fmt.Errorf("%w: %s: %w", errBolt, b, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		meta := tx.Bucket([]byte(bucketNames[bMeta]))
		if meta == nil {
			return fmt.Errorf("%w: the table meta is missing", errBolt)
		}
		if err := meta.Put(markKey, m.append(tx.ID())); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		stats := tx.Stats()
		wrote = stats.GetPageAlloc() + int64(db.Info().PageSize)
		return nil
	})
	return wrote, err
}
