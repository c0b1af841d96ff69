package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// Every record in the file is
//
//	version (1 byte) | body | CRC-32C of bucket, key, version and body (4 bytes)
//
// so that a record under the wrong key, or in the wrong table, is as damaged as
// one with a flipped bit. Numbers are varints, strings have their length before
// them.

const recordVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b bucket, key, record []byte) uint32 {
	crc := crc32.Update(0, castagnoli, []byte{byte(b)})
	crc = crc32.Update(crc, castagnoli, key)
	return crc32.Update(crc, castagnoli, record)
}

// finish appends the checksum to version and body.
func finish(b bucket, key, record []byte) []byte {
	return binary.LittleEndian.AppendUint32(record, checksum(b, key, record))
}

// open returns the body of a record.
func open(b bucket, key, record []byte) ([]byte, error) {
	if len(record) < 5 {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, len(record))
	}
	end := len(record) - 4
	if binary.LittleEndian.Uint32(record[end:]) != checksum(b, key, record[:end]) {
		return nil, fmt.Errorf("%w: checksum", ErrDamaged)
	}
	if record[0] != recordVersion {
		return nil, fmt.Errorf("%w: record version %d is not known", ErrDamaged, record[0])
	}
	return record[1:end], nil
}

// reading takes a body apart; the first error sticks.
type reading struct {
	rest []byte
	err  error
}

func (r *reading) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrDamaged, what)
	}
	r.rest = nil
}

func (r *reading) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail("number")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reading) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.fail("length")
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reading) string() string { return string(r.bytes()) }

func (r *reading) byte() byte {
	if len(r.rest) == 0 {
		r.fail("length")
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reading) end() error {
	if r.err == nil && len(r.rest) > 0 {
		r.fail("bytes after the end")
	}
	return r.err
}

func appendBytes[T []byte | string](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendUvarint(b, 0)
	}
	return binary.AppendUvarint(b, uint64(t.UnixNano()))
}

