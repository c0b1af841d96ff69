// Package store is the durable copy, on one edge node, of what the clients of
// that node need from the API server: objects, the views (queries) they are
// members of, unsent writes, sealed tokens, and documents such as discovery.
//
// It knows nothing of HTTP, selectors or the contents of objects, and must not
// learn: an object is a key, a few fields and bytes.
//
// The file is a bbolt database. What is applied lies in memory, over the file,
// until a commit writes it; a journal on a tmpfs keeps it over the end of the
// process. Every record has a checksum, every table and every view a
// fingerprint of its keys, so that what a failing disk loses is noticed, said,
// and never turned into a shorter list.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Options configure a store. The zero value of each field has a default.
type Options struct {
	Path           string        // the database file
	JournalPath    string        // on a tmpfs: what is applied and not committed; "" keeps it in memory only
	KeyFile        string        // the sealing key; made (0600) when it is missing; default: Path with the ending .key
	CommitInterval time.Duration // default 1 s
	LazyInterval   time.Duration // how long Lazy changes wait for a commit; default 1 min
	MaxBytes       int64         // of live pages in the file; default 512 MiB
	LockTimeout    time.Duration // how long to wait for another process to let go of the file; default 2 s
	ReadOnly       bool
	Logger         *slog.Logger
}

// Bounds of what waits for a commit: memory, and what a replay costs.
const (
	maxPendingBytes = 1 << 20
	maxPendingOps   = 1000
	// Apply waits for the commit that is under way when even this is passed.
	hardPendingBytes = 4 << 20
	hardPendingOps   = 20000
	maxJournalBytes  = 4 << 20
	orphanAge        = 10 * time.Minute
)

// Store is open in one process at a time. Safe for concurrent use.
type Store struct {
	o    Options
	log  *slog.Logger
	seal *sealer

	// writing is held while the file is written, or must not be.
	writing sync.Mutex

	// mu guards what follows. Apply holds it; readers share it for as long as
	// they look into layers and file, never while a caller's function runs.
	mu        sync.RWMutex
	room      sync.Cond // of mu: a commit has ended
	db        *bolt.DB
	file      *os.File // of db
	lock      *os.File
	unopened  time.Time // when the file could not be opened, last
	forgotten time.Time // mapped pages, last
	ident     identity
	committed mark
	active    *generation // what is applied and not committed
	frozen    *generation // what is being committed
	st        state
	floor     uint64 // see Raise
	views     map[Query]*viewRecord
	entries   map[entryName]uint64 // the newest of each
	dangling  map[string]bool      // keys of quarantined objects that views have as members
	orphans   map[string]time.Time // objects in no view, since when
	journal   *journal
	torn      bool // the journal lacks a batch: commit at once until it is whole again
	space     space
	closed    bool

	snapMu    sync.Mutex
	snapshots map[*snapshot]bool

	hurtMu   sync.Mutex
	hurt     map[hurtRecord]bool // damaged records that readers met
	problems problems

	kick    chan struct{}
	stopped chan struct{}
}

type entryName struct {
	key Key
	op  string
}

// ErrClosed is returned by a store that has been closed.
var ErrClosed = errors.New("the store is closed")

// Open opens the store, or makes it. A damaged file is set aside and what can be
// read of it is kept: Problems tells.
func Open(o Options) (*Store, error) {
	if o.Path == "" {
		return nil, errors.New("opening the store: no path")
	}
	if o.KeyFile == "" {
		o.KeyFile = o.Path + ".key"
	}
	if o.CommitInterval <= 0 {
		o.CommitInterval = time.Second
	}
	if o.LazyInterval <= 0 {
		o.LazyInterval = time.Minute
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 512 << 20
	}
	if o.LockTimeout <= 0 {
		o.LockTimeout = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		o: o, log: o.Logger,
		views: map[Query]*viewRecord{}, entries: map[entryName]uint64{},
		dangling: map[string]bool{}, orphans: map[string]time.Time{},
		snapshots: map[*snapshot]bool{}, hurt: map[hurtRecord]bool{},
		kick: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	s.room.L = &s.mu
	s.space.max = o.MaxBytes
	s.problems.log = o.Logger
	if !o.ReadOnly {
		if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
			return nil, fmt.Errorf("opening the store: %w", err)
		}
		if o.JournalPath != "" {
			if err := os.MkdirAll(filepath.Dir(o.JournalPath), 0o755); err != nil {
				return nil, fmt.Errorf("opening the store: %w", err)
			}
		}
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", o.Path, err)
	}
	if o.ReadOnly {
		close(s.stopped)
	} else {
		go s.commits()
	}
	return s, nil
}

