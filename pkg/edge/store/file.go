package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// openFile examines the database, salvages it if it must be, and opens it.
// stumbled is what bbolt has complained of.
func (s *Store) openFile(stumbled []string) (*finding, error) {
	found, err := s.examine(s.o.Path)
	if err != nil {
		return nil, err
	}
	if !s.o.ReadOnly {
		for _, unfinished := range []string{".salvage", ".compact"} {
			_ = os.Remove(s.o.Path + unfinished)
		}
	}
	if !found.new {
		found.fatal = append(found.fatal, stumbled...)
	}
	if s.o.ReadOnly {
		switch {
		case found.new:
			return nil, fs.ErrNotExist
		case len(found.fatal) > 0:
			return nil, fmt.Errorf("%w: %q; opening it for writing (skerry-agent does) salvages what can be read", ErrDamaged, found.fatal)
		}
	}
	repair := len(found.lost) > 0 || len(found.hurt) > 0
	if len(found.notes) > 0 {
		s.problems.add("meta", fmt.Sprintf("the store file has damage: %q", found.notes))
	}
	if len(found.lost) > 0 {
		s.problems.add("lost", fmt.Sprintf("the store has lost records: %q", found.lost))
	}
	if len(found.fatal) > 0 {
		if err := s.salvage(s.o.Path, found.fatal); err != nil {
			return nil, err
		}
		if found, err = s.examine(s.o.Path); err != nil {
			return nil, err
		}
		if len(found.fatal) > 0 {
			return nil, fmt.Errorf("%w after salvaging: %q", ErrDamaged, found.fatal)
		}
		repair = true
	}
	s.space.allocated = 0
	err = guarded(func() error {
		db, err := bolt.Open(s.o.Path, 0o600, s.boltOptions())
		if err != nil {
			return err
		}
		s.db = db
		if !s.o.ReadOnly {
			if err := s.file.Chmod(0o600); err != nil {
				return err
			}
			if err := s.prepare(db); err != nil {
				return err
			}
		}
		if err := migrate(db, migrations, schemaVersion, s.o.ReadOnly); err != nil {
			return err
		}
		return s.identify()
	})
	if err != nil {
		s.closeDB()
		return nil, err
	}
	if !repair && s.ident.keyCheck == s.seal.check {
		return nil, nil
	}
	return found, nil
}

// closeDB closes the database however damaged.
func (s *Store) closeDB() {
	if db := s.db; db != nil {
		s.db = nil
		_ = guarded(db.Close)
	}
}

// prepare makes the tables of a new file.
func (s *Store) prepare(db *bolt.DB) error {
	made := false
	err := db.View(func(tx *bolt.Tx) error {
		made = tx.Bucket([]byte(bucketNames[bMeta])) != nil
		return nil
	})
	if made || err != nil {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range bucketNames {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		id := identity{keyCheck: s.seal.check}
		_, _ = rand.Read(id.id[:])
		meta := tx.Bucket([]byte(bucketNames[bMeta]))
		return errors.Join(
			meta.Put(schemaKey, appendSchema(schemaVersion)),
			meta.Put(identityKey, id.append()),
			meta.Put(stateKey, new(state).append()),
			meta.Put(markKey, mark{nonce: random64()}.append(tx.ID())),
		)
	})
}

func (s *Store) identify() error {
	return s.db.View(func(tx *bolt.Tx) (err error) {
		meta := tx.Bucket([]byte(bucketNames[bMeta]))
		if meta == nil {
			return fmt.Errorf("%w: no meta table", ErrDamaged)
		}
		if s.ident, err = decodeIdentity(meta.Get(identityKey)); err != nil {
			return err
		}
		s.committed, _, err = decodeMark(meta.Get(markKey))
		return err
	})
}

// replay reads the journal into the active generation.
func (s *Store) replay() error {
	s.active = newGeneration(s.committed.gen+1, s.committed.nonce)
	if s.o.JournalPath == "" {
		return nil
	}
	keep, err := s.readJournal()
	if err != nil {
		aside := s.o.JournalPath + ".refused"
		s.problems.add("replay", fmt.Sprintf("the journal is not replayed, and kept as %s: %v", aside, err))
		if !s.o.ReadOnly {
			_ = os.Rename(s.o.JournalPath, aside)
		}
		s.active = newGeneration(s.committed.gen+1, s.committed.nonce)
		keep = 0
	}
	if s.o.ReadOnly {
		return nil
	}
	s.journal, err = openJournal(s.o.JournalPath, s.ident.id, keep)
	return err
}

