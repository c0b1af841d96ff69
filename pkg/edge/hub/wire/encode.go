package wire

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/edge/store"
)

// selfDescribed begins every CBOR body.
var selfDescribed = []byte{0xd9, 0xd9, 0xf7}

// EncodeObject returns one object.
func EncodeObject(m Media, o store.Object) ([]byte, error) {
	b, err := encodeObject(m, o)
	if err != nil {
		return nil, err
	}
	if m.Encoding == JSON {
		if m.Pretty {
			return indent(b, "")
		}
		// Not into the room behind the object's own bytes, which may be the
		// store's.
		return append(b[:len(b):len(b)], '\n'), nil
	}
	return b, nil
}

func encodeObject(m Media, o store.Object) ([]byte, error) {
	switch m.Encoding {
	case JSON:
		return jsonOf(m, o, false)
	case YAML:
		b, err := jsonOf(m, o, false)
		if err != nil {
			return nil, err
		}
		return yaml.JSONToYAML(b)
	case Protobuf:
		b, err := protoOf(m, o)
		if err != nil {
			return nil, err
		}
		gvk := m.typeOf(gvkOf(o))
		return envelope(gvk.GroupVersion().String(), gvk.Kind, b), nil
	case CBOR:
		b, err := cborOf(m, o, false)
		if err != nil {
			return nil, err
		}
		return append(selfDescribed[:3:3], b...), nil
	}
	return nil, fmt.Errorf("unknown encoding %d", m.Encoding)
}

// typeOf is the type of what an object is turned into.
func (m Media) typeOf(gvk schema.GroupVersionKind) schema.GroupVersionKind {
	switch m.As {
	case AsTable:
		return schema.GroupVersionKind{Group: metaGroup, Version: m.Version, Kind: "Table"}
	case AsPartial:
		return schema.GroupVersionKind{Group: metaGroup, Version: m.Version, Kind: "PartialObjectMetadata"}
	}
	return gvk
}

func (m Media) partialOf(o store.Object) (*metav1.PartialObjectMetadata, error) {
	p, err := Meta(o)
	if err != nil {
		return nil, err
	}
	p.SetGroupVersionKind(schema.GroupVersionKind{Group: metaGroup, Version: m.Version, Kind: "PartialObjectMetadata"})
	return p, nil
}

// jsonOf is an object's JSON. In a list, the server leaves kind and apiVersion
// of built-in items out, and a Table has rows.
func jsonOf(m Media, o store.Object, inList bool) ([]byte, error) {
	var value any
	var err error
	switch {
	case m.As == AsTable && inList:
		value, err = m.row(o)
	case m.As == AsTable:
		value, err = m.tableOf(o)
	case m.As == AsPartial:
		value, err = m.partialOf(o)
	case o.Format == store.FormatJSON:
		return o.Data, nil
	default:
		value, err = typedOf(o, inList)
	}
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return b, nil
}

func typedOf(o store.Object, inList bool) (any, error) {
	obj, err := Typed(o)
	if err == nil && inList {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return obj, err
}

func cborOf(m Media, o store.Object, inList bool) ([]byte, error) {
	var value any
	var err error
	switch {
	case m.As == AsPartial:
		value, err = m.partialOf(o)
	case m.As == AsTable:
		return nil, notAcceptable(true, false)
	case o.Format == store.FormatJSON:
		content := map[string]any{}
		err = jsonInto(o.Data, &content)
		value = content
	default:
		value, err = typedOf(o, inList)
	}
	if err != nil {
		return nil, err
	}
	b, err := direct.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return b, nil
}

// protoOf is an object's bare message.
func protoOf(m Media, o store.Object) ([]byte, error) {
	switch {
	case m.As == AsTable:
		return nil, notAcceptable(false, false)
	case m.As == AsPartial && o.Format == store.FormatProtobuf:
		// PartialObjectMetadata is field 1 of anything.
		var out []byte
		err := eachField(o.Data, func(num protowire.Number, _ protowire.Type, _ []byte, _ uint64, raw []byte) error {
			if num == fieldMetadata {
				out = append(out, raw...)
			}
			return nil
		})
		return out, err
	case m.As == AsPartial:
		p, err := m.partialOf(o)
		if err != nil {
			return nil, err
		}
		return p.Marshal()
	case o.Format == store.FormatProtobuf:
		return o.Data, nil
	}
	obj, err := newTyped(gvkOf(o))
	if err != nil {
		return nil, err
	}
	if err := jsonInto(o.Data, obj); err != nil {
		return nil, err
	}
	return obj.Marshal()
}

func indent(b []byte, prefix string) ([]byte, error) {
	out := bytes.Buffer{}
	if err := json.Indent(&out, b, prefix, "  "); err != nil {
		return nil, fmt.Errorf("indenting: %w", err)
	}
	return out.Bytes(), nil
}
