package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"

	"skerry.dev/skerry/pkg/edge/store"
)

// Encoded is the items of a list, encoded once to be written to many clients. It
// is never changed after it was made.
type Encoded struct {
	media  Media
	gvk    schema.GroupVersionKind // of the list
	chunks [][]byte
	size   int // of all chunks
	count  int
}

// ErrNotEncoded says that a list is to be written by WriteList: its form is none
// of those that EncodeItems knows, or it is too long.
var ErrNotEncoded = errors.New("the list is not kept in encoded form")

const (
	firstChunk = 16 << 10
	lastChunk  = 256 << 10
)

// Encodable reports whether EncodeItems knows the media type: one for programs,
// not for people.
func Encodable(m Media) bool {
	return !m.Pretty && m.As != AsTable && (m.Encoding == JSON || m.Encoding == Protobuf || m.Encoding == CBOR)
}

// EncodeItems encodes the items of a list in one pass. grow is asked before more
// memory is taken, in bytes; if it refuses, the error is ErrNotEncoded.
func EncodeItems(m Media, group, version, kind string, grow func(int) bool, items Items) (*Encoded, error) {
	if !Encodable(m) {
		return nil, ErrNotEncoded
	}
	e := &Encoded{media: m, gvk: m.typeOf(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})}
	e.gvk.Kind += "List"
	_, field := e.fields()
	var open []byte // the chunk that is filled
	scratch := make([]byte, 0, 16)
	put := func(p []byte) bool {
		for len(p) > 0 {
			if len(open) == cap(open) {
				next := min(max(firstChunk, 2*cap(open)), lastChunk)
				if !grow(next) {
					return false
				}
				if open != nil {
					e.chunks = append(e.chunks, open)
				}
				open = make([]byte, 0, next)
			}
			n := min(len(p), cap(open)-len(open))
			open = append(open, p[:n]...)
			p = p[n:]
			e.size += n
		}
		return true
	}
	err := items(func(o store.Object) error {
		var b []byte
		var err error
		scratch = scratch[:0]
		switch m.Encoding {
		case JSON:
			b, err = jsonOf(m, o, true)
			if e.count > 0 {
				scratch = append(scratch, ',')
			}
		case Protobuf:
			b, err = protoOf(m, o)
			scratch = protowire.AppendTag(scratch, field, protowire.BytesType)
			scratch = protowire.AppendVarint(scratch, uint64(len(b)))
		case CBOR:
			b, err = cborOf(m, o, true)
		}
		if err != nil {
			return err
		}
		e.count++
		if !put(scratch) || !put(b) {
			return ErrNotEncoded
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", e.gvk.Kind, err)
	}
	if open != nil {
		e.chunks = append(e.chunks, open)
	}
	return e, nil
}

// fields are the numbers of metadata and items in a protobuf list.
func (e *Encoded) fields() (meta, items protowire.Number) {
	if e.media.As == AsPartial && e.media.Version == "v1beta1" {
		return 2, 1
	}
	return fieldMetadata, fieldItems
}

// List is the body of a list with these items.
type List struct {
	head, tail []byte
	e          *Encoded
}

// List returns the list with this metadata.
func (e *Encoded) List(meta metav1.ListMeta) (*List, error) {
	l := &List{e: e}
	apiVersion := e.gvk.GroupVersion().String()
	var err error
	switch e.media.Encoding {
	case JSON:
		l.head, err = json.Marshal(struct {
			Kind       string          `json:"kind"`
			APIVersion string          `json:"apiVersion"`
			Metadata   metav1.ListMeta `json:"metadata"`
			Items      []int           `json:"items"`
		}{e.gvk.Kind, apiVersion, meta, []int{}})
		if err == nil {
			l.head, l.tail = l.head[:len(l.head)-2], []byte("]}\n")
		}
	case Protobuf:
		var about []byte
		if about, err = meta.Marshal(); err == nil {
			field, _ := e.fields()
			l.head = envelopeHead(nil, apiVersion, e.gvk.Kind, sizeField(field, len(about))+e.size)
			l.head = protowire.AppendTag(l.head, field, protowire.BytesType)
			l.head = protowire.AppendBytes(l.head, about)
			l.tail = envelopeTail
		}
	case CBOR:
		l.head = append(l.head, selfDescribed...)
		l.head = append(l.head, 0xa4) // as writeCBORList
		l.head, err = appendCBOR(l.head, "kind", e.gvk.Kind, "items")
		l.head = append(l.head, cborHead(4, uint64(e.count))...)
		if err == nil {
			l.tail, err = appendCBOR(nil, "metadata", meta, "apiVersion", apiVersion)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("writing a %s: %w", e.gvk.Kind, err)
	}
	return l, nil
}

func appendCBOR(out []byte, values ...any) ([]byte, error) {
	for _, value := range values {
		b, err := direct.Marshal(value)
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}

// Len is the length of the body.
func (l *List) Len() int { return len(l.head) + l.e.size + len(l.tail) }

// WriteTo writes the body.
func (l *List) WriteTo(w io.Writer) (int64, error) {
	var total int64
	write := func(p []byte) error {
		n, err := w.Write(p)
		total += int64(n)
		return err
	}
	err := write(l.head)
	for _, chunk := range l.e.chunks {
		if err != nil {
			break
		}
		err = write(chunk)
	}
	if err == nil {
		err = write(l.tail)
	}
	return total, err
}
