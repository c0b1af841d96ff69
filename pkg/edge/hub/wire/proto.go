package wire

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

// Field numbers that all API types share. Tests hold the whole scheme to them.
const (
	fieldMetadata = 1 // of an object, and of a list
	fieldItems    = 2 // of a list

	metaName            = 1
	metaNamespace       = 3
	metaUID             = 5
	metaResourceVersion = 6
	metaLabels          = 11
)

var errProto = errors.New("malformed protobuf")

// eachField calls fn with each field of a message: value is the content of a
// length-delimited field, else nil and number is set; raw is the whole field.
func eachField(b []byte, fn func(num protowire.Number, typ protowire.Type, value []byte, number uint64, raw []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errProto
		}
		var value []byte
		var number uint64
		size := 0
		switch typ {
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(b[n:])
			if size >= 0 && value == nil {
				value = []byte{}
			}
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(b[n:])
		default:
			size = protowire.ConsumeFieldValue(num, typ, b[n:])
		}
		if size < 0 {
			return errProto
		}
		if err := fn(num, typ, value, number, b[:n+size]); err != nil {
			return err
		}
		b = b[n+size:]
	}
	return nil
}

// protoPath returns the last value at a path of fields, all but the last of
// which are messages. Absent fields are empty: nil and 0.
func protoPath(b []byte, path ...protowire.Number) (value []byte, number uint64, err error) {
	err = eachField(b, func(num protowire.Number, typ protowire.Type, v []byte, n uint64, _ []byte) error {
		if num != path[0] {
			return nil
		}
		if len(path) == 1 {
			value, number = v, n
			return nil
		}
		if typ != protowire.BytesType {
			return errProto
		}
		inner, n, err := protoPath(v, path[1:]...)
		if err != nil {
			return err
		}
		// A message in two parts is merged: what the later one has counts.
		if inner != nil {
			value = inner
		}
		if n != 0 {
			number = n
		}
		return nil
	})
	return value, number, err
}

// head is what everything is found by.
type head struct {
	name, namespace, uid, resourceVersion string
}

func protoHead(data []byte) (head, error) {
	h := head{}
	err := eachField(data, func(num protowire.Number, typ protowire.Type, value []byte, _ uint64, _ []byte) error {
		if num != fieldMetadata {
			return nil
		}
		if typ != protowire.BytesType {
			return errProto
		}
		return eachField(value, func(num protowire.Number, typ protowire.Type, value []byte, _ uint64, _ []byte) error {
			var to *string
			switch num {
			case metaName:
				to = &h.name
			case metaNamespace:
				to = &h.namespace
			case metaUID:
				to = &h.uid
			case metaResourceVersion:
				to = &h.resourceVersion
			default:
				return nil
			}
			if typ != protowire.BytesType {
				return errProto
			}
			*to = string(value)
			return nil
		})
	})
	if err != nil {
		return head{}, fmt.Errorf("reading metadata: %w", err)
	}
	return h, nil
}

// protoWithMeta replaces a string of the metadata and copies everything else,
// known or not, as it is.
func protoWithMeta(data []byte, member protowire.Number, text string) ([]byte, error) {
	field := protowire.AppendTag(nil, member, protowire.BytesType)
	field = protowire.AppendString(field, text)
	out := make([]byte, 0, len(data)+len(field)+4)
	written := false
	err := eachField(data, func(num protowire.Number, typ protowire.Type, value []byte, _ uint64, raw []byte) error {
		if num != fieldMetadata {
			out = append(out, raw...)
			return nil
		}
		if typ != protowire.BytesType {
			return errProto
		}
		inner := make([]byte, 0, len(value)+len(field))
		err := eachField(value, func(num protowire.Number, _ protowire.Type, _ []byte, _ uint64, raw []byte) error {
			if num == member {
				return nil
			}
			if num > member && !written {
				inner, written = append(inner, field...), true
			}
			inner = append(inner, raw...)
			return nil
		})
		if err != nil {
			return err
		}
		if !written {
			inner, written = append(inner, field...), true
		}
		out = protowire.AppendTag(out, fieldMetadata, protowire.BytesType)
		out = protowire.AppendBytes(out, inner)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading metadata: %w", err)
	}
	if !written {
		metadata := protowire.AppendTag(nil, fieldMetadata, protowire.BytesType)
		out = append(protowire.AppendBytes(metadata, field), out...)
	}
	return out, nil
}

// protoPrefix begins every protobuf body; a runtime.Unknown follows.
var protoPrefix = []byte("k8s\x00")

// envelopeHead is everything of an enveloped message that stands before its
// bytes; envelopeTail what stands behind: empty contentEncoding and contentType.
func envelopeHead(b []byte, apiVersion, kind string, size int) []byte {
	b = append(b, protoPrefix...)
	typeMeta := protowire.AppendTag(nil, 1, protowire.BytesType)
	typeMeta = protowire.AppendString(typeMeta, apiVersion)
	typeMeta = protowire.AppendTag(typeMeta, 2, protowire.BytesType)
	typeMeta = protowire.AppendString(typeMeta, kind)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, typeMeta)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size))
}

var envelopeTail = []byte{0x1a, 0x00, 0x22, 0x00}

func envelope(apiVersion, kind string, data []byte) []byte {
	b := make([]byte, 0, len(data)+len(apiVersion)+len(kind)+32)
	b = append(envelopeHead(b, apiVersion, kind, len(data)), data...)
	return append(b, envelopeTail...)
}

// opened is a body out of its envelope.
type opened struct {
	apiVersion, kind string
	raw              []byte
}

func openEnvelope(b []byte) (opened, error) {
	if len(b) < len(protoPrefix) || string(b[:len(protoPrefix)]) != string(protoPrefix) {
		return opened{}, errors.New("provided data does not appear to be a protobuf message")
	}
	e := opened{}
	err := eachField(b[len(protoPrefix):], func(num protowire.Number, typ protowire.Type, value []byte, _ uint64, _ []byte) error {
		if num > 4 {
			return nil
		}
		if typ != protowire.BytesType {
			return errProto
		}
		switch num {
		case 1:
			return e.typeMeta(value)
		case 2:
			e.raw = value
		case 3:
			if len(value) > 0 {
				return fmt.Errorf("content encoding %q is not supported", value)
			}
		}
		return nil
	})
	return e, err
}

func (e *opened) typeMeta(b []byte) error {
	apiVersion, _, err := protoPath(b, 1)
	if err != nil {
		return err
	}
	kind, _, err := protoPath(b, 2)
	e.apiVersion, e.kind = string(apiVersion), string(kind)
	return err
}

func protoMeta(o store.Object) (*metav1.PartialObjectMetadata, error) {
	p := &metav1.PartialObjectMetadata{}
	if err := p.Unmarshal(o.Data); err != nil {
		return nil, fmt.Errorf("reading the metadata of %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return p, nil
}

func parseResourceVersion(rv string) (uint64, error) {
	if rv == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is not a number", rv)
	}
	return n, nil
}
