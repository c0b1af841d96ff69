package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"skerry.dev/skerry/pkg/edge/store/boltfile"
)

// finding is what a look at a file showed.
type finding struct {
	new     bool         // there is no file, or an empty one
	notes   []string     // of damage that changes nothing
	fatal   []string     // of pages that bbolt must not see
	hurt    []hurtRecord // records that fail their checks
	lost    []string     // tables that do not have the keys that they should have
	members map[viewID]set
	views   map[viewID]viewRecord

	sets        [nBuckets]set
	quarantined []hurtRecord
}

// examine looks at a file before bbolt may: the pages, every record, the
// fingerprints. It reads the whole file once, which also warms the page cache
// for bbolt's own walk.
func (s *Store) examine(path string) (*finding, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &finding{new: true}, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return &finding{new: true}, nil
	}
	found := &finding{members: map[viewID]set{}, views: map[viewID]viewRecord{}}
	file := boltfile.New(f, info.Size())
	metas, wrong := file.Metas()
	for _, w := range wrong {
		found.notes = append(found.notes, w.Error()+"; the store may lack its last commit")
	}
	if len(metas) == 0 {
		found.fatal = append(found.fatal, "no meta page is valid")
		return found, nil
	}
	if metas[0].Repaired {
		found.fatal = append(found.fatal, "the meta page is damaged")
	}
	tables := map[string]bucket{}
	for i, name := range bucketNames {
		tables[name] = bucket(i)
	}
	sets := &found.sets
	var st *state
	records := map[string]bool{}
	names := file.Walk(metas[0], func(name string, key, value []byte) {
		b, known := tables[name]
		if !known {
			return
		}
		sets[b].add(key, value)
		if b != bQuarantine && !s.sound(b, key, value) {
			found.hurt = append(found.hurt, hurtRecord{b, string(key)})
			return
		}
		switch b {
		case bQuarantine:
			if len(key) > 1 {
				found.quarantined = append(found.quarantined, hurtRecord{bucket(key[0]), string(key[1:])})
			}
		case bMeta:
			records[string(key)] = true
			if string(key) == string(markKey) {
				if _, tx, err := decodeMark(value); err == nil && tx != 0 && tx != metas[0].Tx {
					found.lost = append(found.lost, fmt.Sprintf("the writes of transactions %d to %d", tx+1, metas[0].Tx))
				}
			}
			if string(key) == string(stateKey) {
				if decoded, err := decodeState(value); err == nil {
					st = &decoded
				}
			}
		case bViews:
			if v, err := decodeView(key, value); err == nil {
				found.views[v.id] = *v
			}
		case bMembers:
			if len(key) > 4 {
				m := found.members[idOf(key)]
				m.add(key[4:], nil)
				found.members[idOf(key)] = m
			}
		}
	}, func(_ string, err error) { found.fatal = append(found.fatal, err.Error()) })
	if len(names) == 0 && len(found.fatal) == 0 && metas[0].Tx <= 1 {
		found.new = true // the power went between making the file and its tables
		return found, nil
	}
	for name := range tables {
		if !slices.Contains(names, name) {
			found.fatal = append(found.fatal, "the table "+name+" is missing")
		}
	}
	for _, key := range [][]byte{schemaKey, identityKey, stateKey, markKey} {
		if !records[string(key)] {
			found.fatal = append(found.fatal, fmt.Sprintf("the record %s is missing or damaged", key))
		}
	}
	if st != nil {
		for b := bObjects; b < nBuckets; b++ {
			if sets[b] != st.sets[b] {
				found.lost = append(found.lost, fmt.Sprintf("%s: %d of %d records are there", b, sets[b].count, st.sets[b].count))
			}
		}
	}
	for id, v := range found.views {
		if found.members[id] != v.members {
			found.lost = append(found.lost, fmt.Sprintf("%d of %d members of %s are there", found.members[id].count, v.members.count, v.Query))
		}
	}
	slices.Sort(found.lost)
	return found, nil
}

// keepDamaged is how many damaged files stay for somebody who wants to look.
const keepDamaged = 2

