package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func TestHeld(t *testing.T) {
	o := files(t)
	o.LockTimeout = 50 * time.Millisecond
	s := opened(t, o)
	me := fmt.Sprintf("process %d (", os.Getpid())
	for what, try := range map[string]func() error{
		"open":    func() error { _, err := Open(o); return err },
		"read":    func() error { ro := o; ro.ReadOnly = true; _, err := Open(ro); return err },
		"compact": func() error { _, _, err := Compact(o); return err },
		"verify":  func() error { _, err := VerifyFile(o); return err },
	} {
		if err := try(); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), me) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opened(t, o)
}

func TestKeyFile(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	apply(t, s, Durable, func(b *Batch) { b.PutSecret("tokens", "a", []byte("x")) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(o.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != keyBytes {
		t.Fatalf("%v %v", info, err)
	}
	// Readable by others: closed again, and said.
	if err := os.Chmod(o.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	s = opened(t, o)
	if p := strings.Join(s.Problems(), ""); !strings.Contains(p, "could be read by others") {
		t.Errorf("problems: %q", p)
	}
	if info, _ := os.Stat(o.KeyFile); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	_ = s.Close()
	// Torn, or another one: what is sealed is lost, and said; the store opens.
	for _, key := range [][]byte{{1, 2, 3}, bytes.Repeat([]byte{7}, keyBytes)} {
		if err := os.WriteFile(o.KeyFile, key, 0o600); err != nil {
			t.Fatal(err)
		}
		s = opened(t, o)
		if _, ok, err := s.Secret("tokens", "a"); ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
		if p := strings.Join(s.Problems(), " "); !strings.Contains(p, "another key") {
			t.Errorf("problems: %q", p)
		}
		apply(t, s, Durable, func(b *Batch) { b.PutSecret("tokens", "a", []byte("x")) })
		_ = s.Close()
		s = opened(t, o)
		if v, ok, err := s.Secret("tokens", "a"); !ok || err != nil || string(v) != "x" {
			t.Errorf("%v %v", ok, err)
		}
		_ = s.Close()
	}
	// A link is no key.
	if err := os.Remove(o.KeyFile); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", o.KeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); err == nil {
		t.Error("a symbolic link was taken for the key")
	}
}

// TestStaleJournal offers journals that must not be replayed.
func TestStaleJournal(t *testing.T) {
	o := files(t)
	o.CommitInterval = time.Hour
	s := opened(t, o)
	apply(t, s, Durable, fillPods)
	older := readFile(t, o.Path)
	apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "a", 20, "twenty")) })
	pending := readFile(t, o.JournalPath)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	apply(t, s, Durable, func(b *Batch) { b.Put(pod("default", "a", 30, "thirty")) })
	apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "b", 31, "b31")) })
	later := readFile(t, o.JournalPath)
	crash(s)

	reset := func(file, journal []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(o.Path, file, 0o600), os.WriteFile(o.JournalPath, journal, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	newest := readFile(t, o.Path)
	other := func() []byte {
		o := files(t)
		s := opened(t, o)
		apply(t, s, Soon, fillPods)
		return readFile(t, o.JournalPath)
	}()
	for name, c := range map[string]struct {
		file, journal []byte
		a, b          string
		refused       bool
	}{
		"its own":               {newest, later, "default/a@30=thirty", "default/b@31=b31", false},
		"committed already":     {newest, pending, "default/a@30=thirty", "default/b@5=b5", false},
		"older copy, its own":   {older, pending, "default/a@20=twenty", "default/b@5=b5", false},
		"older copy, later one": {older, later, "default/a@6=a6", "default/b@5=b5", true},
		"another store's":       {newest, other, "default/a@30=thirty", "default/b@5=b5", true},
		"garbage":               {newest, bytes.Repeat([]byte("garbage"), 100), "default/a@30=thirty", "default/b@5=b5", true},
		"torn":                  {newest, later[:len(later)-3], "default/a@30=thirty", "default/b@5=b5", false},
		"half a header":         {newest, later[:10], "default/a@30=thirty", "default/b@5=b5", false},
	} {
		t.Run(name, func(t *testing.T) {
			reset(c.file, c.journal)
			s := opened(t, o)
			want(t, names(t, s, defaultPods), c.a, c.b)
			if refused := len(s.Problems()) > 0; refused != c.refused {
				t.Errorf("problems: %q", s.Problems())
			}
			// What is applied now survives, whatever was there.
			apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "b", 40, "forty")) })
			crash(s)
			s = opened(t, o)
			want(t, names(t, s, defaultPods), c.a, "default/b@40=forty")
			_ = s.Close()
		})
	}
}

