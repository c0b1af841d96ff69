package store

import (
	"bytes"
	"testing"
	"time"
)

func FuzzDecodeRecord(f *testing.F) {
	key := podKey("default", "a").bytes()
	plain := objectRecord{kind: []byte("Pod"), uid: []byte("u"), rv: 7, format: FormatJSON, size: 2, data: []byte("{}")}
	f.Add(key, plain.append(key))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, record []byte) {
		for _, record := range [][]byte{record, finish(bObjects, key, bytes.Clone(record))} {
			o, err := decodeObject(key, record)
			if err != nil {
				continue
			}
			again, err := decodeObject(key, o.append(key))
			if err != nil || again.rv != o.rv || !bytes.Equal(again.data, o.data) || !bytes.Equal(again.kind, o.kind) || again.sealed != o.sealed {
				t.Fatalf("%+v became %+v: %v", o, again, err)
			}
			_, _ = parseKey(key)
			_, _ = parseMember(allPods, key)
		}
	})
}

func FuzzDecodeView(f *testing.F) {
	v := viewRecord{View: View{Query: defaultPods, Kind: "Pod", Complete: true, ResourceVersion: 9, Synced: time.Unix(5, 0)}, id: 3, members: set{2, 77}}
	key := v.Query.bytes()
	f.Add(key, v.append(key))
	f.Fuzz(func(t *testing.T, key, record []byte) {
		for _, record := range [][]byte{record, finish(bViews, key, bytes.Clone(record))} {
			v, err := decodeView(key, record)
			if err != nil {
				continue
			}
			if !bytes.Equal(v.Query.bytes(), key) {
				t.Fatalf("the key %q became %q", key, v.Query.bytes())
			}
			if again, err := decodeView(key, v.append(key)); err != nil || again.id != v.id || again.members != v.members || !again.Synced.Equal(v.Synced) {
				t.Fatalf("%+v became %+v: %v", v, again, err)
			}
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	e := Entry{Seq: 5, Key: podKey("default", "a"), UID: "u", Op: "status", Payload: []byte("p"), Base: []byte("b"), Created: time.Unix(5, 0)}
	f.Add(seqKey(5), appendEntry(&e, false))
	f.Fuzz(func(t *testing.T, key, record []byte) {
		for _, record := range [][]byte{record, finish(bOutbox, key, bytes.Clone(record))} {
			e, sealed, err := decodeEntry(key, record)
			if err != nil {
				continue
			}
			again, sealedAgain, err := decodeEntry(key, appendEntry(&e, sealed))
			if err != nil || sealedAgain != sealed || again.Key != e.Key || !bytes.Equal(again.Payload, e.Payload) || !again.Created.Equal(e.Created) {
				t.Fatalf("%+v became %+v: %v", e, again, err)
			}
		}
	})
}

func FuzzJournal(f *testing.F) {
	id := [16]byte{1, 2, 3}
	var l layer
	l.put(bObjects, "k", []byte("v"))
	l.set(bMembers, "m", nil)
	good := appendFrame(headerOf(id), frame{mark: mark{1, 2}, base: 3, changes: &l})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(headerOf(id))
	f.Fuzz(func(t *testing.T, data []byte) {
		count := 0
		n, _ := readJournal(bytes.NewReader(data), id, func(fr frame) error { count++; return nil })
		if n > int64(len(data)) || n < 0 {
			t.Fatalf("%d of %d bytes", n, len(data))
		}
		// Behind any header, as the body of a frame.
		if fr, err := decodeFrame(data); err == nil {
			again, err := decodeFrame(appendFrame(nil, fr)[frameHeader:])
			if err != nil || again.mark != fr.mark || again.changes.ops != fr.changes.ops {
				t.Fatalf("%+v became %+v: %v", fr, again, err)
			}
		}
	})
}
