// Package boltfile reads the pages of a bbolt database without trusting them.
//
// bbolt checks its meta pages only; on a damaged page it panics (in part on
// goroutines of its own, where nothing can recover), reads beyond the map, or
// silently shows fewer keys. So the store looks at a file with this package
// before bbolt may, and salvages with it what can be read of a damaged one. The
// package knows the format of bbolt 1.x, version 2, and nothing of the store.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

const (
	magic       = 0xED0CDAED
	version     = 2
	headerSize  = 16
	elementSize = 16
	branchFlag  = 1
	leafFlag    = 2
	bucketFlag  = 1
	metaSize    = 64 // with the checksum
	maxDepth    = 32
	noFreelist  = ^uint64(0)
)

// ErrDamaged is wrapped by each error that is about the file's contents.
var ErrDamaged = errors.New("damaged page")

// Meta is one of the two roots of a database.
type Meta struct {
	PageSize   uint32
	Root       uint64 // page of the root bucket
	High       uint64 // number of pages ever used
	Tx         uint64 // number of the transaction
	Repaired   bool   // by turning one bit
	FreelistAt uint64
}

// File is a database that is only read.
type File struct {
	r    io.ReaderAt
	size int64
}

// New reads a file of the given size.
func New(r io.ReaderAt, size int64) *File { return &File{r: r, size: size} }

// Metas returns the valid roots, the newest first, and what is wrong with the
// others. A single flipped bit is turned back: an older root would be a valid
// state of the database too, without its last commit.
func (f *File) Metas() (metas []Meta, problems []error) {
	sizes := []int64{4096}
	if m, err := f.meta(0); err == nil {
		sizes[0] = int64(m.PageSize)
	} else {
		sizes = append(sizes, 512, 1024, 2048, 8192, 16384, 32768, 65536)
	}
	add := func(at int64) bool {
		m, err := f.meta(at)
		if err != nil {
			return false
		}
		metas = append(metas, m)
		return true
	}
	if !add(0) {
		problems = append(problems, fmt.Errorf("%w: meta page 0", ErrDamaged))
	}
	second := false
	for _, size := range sizes {
		if second = add(size); second {
			break
		}
	}
	if !second {
		problems = append(problems, fmt.Errorf("%w: meta page 1", ErrDamaged))
	}
	for _, m := range metas {
		if m.Repaired {
			problems = append(problems, fmt.Errorf("%w: a bit of the meta page of transaction %d has been turned back", ErrDamaged, m.Tx))
		}
	}
	if len(metas) == 2 && metas[1].Tx > metas[0].Tx {
		metas[0], metas[1] = metas[1], metas[0]
	}
	return metas, problems
}

