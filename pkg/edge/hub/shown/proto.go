package shown

import (
	"bytes"
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxHead is how much is held of an object until its resourceVersion has come:
// only its kind, name, namespace and UID stand before it.
const maxHead = 4 << 10

// protoHead reads the beginning of one object or list.
type protoHead struct {
	fn   func(uint64)
	head []byte
}

func (s *protoHead) write(p []byte) bool {
	s.head = append(s.head, p[:min(len(p), maxHead-len(s.head))]...)
	rv, known := revisionOf(s.head)
	if rv > 0 {
		s.fn(rv)
	}
	return !known && len(s.head) < maxHead
}

// protoFrames reads the events of a watch, each behind its length.
type protoFrames struct {
	fn     func(uint64)
	prefix []byte // of the length
	left   uint32 // of the frame
	head   []byte
	known  bool
}

func (s *protoFrames) write(p []byte) bool {
	for len(p) > 0 {
		if s.left == 0 {
			n := min(len(p), 4-len(s.prefix))
			s.prefix, p = append(s.prefix, p[:n]...), p[n:]
			if len(s.prefix) < 4 {
				return true
			}
			s.left, s.prefix, s.head, s.known = binary.BigEndian.Uint32(s.prefix), s.prefix[:0], s.head[:0], false
			continue
		}
		part := p[:min(uint64(len(p)), uint64(s.left))]
		p, s.left = p[len(part):], s.left-uint32(len(part))
		if s.known {
			continue
		}
		s.head = append(s.head, part[:min(len(part), maxHead-len(s.head))]...)
		var rv uint64
		if rv, s.known = revisionOfEvent(s.head); rv > 0 {
			s.fn(rv)
		}
	}
	return true
}

// field returns the first length-delimited field num of a message of which only
// the beginning may be there: whole is the rest of the message, too.
func field(b []byte, num protowire.Number) (content []byte, short bool) {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, true
		}
		b = b[size:]
		if typ != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(n, typ, b); size < 0 {
				return nil, true
			}
			b = b[size:]
			continue
		}
		length, size := protowire.ConsumeVarint(b)
		if size < 0 {
			return nil, true
		}
		b = b[size:]
		cut := length > uint64(len(b))
		if n == num {
			return b[:min(length, uint64(len(b)))], cut
		}
		if cut {
			return nil, true
		}
		b = b[length:]
	}
	return nil, true
}

// revisionOf reads "k8s\0", then Unknown{1: TypeMeta, 2: raw}, then the first
// field of raw, which is the metadata. known says that more bytes change nothing.
func revisionOf(b []byte) (rv uint64, known bool) {
	b, ok := bytes.CutPrefix(b, []byte("k8s\x00"))
	if !ok {
		return 0, len(b) >= 4
	}
	typeMeta, short := field(b, 1)
	if typeMeta == nil || short {
		return 0, false
	}
	kind, _ := field(typeMeta, 2)
	raw, _ := field(b, 2)
	metadata, _ := field(raw, 1)
	num := protowire.Number(6) // of ObjectMeta
	if bytes.HasSuffix(kind, []byte("List")) {
		num = 2 // of ListMeta
	}
	version, short := field(metadata, num)
	if version == nil || short {
		return 0, false
	}
	return number(version), true
}

// revisionOfEvent reads WatchEvent{1: type, 2: RawExtension{1: object}}.
func revisionOfEvent(b []byte) (rv uint64, known bool) {
	extension, _ := field(b, 2)
	object, _ := field(extension, 1)
	if len(object) < 4 {
		return 0, false
	}
	return revisionOf(object)
}
