package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// read calls fn with a reader of one moment. Damage that fn noted is dealt with
// afterwards. When bbolt stumbles over its pages, the file is opened again
// (which salvages it) and fn is called a second time.
func (s *Store) read(fn func(r *reader) error) error {
	for again := false; ; again = true {
		s.mu.RLock()
		if s.closed {
			s.mu.RUnlock()
			return ErrClosed
		}
		err := s.with(fn)
		s.mu.RUnlock()
		s.quarantine()
		if !errors.Is(err, errBolt) || again || !s.broken(err) {
			return err
		}
	}
}

// Get returns one object; false if the store has none of that key. A damaged
// one is ErrDamaged the first time, and none afterwards.
func (s *Store) Get(k Key) (o Object, found bool, err error) {
	if err := k.check(); err != nil {
		return Object{}, false, fmt.Errorf("reading %s: %w", k, err)
	}
	key := k.bytes()
	err = s.read(func(r *reader) error {
		found = false
		raw := r.get(bObjects, key)
		if raw == nil {
			if s.dangling[string(key)] {
				return ErrDamaged
			}
			return nil
		}
		found = true
		o, err = s.object(k, key, raw, nil)
		return err
	})
	if err != nil {
		return Object{}, false, fmt.Errorf("reading %s: %w", k, err)
	}
	return o, found, nil
}

// object decodes and unseals a record; Data is appended to buf.
func (s *Store) object(k Key, key, raw, buf []byte) (Object, error) {
	rec, err := decodeObject(key, raw)
	if err != nil {
		s.note(bObjects, key)
		return Object{}, err
	}
	o := Object{Key: k, Kind: string(rec.kind), UID: string(rec.uid), ResourceVersion: rec.rv, Format: rec.format}
	if !rec.sealed {
		o.Data = append(buf, rec.data...)
		return o, nil
	}
	if o.Data, err = s.seal.unseal(bObjects, key, 0, rec.data); err != nil {
		s.note(bObjects, key)
		return Object{}, err
	}
	return o, nil
}

// View returns the description of one view. Complete is false while a member of
// it is known to be damaged.
func (s *Store) View(q Query) (v View, found bool, err error) {
	err = s.read(func(r *reader) error {
		rec := s.views[q]
		if rec != nil {
			v, found = s.describe(r, rec), true
		}
		return nil
	})
	if err != nil {
		return View{}, false, fmt.Errorf("reading the view %s: %w", q, err)
	}
	return v, found, nil
}

func (s *Store) describe(r *reader, rec *viewRecord) View {
	v := rec.View
	if v.Complete && len(s.dangling) > 0 {
		for key := range s.dangling {
			if r.get(bRefs, refKey([]byte(key), rec.id)) != nil {
				v.Complete = false
			}
		}
	}
	return v
}