// salvage writes what can be read of the damaged file at path into a new one,
// which takes its place at once; the damaged one is set aside. Unsent writes and
// sealed values that cannot be read are looked for in the state before the last
// commit.
func (s *Store) salvage(path string, why []string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	tmp := path + ".salvage"
	// A copy of a copy: the older ones go first when there is no room.
	saved, err := s.rescue(boltfile.New(in, info.Size()), tmp)
	if err != nil {
		_ = s.dropDamaged(0)
		if saved, err = s.rescue(boltfile.New(in, info.Size()), tmp); err != nil {
			_ = os.Remove(tmp)
			return fmt.Errorf("salvaging: %w", err)
		}
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405"))
	_ = os.Remove(aside)
	if err := os.Link(path, aside); err != nil {
		// No links here: there is a moment without a file, and a crash in it
		// leaves both files but a store that starts empty.
		if err := os.Rename(path, aside); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	_ = s.dropDamaged(keepDamaged)
	shown := why
	if len(shown) > 5 {
		shown = append(slices.Clone(shown[:5]), fmt.Sprintf("and %d more", len(why)-5))
	}
	s.problems.add("salvage", fmt.Sprintf("the store was damaged (%q); %d records were salvaged, the damaged file is %s", shown, saved, aside))
	return nil
}

// dropDamaged removes all but the newest damaged files.
func (s *Store) dropDamaged(keep int) error {
	old, err := filepath.Glob(s.o.Path + ".damaged-*")
	if err != nil {
		return err
	}
	slices.Sort(old)
	for len(old) > keep {
		err = errors.Join(err, os.Remove(old[0]))
		old = old[1:]
	}
	return err
}

// rescue copies records to a new database at tmp, unsent writes and secrets
// first.
func (s *Store) rescue(in *boltfile.File, tmp string) (int, error) {
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	out, err := bolt.Open(tmp, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return 0, err
	}
	defer func() { _ = out.Close() }()
	if err := s.prepare(out); err != nil {
		return 0, err
	}
	saved := 0
	incomplete := map[string]bool{}
	metas, _ := in.Metas()
	order := []bucket{bOutbox, bSecrets, bMeta, bViews, bObjects, bMembers, bRefs, bDocuments, bQuarantine}
	// What only this node knows is better old than lost. An object is not: it
	// is missed instead, and its views are not complete.
	older := []bucket{bOutbox, bSecrets, bDocuments}
	for i, m := range metas {
		var names []string
		for pass, b := range order {
			name := bucketNames[b]
			if i > 0 && (!incomplete[name] || !slices.Contains(older, b)) {
				continue
			}
			tx, err := out.Begin(true)
			if err != nil {
				return saved, err
			}
			table := tx.Bucket([]byte(name))
			var failed error
			count := 0
			found := in.Walk(m, func(of string, key, value []byte) {
				if of != name || failed != nil {
					return
				}
				if b != bQuarantine && !s.sound(b, key, value) {
					incomplete[name] = true
					return
				}
				if i > 0 && table.Get(key) != nil {
					return
				}
				if failed = table.Put(key, slices.Clone(value)); failed == nil {
					saved++
				}
				if count++; count%1000 == 0 && failed == nil {
					if failed = tx.Commit(); failed != nil {
						return
					}
					if tx, failed = out.Begin(true); failed == nil {
						table = tx.Bucket([]byte(name))
					}
				}
			}, func(of string, err error) {
				if pass > 0 || i > 0 {
					return
				}
				if of == "" {
					for _, n := range bucketNames {
						incomplete[n] = true
					}
				}
				incomplete[of] = true
			})
			if failed != nil {
				if tx != nil {
					_ = tx.Rollback()
				}
				return saved, failed
			}
			if err := tx.Commit(); err != nil {
				return saved, err
			}
			names = found
		}
		if i == 0 {
			for _, n := range bucketNames {
				if !slices.Contains(names, n) {
					incomplete[n] = true
				}
			}
		}
	}
	if err := out.Update(unmark); err != nil {
		return saved, err
	}
	return saved, out.Sync()
}
