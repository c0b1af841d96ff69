package store

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

func (t *txn) view(q Query) *viewRecord {
	if v, ok := t.views[q]; ok {
		return v
	}
	return t.s.views[q]
}

func (t *txn) putView(v *viewRecord) {
	key := v.Query.bytes()
	t.set(bViews, key, v.append(key))
}

func (t *txn) do(o *op) error {
	switch o.kind {
	case opPut:
		return t.putObject(&o.object)
	case opDelete:
		return t.deleteObject(o.key)
	case opSetView:
		return t.setView(o.view)
	case opDeleteView:
		return t.deleteView(o.query)
	case opJoin:
		return t.join(o.query, o.key)
	case opLeave:
		return t.leave(o.query, o.key)
	case opSetRevision:
		t.st.revision = max(t.st.revision, o.revision)
	case opResetRevision:
		t.st.revision, t.reset = o.revision, true
	case opPutEntry:
		return t.putEntry(o.entry)
	case opDeleteEntry:
		t.set(bOutbox, seqKey(o.entry.Seq), nil)
	case opPutSecret:
		return t.putSecret(o.bucket, o.name, o.value)
	case opDeleteSecret:
		t.set(bSecrets, t.s.seal.secretKey(o.bucket, o.name), nil)
	case opPutDocument:
		if o.name == "" || len(o.name) > maxSelector {
			return fmt.Errorf("a document needs a name of at most %d bytes", maxSelector)
		}
		t.putDocument([]byte(o.name), o.value)
	case opDeleteDocument:
		if o.name != "" {
			t.set(bDocuments, []byte(o.name), nil)
		}
	}
	return nil
}

// isSecret says whether an object's bytes are sealed.
func isSecret(k Key) bool {
	return k.Group == "" && k.Resource == "secrets"
}

func (t *txn) putObject(o *Object) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.Format != FormatJSON && o.Format != FormatProtobuf {
		return fmt.Errorf("%s: format %d is not known", o.Key, o.Format)
	}
	if len(o.Kind) > maxKeyPart || len(o.UID) > maxKeyPart {
		return fmt.Errorf("%s: kind or UID is too long", o.Key)
	}
	key := o.Key.bytes()
	t.loose = append(t.loose, key)
	if t.unchanged(key, o) {
		return nil
	}
	rec := objectRecord{
		kind: []byte(o.Kind), uid: []byte(o.UID), rv: o.ResourceVersion, format: o.Format,
		size: len(o.Data), data: o.Data, sealed: isSecret(o.Key),
	}
	if rec.sealed {
		rec.data = t.s.seal.seal(bObjects, key, 0, o.Data)
	}
	t.set(bObjects, key, rec.append(key))
	t.heal(key)
	return nil
}

// unchanged says whether the same object is stored already: a relist then costs
// no writes.
func (t *txn) unchanged(key []byte, o *Object) bool {
	old := t.r.get(bObjects, key)
	if old == nil {
		return false
	}
	rec, err := decodeObject(key, old)
	if err != nil || rec.rv != o.ResourceVersion || rec.format != o.Format || rec.size != len(o.Data) ||
		string(rec.uid) != o.UID || string(rec.kind) != o.Kind || rec.sealed != isSecret(o.Key) {
		return false
	}
	data := rec.data
	if rec.sealed {
		if data, err = t.s.seal.unseal(bObjects, key, 0, data); err != nil {
			return false
		}
	}
	return bytes.Equal(data, o.Data)
}

// heal drops the quarantined record of an object that is whole again, or gone.
func (t *txn) heal(key []byte) {
	if t.st.sets[bQuarantine].count > 0 {
		t.set(bQuarantine, quarantineKey(bObjects, key), nil)
	}
}

func (t *txn) removeObject(key []byte) {
	t.set(bObjects, key, nil)
	t.heal(key)
}