func TestJournalThatCannotBeWritten(t *testing.T) {
	o := files(t)
	o.CommitInterval = time.Hour
	s := opened(t, o)
	apply(t, s, Soon, fillPods)
	_ = s.journal.f.Close() // as a full tmpfs would
	apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "a", 7, "a7")) })
	if len(s.Problems()) == 0 {
		t.Error("nobody is told")
	}
	crash(s)
	s = opened(t, o)
	want(t, names(t, s, defaultPods), "default/a@7=a7", "default/b@5=b5")
}

func TestSchema(t *testing.T) {
	o := files(t)
	if err := opened(t, o).Close(); err != nil {
		t.Fatal(err)
	}
	set := func(v uint64) {
		t.Helper()
		db, err := bolt.Open(o.Path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put(schemaKey, appendSchema(v)) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []uint64{0, schemaVersion + 1} {
		set(v)
		before := readFile(t, o.Path)
		_, err := Open(o)
		var se *SchemaError
		if !errors.As(err, &se) || se.Have != v || se.Know != schemaVersion {
			t.Errorf("version %d: %v", v, err)
		}
		if !bytes.Equal(before, readFile(t, o.Path)) {
			t.Errorf("version %d: the file was changed", v)
		}
	}
	set(schemaVersion)

	// A step is made in one transaction, with the new version, or not at all.
	db, err := bolt.Open(o.Path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	mark := func(key string) migration {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte("documents")).Put([]byte(key), []byte("x")) }
	}
	fails := func(tx *bolt.Tx) error { return errors.Join(mark("half")(tx), errors.New("no")) }
	if err := migrate(db, map[uint64]migration{1: mark("one"), 2: fails}, 3, false); err == nil {
		t.Error("a step that failed counts")
	}
	if err := migrate(db, map[uint64]migration{2: mark("two")}, 3, false); err == nil {
		t.Error("a step is missing")
	}
	check := func(version uint64, keys string) {
		t.Helper()
		_ = db.View(func(tx *bolt.Tx) error {
			got := ""
			_ = tx.Bucket([]byte("documents")).ForEach(func(k, _ []byte) error { got += string(k) + " "; return nil })
			if v, err := schemaOf(tx); err != nil || v != version || got != keys {
				t.Errorf("version %d %v, %q", v, err, got)
			}
			return nil
		})
	}
	check(1, "")
	if err := migrate(db, map[uint64]migration{1: mark("one"), 2: mark("two")}, 3, false); err != nil {
		t.Error(err)
	}
	check(3, "one two ")
}

func TestGarbage(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	apply(t, s, Soon, func(b *Batch) {
		b.Put(pod("default", "loose", 1, ""))
		b.Put(pod("default", "unsent", 1, ""))
		b.Put(pod("default", "late", 1, ""))
		b.PutEntry(Entry{Key: podKey("default", "unsent"), Op: "status"})
	})
	s.mu.Lock()
	s.collect(time.Now().Add(-orphanAge))
	s.mu.Unlock()
	apply(t, s, Soon, func(b *Batch) {
		b.SetView(View{Query: allPods})
		b.Join(allPods, podKey("default", "late"))
	})
	there := func() (out string) {
		for _, n := range []string{"loose", "unsent", "late"} {
			if _, ok, _ := s.Get(podKey("default", n)); ok {
				out += n + " "
			}
		}
		return out
	}
	if got := there(); got != "loose unsent late " {
		t.Fatal(got)
	}
	s.mu.Lock()
	s.collect(time.Now())
	s.mu.Unlock()
	if got := there(); got != "unsent late " {
		t.Fatal(got)
	}
	apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "loose", 1, "")); b.DeleteEntry(1) })
	_ = s.Close()
	s = opened(t, o)
	if got := there(); got != "late " {
		t.Fatal(got)
	}
}

