package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// ErrChanged means that a Scan was so slow, and so much changed meanwhile, that
// its moment cannot be shown any more. Start again.
var ErrChanged = errors.New("the list changed too much while it was being read")

const (
	chunkObjects = 256
	chunkBytes   = 256 << 10
	savedMax     = 4 << 20 // of old records, for each slow Scan
)

// Scan calls fn with each member of a view in the order of namespace and name,
// starting behind after (the zero Key starts at the beginning). What it shows is
// the view at the moment of the call, whatever is applied meanwhile and however
// long fn takes; fn may call the store. Data is valid only until fn returns.
//
// ErrIncomplete if a member cannot be read; fn may then have been called for
// some. ErrChanged if more has changed while fn was slow than the store keeps
// for it. A view that does not exist has no members: ask View first.
func (s *Store) Scan(ctx context.Context, q Query, after Key, fn func(Object) error) error {
	snap, err := s.snapshot(q, after)
	if err != nil {
		return fmt.Errorf("reading the view %s: %w", q, err)
	}
	if snap == nil {
		return nil
	}
	defer s.release(snap)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk, err := s.nextChunk(snap)
		if err != nil {
			return fmt.Errorf("reading the view %s: %w", q, err)
		}
		if len(chunk) == 0 {
			return nil
		}
		for i := range chunk {
			if err := fn(chunk[i]); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
}

// snapshot is one moment of a view. It holds the members' names; objects are
// read in chunks, because a transaction of bbolt that stays open while a slow
// client reads keeps every page since in the file. Apply saves the record of an
// object that it changes before the snapshot has come to it.
type snapshot struct {
	query    Query
	resource []byte // the beginning of the objects' keys
	names    []string
	next     int
	saved    map[string][]byte // by name
	bytes    int64
	lost     bool
	buf      []byte
}

func (s *Store) snapshot(q Query, after Key) (snap *snapshot, err error) {
	err = s.read(func(r *reader) error {
		v := s.views[q]
		if v == nil {
			return nil
		}
		sn := &snapshot{query: q, resource: resourcePrefix(q.Group, q.Version, q.Resource), names: make([]string, 0, v.members.count)}
		err := s.members(r, v, func(name []byte) error {
			sn.names = append(sn.names, string(name))
			return nil
		})
		if err != nil {
			return err
		}
		if after != (Key{}) {
			behind := string(memberName(after))
			sn.next = sort.Search(len(sn.names), func(i int) bool { return sn.names[i] > behind })
		}
		snap = sn
		// While mu is shared no Apply can come between.
		s.snapMu.Lock()
		s.snapshots[sn] = true
		s.snapMu.Unlock()
		return nil
	})
	return snap, err
}

func (s *Store) release(snap *snapshot) {
	s.snapMu.Lock()
	delete(s.snapshots, snap)
	s.snapMu.Unlock()
}

// nextChunk reads the next objects; they are valid until the next call.
func (s *Store) nextChunk(snap *snapshot) (chunk []Object, err error) {
	begin := snap.next
	err = s.read(func(r *reader) error {
		snap.next, chunk = begin, nil
		buf := snap.buf[:0]
		size := 0
		key := append([]byte{}, snap.resource...)
		for snap.next < len(snap.names) && len(chunk) < chunkObjects && size < chunkBytes {
			if snap.lost {
				return ErrChanged
			}
			name := snap.names[snap.next]
			k, err := parseMember(snap.query, []byte(name))
			if err != nil {
				return fmt.Errorf("%w: %w", ErrIncomplete, err)
			}
			key = append(key[:len(snap.resource)], name...)
			raw := snap.saved[name]
			if raw == nil {
				raw = r.get(bObjects, key)
			}
			if raw == nil {
				return s.missing(k, key)
			}
			at := len(buf)
			if n := at + len(raw); n > cap(buf) && len(chunk) > 0 {
				break // growing would move what has been read
			} else if n > cap(buf) {
				buf = make([]byte, 0, max(min(chunkBytes, len(raw)*(len(snap.names)-snap.next)), len(raw)))
			}
			o, err := s.object(k, key, raw, buf[at:at:cap(buf)])
			if err != nil {
				return fmt.Errorf("%w: %s: %w", ErrIncomplete, k, err)
			}
			if !isSecret(k) {
				buf = buf[:at+len(o.Data)]
			}
			size += len(o.Data)
			chunk = append(chunk, o)
			snap.next++
		}
		snap.buf = buf
		return nil
	})
	return chunk, err
}

// saveForSnapshots keeps what is about to change for the snapshots that have
// not come to it. The caller holds mu.
func (s *Store) saveForSnapshots(r *reader, changes *layer) {
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	if len(s.snapshots) == 0 {
		return
	}
	for _, key := range changes.tables[bObjects].keys {
		for snap := range s.snapshots {
			prefix := len(snap.resource)
			if snap.lost || len(key) <= prefix || key[:prefix] != string(snap.resource) {
				continue
			}
			name := key[prefix:]
			if _, found := slices.BinarySearch(snap.names[snap.next:], name); !found || snap.saved[name] != nil {
				continue
			}
			old := r.get(bObjects, []byte(key))
			if old == nil {
				continue
			}
			if snap.bytes += int64(len(old)); snap.bytes > savedMax {
				snap.lost, snap.saved = true, nil
				continue
			}
			if snap.saved == nil {
				snap.saved = map[string][]byte{}
			}
			snap.saved[name] = append([]byte{}, old...)
		}
	}
}
