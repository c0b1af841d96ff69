package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// opened opens a store that is closed at the end of the test.
func opened(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func files(t testing.TB) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{
		Path: filepath.Join(dir, "store.db"), JournalPath: filepath.Join(dir, "run", "journal"),
		KeyFile: filepath.Join(dir, "store.key"),
	}
}

// crash ends a store as kill -9 would: nothing is committed, nothing closed in
// order.
func crash(s *Store) {
	s.mu.Lock()
	s.closed = true
	s.active = newGeneration(1, 1)
	s.mu.Unlock()
	s.wake()
	<-s.stopped
	if s.journal != nil {
		_ = s.journal.close()
	}
	_ = s.db.Close()
	s.unlock()
}

var (
	allPods     = Query{Version: "v1", Resource: "pods"}
	defaultPods = Query{Version: "v1", Resource: "pods", Namespace: "default"}
	allSecrets  = Query{Version: "v1", Resource: "secrets"}
)

func podKey(ns, name string) Key {
	return Key{Version: "v1", Resource: "pods", Namespace: ns, Name: name}
}

func pod(ns, name string, rv uint64, data string) Object {
	return Object{Key: podKey(ns, name), Kind: "Pod", UID: "uid-" + name, ResourceVersion: rv, Format: FormatJSON, Data: []byte(data)}
}

func secretObject(ns, name string, rv uint64, data string) Object {
	o := pod(ns, name, rv, data)
	o.Resource, o.Kind = "secrets", "Secret"
	return o
}

func apply(t testing.TB, s *Store, d Durability, fill func(b *Batch)) {
	t.Helper()
	var b Batch
	fill(&b)
	if err := s.Apply(&b, d); err != nil {
		t.Fatal(err)
	}
}