func (r *reading) time() time.Time {
	n := r.number()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

const flagSealed = 1

// objectRecord is an object as it is written: Data may be sealed.
type objectRecord struct {
	kind, uid []byte
	rv        uint64
	format    Format
	sealed    bool
	size      int // of the open Data
	data      []byte
}

func (o *objectRecord) append(key []byte) []byte {
	b := make([]byte, 0, 64+len(o.data))
	flags := byte(0)
	if o.sealed {
		flags |= flagSealed
	}
	b = append(b, recordVersion, byte(o.format), flags)
	b = binary.AppendUvarint(b, o.rv)
	b = appendBytes(b, o.kind)
	b = appendBytes(b, o.uid)
	b = binary.AppendUvarint(b, uint64(o.size))
	b = append(b, o.data...)
	return finish(bObjects, key, b)
}

// decodeObject does not copy: the result points into record.
func decodeObject(key, record []byte) (objectRecord, error) {
	body, err := open(bObjects, key, record)
	if err != nil {
		return objectRecord{}, err
	}
	r := reading{rest: body}
	o := objectRecord{format: Format(r.byte())}
	flags := r.byte()
	o.sealed = flags&flagSealed != 0
	o.rv = r.number()
	o.kind = r.bytes()
	o.uid = r.bytes()
	size := r.number()
	o.data = r.rest
	switch {
	case r.err != nil:
		return objectRecord{}, r.err
	case flags&^flagSealed != 0 || (o.format != FormatJSON && o.format != FormatProtobuf):
		return objectRecord{}, fmt.Errorf("%w: format %d, flags %d", ErrDamaged, o.format, flags)
	case o.sealed && size+sealOverhead != uint64(len(o.data)), !o.sealed && size != uint64(len(o.data)):
		return objectRecord{}, fmt.Errorf("%w: length", ErrDamaged)
	}
	o.size = int(size)
	return o, nil
}

// viewRecord is a view, and the fingerprint of its members.
type viewRecord struct {
	View
	id      viewID
	members set
}

const (
	viewNode     = 1
	viewComplete = 2
)

func (v *viewRecord) append(key []byte) []byte {
	flags := byte(0)
	if v.Node {
		flags |= viewNode
	}
	if v.Complete {
		flags |= viewComplete
	}
	b := append(make([]byte, 0, 96), recordVersion, flags)
	b = binary.AppendUvarint(b, uint64(v.id))
	b = binary.AppendUvarint(b, v.members.count)
	b = binary.LittleEndian.AppendUint64(b, v.members.sum)
	b = binary.AppendUvarint(b, v.ResourceVersion)
	b = appendTime(b, v.Synced)
	b = appendBytes(b, v.Kind)
	return finish(bViews, key, b)
}

func decodeView(key, record []byte) (*viewRecord, error) {
	body, err := open(bViews, key, record)
	if err != nil {
		return nil, err
	}
	q, err := parseQuery(key)
	if err != nil {
		return nil, err
	}
	r := reading{rest: body}
	flags := r.byte()
	v := &viewRecord{View: View{Query: q, Node: flags&viewNode != 0, Complete: flags&viewComplete != 0}}
	id := r.number()
	v.id = viewID(id)
	v.members.count = r.number()
	v.members.sum = r.fixed()
	v.ResourceVersion = r.number()
	v.Synced = r.time()
	v.Kind = r.string()
	if err := r.end(); err != nil {
		return nil, err
	}
	if id == 0 || id > math.MaxUint32 || flags&^(viewNode|viewComplete) != 0 {
		return nil, fmt.Errorf("%w: view id %d, flags %d", ErrDamaged, id, flags)
	}
	return v, nil
}

func (r *reading) fixed() uint64 {
	if len(r.rest) < 8 {
		r.fail("length")
		return 0
	}
	v := binary.LittleEndian.Uint64(r.rest)
	r.rest = r.rest[8:]
	return v
}

// appendEntry writes an unsent write; sealed says that Payload and Base are.
func appendEntry(e *Entry, sealed bool) []byte {
	flags := byte(0)
	if sealed {
		flags |= flagSealed
	}
	b := append(make([]byte, 0, 128+len(e.Payload)+len(e.Base)), recordVersion, flags)
	b = appendBytes(b, e.Key.bytes())
	b = appendBytes(b, e.UID)
	b = appendBytes(b, e.Op)
	b = appendTime(b, e.Created)
	b = appendBytes(b, e.Payload)
	b = appendBytes(b, e.Base)
	return finish(bOutbox, seqKey(e.Seq), b)
}

// decodeEntry does not copy Payload and Base.
func decodeEntry(key, record []byte) (e Entry, sealed bool, err error) {
	body, err := open(bOutbox, key, record)
	if err != nil {
		return Entry{}, false, err
	}
	if len(key) != 8 {
		return Entry{}, false, fmt.Errorf("%w: sequence number", ErrDamaged)
	}
	e.Seq = binary.BigEndian.Uint64(key)
	r := reading{rest: body}
	flags := r.byte()
	name := r.bytes()
	e.UID = r.string()
	e.Op = r.string()
	e.Created = r.time()
	e.Payload = r.bytes()
	e.Base = r.bytes()
	if err := r.end(); err != nil {
		return Entry{}, false, err
	}
	if e.Key, err = parseKey(name); err != nil {
		return Entry{}, false, err
	}
	if flags&^flagSealed != 0 {
		return Entry{}, false, fmt.Errorf("%w: flags %d", ErrDamaged, flags)
	}
	return e, flags&flagSealed != 0, nil
}

// appendSecret writes a sealed name and value. The bucket's name and the time
// are not sealed; the record's key is a keyed hash of the name.
func appendSecret(key []byte, created time.Time, sealed []byte) []byte {
	b := append(make([]byte, 0, 32+len(sealed)), recordVersion)
	b = appendTime(b, created)
	b = append(b, sealed...)
	return finish(bSecrets, key, b)
}

func decodeSecret(key, record []byte) (created time.Time, sealed []byte, err error) {
	body, err := open(bSecrets, key, record)
	if err != nil {
		return time.Time{}, nil, err
	}
	r := reading{rest: body}
	created = r.time()
	return created, r.rest, r.err
}

func appendDocument(key, value []byte) []byte {
	b := append(make([]byte, 0, 5+len(value)), recordVersion)
	return finish(bDocuments, key, append(b, value...))
}
