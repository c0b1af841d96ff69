package store

import (
	"cmp"
	"slices"
)

// repair makes file and fingerprints agree again after damage: lost members make
// their views incomplete, members without an object are quarantined ones, refs
// follow the members. It runs when the store has been loaded.
func (s *Store) repair(found *finding) error {
	s.hurtMu.Lock()
	hurt := s.hurt
	s.hurt = map[hurtRecord]bool{}
	s.hurtMu.Unlock()
	for _, h := range found.hurt {
		hurt[h] = true
	}
	if len(hurt) > 0 {
		if err := s.quarantineLocked(hurt); err != nil {
			return err
		}
	}
	return s.with(func(r *reader) error {
		t := s.begin(r)
		// Views first: ids that nobody has any more lose their members.
		byID := map[viewID]*viewRecord{}
		for _, v := range s.views {
			byID[v.id] = v
			t.st.nextView = max(t.st.nextView, uint64(v.id))
		}
		there := map[viewID]set{}
		type member struct {
			id  viewID
			key string
		}
		var gone, lost [][]byte // member keys without view, object keys
		var refs [][]byte
		members := map[member]bool{}
		err := r.each(bMembers, nil, nil, func(k, _ []byte) (bool, error) {
			id, name := viewID(0), []byte(nil)
			if len(k) > 4 {
				id, name = idOf(k), k[4:]
			}
			v := byID[id]
			if v == nil {
				gone = append(gone, slices.Clone(k))
				t.st.nextView = max(t.st.nextView, uint64(id))
				return true, nil
			}
			m := there[id]
			m.add(name, nil)
			there[id] = m
			key := append(resourcePrefix(v.Group, v.Version, v.Resource), name...)
			members[member{id, string(key)}] = true
			if r.get(bObjects, key) == nil {
				lost = append(lost, key)
			}
			if ref := refKey(key, id); r.get(bRefs, ref) == nil {
				refs = append(refs, ref)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range gone {
			t.set(bMembers, k, nil)
		}
		for _, ref := range refs {
			t.set(bRefs, ref, []byte{})
		}
		var stale [][]byte
		err = r.each(bRefs, nil, nil, func(k, _ []byte) (bool, error) {
			if len(k) > 4 {
				m := member{idOf(k[len(k)-4:]), string(k[:len(k)-4])}
				if !members[m] {
					stale = append(stale, slices.Clone(k))
				}
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range stale {
			t.set(bRefs, k, nil)
		}
		for _, v := range s.views {
			if there[v.id] != v.members {
				t.distrust(hurtRecord{bViews, string(v.Query.bytes())})
			}
		}
		for _, key := range lost {
			if q := quarantineKey(bObjects, key); t.r.get(bQuarantine, q) == nil {
				t.set(bQuarantine, q, []byte{})
				s.problems.add("lost "+string(key), "lost: "+hurtRecord{bObjects, string(key)}.String())
			}
		}
		// Numbers must not be used twice, and resourceVersions not go back.
		for _, v := range s.views {
			t.st.revision = max(t.st.revision, v.ResourceVersion)
		}
		err = t.r.each(bObjects, nil, nil, func(k, v []byte) (bool, error) {
			if rec, err := decodeObject(k, v); err == nil {
				t.st.revision = max(t.st.revision, rec.rv)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, seq := range s.entries {
			t.st.nextSeq = max(t.st.nextSeq, seq)
		}
		for b := bObjects; b < nBuckets; b++ {
			if err := t.recount(b); err != nil {
				return err
			}
		}
		s.accept(t, Soon)
		return nil
	})
}

// sorted is the order in which damage is told.
func sorted(hurt []hurtRecord) []hurtRecord {
	return slices.SortedFunc(slices.Values(hurt), func(a, b hurtRecord) int {
		return cmp.Or(cmp.Compare(a.b, b.b), cmp.Compare(a.key, b.key))
	})
}
