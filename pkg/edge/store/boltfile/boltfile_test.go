package boltfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// database makes a real one, with deep trees, overflow pages, small and empty
// buckets, and returns its bytes and records.
func database(t testing.TB, noFreelist bool) ([]byte, map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: noFreelist, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	for range 60 {
		err := db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{"big", "small", "empty"} {
				b, err := tx.CreateBucketIfNotExists([]byte(name))
				if err != nil {
					return err
				}
				n := map[string]int{"big": 80, "small": 1, "empty": 0}[name]
				for range n {
					k := fmt.Sprintf("key-%s-%0*d", name, 4+r.IntN(40), r.IntN(3000))
					if name == "small" {
						k = "only"
					}
					id := name + "/" + k
					if r.IntN(3) == 0 {
						delete(want, id)
						if err := b.Delete([]byte(k)); err != nil {
							return err
						}
						continue
					}
					size := r.IntN(60)
					if r.IntN(40) == 0 {
						size = r.IntN(20000)
					}
					v := bytes.Repeat([]byte{byte(r.IntN(256))}, size)
					want[id] = string(v)
					if err := b.Put([]byte(k), v); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, want
}

func TestWalkReadsWhatBboltWrote(t *testing.T) {
	for _, noFreelist := range []bool{true, false} {
		data, want := database(t, noFreelist)
		f := New(bytes.NewReader(data), int64(len(data)))
		metas, problems := f.Metas()
		if len(metas) != 2 || len(problems) > 0 || metas[0].Tx != metas[1].Tx+1 {
			t.Fatalf("%+v %v", metas, problems)
		}
		got := map[string]string{}
		names := f.Walk(metas[0], func(b string, k, v []byte) { got[b+"/"+string(k)] = string(v) },
			func(b string, err error) { t.Errorf("%s: %v", b, err) })
		if fmt.Sprint(names) != "[big empty small]" || len(got) != len(want) {
			t.Fatalf("%q, %d records of %d", names, len(got), len(want))
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%s differs", k)
			}
		}
	}
}

func TestMetaBitIsTurnedBack(t *testing.T) {
	data, _ := database(t, true)
	metas, _ := New(bytes.NewReader(data), int64(len(data))).Metas()
	page := int(metas[0].PageSize)
	at := page*int(metas[0].Tx%2) + headerSize
	for bit := range metaSize * 8 {
		data[at+bit/8] ^= 1 << (bit % 8)
		got, problems := New(bytes.NewReader(data), int64(len(data))).Metas()
		if len(got) != 2 || got[0].Tx != metas[0].Tx || got[0].Root != metas[0].Root || len(problems) == 0 {
			t.Fatalf("bit %d: %+v %v", bit, got, problems)
		}
		data[at+bit/8] ^= 1 << (bit % 8)
	}
}

func FuzzWalk(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, PageSize: 512})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 {
		if err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return b.Put([]byte(fmt.Sprint("k", i)), bytes.Repeat([]byte("v"), 10*i))
		}); err != nil {
			f.Fatal(err)
		}
	}
	_ = db.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, uint32(0), byte(0))
	f.Add(data, uint32(1024+10), byte(7))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, x byte) {
		data = bytes.Clone(data)
		if len(data) > 0 {
			data[int(at)%len(data)] ^= x
		}
		file := New(bytes.NewReader(data), int64(len(data)))
		metas, _ := file.Metas()
		for _, m := range metas {
			total := 0
			file.Walk(m, func(_ string, k, v []byte) { total += len(k) + len(v) }, func(string, error) {})
			if total > 2*len(data) {
				t.Fatalf("%d bytes out of %d", total, len(data))
			}
		}
	})
}
