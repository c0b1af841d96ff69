package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullDisk fills a real file system of 2 MiB under the store.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	o := Options{Path: filepath.Join(disk, "store.db"), JournalPath: filepath.Join(dir, "journal"), CommitInterval: 5 * time.Millisecond}
	s := opened(t, o)
	apply(t, s, Durable, func(b *Batch) { b.SetView(View{Query: allPods, Complete: true}) })
	expect := map[string]bool{}
	put := func(i int, d Durability) error {
		var b Batch
		p := pod("default", fmt.Sprintf("p%04d", i), 1, strings.Repeat("x", 8000))
		b.Put(p)
		b.Join(allPods, p.Key)
		b.PutEntry(Entry{Key: p.Key, Op: "status", Payload: []byte(fmt.Sprint("entry", i))})
		err := s.Apply(&b, d)
		if err == nil {
			expect[p.Name] = true
		}
		return err
	}
	check := func(what string) {
		t.Helper()
		got := names(t, s, allPods)
		if len(got) != len(expect) {
			t.Fatalf("%s: %d members, %d were acknowledged", what, len(got), len(expect))
		}
		if st := s.Stats(); st.Entries != len(expect) {
			t.Fatalf("%s: %d entries, %d were acknowledged", what, st.Entries, len(expect))
		}
	}
	var err error
	i := 0
	for ; i < 1000 && err == nil; i++ {
		err = put(i, []Durability{Soon, Durable}[i%2])
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("after %d: %v", i, err)
	}
	t.Logf("full after %d objects: %v", len(expect), err)
	if !s.Stats().Full || !strings.Contains(strings.Join(s.Problems(), ""), "full") {
		t.Fatalf("nobody is told: %+v %q", s.Stats(), s.Problems())
	}
	check("full")
	// Now not one block is left; somebody else's file takes them all.
	hog, err := os.Create(filepath.Join(disk, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = hog.Write(make([]byte, 4096))
	}
	_ = hog.Close()
	// What has blocks already may still be used.
	for i, err = 2000, nil; i < 2020 && err == nil; i++ {
		err = put(i, []Durability{Soon, Durable}[i%2])
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("a full disk takes more: %v", err)
	}
	check("no block left")
	// Deletes work, and reach the disk.
	n := 0
	for name := range expect {
		var b Batch
		b.Delete(podKey("default", name))
		var seqs []uint64
		if err := s.Entries(func(e Entry) error {
			if e.Key.Name == name {
				seqs = append(seqs, e.Seq)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, seq := range seqs {
			b.DeleteEntry(seq)
		}
		if err := s.Apply(&b, Durable); err != nil {
			t.Fatalf("deleting %s on a full disk: %v", name, err)
		}
		delete(expect, name)
		if n++; n == 40 {
			break
		}
	}
	check("after deletes")
	// A power cut now loses nothing.
	crash(s)
	_ = os.Remove(o.JournalPath)
	s = opened(t, o)
	check("after a power cut")
	if err := os.Remove(filepath.Join(disk, "hog")); err != nil {
		t.Fatal(err)
	}
	for i = 3000; i < 3004; i++ {
		if err := put(i, Durable); err != nil {
			t.Fatalf("with room again: %v", err)
		}
	}
	check("with room again")
	if st := s.Stats(); st.Full {
		t.Fatalf("still full: %+v", st)
	}
}

func TestQuota(t *testing.T) {
	o := files(t)
	o.MaxBytes = 1 << 20
	s := opened(t, o)
	apply(t, s, Soon, func(b *Batch) { b.SetView(View{Query: allPods, Complete: true}) })
	n := 0
	put := func(d Durability, name string, size int) error {
		var b Batch
		b.Put(pod("default", name, uint64(n), strings.Repeat("x", size)))
		b.Join(allPods, podKey("default", name))
		n++
		return s.Apply(&b, d)
	}
	var err error
	for n < 1000 && err == nil {
		err = put(Soon, fmt.Sprintf("p%04d", n), 10000)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if !st.Full || st.LiveBytes > o.MaxBytes*5/4 || st.FileBytes > 3*o.MaxBytes {
		t.Fatalf("%+v", st)
	}
	if got := names(t, s, allPods); len(got) != n-1 {
		t.Fatalf("%d members of %d", len(got), n-1)
	}
	// What does not grow goes on: heartbeats, deletes.
	if err := put(Soon, "p0000", 10000); err != nil {
		t.Fatal(err)
	}
	apply(t, s, Durable, func(b *Batch) {
		for i := range 20 {
			b.Delete(podKey("default", fmt.Sprintf("p%04d", i)))
		}
	})
	if err := put(Durable, "again", 10000); err != nil {
		t.Fatal(err)
	}
	if s.Stats().Full {
		t.Fatal("still full")
	}
}
