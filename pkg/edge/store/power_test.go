package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const sector = 512

// commitPair is the file before and after one commit.
type commitPair struct {
	before, after           []byte
	modelBefore, modelAfter *model
}

// history runs a store and keeps the file around each commit.
func history(t *testing.T, dir string, sd uint64, commits int) []commitPair {
	t.Helper()
	o := powerOptions(filepath.Join(dir, "history"))
	s := opened(t, o)
	m := newModel(sd)
	r := rand.New(rand.NewPCG(sd, 77))
	var pairs []commitPair
	for len(pairs) < commits {
		p := commitPair{before: readFile(t, o.Path), modelBefore: m.clone()}
		for range 1 + r.IntN(6) {
			b, _ := m.step()
			if err := s.Apply(b, Soon); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		p.after, p.modelAfter = readFile(t, o.Path), m.clone()
		pairs = append(pairs, p)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return pairs
}

func powerOptions(dir string) Options {
	// No journal: the tmpfs is gone. No commit but the tested ones.
	return Options{Path: filepath.Join(dir, "store.db"), CommitInterval: time.Hour, LazyInterval: time.Hour}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dirty returns the sectors that a commit wrote: those of data pages and those
// of the meta pages.
func (p *commitPair) dirty() (data, meta []int) {
	page := os.Getpagesize()
	for at := 0; at < len(p.after); at += sector {
		end := min(at+sector, len(p.after))
		if end <= len(p.before) && bytes.Equal(p.before[at:end], p.after[at:end]) {
			continue
		}
		if at < 2*page {
			meta = append(meta, at)
		} else {
			data = append(data, at)
		}
	}
	return data, meta
}

// image is the old file with some sectors of the new one.
func (p *commitPair) image(size int, sectors ...int) []byte {
	img := make([]byte, size)
	copy(img, p.before)
	for _, at := range sectors {
		if at < size {
			copy(img[at:min(at+sector, size)], p.after[at:])
		}
	}
	return img
}

func subset(r *rand.Rand, in []int) []int {
	var out []int
	keep := r.IntN(11)
	for _, v := range in {
		if r.IntN(10) < keep {
			out = append(out, v)
		}
	}
	return out
}

// cut is one crash image and what may be in it.
type cut struct {
	what    string
	image   []byte
	exact   []*model // the states that are right, in full and without a problem
	damaged bool     // the disk lied: damage may be found, and must be said
	// earlier are the states of commits before. A disk that has lost them all
	// shows one of these; that is said, but each of their lists did exist.
	earlier []*model
}

// try opens an image and judges it.
func (c *cut) try(t *testing.T, dir string, last *model) {
	t.Helper()
	o := powerOptions(dir)
	if err := os.WriteFile(o.Path, c.image, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(o)
	if err != nil {
		t.Errorf("%s: %v", c.what, err)
		return
	}
	defer func() { _ = s.Close() }()
	var diffs []string
	for _, m := range c.exact {
		d := m.differs(s)
		if d == "" {
			diffs = nil
			break
		}
		diffs = append(diffs, d)
	}
	problems := s.Problems()
	switch {
	case !c.damaged && (diffs != nil || len(problems) > 0):
		t.Errorf("%s: %q, problems %q", c.what, diffs, problems)
		return
	case !c.damaged || diffs == nil:
		return
	case len(problems) == 0:
		t.Errorf("%s: nothing is said, but %q", c.what, diffs)
		return
	}
	// Damaged and said so. No list may be shorter than one that existed without
	// being an error or not complete.
	for _, q := range modelViews {
		v, found, err := s.View(q)
		if err != nil || !found || !v.Complete {
			continue
		}
		versions, err := s.Versions(q)
		if _, serr := listed(s, q, Key{}); serr != nil {
			if !errors.Is(serr, ErrIncomplete) {
				t.Errorf("%s: %s: %v", c.what, q, serr)
			}
			continue
		}
		existed := false
		for _, m := range append(c.earlier, c.exact...) {
			same := err == nil && len(versions) == len(m.views[q])
			for k := range versions {
				same = same && m.views[q][k]
			}
			existed = existed || same
		}
		if !existed {
			t.Errorf("%s: %s has %d members and claims to be complete; problems %q", c.what, q, len(versions), problems)
		}
	}
	c.heal(t, s, last)
	if err := s.Close(); err != nil {
		t.Errorf("%s: closing: %v", c.what, err)
	}
	s, err = Open(o)
	if err != nil {
		t.Errorf("%s: opening what was healed: %v", c.what, err)
		return
	}
	defer func() { _ = s.Close() }()
	for _, q := range modelViews {
		if d := last.listDiffers(s, q); d != "" {
			t.Errorf("%s: healed: %s", c.what, d)
		}
	}
	for _, p := range s.Problems() {
		if strings.Contains(p, "lost") || strings.Contains(p, "damage") {
			t.Errorf("%s: healed, and still: %s", c.what, p)
		}
	}
}

// heal is what a hub does that is online again: it lists, and writes what
// differs.
func (c *cut) heal(t *testing.T, s *Store, m *model) {
	t.Helper()
	var b Batch
	for _, q := range modelViews {
		b.SetView(View{Query: q, Kind: "X", Complete: true})
	}
	if err := s.Apply(&b, Soon); err != nil {
		t.Errorf("%s: healing: %v", c.what, err)
		return
	}
	b = Batch{}
	for _, q := range modelViews {
		have, err := s.Versions(q)
		if err != nil {
			// The second look is at what is there.
			if have, err = s.Versions(q); err != nil {
				t.Errorf("%s: healing %s: %v", c.what, q, err)
				continue
			}
		}
		b.SetView(View{Query: q, Kind: "X", Complete: true, ResourceVersion: uint64(m.steps)})
		for k := range m.views[q] {
			b.Put(m.objects[k])
			b.Join(q, k)
			delete(have, k)
		}
		for k := range maps.Keys(have) {
			b.Delete(k)
		}
	}
	if err := s.Apply(&b, Durable); err != nil {
		t.Errorf("%s: healing: %v", c.what, err)
	}
}

// TestPowerCut builds what a disk may hold when the power goes at each write of
// a commit, and opens it.
func TestPowerCut(t *testing.T) {
	n, sd := torture(t, 6)
	r := rand.New(rand.NewPCG(sd, 1))
	dir := t.TempDir()
	counts := map[string]int{}
	var earlier []*model
	for i, p := range history(t, dir, sd, n) {
		data, meta := p.dirty()
		old, both := []*model{p.modelBefore}, []*model{p.modelBefore, p.modelAfter}
		var cuts []cut
		add := func(what string, damaged bool, exact []*model, image []byte) {
			counts[what]++
			cuts = append(cuts, cut{what: fmt.Sprintf("seed %d, commit %d, %s", sd, i, what), image: image, exact: exact, damaged: damaged, earlier: earlier})
		}
		// Before the first barrier: any part of the data, at any length.
		for range 4 {
			size := len(p.before)
			if r.IntN(2) == 0 {
				size = len(p.after)
			}
			add("data before the barrier", false, old, p.image(size, subset(r, data)...))
		}
		// Between the barriers: all data, any part of the meta page.
		for range 3 {
			add("meta page torn", false, both, p.image(len(p.after), append(subset(r, meta), data...)...))
		}
		garbage := p.image(len(p.after), data...)
		for _, at := range meta {
			for j := range sector {
				garbage[at+j] = byte(r.Uint32())
			}
		}
		add("meta page garbage", true, both, garbage)
		add("after the barrier", false, []*model{p.modelAfter}, p.after)
		// A disk that lies: writes that are lost or come after the meta page.
		for range 3 {
			add("lost writes", true, both, p.image(len(p.after), append(subset(r, data), meta...)...))
		}
		cutOff := p.after[:r.IntN(len(p.after))]
		add("file cut off", true, both, bytes.Clone(cutOff))
		earlier = append(slices.Clone(earlier), p.modelBefore)
		for j, c := range cuts {
			d := filepath.Join(dir, fmt.Sprintf("%d-%d", i, j))
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
			copyKey(t, dir, d)
			c.try(t, d, p.modelAfter)
			_ = os.RemoveAll(d)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("images: %v", counts)
}

func copyKey(t *testing.T, dir, to string) {
	t.Helper()
	key := readFile(t, filepath.Join(dir, "history", "store.db.key"))
	if err := os.WriteFile(filepath.Join(to, "store.db.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBits flips bits anywhere in the file, at rest. Half of them go
// where they hurt: into headers of pages and their elements.
func TestFlippedBits(t *testing.T) {
	n, sd := torture(t, 50)
	r := rand.New(rand.NewPCG(sd, 2))
	dir := t.TempDir()
	pairs := history(t, dir, sd, 25)
	p := pairs[len(pairs)-1]
	page := os.Getpagesize()
	said := 0
	for i := range n {
		image := bytes.Clone(p.after)
		var where []string
		for range 1 + r.IntN(3) {
			at := r.IntN(len(image))
			if r.IntN(2) == 0 {
				at = at/page*page + r.IntN(64)
			}
			bit := r.IntN(8)
			image[at] ^= 1 << bit
			where = append(where, fmt.Sprintf("%d.%d", at, bit))
		}
		d := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		copyKey(t, dir, d)
		c := cut{what: fmt.Sprintf("seed %d, round %d, bits %v", sd, i, where), image: image, exact: []*model{p.modelAfter}, damaged: true, earlier: []*model{p.modelBefore}}
		c.try(t, d, p.modelAfter)
		if left, _ := filepath.Glob(filepath.Join(d, "*.damaged-*")); len(left) > 0 {
			said++
		}
		_ = os.RemoveAll(d)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d of %d files were salvaged", said, n)
}

// TestFlippedBitsUnderway flips bits while the store has the file open: what
// bbolt reads through its map.
func TestFlippedBitsUnderway(t *testing.T) {
	n, sd := torture(t, 15)
	r := rand.New(rand.NewPCG(sd, 3))
	for i := range n {
		dir := t.TempDir()
		o := powerOptions(dir)
		s := opened(t, o)
		m := newModel(sd)
		for range 40 {
			b, _ := m.step()
			if err := s.Apply(b, Soon); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		image := readFile(t, o.Path)
		page := os.Getpagesize()
		for range 4 {
			at := 2*page + r.IntN(len(image)-2*page)
			if r.IntN(2) == 0 {
				at = at/page*page + r.IntN(64)
			}
			if in := at % page; in >= 12 && in < 16 {
				// The number of pages that this one fills: bbolt frees as many
				// when it replaces the page, up to 4 billion, and the process
				// ends for lack of memory. What is wrong when the file is opened
				// never gets there.
				continue
			}
			if _, err := f.WriteAt([]byte{image[at] ^ 1<<r.IntN(8)}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		_ = f.Close()
		what := fmt.Sprintf("seed %d, round %d", sd, i)
		// Nobody may crash; what comes is right or an error.
		for range 2 {
			for _, q := range modelViews {
				v, found, err := s.View(q)
				if err != nil || !found || !v.Complete {
					continue
				}
				got, err := listed(s, q, Key{})
				if v, _, _ := s.View(q); err == nil && v.Complete && len(got) != len(m.views[q]) {
					t.Errorf("%s: %s has %d members, not %d; problems %q", what, q, len(got), len(m.views[q]), s.Problems())
				}
			}
			b := &Batch{}
			b.PutDocument("x", binary.BigEndian.AppendUint64(nil, uint64(i)))
			_ = s.Apply(b, Durable)
		}
		// Writing may find more damage than reading did.
		wrong := ""
		for range 4 {
			wrong = ""
			(&cut{what: what}).heal(t, s, m)
			for _, q := range modelViews {
				if d := m.listDiffers(s, q); d != "" {
					wrong = d
				}
			}
			if wrong == "" {
				break
			}
		}
		if wrong != "" {
			t.Errorf("%s: healed: %s; problems %q", what, wrong, s.Problems())
		}
		_ = s.Close()
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.FailNow()
		}
	}
}