func (s *Store) readJournal() (keep int64, err error) {
	f, err := os.OpenFile(s.o.JournalPath, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	last := s.committed
	return readJournal(f, s.ident.id, func(fr frame) error {
		if fr.mark.gen <= s.committed.gen {
			return nil // in the file already
		}
		if fr.mark != last {
			if fr.mark.gen != last.gen+1 || fr.base != last.nonce {
				return fmt.Errorf("it continues commit %d, the file ends with %d", fr.mark.gen-1, last.gen)
			}
			last = fr.mark
			s.active.mark, s.active.base = fr.mark, fr.base
		}
		s.active.layer.merge(fr.changes)
		s.active.soon = true
		s.active.started = time.Now()
		return nil
	})
}

// load fills what is kept in memory from file and journal.
func (s *Store) load() error {
	return s.with(func(r *reader) error {
		raw := r.get(bMeta, stateKey)
		st, err := decodeState(raw)
		if err != nil {
			return err
		}
		s.st = st
		clear(s.views)
		clear(s.entries)
		clear(s.dangling)
		err = r.each(bViews, nil, nil, func(k, v []byte) (bool, error) {
			rec, err := decodeView(k, v)
			if err != nil {
				s.note(bViews, k)
				return true, nil
			}
			s.views[rec.Query] = rec
			return true, nil
		})
		if err != nil {
			return err
		}
		err = r.each(bOutbox, nil, nil, func(k, v []byte) (bool, error) {
			e, _, err := decodeEntry(k, v)
			if err != nil {
				s.note(bOutbox, k)
				return true, nil
			}
			s.entries[entryName{key: e.Key, op: e.Op}] = e.Seq
			return true, nil
		})
		if err != nil {
			return err
		}
		return r.each(bQuarantine, nil, nil, func(k, _ []byte) (bool, error) {
			if object, ok := quarantinedObject(k); ok && r.any(bRefs, object) {
				s.dangling[string(object)] = true
			}
			return true, nil
		})
	})
}

// settle does what is left to do when the store has been opened.
func (s *Store) settle(found *finding) error {
	if found != nil {
		if err := s.repair(found); err != nil {
			return err
		}
		if s.ident.keyCheck != s.seal.check {
			s.problems.add("key", "the store was sealed with another key: the secrets and tokens in it are lost")
			s.ident.keyCheck = s.seal.check
			s.active.layer.put(bMeta, string(identityKey), s.ident.append())
			s.active.soon = true
		}
	}
	s.space.measure(s.db)
	s.forget()
	return s.sweep()
}

// sweep removes every object that is in no view; it runs when nobody can be
// about to join one.
func (s *Store) sweep() error {
	var loose []string
	err := s.with(func(r *reader) error {
		return r.each(bObjects, nil, nil, func(k, _ []byte) (bool, error) {
			if !r.any(bRefs, k) {
				loose = append(loose, string(k))
			}
			return true, nil
		})
	})
	for _, k := range loose {
		s.orphans[k] = time.Unix(0, 0)
	}
	s.collect(time.Now())
	return err
}

// collect removes the objects that have been in no view since before. Those
// with an unsent write stay: the write is about them. The caller holds mu.
func (s *Store) collect(before time.Time) {
	if len(s.orphans) == 0 {
		return
	}
	pending := map[Key]bool{}
	for n := range s.entries {
		pending[n.key] = true
	}
	err := s.with(func(r *reader) error {
		t := s.begin(r)
		for key, since := range s.orphans {
			if since.After(before) {
				continue
			}
			if k, err := parseKey([]byte(key)); err == nil && pending[k] {
				continue
			}
			delete(s.orphans, key)
			if !r.any(bRefs, []byte(key)) {
				t.removeObject([]byte(key))
			}
		}
		if t.staged.ops > 0 {
			s.accept(t, Lazy)
		}
		return nil
	})
	if err != nil {
		s.problems.add("collect", fmt.Sprintf("objects in no view cannot be removed: %v", err))
	}
}

// forget gives the pages of the file that are mapped into this process back.
// They are the page cache's and stay there, but count as memory of the process
// for as long as they are mapped.
func (s *Store) forget() {
	info, err := s.file.Stat()
	if err == nil && info.Size() > 0 {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(info.Size()), unix.MADV_DONTNEED)
	}
}

// reopen opens the file again after bbolt has failed on it; what is applied and
// not committed stays. If bbolt has stumbled over its pages they are written anew,
// if records are missing it is found out which. The caller holds mu.
func (s *Store) reopen(why error) error {
	for s.frozen != nil {
		s.room.Wait() // a commit works on the file
	}
	if time.Since(s.unopened) < reopenPause {
		return errors.New("it could not be opened a moment ago")
	}
	err := s.reopenNow(why)
	if err != nil {
		s.unopened = time.Now()
	}
	return err
}

func (s *Store) reopenNow(why error) error {
	s.closeDB()
	gap := errors.Is(why, errGap)
	var stumbled []string
	if errors.Is(why, errBolt) && !gap {
		stumbled = []string{why.Error()}
	}
	found, err := s.openFile(stumbled)
	if err != nil {
		return err
	}
	// What is pending continues whatever the file ends with now.
	s.active.mark = mark{gen: s.committed.gen + 1, nonce: random64()}
	s.active.base = s.committed.nonce
	if s.journal != nil {
		err := s.journal.rewrite(s.ident.id, frame{mark: s.active.mark, base: s.active.base, changes: &s.active.layer})
		if err != nil {
			s.torn, s.active.now = true, true
		}
	}
	if err := s.load(); err != nil {
		return err
	}
	if found == nil && gap {
		found = &finding{}
	}
	if found != nil {
		return s.settle(found)
	}
	s.space.measure(s.db)
	return nil
}

// reopenPause keeps a file that cannot be opened from being tried at each read.
const reopenPause = time.Second
