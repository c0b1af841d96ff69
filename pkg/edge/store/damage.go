package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// Bounds of what is kept of damaged records for somebody who wants to look.
const (
	quarantineRecord = 64 << 10
	quarantineBytes  = 4 << 20
	maxProblems      = 50
)

// problems is what an operator should know, once each.
type problems struct {
	mu   sync.Mutex
	log  *slog.Logger
	keys []string
	text map[string]string
}

func (p *problems) add(key, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text == nil {
		p.text = map[string]string{}
	}
	old, known := p.text[key]
	if !known {
		if len(p.keys) >= maxProblems {
			p.log.Error("store: " + text)
			return
		}
		p.keys = append(p.keys, key)
	}
	if old != text {
		p.log.Error("store: " + text)
	}
	p.text[key] = text
}

func (p *problems) clear(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.text[key]; !known {
		return
	}
	delete(p.text, key)
	for i, k := range p.keys {
		if k == key {
			p.keys = append(p.keys[:i], p.keys[i+1:]...)
			break
		}
	}
	p.log.Info("store: this is over", "problem", key)
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]string, 0, len(p.keys))
	for _, k := range p.keys {
		out = append(out, p.text[k])
	}
	return out
}

type hurtRecord struct {
	b   bucket
	key string
}

// note remembers a record that a reader could not decode; read quarantines it
// when it has let go of the lock.
func (s *Store) note(b bucket, key []byte) {
	s.hurtMu.Lock()
	s.hurt[hurtRecord{b, string(key)}] = true
	s.hurtMu.Unlock()
}

func quarantineKey(b bucket, key []byte) []byte {
	if len(key) > 16<<10 {
		// No key of the store: a damaged length. bbolt does not take it.
		key = binary.BigEndian.AppendUint64(append([]byte{}, key[:64]...), hash(key))
	}
	return append([]byte{byte(b)}, key...)
}

func quarantinedObject(key []byte) ([]byte, bool) {
	if len(key) < 2 || bucket(key[0]) != bObjects {
		return nil, false
	}
	return key[1:], true
}

// quarantine moves the noted records out of the way. An object stays a member
// of its views, so that these are not complete until it is put again.
func (s *Store) quarantine() {
	s.hurtMu.Lock()
	hurt := s.hurt
	if len(hurt) == 0 {
		s.hurtMu.Unlock()
		return
	}
	s.hurt = map[hurtRecord]bool{}
	s.hurtMu.Unlock()
	if s.o.ReadOnly {
		for h := range hurt {
			s.problems.add("damage "+h.String(), "damaged: "+h.String())
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if err := s.quarantineLocked(hurt); err != nil {
		s.problems.add("quarantine", fmt.Sprintf("damaged records cannot be set aside: %v", err))
	}
}

func (h hurtRecord) String() string {
	if len(h.key) > 512 {
		h.key = h.key[:512]
	}
	switch h.b {
	case bObjects:
		if k, err := parseKey([]byte(h.key)); err == nil {
			return "object " + k.String()
		}
	case bViews:
		if q, err := parseQuery([]byte(h.key)); err == nil {
			return "view " + q.String()
		}
	case bOutbox:
		return fmt.Sprintf("unsent write %x", h.key)
	case bSecrets:
		return fmt.Sprintf("sealed value %q", h.key)
	}
	return fmt.Sprintf("%s %q", h.b, h.key)
}

func (s *Store) quarantineLocked(hurt map[hurtRecord]bool) error {
	return s.with(func(r *reader) error {
		t := s.begin(r)
		var kept int64
		if t.st.sets[bQuarantine].count > 0 {
			_ = r.each(bQuarantine, nil, nil, func(_, v []byte) (bool, error) {
				kept += int64(len(v))
				return true, nil
			})
		}
		for h := range hurt {
			key := []byte(h.key)
			raw := t.r.get(h.b, key)
			if h.b == bViews && raw != nil && s.sound(h.b, key, raw) {
				t.distrust(h)
				continue
			}
			if raw == nil || s.sound(h.b, key, raw) {
				continue // healed meanwhile
			}
			keep := append([]byte{}, raw...)
			if kept += int64(len(keep)); len(keep) > quarantineRecord || kept > quarantineBytes {
				keep = []byte{}
			}
			t.set(bQuarantine, quarantineKey(h.b, key), keep)
			t.set(h.b, key, nil)
			s.problems.add("damage "+h.String(), "a damaged record is quarantined: "+h.String())
		}
		// A damaged record is not what the fingerprint has counted.
		for b := bObjects; b < nBuckets; b++ {
			if slices.ContainsFunc(slices.Collect(maps.Keys(hurt)), func(h hurtRecord) bool { return h.b == b }) {
				if err := t.recount(b); err != nil {
					return err
				}
			}
		}
		s.accept(t, Soon)
		return nil
	})
}

// recount takes the fingerprint of a table as it is.
func (t *txn) recount(b bucket) error {
	var now set
	err := t.r.each(b, nil, nil, func(k, v []byte) (bool, error) {
		now.add(k, v)
		return true, nil
	})
	t.st.sets[b] = now
	return err
}

// distrust takes stock of a view that has lost members: it is not complete any
// more, until a whole list has been received.
func (t *txn) distrust(h hurtRecord) {
	q, err := parseQuery([]byte(h.key))
	if err != nil {
		return
	}
	v := t.view(q)
	if v == nil {
		return
	}
	var there set
	prefix := memberKey(v.id, nil)
	_ = t.r.each(bMembers, prefix, nil, func(k, _ []byte) (bool, error) {
		there.add(k[len(prefix):], nil)
		return true, nil
	})
	if there == v.members {
		return
	}
	changed := *v
	changed.members, changed.Complete = there, false
	t.putView(&changed)
	t.s.problems.add("damage "+h.String(), fmt.Sprintf("%s has lost members (%d of %d are left) and is not complete", h, there.count, v.members.count))
}

// sound says whether a record can be decoded and unsealed.
func (s *Store) sound(b bucket, key, raw []byte) bool {
	var err error
	switch b {
	case bObjects:
		var rec objectRecord
		if rec, err = decodeObject(key, raw); err == nil && rec.sealed {
			_, err = s.seal.unseal(bObjects, key, 0, rec.data)
		}
		if err == nil {
			_, err = parseKey(key)
		}
	case bViews:
		_, err = decodeView(key, raw)
	case bOutbox:
		_, err = s.entry(key, raw)
	case bSecrets:
		_, _, err = s.openSecret(key, raw)
	case bDocuments:
		_, err = open(bDocuments, key, raw)
	case bMeta:
		_, err = open(bMeta, key, raw)
	case bMembers:
		if len(raw) != 0 || len(key) < 4 {
			return false
		}
		_, err = parseMember(Query{}, key[4:])
	case bRefs:
		if len(raw) != 0 || len(key) < 4 {
			return false
		}
		_, err = parseKey(key[:len(key)-4])
	}
	return err == nil
}

// errGap means that records are not found where others say that they are.
var errGap = fmt.Errorf("%w: records are missing", errBolt)

// broken is called when bbolt stumbled over its own pages, and says whether the
// file could be opened again.
func (s *Store) broken(err error) bool {
	s.problems.add("bolt", err.Error())
	if s.o.ReadOnly {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if rerr := s.reopen(err); rerr != nil {
		s.problems.add("reopen", fmt.Sprintf("the store cannot be opened again: %v", errors.Join(err, rerr)))
		return false
	}
	s.problems.clear("reopen")
	return true
}