func (f *File) meta(at int64) (Meta, error) {
	b := make([]byte, headerSize+metaSize)
	if _, err := f.r.ReadAt(b, at); err != nil {
		return Meta{}, err
	}
	b = b[headerSize:]
	m, err := parseMeta(b)
	if err == nil {
		return m, nil
	}
	for bit := range len(b) * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if m, err := parseMeta(b); err == nil {
			m.Repaired = true
			return m, nil
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	return Meta{}, err
}

func parseMeta(b []byte) (Meta, error) {
	e := binary.NativeEndian
	if e.Uint32(b) != magic || e.Uint32(b[4:]) != version {
		return Meta{}, fmt.Errorf("%w: no meta page", ErrDamaged)
	}
	h := fnv.New64a()
	_, _ = h.Write(b[:metaSize-8])
	// magic, version, page size, flags (4 each); root page, root sequence,
	// freelist, high-water page, transaction (8 each); checksum.
	if e.Uint64(b[56:]) != h.Sum64() {
		return Meta{}, fmt.Errorf("%w: meta checksum", ErrDamaged)
	}
	m := Meta{PageSize: e.Uint32(b[8:]), Root: e.Uint64(b[16:]), FreelistAt: e.Uint64(b[32:]), High: e.Uint64(b[40:]), Tx: e.Uint64(b[48:])}
	if m.PageSize < 512 || m.PageSize > 1<<20 || m.PageSize&(m.PageSize-1) != 0 {
		return Meta{}, fmt.Errorf("%w: page size %d", ErrDamaged, m.PageSize)
	}
	return m, nil
}

// walk is one pass over the tree of a root.
type walk struct {
	f       *File
	m       Meta
	seen    map[uint64]bool
	leaf    []byte // the leaf page being read
	visit   func(bucket string, key, value []byte)
	problem func(bucket string, err error)
}

// Walk calls visit with each record of the top-level buckets and problem with
// each thing that is wrong; what lies under it is left out. Keys and values are
// valid until visit returns. Buckets inside buckets are a problem: the store has
// none. buckets are the names that were found.
func (f *File) Walk(m Meta, visit func(bucket string, key, value []byte), problem func(bucket string, err error)) (buckets []string) {
	w := &walk{f: f, m: m, seen: map[uint64]bool{0: true, 1: true}, visit: visit, problem: problem}
	if m.FreelistAt != noFreelist {
		w.claimFreelist()
	}
	w.page("", m.Root, nil, nil, 0, func(flags uint32, key, value []byte) {
		name := string(key)
		if flags != bucketFlag || len(value) < 16 {
			problem("", fmt.Errorf("%w: the entry %q of the root is no bucket", ErrDamaged, name))
			return
		}
		buckets = append(buckets, name)
		leaf := func(flags uint32, key, value []byte) {
			if flags != 0 {
				problem(name, fmt.Errorf("%w: flags %d of a record", ErrDamaged, flags))
				return
			}
			visit(name, key, value)
		}
		if root := binary.NativeEndian.Uint64(value); root != 0 {
			w.page(name, root, nil, nil, 0, leaf)
			return
		}
		w.elements(name, value[16:], nil, nil, 0, true, leaf)
	})
	return buckets
}

// claimFreelist marks the pages of a written free list as used.
func (w *walk) claimFreelist() {
	b := make([]byte, headerSize)
	if w.m.FreelistAt >= w.m.High {
		w.problem("", fmt.Errorf("%w: free list at page %d", ErrDamaged, w.m.FreelistAt))
		return
	}
	if _, err := w.f.r.ReadAt(b, int64(w.m.FreelistAt)*int64(w.m.PageSize)); err != nil {
		w.problem("", fmt.Errorf("%w: free list: %w", ErrDamaged, err))
		return
	}
	over := uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != w.m.FreelistAt || binary.NativeEndian.Uint16(b[8:]) != 0x10 || w.m.FreelistAt+over >= w.m.High ||
		int64(w.m.FreelistAt+over) >= w.f.size/int64(w.m.PageSize) {
		w.problem("", fmt.Errorf("%w: free list", ErrDamaged))
		return
	}
	for i := range over + 1 {
		w.seen[w.m.FreelistAt+i] = true
	}
}

type leafFunc func(flags uint32, key, value []byte)

// page reads one page and what is below it. Its keys must lie in [low, high);
// nil is no bound.
func (w *walk) page(bucket string, id uint64, low, high []byte, depth int, leaf leafFunc) {
	fail := func(format string, args ...any) {
		w.problem(bucket, fmt.Errorf("%w %d: %s", ErrDamaged, id, fmt.Sprintf(format, args...)))
	}
	size := int64(w.m.PageSize)
	switch {
	case depth > maxDepth:
		fail("the tree is too deep")
		return
	case id < 2 || id >= w.m.High || int64(id) > w.f.size/size:
		fail("outside of the file")
		return
	}
	head := make([]byte, headerSize)
	if _, err := w.f.r.ReadAt(head, int64(id)*size); err != nil {
		fail("%v", err)
		return
	}
	over := uint64(binary.NativeEndian.Uint32(head[12:]))
	if got := binary.NativeEndian.Uint64(head); got != id {
		fail("it says that it is page %d", got)
		return
	}
	if id+over >= w.m.High || (int64(id+over)+1)*size > w.f.size {
		fail("it ends outside of the file")
		return
	}
	for i := range over + 1 {
		if w.seen[id+i] {
			fail("it is used twice")
			return
		}
	}
	for i := range over + 1 {
		w.seen[id+i] = true
	}
	var data []byte
	if n := int64(over+1) * size; bucket != "" && binary.NativeEndian.Uint16(head[8:]) == leafFlag {
		// Nothing of a leaf is kept.
		if int64(cap(w.leaf)) < n {
			w.leaf = make([]byte, n)
		}
		data = w.leaf[:n]
	} else {
		data = make([]byte, n)
	}
	if _, err := w.f.r.ReadAt(data, int64(id)*size); err != nil {
		fail("%v", err)
		return
	}
	w.elements(bucket, data, low, high, depth, false, leaf)
}

// elements reads the elements of a page that lies in data.
func (w *walk) elements(bucket string, data []byte, low, high []byte, depth int, inline bool, leaf leafFunc) {
	e := binary.NativeEndian
	if len(data) < headerSize {
		w.problem(bucket, fmt.Errorf("%w: an inline page of %d bytes", ErrDamaged, len(data)))
		return
	}
	id := e.Uint64(data)
	fail := func(format string, args ...any) {
		w.problem(bucket, fmt.Errorf("%w %d: %s", ErrDamaged, id, fmt.Sprintf(format, args...)))
	}
	flags, count := e.Uint16(data[8:]), int(e.Uint16(data[10:]))
	if (flags != leafFlag && flags != branchFlag) || (inline && flags != leafFlag) {
		fail("type %#x", flags)
		return
	}
	if headerSize+count*elementSize > len(data) {
		fail("%d elements", count)
		return
	}
	if flags == branchFlag && count == 0 {
		fail("an empty branch")
		return
	}
	type child struct {
		key []byte
		id  uint64
	}
	var children []child
	last := low
	for i := range count {
		at := headerSize + i*elementSize
		var pos, ksize, vsize uint64
		var eflags uint32
		var below uint64
		if flags == leafFlag {
			eflags = e.Uint32(data[at:])
			pos, ksize, vsize = uint64(e.Uint32(data[at+4:])), uint64(e.Uint32(data[at+8:])), uint64(e.Uint32(data[at+12:]))
		} else {
			pos, ksize, below = uint64(e.Uint32(data[at:])), uint64(e.Uint32(data[at+4:])), e.Uint64(data[at+8:])
		}
		start := uint64(at) + pos
		if start < uint64(headerSize+count*elementSize) || start+ksize+vsize > uint64(len(data)) || ksize > 1<<16 {
			fail("element %d lies outside", i)
			continue
		}
		key := data[start : start+ksize]
		order := bytes.Compare(key, last)
		if last != nil && (order < 0 || order == 0 && i > 0) || high != nil && bytes.Compare(key, high) >= 0 {
			fail("element %d is out of order", i)
			continue
		}
		if i == 0 && low != nil && order != 0 {
			// bbolt finds the branch's element by this key when it writes the
			// page, and breaks the tree if it is another one.
			fail("its first key is not the one in the branch above")
		}
		if flags == leafFlag && ksize == 0 {
			fail("element %d has no key", i)
			continue
		}
		last = key
		if flags == leafFlag {
			leaf(eflags, key, data[start+ksize:start+ksize+vsize])
			continue
		}
		children = append(children, child{key, below})
	}
	for i, c := range children {
		top := high
		if i+1 < len(children) {
			top = children[i+1].key
		}
		w.page(bucket, c.id, c.key, top, depth+1, leaf)
	}
}