// names lists a view as "namespace/name@rv=data".
func names(t testing.TB, s *Store, q Query) []string {
	t.Helper()
	out, err := listed(s, q, Key{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func listed(s *Store, q Query, after Key) ([]string, error) {
	var out []string
	err := s.Scan(context.Background(), q, after, func(o Object) error {
		out = append(out, fmt.Sprintf("%s/%s@%d=%s", o.Namespace, o.Name, o.ResourceVersion, o.Data))
		return nil
	})
	return out, err
}

func want(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func fillPods(b *Batch) {
	b.SetView(View{Query: allPods, Kind: "Pod", Node: true, Complete: true, ResourceVersion: 10, Synced: time.Unix(1000, 5)})
	b.SetView(View{Query: defaultPods, Kind: "Pod", Complete: true, ResourceVersion: 11})
	b.Put(pod("kube-system", "dns", 4, "d"))
	b.Put(pod("default", "b", 5, "b5"))
	b.Put(pod("default", "a", 6, "a6"))
	b.Join(allPods, podKey("kube-system", "dns"))
	for _, n := range []string{"a", "b"} {
		b.Join(allPods, podKey("default", n))
		b.Join(defaultPods, podKey("default", n))
	}
	b.SetRevision(11)
}

func TestObjectsAndViews(t *testing.T) {
	s := opened(t, files(t))
	apply(t, s, Soon, fillPods)
	check := func(s *Store) {
		t.Helper()
		want(t, names(t, s, allPods), "default/a@6=a6", "default/b@5=b5", "kube-system/dns@4=d")
		want(t, names(t, s, defaultPods), "default/a@6=a6", "default/b@5=b5")
		rest, err := listed(s, allPods, podKey("default", "a"))
		if err != nil {
			t.Fatal(err)
		}
		want(t, rest, "default/b@5=b5", "kube-system/dns@4=d")
		if n, size, err := s.Size(allPods); err != nil || n != 3 || size != 5 {
			t.Fatalf("Size: %d %d %v", n, size, err)
		}
		if v, err := s.Versions(defaultPods); err != nil || len(v) != 2 || v[podKey("default", "a")] != 6 {
			t.Fatalf("Versions: %v %v", v, err)
		}
		v, ok, err := s.View(allPods)
		if err != nil || !ok || !v.Complete || !v.Node || v.ResourceVersion != 10 || !v.Synced.Equal(time.Unix(1000, 5)) {
			t.Fatalf("View: %+v %v %v", v, ok, err)
		}
		if s.Revision() != 11 {
			t.Fatalf("revision %d", s.Revision())
		}
		o, ok, err := s.Get(podKey("default", "a"))
		if err != nil || !ok || o.UID != "uid-a" || o.Kind != "Pod" || string(o.Data) != "a6" || o.Format != FormatJSON {
			t.Fatalf("Get: %+v %v %v", o, ok, err)
		}
	}
	check(s)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = opened(t, s.o)
	check(s)

	// A membership ends, the object stays for the other view.
	apply(t, s, Soon, func(b *Batch) { b.Leave(allPods, podKey("default", "a")) })
	want(t, names(t, s, allPods), "default/b@5=b5", "kube-system/dns@4=d")
	want(t, names(t, s, defaultPods), "default/a@6=a6", "default/b@5=b5")
	apply(t, s, Soon, func(b *Batch) { b.Leave(defaultPods, podKey("default", "a")) })
	if _, ok, err := s.Get(podKey("default", "a")); ok || err != nil {
		t.Fatalf("an object in no view is still there (%v)", err)
	}
	apply(t, s, Soon, func(b *Batch) { b.Delete(podKey("default", "b")) })
	want(t, names(t, s, defaultPods))
	apply(t, s, Durable, func(b *Batch) { b.DeleteView(allPods) })
	if _, ok, _ := s.View(allPods); ok {
		t.Fatal("the view is still there")
	}
	if st := s.Stats(); st.Objects != 0 || st.Views != 1 {
		t.Fatalf("%+v", st)
	}
}

func TestSoonSurvivesTheProcess(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	apply(t, s, Soon, fillPods)
	apply(t, s, Lazy, func(b *Batch) { b.Put(pod("default", "a", 7, "a7")) })
	crash(s)
	s = opened(t, o)
	want(t, names(t, s, defaultPods), "default/a@7=a7", "default/b@5=b5")
	if p := s.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
}

func TestBatchIsAllOrNothing(t *testing.T) {
	s := opened(t, files(t))
	apply(t, s, Soon, fillPods)
	for name, fill := range map[string]func(b *Batch){
		"no such view":     func(b *Batch) { b.Join(Query{Version: "v1", Resource: "nodes"}, podKey("default", "a")) },
		"no such object":   func(b *Batch) { b.Join(allPods, podKey("default", "nobody")) },
		"another resource": func(b *Batch) { b.Join(allPods, Key{Version: "v1", Resource: "nodes", Name: "n"}) },
		"zero byte":        func(b *Batch) { b.Put(pod("default", "a\x00b", 1, "")) },
		"no name":          func(b *Batch) { b.Put(pod("default", "", 1, "")) },
		"no format":        func(b *Batch) { b.Put(Object{Key: podKey("a", "b")}) },
		"secret's name":    func(b *Batch) { b.PutSecret("tokens", "", nil) },
	} {
		var b Batch
		b.Put(pod("default", "a", 99, "new"))
		b.SetRevision(99)
		fill(&b)
		if err := s.Apply(&b, Durable); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if s.Revision() != 11 {
			t.Fatalf("%s: half of a batch was applied", name)
		}
	}
	want(t, names(t, s, defaultPods), "default/a@6=a6", "default/b@5=b5")
}

func TestEntriesSecretsDocuments(t *testing.T) {
	o := files(t)
	s := opened(t, o)
	k := podKey("default", "a")
	created := time.Unix(50, 1).UTC()
	apply(t, s, Durable, func(b *Batch) {
		b.PutEntry(Entry{Key: k, UID: "u", Op: "status", Payload: []byte("p1"), Base: []byte("b1"), Created: created})
		b.PutEntry(Entry{Key: k, UID: "u", Op: "delete", Payload: []byte("p2")})
		b.PutEntry(Entry{Key: secretObject("default", "s", 1, "").Key, Op: "status", Payload: []byte("sp"), Base: []byte("sb")})
		b.PutSecret("tokens", "b", []byte("token-b"))
		b.PutSecret("tokens", "a", []byte("token-a"))
		b.PutSecret("keys", "a", []byte("key-a"))
		b.PutDocument("/api", []byte("doc"))
	})
	check := func() {
		t.Helper()
		var got []string
		if err := s.Entries(func(e Entry) error {
			got = append(got, fmt.Sprint(e.Seq, e.Key.Resource, e.Op, string(e.Payload), string(e.Base), e.Created.Unix()))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		want(t, got, "1podsstatusp1b150", "2podsdeletep2"+fmt.Sprint(time.Time{}.Unix()), "3secretsstatusspsb"+fmt.Sprint(time.Time{}.Unix()))
		if e, ok, err := s.Entry(k, "status"); err != nil || !ok || e.Seq != 1 || !e.Created.Equal(created) {
			t.Fatalf("Entry: %+v %v %v", e, ok, err)
		}
		if v, ok, err := s.Secret("tokens", "a"); err != nil || !ok || string(v) != "token-a" {
			t.Fatalf("Secret: %q %v %v", v, ok, err)
		}
		got = nil
		if err := s.Secrets("tokens", func(n string, v []byte) error { got = append(got, n+"="+string(v)); return nil }); err != nil {
			t.Fatal(err)
		}
		want(t, got, "a=token-a", "b=token-b")
		if v, ok, err := s.Document("/api"); err != nil || !ok || string(v) != "doc" {
			t.Fatalf("Document: %q %v %v", v, ok, err)
		}
	}
	check()
	crash(s)
	s = opened(t, o)
	check()
	apply(t, s, Durable, func(b *Batch) {
		b.PutEntry(Entry{Key: k, Op: "status", Payload: []byte("newer")})
		b.PutEntry(Entry{Seq: 2, Key: k, Op: "delete", Payload: []byte("replaced")})
		b.DeleteSecret("tokens", "a")
		b.DeleteDocument("/api")
	})
	if e, _, _ := s.Entry(k, "status"); e.Seq != 4 {
		t.Fatalf("%+v", e)
	}
	apply(t, s, Soon, func(b *Batch) { b.DeleteEntry(4) })
	if e, ok, _ := s.Entry(k, "status"); !ok || e.Seq != 1 {
		t.Fatalf("the older entry: %+v", e)
	}
	apply(t, s, Soon, func(b *Batch) { b.DeleteEntry(1) })
	if _, ok, _ := s.Entry(k, "status"); ok {
		t.Fatal("deleted entry found")
	}
	if e, _, _ := s.Entry(k, "delete"); string(e.Payload) != "replaced" {
		t.Fatalf("%+v", e)
	}
	if _, ok, _ := s.Secret("tokens", "a"); ok {
		t.Fatal("deleted secret found")
	}
	// Numbers are never used again.
	apply(t, s, Durable, func(b *Batch) { b.PutEntry(Entry{Key: k, Op: "x"}) })
	if e, _, _ := s.Entry(k, "x"); e.Seq != 5 {
		t.Fatalf("%+v", e)
	}
	if st := s.Stats(); st.Entries != 3 {
		t.Fatalf("%+v", st)
	}
}

// TestScanShowsOneMoment changes a view under a slow reader.
func TestScanShowsOneMoment(t *testing.T) {
	s := opened(t, files(t))
	const n = 3 * chunkObjects
	var expect []string
	apply(t, s, Soon, func(b *Batch) {
		b.SetView(View{Query: allPods, Complete: true})
		for i := range n {
			name := fmt.Sprintf("p%05d", i)
			b.Put(pod("default", name, 1, "old"))
			b.Join(allPods, podKey("default", name))
			expect = append(expect, "default/"+name+"@1=old")
		}
	})
	var got []string
	i := 0
	err := s.Scan(context.Background(), allPods, Key{}, func(o Object) error {
		got = append(got, fmt.Sprintf("%s/%s@%d=%s", o.Namespace, o.Name, o.ResourceVersion, o.Data))
		if i++; i == 10 {
			apply(t, s, Soon, func(b *Batch) {
				for j := range n {
					switch name := fmt.Sprintf("p%05d", j); j % 3 {
					case 0:
						b.Put(pod("default", name, 2, "new"))
					case 1:
						b.Delete(podKey("default", name))
					}
				}
				b.Put(pod("default", "p00000a", 2, "added"))
				b.Join(allPods, podKey("default", "p00000a"))
			})
			if err := s.Sync(); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, got, expect...)
	if len(s.snapshots) != 0 {
		t.Fatal("the snapshot stays")
	}
	if got := names(t, s, allPods); len(got) != n-n/3+1 {
		t.Fatalf("%d members", len(got))
	}

	// What changes under a reader is bounded.
	big := strings.Repeat("x", 64<<10)
	for i := range 100 {
		apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", fmt.Sprintf("p%05d", 3*i), 3, big)) })
	}
	first := true
	err = s.Scan(context.Background(), allPods, Key{}, func(Object) error {
		if first {
			first = false
			for i := range 100 {
				apply(t, s, Soon, func(b *Batch) { b.Put(pod("default", fmt.Sprintf("p%05d", 3*i), 4, "small")) })
			}
		}
		return nil
	})
	if !errors.Is(err, ErrChanged) {
		t.Fatalf("got %v", err)
	}
}

func TestSecretsAreSealedEverywhere(t *testing.T) {
	o := files(t)
	o.LazyInterval = time.Hour
	s := opened(t, o)
	planted := []string{"PLANTED-object", "PLANTED-token", "PLANTED-payload", "PLANTED-base", "PLANTED-name"}
	look := func(where string) {
		t.Helper()
		for _, path := range []string{o.Path, o.JournalPath} {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range planted {
				if strings.Contains(string(data), p) {
					t.Errorf("%s: %s is in %s", where, p, filepath.Base(path))
				}
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v %v", path, info.Mode(), err)
			}
		}
	}
	sec := secretObject("default", "s", 1, planted[0])
	apply(t, s, Soon, func(b *Batch) {
		b.SetView(View{Query: allSecrets, Complete: true})
		b.Put(sec)
		b.Join(allSecrets, sec.Key)
		b.PutSecret("tokens", planted[4], []byte(planted[1]))
		b.PutEntry(Entry{Key: sec.Key, Op: "status", Payload: []byte(planted[2]), Base: []byte(planted[3])})
		b.PutDocument("not sealed", []byte("in the clear"))
	})
	look("in the journal")
	if j, _ := os.ReadFile(o.JournalPath); !strings.Contains(string(j), "in the clear") {
		t.Fatal("the journal does not have the batch")
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	look("in the file")
	want(t, names(t, s, allSecrets), "default/s@1="+planted[0])
	apply(t, s, Durable, func(b *Batch) {
		b.Delete(sec.Key)
		b.DeleteSecret("tokens", planted[4])
		b.DeleteEntry(1)
	})
	look("in freed pages")

	// Records cannot be swapped, and nothing opens them with another key.
	a, bb := []byte("a"), []byte("b")
	sealed := s.seal.seal(bObjects, a, 0, []byte("x"))
	if _, err := s.seal.unseal(bObjects, bb, 0, sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := s.seal.unseal(bSecrets, a, 0, sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another table: %v", err)
	}
}

// TestRaise: what passes through counts at once, over a kill, in a full store,
// and until it is reset.
func TestRaise(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "store.db"), JournalPath: filepath.Join(t.TempDir(), "journal"), CommitInterval: time.Hour, LazyInterval: time.Hour}
	s := opened(t, o)
	for _, step := range []struct{ rv, want uint64 }{{10, 10}, {7, 10}, {12, 12}} {
		if err := s.Raise(step.rv); err != nil || s.Revision() != step.want {
			t.Fatalf("Raise(%d): %v, revision %d, want %d", step.rv, err, s.Revision(), step.want)
		}
	}
	crash(s)
	s = opened(t, o)
	if s.Revision() != 12 {
		t.Errorf("revision %d after a kill", s.Revision())
	}
	b := &Batch{}
	b.ResetRevision(3)
	if err := s.Apply(b, Durable); err != nil || s.Revision() != 3 {
		t.Errorf("reset: %v, revision %d", err, s.Revision())
	}
	crash(s)
	if err := os.Remove(o.JournalPath); err != nil {
		t.Fatal(err)
	}
	s = opened(t, o)
	if s.Revision() != 3 {
		t.Errorf("revision %d after a reset and a power cut", s.Revision())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Raise(20); err == nil || s.Revision() != 20 {
		t.Errorf("a store that takes nothing: %v, revision %d", err, s.Revision())
	}
}

// BenchmarkRaise is what each answer costs that passes through.
func BenchmarkRaise(b *testing.B) {
	s, err := Open(Options{Path: filepath.Join(b.TempDir(), "store.db"), JournalPath: filepath.Join(b.TempDir(), "journal")})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	rv := uint64(0)
	for b.Loop() {
		rv++
		if err := s.Raise(rv); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