func (t *txn) deleteObject(k Key) error {
	if err := k.check(); err != nil {
		return err
	}
	key := k.bytes()
	var ids []viewID
	err := t.r.each(bRefs, key, nil, func(ref, _ []byte) (bool, error) {
		if id, ok := refView(key, ref); ok {
			ids = append(ids, id)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if v := t.viewByID(k, id); v != nil {
			t.dropMember(v, memberName(k), key)
		} else {
			t.set(bRefs, refKey(key, id), nil)
		}
	}
	t.removeObject(key)
	return nil
}

// viewByID finds the view among those that could have k.
func (t *txn) viewByID(k Key, id viewID) *viewRecord {
	for _, v := range t.views {
		if v != nil && v.id == id {
			return v
		}
	}
	for q, v := range t.s.views {
		if v.id == id {
			if changed, ok := t.views[q]; ok {
				return changed
			}
			return v
		}
	}
	return nil
}

func (t *txn) setView(v View) error {
	if err := v.Query.check(); err != nil {
		return err
	}
	if len(v.Kind) > maxKeyPart {
		return fmt.Errorf("%s: the kind is too long", v.Query)
	}
	rec := &viewRecord{View: v}
	rec.Synced = v.Synced.UTC().Round(0)
	if old := t.view(v.Query); old != nil {
		rec.id, rec.members = old.id, old.members
	} else {
		t.st.nextView++
		if t.st.nextView > 1<<32-1 {
			return errors.New("no view id is left")
		}
		rec.id = viewID(t.st.nextView)
	}
	t.putView(rec)
	return nil
}

func (t *txn) deleteView(q Query) error {
	v := t.view(q)
	if v == nil {
		return nil
	}
	prefix := memberKey(v.id, nil)
	var names [][]byte
	err := t.r.each(bMembers, prefix, nil, func(k, _ []byte) (bool, error) {
		names = append(names, append([]byte{}, k[len(prefix):]...))
		return true, nil
	})
	if err != nil {
		return err
	}
	resource := resourcePrefix(q.Group, q.Version, q.Resource)
	for _, name := range names {
		key := append(append([]byte{}, resource...), name...)
		t.set(bMembers, memberKey(v.id, name), nil)
		t.set(bRefs, refKey(key, v.id), nil)
		if !t.r.any(bRefs, key) {
			t.removeObject(key)
		}
	}
	t.set(bViews, q.bytes(), nil)
	return nil
}

func (t *txn) join(q Query, k Key) error {
	v := t.view(q)
	if v == nil {
		return fmt.Errorf("joining %s: there is no view %s", k, q)
	}
	if err := k.check(); err != nil {
		return err
	}
	if k.Group != q.Group || k.Version != q.Version || k.Resource != q.Resource {
		return fmt.Errorf("joining %s: the view %s is of another resource", k, q)
	}
	name, key := memberName(k), k.bytes()
	t.joined = append(t.joined, key)
	member := memberKey(v.id, name)
	if t.r.get(bMembers, member) == nil {
		t.set(bMembers, member, []byte{})
		changed := *v
		changed.members.add(name, nil)
		t.putView(&changed)
	}
	if ref := refKey(key, v.id); t.r.get(bRefs, ref) == nil {
		t.set(bRefs, ref, []byte{})
	}
	return nil
}

func (t *txn) leave(q Query, k Key) error {
	v := t.view(q)
	if v == nil {
		return nil
	}
	if err := k.check(); err != nil {
		return err
	}
	key := k.bytes()
	if !t.dropMember(v, memberName(k), key) {
		return nil
	}
	if !t.r.any(bRefs, key) {
		t.removeObject(key)
	}
	return nil
}

// dropMember ends a membership, if there is one.
func (t *txn) dropMember(v *viewRecord, name, key []byte) bool {
	member := memberKey(v.id, name)
	t.set(bRefs, refKey(key, v.id), nil)
	if t.r.get(bMembers, member) == nil {
		return false
	}
	t.set(bMembers, member, nil)
	changed := *v
	changed.members.remove(name, nil)
	t.putView(&changed)
	return true
}

func refView(object, ref []byte) (viewID, bool) {
	if len(ref) != len(object)+4 {
		return 0, false
	}
	return idOf(ref[len(object):]), true
}

func (t *txn) putEntry(e Entry) error {
	if err := e.Key.check(); err != nil {
		return fmt.Errorf("an unsent write: %w", err)
	}
	if len(e.Op) > maxKeyPart || len(e.UID) > maxKeyPart {
		return errors.New("an unsent write: operation or UID is too long")
	}
	if e.Seq == 0 {
		t.st.nextSeq++
		e.Seq = t.st.nextSeq
	} else {
		t.st.nextSeq = max(t.st.nextSeq, e.Seq)
	}
	e.Created = e.Created.UTC()
	key := seqKey(e.Seq)
	sealed := isSecret(e.Key)
	if sealed {
		e.Payload = t.s.seal.seal(bOutbox, key, 1, e.Payload)
		e.Base = t.s.seal.seal(bOutbox, key, 2, e.Base)
	}
	t.set(bOutbox, key, appendEntry(&e, sealed))
	return nil
}

func (t *txn) putSecret(bucket, name string, value []byte) error {
	if bucket == "" || name == "" || len(bucket) > maxKeyPart || len(name) > 1<<16 {
		return errors.New("a secret needs a bucket and a name")
	}
	if err := checkParts(maxKeyPart, bucket); err != nil {
		return err
	}
	key := t.s.seal.secretKey(bucket, name)
	if old := t.r.get(bSecrets, key); old != nil {
		if _, v, err := t.s.openSecret(key, old); err == nil && bytes.Equal(v, value) {
			return nil
		}
	}
	plain := append(appendBytes(nil, name), value...)
	t.set(bSecrets, key, appendSecret(key, time.Now().UTC(), t.s.seal.seal(bSecrets, key, 0, plain)))
	return nil
}

// openSecret returns name and value of a secret's record.
func (s *Store) openSecret(key, record []byte) (name string, value []byte, err error) {
	_, sealed, err := decodeSecret(key, record)
	if err != nil {
		return "", nil, err
	}
	plain, err := s.seal.unseal(bSecrets, key, 0, sealed)
	if err != nil {
		return "", nil, err
	}
	r := reading{rest: plain}
	name = r.string()
	return name, r.rest, r.err
}

func (t *txn) putDocument(key, value []byte) {
	rec := appendDocument(key, value)
	if old := t.r.get(bDocuments, key); old != nil && bytes.Equal(old, rec) {
		return
	}
	t.set(bDocuments, key, rec)
}