func TestCoalescing(t *testing.T) {
	o := files(t)
	o.CommitInterval = time.Hour
	s := opened(t, o)
	apply(t, s, Durable, fillPods)
	start := s.Stats()
	for i := range 500 {
		apply(t, s, Lazy, func(b *Batch) { b.Put(pod("default", "a", uint64(100+i), strings.Repeat("x", 500))) })
	}
	if st := s.Stats(); st.WrittenBytes != start.WrittenBytes || st.PendingBytes > 2000 {
		t.Fatalf("%+v after %+v", st, start)
	}
	for i := range 2000 {
		apply(t, s, Lazy, func(b *Batch) { b.Put(pod("default", "b", uint64(100+i), strings.Repeat("x", 5000))) })
	}
	if size := s.journal.size; size > maxJournalBytes+10000 || s.Stats().WrittenBytes != start.WrittenBytes {
		t.Fatalf("the journal has %d bytes", size)
	}
	crash(s)
	s = opened(t, o)
	if v, err := s.Versions(defaultPods); err != nil || v[podKey("default", "a")] != 599 || v[podKey("default", "b")] != 2099 {
		t.Fatalf("%v %v", v, err)
	}
	// The same again is no change.
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	start = s.Stats()
	apply(t, s, Durable, func(b *Batch) { b.Put(pod("default", "a", 599, strings.Repeat("x", 500))) })
	if st := s.Stats(); st.Commits != start.Commits {
		t.Fatalf("%+v after %+v", st, start)
	}
}

