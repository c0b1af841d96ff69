package store

import (
	"errors"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// space keeps the account of pages. Two things can be full: the quota, which is
// counted here, and the disk, where the blocks that the next commits need are
// allocated before a batch is accepted. So a batch is refused with nothing
// changed, rather than a commit failing later with acknowledged changes in it.
type space struct {
	max       int64
	live      int64 // bytes of pages in use
	high      int64 // bytes up to the highest page ever used
	free      int64 // bytes of free pages below that
	written   int64
	commits   int64
	allocated int64 // bytes of the file that have blocks on the disk
	cannot    bool  // this file system cannot reserve blocks
	full      bool  // growth was refused
	failing   bool  // the last commit failed
	noSpace   bool  // because the disk is full
}

const (
	// spareBytes are kept allocated for changes that must always work, such
	// as deletes: on a copy-on-write tree even these need new pages.
	spareBytes = 128 << 10
	allocStep  = 256 << 10
	// pagesPerChange is a leaf page and its share of the branch pages above.
	pagesPerChange = 2
)

// measure takes the account after a commit.
func (sp *space) measure(db *bolt.DB) {
	page := int64(db.Info().PageSize)
	_ = db.View(func(tx *bolt.Tx) error {
		sp.high = tx.Size()
		return nil
	})
	stats := db.Stats()
	sp.free = int64(stats.FreePageN+stats.PendingPageN) * page
	sp.live = sp.high - sp.free
}

// admit decides about changes that make the store grow by so many bytes.
func (sp *space) admit(f *os.File, pageSize, growth, pendingBytes int64, pendingOps int) error {
	if growth > 0 && sp.live+pendingBytes+growth > sp.max {
		sp.full = true
		return fmt.Errorf("%w: %d of %d bytes are in use", ErrFull, sp.live+pendingBytes, sp.max)
	}
	if growth > 0 && (sp.noSpace || sp.failing && pendingBytes > hardPendingBytes) {
		return fmt.Errorf("%w: the last commit failed", ErrFull)
	}
	// Bound of the pages that the next commit allocates: each change
	// copies the pages on its path, but none is copied twice.
	touched := min(int64(pendingOps)*pagesPerChange*pageSize, sp.live)
	need := 2*(pendingBytes+max(growth, 0)) + touched + 8*pageSize + spareBytes
	if err := sp.reserve(f, sp.high+max(need-sp.free, 0)); err != nil && growth > 0 {
		sp.full = true
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if growth > 0 {
		sp.full = false
	}
	return nil
}

// reserve allocates blocks for the first size bytes of the file; its length
// stays.
func (sp *space) reserve(f *os.File, size int64) error {
	if sp.cannot || size <= sp.allocated {
		return nil
	}
	rounded := (size + allocStep - 1) / allocStep * allocStep
	err := fallocate(f, rounded)
	if err == nil {
		sp.allocated = rounded
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		sp.cannot = true
		return nil
	}
	if err := fallocate(f, size); err != nil {
		return fmt.Errorf("allocating %d bytes: %w", size, err)
	}
	sp.allocated = size
	return nil
}

func fallocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