func (s *Store) open() (err error) {
	// The lock comes first: a second process must not even look for damage.
	if s.lock, err = lockFile(s.o.Path, s.o.ReadOnly, s.o.LockTimeout); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.closeDB()
			s.unlock()
		}
	}()
	key, problem, err := loadKey(s.o.KeyFile, s.o.ReadOnly)
	if err != nil {
		return err
	}
	if s.seal, err = newSealer(key); err != nil {
		return err
	}
	if problem != "" {
		s.problems.add("key", problem)
	}
	found, err := s.openFile(nil)
	if err != nil {
		return err
	}
	if err := s.replay(); err != nil {
		return err
	}
	if err := s.load(); err != nil {
		return err
	}
	if s.o.ReadOnly {
		return nil
	}
	return s.settle(found)
}

func (s *Store) unlock() {
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// boltOptions: the free list is not written. It would cost at least one page of
// every commit on a flash disk, and would be one more thing that can be
// damaged; instead it is found by walking the pages when the store is opened,
// which the check for damage does anyway. As a map it does not slow down when
// the file is large and fragmented.
func (s *Store) boltOptions() *bolt.Options {
	return &bolt.Options{
		Timeout:        s.o.LockTimeout,
		ReadOnly:       s.o.ReadOnly,
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, mode)
			if err == nil {
				s.file = f
			}
			return f, err
		},
	}
}

// Close commits what is applied and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	var err error
	if !s.o.ReadOnly {
		err = s.Sync()
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return err
	}
	s.closed = true
	s.mu.Unlock()
	s.wake()
	<-s.stopped
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		err = errors.Join(err, s.journal.close())
	}
	if s.db != nil {
		err = errors.Join(err, guarded(s.db.Close))
	}
	s.unlock()
	return err
}

// Sync makes everything applied durable.
func (s *Store) Sync() error { return s.Apply(&Batch{}, Durable) }

// Revision returns the highest resourceVersion that a client has been shown.
func (s *Store) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return max(s.st.revision, s.floor)
}

// Raise is a batch of SetRevision alone, for each answer that passes through: it
// writes only if rv is new, and Lazy, since a power cut ends the clients too. If
// it cannot be written, it counts in this process all the same.
func (s *Store) Raise(rv uint64) error {
	if rv <= s.Revision() {
		return nil
	}
	b := &Batch{}
	b.SetRevision(rv)
	err := s.Apply(b, Lazy)
	if err != nil {
		s.mu.Lock()
		s.floor = max(s.floor, rv)
		s.mu.Unlock()
	}
	return err
}

// Stats is what metrics and `skerry status` show.
type Stats struct {
	Objects, Views, Entries, Quarantined int
	FileBytes, LiveBytes, PendingBytes   int64
	WrittenBytes                         int64 // by commits, to the disk, since Open
	MaxBytes                             int64
	Commits                              int64
	Full                                 bool // growth was refused, or a commit failed, and none has worked since
}

// Stats returns the present numbers.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := Stats{
		Objects: int(s.st.sets[bObjects].count), Views: len(s.views),
		Entries: int(s.st.sets[bOutbox].count), Quarantined: int(s.st.sets[bQuarantine].count),
		LiveBytes: s.space.live, MaxBytes: s.space.max, WrittenBytes: s.space.written, Commits: s.space.commits,
		Full: s.space.full || s.space.failing,
	}
	st.PendingBytes = s.pendingBytes()
	if info, err := os.Stat(s.o.Path); err == nil {
		st.FileBytes = info.Size()
	}
	return st
}

func (s *Store) pendingBytes() int64 {
	n := s.active.layer.bytes
	if s.frozen != nil {
		n += s.frozen.layer.bytes
	}
	return n
}

// Problems returns what an operator should know, oldest first: damage found,
// records lost, a disk that is full.
func (s *Store) Problems() []string { return s.problems.list() }
