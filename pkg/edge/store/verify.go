package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Report is what a check of the whole store found.
type Report struct {
	Path    string         `json:"path"`
	Bytes   int64          `json:"bytes"`
	Records map[string]int `json:"records"` // by table
	// Damage is everything that is wrong, records in quarantine included. Empty
	// means that all of it is whole.
	Damage []string `json:"damage"`
	// Journal says what lies in the journal, when nobody has the store open.
	Journal string `json:"journal,omitempty"`
}

// Verify reads every page and every record of the file, and compares them with
// the fingerprints of tables and views. Commits wait meanwhile, readers and
// other changes do not.
func (s *Store) Verify() (*Report, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	found, err := s.examine(s.o.Path)
	if err != nil {
		return nil, fmt.Errorf("verifying the store: %w", err)
	}
	return found.report(s.o.Path), nil
}

func (f *finding) report(path string) *Report {
	r := &Report{Path: path, Records: map[string]int{}, Damage: []string{}}
	if info, err := os.Stat(path); err == nil {
		r.Bytes = info.Size()
	}
	for b := bObjects; b < nBuckets; b++ {
		r.Records[b.String()] = int(f.sets[b].count)
	}
	r.Damage = append(append(r.Damage, f.notes...), f.fatal...)
	for _, h := range sorted(f.hurt) {
		r.Damage = append(r.Damage, "damaged: "+h.String())
	}
	for _, h := range sorted(f.quarantined) {
		r.Damage = append(r.Damage, "in quarantine: "+h.String())
	}
	for _, l := range f.lost {
		r.Damage = append(r.Damage, "lost: "+l)
	}
	return r
}

// VerifyFile is Verify for a store that no process has open. Nothing is written,
// and nothing repaired.
func VerifyFile(o Options) (*Report, error) {
	o.ReadOnly = true
	s, err := prepareFile(&o)
	if err != nil {
		return nil, fmt.Errorf("verifying the store %s: %w", o.Path, err)
	}
	defer s.unlock()
	found, err := s.examine(o.Path)
	if err != nil {
		return nil, fmt.Errorf("verifying the store %s: %w", o.Path, err)
	}
	if found.new {
		return nil, fmt.Errorf("verifying the store %s: there is none", o.Path)
	}
	report := found.report(o.Path)
	if len(found.fatal) > 0 {
		return report, nil
	}
	err = guarded(func() error {
		db, err := bolt.Open(o.Path, 0o600, s.boltOptions())
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }()
		s.db = db
		if err := s.identify(); err != nil {
			return err
		}
		return db.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				report.Damage = append(report.Damage, "bbolt: "+err.Error())
			}
			return nil
		})
	})
	if err != nil {
		report.Damage = append(report.Damage, err.Error())
		return report, nil
	}
	if s.ident.keyCheck != s.seal.check {
		report.Damage = append(report.Damage, "the store was sealed with another key")
	}
	if o.JournalPath != "" {
		s.active = newGeneration(s.committed.gen+1, s.committed.nonce)
		n, err := s.readJournal()
		switch {
		case err != nil:
			report.Journal = fmt.Sprintf("not usable: %v", err)
		case n > 0:
			report.Journal = fmt.Sprintf("%d changes that are not in the file yet", s.active.layer.ops)
		}
	}
	return report, nil
}

// prepareFile locks a store that is not going to be opened as one.
func prepareFile(o *Options) (*Store, error) {
	if o.KeyFile == "" {
		o.KeyFile = o.Path + ".key"
	}
	if o.LockTimeout <= 0 {
		o.LockTimeout = time.Second
	}
	if _, err := os.Stat(o.Path); err != nil {
		return nil, err
	}
	lock, err := lockFile(o.Path, o.ReadOnly, o.LockTimeout)
	if err != nil {
		return nil, err
	}
	s := &Store{o: *o, lock: lock, log: slog.New(slog.DiscardHandler)}
	s.problems.log = s.log
	key, _, err := loadKey(o.KeyFile, true)
	if err == nil {
		s.seal, err = newSealer(key)
	}
	if err != nil {
		s.unlock()
		return nil, err
	}
	return s, nil
}

// Compact writes the file anew without its free pages, and returns its length
// before and after. No process may have the store open: ErrHeld says who has.
func Compact(o Options) (before, after int64, err error) {
	o.ReadOnly = false
	fail := func(err error) (int64, int64, error) {
		return 0, 0, fmt.Errorf("compacting the store %s: %w", o.Path, err)
	}
	s, err := prepareFile(&o)
	if err != nil {
		return fail(err)
	}
	defer s.unlock()
	found, err := s.examine(o.Path)
	if err != nil {
		return fail(err)
	}
	if len(found.fatal) > 0 {
		return fail(fmt.Errorf("%w: %q; starting skerry-agent salvages what can be read", ErrDamaged, found.fatal))
	}
	info, err := os.Stat(o.Path)
	if err != nil {
		return fail(err)
	}
	tmp := o.Path + ".compact"
	err = guarded(func() (err error) {
		_ = os.Remove(tmp)
		src, err := bolt.Open(o.Path, 0o600, &bolt.Options{ReadOnly: true, Timeout: o.LockTimeout})
		if err != nil {
			return err
		}
		defer func() { _ = src.Close() }()
		dst, err := bolt.Open(tmp, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dst.Close()) }()
		if err := bolt.Compact(dst, src, 4<<20); err != nil {
			return err
		}
		if err := dst.Update(unmark); err != nil {
			return err
		}
		return dst.Sync()
	})
	if err == nil {
		// The copy is looked at before it takes the place of the original.
		var copied *finding
		if copied, err = s.examine(tmp); err == nil {
			copied.sets[bMeta] = found.sets[bMeta]
		}
		if err == nil && (len(copied.fatal) > 0 || copied.sets != found.sets) {
			err = fmt.Errorf("%w: the copy differs: %q", ErrDamaged, copied.fatal)
		}
	}
	if err == nil {
		err = os.Rename(tmp, o.Path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fail(err)
	}
	if err := syncDir(filepath.Dir(o.Path)); err != nil {
		return fail(err)
	}
	smaller, err := os.Stat(o.Path)
	if err != nil {
		return fail(err)
	}
	return info.Size(), smaller.Size(), nil
}