// TestGroupCommit lets many callers share commits.
func TestGroupCommit(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	const n = 64
	done := make(chan error, n)
	for i := range n {
		go func() {
			var b Batch
			b.PutEntry(Entry{Key: podKey("default", fmt.Sprint("p", i)), Op: "status"})
			done <- s.Apply(&b, Durable)
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if st := s.Stats(); st.Commits >= n || st.Entries != n {
		t.Errorf("%+v", st)
	}
	crash(s)
	_ = os.Remove(o.JournalPath) // the power went
	s = opened(t, o)
	if st := s.Stats(); st.Entries != n {
		t.Errorf("%+v", st)
	}
}

// damageObject flips a bit in the data of an object in the file.
func damageObject(t *testing.T, o Options, data string) {
	t.Helper()
	b := readFile(t, o.Path)
	n := 0
	for at := 0; ; n++ {
		i := bytes.Index(b[at:], []byte(data))
		if i < 0 {
			break
		}
		b[at+i] ^= 1
		at += i + 1
	}
	if n == 0 {
		t.Fatal("the data is not in the file")
	}
	if err := os.WriteFile(o.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedObject(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	apply(t, s, Durable, fillPods)
	apply(t, s, Durable, func(b *Batch) { b.Put(pod("default", "a", 50, "FIND-ME")) })
	_ = s.Close()
	damageObject(t, o, "FIND-ME")

	r, err := VerifyFile(o)
	if err != nil || len(r.Damage) != 1 || !strings.Contains(r.Damage[0], "object pods/v1 default/a") {
		t.Fatalf("%+v %v", r, err)
	}
	s = opened(t, o)
	if _, err := listed(s, allPods, Key{}); !errors.Is(err, ErrIncomplete) {
		t.Fatalf("a shortened list: %v", err)
	}
	if v, _, _ := s.View(allPods); v.Complete {
		t.Fatal("the view says that it is complete")
	}
	if _, _, err := s.Get(podKey("default", "a")); !errors.Is(err, ErrDamaged) {
		t.Fatalf("Get: %v", err)
	}
	if st := s.Stats(); st.Quarantined != 1 || !strings.Contains(strings.Join(s.Problems(), ""), "default/a") {
		t.Fatalf("%+v %q", st, s.Problems())
	}
	// The others are not touched, also after the next start.
	_ = s.Close()
	s = opened(t, o)
	if _, ok, err := s.Get(podKey("default", "b")); !ok || err != nil {
		t.Fatal(err)
	}
	if v, _, _ := s.View(allPods); v.Complete {
		t.Fatal("after a restart the view says that it is complete")
	}
	if v, err := s.Versions(defaultPods); err != nil || v[podKey("default", "a")] != 0 {
		t.Fatalf("%v %v", v, err)
	}
	// Put heals.
	apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", "a", 50, "whole")) })
	want(t, names(t, s, defaultPods), "default/a@50=whole", "default/b@5=b5")
	if v, _, _ := s.View(allPods); !v.Complete || s.Stats().Quarantined != 0 {
		t.Fatal("not healed")
	}
}

func TestInspectVerifyCompact(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	apply(t, s, Soon, fillPods)
	sec := secretObject("default", "s", 1, "PLANTED")
	apply(t, s, Durable, func(b *Batch) {
		b.SetView(View{Query: allSecrets})
		b.Put(sec)
		b.Join(allSecrets, sec.Key)
		b.PutSecret("tokens", "PLANTED", []byte("PLANTED"))
		b.PutEntry(Entry{Key: sec.Key, Op: "status", Payload: []byte("PLANTED")})
		b.PutDocument("/api", []byte("doc"))
		for i := range 600 {
			b.Put(pod("default", fmt.Sprint("p", i), 1, strings.Repeat("y", 1000)))
			b.Join(allPods, podKey("default", fmt.Sprint("p", i)))
		}
	})
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	get := func(path string) string {
		t.Helper()
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return b.String()
	}
	all := get("/store/inspect")
	for _, part := range []string{`"summary"`, `"view"`, `"entry"`, `"sealed"`, `"document"`, `"/api"`} {
		if !strings.Contains(all, part) {
			t.Errorf("%s is not in %s", part, all)
		}
	}
	objects := get("/store/inspect?resource=all&data=true")
	if n := strings.Count(objects, "\n"); n != 604 {
		t.Errorf("%d objects", n)
	}
	if n := strings.Count(get("/store/inspect?resource=pods&namespace=kube-system"), "\n"); n != 1 {
		t.Errorf("%d pods in kube-system", n)
	}
	if strings.Contains(all+objects, "PLANTED") || strings.Contains(objects, "UExBTlRFR") {
		t.Error("a secret is shown")
	}
	var r Report
	if err := json.Unmarshal([]byte(get("/store/verify")), &r); err != nil || len(r.Damage) > 0 || r.Records["objects"] != 604 {
		t.Errorf("%+v %v", r, err)
	}

	apply(t, s, Durable, func(b *Batch) {
		for i := range 550 {
			b.Delete(podKey("default", fmt.Sprint("p", i)))
		}
	})
	before := names(t, s, allPods)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	was, is, err := Compact(o)
	if err != nil || is >= was {
		t.Fatalf("%d %d %v", was, is, err)
	}
	if left, _ := filepath.Glob(o.Path + "*"); len(left) != 2 { // and the lock
		t.Errorf("left: %q", left)
	}
	if rep, err := VerifyFile(o); err != nil || len(rep.Damage) > 0 || rep.Bytes != is {
		t.Errorf("%+v %v", rep, err)
	}
	s = opened(t, o)
	want(t, names(t, s, allPods), before...)
}
