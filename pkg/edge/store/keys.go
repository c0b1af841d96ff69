package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// bucket is one of the store's tables. The number is written into every
// journal record and checksum and never changes its meaning.
type bucket uint8

const (
	bMeta bucket = iota
	bObjects
	bViews
	bMembers // view id, namespace, name
	bRefs    // object key, view id: the other direction of bMembers
	bOutbox
	bSecrets
	bDocuments
	bQuarantine
	nBuckets
)

var bucketNames = [nBuckets]string{"meta", "objects", "views", "members", "refs", "outbox", "secrets", "documents", "quarantine"}

func (b bucket) String() string {
	if b < nBuckets {
		return bucketNames[b]
	}
	return fmt.Sprintf("bucket %d", uint8(b))
}

// maxKeyPart bounds each part of a key. Kubernetes allows 253 bytes for most
// names; label selectors are longer.
const (
	maxKeyPart  = 1024
	maxSelector = 8192
)

// viewID names a view in the keys of its members; an id is never used twice.
type viewID uint32

func checkParts(limit int, parts ...string) error {
	for _, p := range parts {
		if len(p) > limit {
			return fmt.Errorf("a key part of %d bytes is too long", len(p))
		}
		if strings.IndexByte(p, 0) >= 0 {
			return fmt.Errorf("a key part contains a zero byte: %q", p)
		}
	}
	return nil
}

func (k Key) check() error {
	if k.Resource == "" || k.Version == "" || k.Name == "" {
		return fmt.Errorf("a key needs version, resource and name: %s", k)
	}
	return checkParts(maxKeyPart, k.Group, k.Version, k.Resource, k.Namespace, k.Name)
}

func (q Query) check() error {
	if q.Resource == "" || q.Version == "" {
		return fmt.Errorf("a query needs version and resource: %s", q)
	}
	if err := checkParts(maxKeyPart, q.Group, q.Version, q.Resource, q.Namespace); err != nil {
		return err
	}
	return checkParts(maxSelector, q.LabelSelector, q.FieldSelector)
}

// String is resource.group/version namespace/name.
func (k Key) String() string {
	s := groupResource(k.Group, k.Version, k.Resource) + " "
	if k.Namespace != "" {
		s += k.Namespace + "/"
	}
	return s + k.Name
}

// String is what an operator would write to ask for the same.
func (q Query) String() string {
	s := groupResource(q.Group, q.Version, q.Resource)
	if q.Namespace != "" {
		s += " in " + q.Namespace
	}
	if q.LabelSelector != "" {
		s += " with labels " + q.LabelSelector
	}
	if q.FieldSelector != "" {
		s += " with fields " + q.FieldSelector
	}
	return s
}

func groupResource(group, version, resource string) string {
	if group == "" {
		return resource + "/" + version
	}
	return resource + "." + group + "/" + version
}

// less is the order of Scan.
func (k Key) less(o Key) bool {
	if k.Namespace != o.Namespace {
		return k.Namespace < o.Namespace
	}
	return k.Name < o.Name
}

// resourcePrefix begins the key of each object of a resource. Parts end with a
// zero byte, so that no key is the beginning of another and the byte order is
// the order of the parts.
func resourcePrefix(group, version, resource string) []byte {
	b := make([]byte, 0, len(group)+len(version)+len(resource)+3)
	b = append(append(b, group...), 0)
	b = append(append(b, version...), 0)
	return append(append(b, resource...), 0)
}

func (k Key) bytes() []byte {
	b := resourcePrefix(k.Group, k.Version, k.Resource)
	return append(b, memberName(k)...)
}

// memberName is the part of an object's key that differs between the members
// of a view.
func memberName(k Key) []byte {
	b := make([]byte, 0, len(k.Namespace)+len(k.Name)+2)
	b = append(append(b, k.Namespace...), 0)
	return append(append(b, k.Name...), 0)
}

func parseKey(b []byte) (Key, error) {
	parts := bytes.Split(b, []byte{0})
	if len(parts) != 6 || len(parts[5]) != 0 {
		return Key{}, fmt.Errorf("%w: object key %q", ErrDamaged, b)
	}
	k := Key{Group: string(parts[0]), Version: string(parts[1]), Resource: string(parts[2]), Namespace: string(parts[3]), Name: string(parts[4])}
	return k, nil
}

// cutMember takes a member's name apart.
func cutMember(b []byte) (namespace, name []byte, ok bool) {
	ns, rest, ok := bytes.Cut(b, []byte{0})
	if !ok || len(rest) < 2 || rest[len(rest)-1] != 0 || bytes.IndexByte(rest[:len(rest)-1], 0) >= 0 {
		return nil, nil, false
	}
	return ns, rest[:len(rest)-1], true
}

// parseMember completes a member name to a key of the view's resource.
func parseMember(q Query, b []byte) (Key, error) {
	ns, name, ok := cutMember(b)
	if !ok {
		return Key{}, fmt.Errorf("%w: member %q", ErrDamaged, b)
	}
	return Key{Group: q.Group, Version: q.Version, Resource: q.Resource, Namespace: string(ns), Name: string(name)}, nil
}

func (q Query) bytes() []byte {
	b := resourcePrefix(q.Group, q.Version, q.Resource)
	b = append(append(b, q.Namespace...), 0)
	b = append(append(b, q.LabelSelector...), 0)
	return append(append(b, q.FieldSelector...), 0)
}

func parseQuery(b []byte) (Query, error) {
	parts := bytes.Split(b, []byte{0})
	if len(parts) != 7 || len(parts[6]) != 0 {
		return Query{}, fmt.Errorf("%w: view key %q", ErrDamaged, b)
	}
	return Query{
		Group: string(parts[0]), Version: string(parts[1]), Resource: string(parts[2]), Namespace: string(parts[3]),
		LabelSelector: string(parts[4]), FieldSelector: string(parts[5]),
	}, nil
}

func memberKey(id viewID, name []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(name)), uint32(id)), name...)
}

func refKey(object []byte, id viewID) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(object)+4), object...), uint32(id))
}

// idOf reads the view id at the beginning of a member's key.
func idOf(b []byte) viewID { return viewID(binary.BigEndian.Uint32(b)) }

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// set is the fingerprint of a set of records: how many there are, and the sum
// of the hashes of their keys and checksums. It tells when a record has been
// lost without a trace, or has turned into an older one, as flipped bits and
// lost writes in the pages of the database do.
type set struct {
	count uint64
	sum   uint64
}

func (s *set) add(key, record []byte)    { s.count++; s.sum += fingerprint(key, record) }
func (s *set) remove(key, record []byte) { s.count--; s.sum -= fingerprint(key, record) }

func fingerprint(key, record []byte) uint64 {
	h := hash(key)
	if len(record) >= 4 {
		h ^= uint64(binary.LittleEndian.Uint32(record[len(record)-4:])) * 0x9e3779b97f4a7c15
	}
	return h
}

// hash is FNV-1a with a final mix, which spreads short keys over all bits.
func hash(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range key {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return h
}