// Views returns all views of a resource, or of all if resource is "". They are
// in the order of their queries.
func (s *Store) Views(group, resource string) ([]View, error) {
	var out []View
	err := s.read(func(r *reader) error {
		out = out[:0]
		for q, rec := range s.views {
			if resource == "" || (q.Group == group && q.Resource == resource) {
				out = append(out, s.describe(r, rec))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the views: %w", err)
	}
	slices.SortFunc(out, func(a, b View) int { return slices.Compare(a.Query.bytes(), b.Query.bytes()) })
	return out, nil
}

// members calls fn with the name of each member, and fails with ErrIncomplete
// at the end if one has been lost.
func (s *Store) members(r *reader, v *viewRecord, fn func(name []byte) error) error {
	prefix := memberKey(v.id, nil)
	var seen set
	err := r.each(bMembers, prefix, nil, func(k, _ []byte) (bool, error) {
		name := k[len(prefix):]
		if _, _, ok := cutMember(name); !ok {
			// A damaged key cannot be removed: it is not found where it is.
			return false, fmt.Errorf("%w: %w: a key in %s", ErrIncomplete, errBolt, bMembers)
		}
		seen.add(name, nil)
		return true, fn(name)
	})
	if err != nil {
		return err
	}
	if seen != v.members {
		return fmt.Errorf("%w: %w: %d of %d members of %s are there", ErrIncomplete, errGap, seen.count, v.members.count, v.Query)
	}
	return nil
}

// missing is the error for a member whose record is not there. Nobody may have
// noticed yet that it is lost.
func (s *Store) missing(k Key, key []byte) error {
	if s.dangling[string(key)] {
		return fmt.Errorf("%w: %s is damaged", ErrIncomplete, k)
	}
	return fmt.Errorf("%w: %w: %s", ErrIncomplete, errGap, k)
}

// Versions returns the resourceVersion of each member of a view; 0 for one that
// is damaged and has to be put again.
func (s *Store) Versions(q Query) (map[Key]uint64, error) {
	out := map[Key]uint64{}
	err := s.eachMember(q, func() { clear(out) }, func(k Key, rec *objectRecord) error {
		out[k] = 0
		if rec != nil {
			out[k] = rec.rv
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the view %s: %w", q, err)
	}
	return out, nil
}

// Size returns how many members a view has and how many bytes their Data have.
func (s *Store) Size(q Query) (members int, bytes int64, err error) {
	err = s.eachMember(q, func() { members, bytes = 0, 0 }, func(k Key, rec *objectRecord) error {
		if rec == nil {
			return fmt.Errorf("%w: %s is damaged", ErrIncomplete, k)
		}
		members++
		bytes += int64(rec.size)
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("reading the view %s: %w", q, err)
	}
	return members, bytes, nil
}

// eachMember reads the records of a view's members at one moment; rec is nil
// for a damaged one. It calls start when it begins, or begins again.
func (s *Store) eachMember(q Query, start func(), fn func(k Key, rec *objectRecord) error) error {
	return s.read(func(r *reader) error {
		start()
		v := s.views[q]
		if v == nil {
			return nil
		}
		key := resourcePrefix(q.Group, q.Version, q.Resource)
		prefix := len(key)
		return s.members(r, v, func(name []byte) error {
			k, err := parseMember(q, name)
			if err != nil {
				return err
			}
			key = append(key[:prefix], name...)
			raw := r.get(bObjects, key)
			if raw == nil {
				if !s.dangling[string(key)] {
					return s.missing(k, key)
				}
				return fn(k, nil)
			}
			rec, err := decodeObject(key, raw)
			if err != nil {
				s.note(bObjects, key)
				return fn(k, nil)
			}
			return fn(k, &rec)
		})
	})
}

// Entries calls fn with each unsent write in order. fn may call Apply. A damaged
// one is quarantined, reported by Problems and left out.
func (s *Store) Entries(fn func(Entry) error) error {
	var after []byte
	for {
		var batch []Entry
		size := 0
		begin := after
		err := s.read(func(r *reader) error {
			after, batch, size = begin, nil, 0
			return r.each(bOutbox, nil, after, func(k, v []byte) (bool, error) {
				after = append([]byte{}, k...)
				e, err := s.entry(k, v)
				if err != nil {
					s.note(bOutbox, k)
					return true, nil
				}
				batch = append(batch, e)
				size += len(v)
				return size < chunkBytes && len(batch) < chunkObjects, nil
			})
		})
		if err != nil {
			return fmt.Errorf("reading unsent writes: %w", err)
		}
		if len(batch) == 0 {
			return nil
		}
		for _, e := range batch {
			if err := fn(e); err != nil {
				return err
			}
		}
	}
}

// Entry returns the newest unsent write of a key and an operation.
func (s *Store) Entry(k Key, opName string) (e Entry, found bool, err error) {
	err = s.read(func(r *reader) error {
		seq, ok := s.entries[entryName{key: k, op: opName}]
		if !ok {
			return nil
		}
		key := seqKey(seq)
		raw := r.get(bOutbox, key)
		if raw == nil {
			return ErrDamaged
		}
		if e, err = s.entry(key, raw); err != nil {
			s.note(bOutbox, key)
			return err
		}
		found = true
		return nil
	})
	if err != nil {
		return Entry{}, false, fmt.Errorf("reading the unsent write of %s: %w", k, err)
	}
	return e, found, nil
}

func (s *Store) entry(key, raw []byte) (Entry, error) {
	e, sealed, err := decodeEntry(key, raw)
	if err != nil {
		return Entry{}, err
	}
	if !sealed {
		e.Payload, e.Base = clone(e.Payload), clone(e.Base)
		return e, nil
	}
	if e.Payload, err = s.seal.unseal(bOutbox, key, 1, e.Payload); err != nil {
		return Entry{}, err
	}
	if e.Base, err = s.seal.unseal(bOutbox, key, 2, e.Base); err != nil {
		return Entry{}, err
	}
	e.Payload, e.Base = clone(e.Payload), clone(e.Base)
	return e, nil
}

// clone copies; nothing stays nil.
func clone(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return append([]byte{}, b...)
}

// Secret returns a sealed value.
func (s *Store) Secret(bucket, name string) (value []byte, found bool, err error) {
	key := s.seal.secretKey(bucket, name)
	err = s.read(func(r *reader) error {
		raw := r.get(bSecrets, key)
		if raw == nil {
			return nil
		}
		if _, value, err = s.openSecret(key, raw); err != nil {
			s.note(bSecrets, key)
			return err
		}
		found = true
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("reading a sealed value of %s: %w", bucket, err)
	}
	return value, found, nil
}

// Secrets calls fn with each sealed value of a bucket, in no order that means
// something. A damaged one is quarantined, reported by Problems and left out.
func (s *Store) Secrets(bucket string, fn func(name string, value []byte) error) error {
	found := map[string][]byte{}
	err := s.read(func(r *reader) error {
		clear(found)
		return r.each(bSecrets, append([]byte(bucket), 0), nil, func(k, v []byte) (bool, error) {
			name, value, err := s.openSecret(k, v)
			if err != nil {
				s.note(bSecrets, k)
				return true, nil
			}
			found[name] = value
			return true, nil
		})
	})
	if err != nil {
		return fmt.Errorf("reading the sealed values of %s: %w", bucket, err)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if err := fn(name, found[name]); err != nil {
			return err
		}
	}
	return nil
}

// Document returns a document.
func (s *Store) Document(name string) (value []byte, found bool, err error) {
	key := []byte(name)
	err = s.read(func(r *reader) error {
		raw := r.get(bDocuments, key)
		if raw == nil {
			return nil
		}
		body, err := open(bDocuments, key, raw)
		if err != nil {
			s.note(bDocuments, key)
			return err
		}
		value, found = append([]byte{}, body...), true
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("reading the document %s: %w", name, err)
	}
	return value, found, nil
}
