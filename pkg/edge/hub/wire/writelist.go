package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/edge/store"
)

// WriteList writes a list, one item in memory at a time. kind is that of one
// item ("Pod"). meta is the list's. After an error, what was written must not
// reach the client as if it were whole: the caller breaks the connection.
func WriteList(w io.Writer, m Media, group, version, kind string, meta metav1.ListMeta, items Items) error {
	gvk := m.typeOf(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	if m.As != AsTable {
		gvk.Kind += "List"
	}
	b := bufio.NewWriterSize(w, 32<<10)
	var err error
	switch m.Encoding {
	case JSON:
		err = writeJSONList(b, m, gvk, meta, items)
	case YAML:
		err = writeYAMLList(b, m, gvk, meta, items)
	case Protobuf:
		err = writeProtoList(b, m, gvk, meta, items)
	case CBOR:
		err = writeCBORList(b, m, gvk, meta, items)
	default:
		err = fmt.Errorf("unknown encoding %d", m.Encoding)
	}
	if err != nil {
		return fmt.Errorf("writing a %s: %w", gvk.Kind, err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("writing a %s: %w", gvk.Kind, err)
	}
	return nil
}

func writeJSONList(w *bufio.Writer, m Media, gvk schema.GroupVersionKind, meta metav1.ListMeta, items Items) error {
	// The layout of encoding/json's Indent, or none.
	line, inner, colon := "", "", ":"
	if m.Pretty {
		line, inner, colon = "\n  ", "\n    ", ": "
	}
	member := func(before, key string, value any) error {
		b, err := json.Marshal(value)
		if err == nil && m.Pretty {
			b, err = indent(b, "  ")
		}
		if err != nil {
			return err
		}
		w.WriteString(before + line + `"` + key + `"` + colon)
		_, err = w.Write(b)
		return err
	}
	if err := member("{", "kind", gvk.Kind); err != nil {
		return err
	}
	if err := member(",", "apiVersion", gvk.GroupVersion().String()); err != nil {
		return err
	}
	if err := member(",", "metadata", meta); err != nil {
		return err
	}
	name := "items"
	if m.As == AsTable {
		name = "rows"
		definitions := columns()
		if m.NoHeaders {
			definitions = nil
		}
		if err := member(",", "columnDefinitions", definitions); err != nil {
			return err
		}
	}
	w.WriteString("," + line + `"` + name + `"` + colon + "[")
	first := true
	err := items(func(o store.Object) error {
		b, err := jsonOf(m, o, true)
		if err == nil && m.Pretty {
			b, err = indent(b, "    ")
		}
		if err != nil {
			return err
		}
		if !first {
			w.WriteByte(',')
		}
		first = false
		w.WriteString(inner)
		_, err = w.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	end := "]}\n"
	if m.Pretty && first {
		end = "]\n}"
	} else if m.Pretty {
		end = "\n  ]\n}"
	}
	_, err = w.WriteString(end)
	return err
}

func writeYAMLList(w *bufio.Writer, m Media, gvk schema.GroupVersionKind, meta metav1.ListMeta, items Items) error {
	top := map[string]any{"kind": gvk.Kind, "apiVersion": gvk.GroupVersion().String(), "metadata": meta}
	name := "items"
	if m.As == AsTable {
		name = "rows"
		if !m.NoHeaders {
			top["columnDefinitions"] = columns()
		}
	}
	b, err := yaml.Marshal(top)
	if err != nil {
		return err
	}
	w.Write(b)
	w.WriteString(name + ":")
	first := true
	err = items(func(o store.Object) error {
		b, err := jsonOf(m, o, true)
		if err == nil {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		if first {
			w.WriteByte('\n')
		}
		first = false
		lead := "- "
		for line := range bytes.Lines(b) {
			if len(bytes.TrimSpace(line)) > 0 || lead == "- " {
				w.WriteString(lead)
			}
			w.Write(line)
			lead = "  "
		}
		return nil
	})
	if err == nil && first {
		_, err = w.WriteString(" []\n")
	}
	return err
}

var errChanged = errors.New("the items changed between measuring and writing")

// writeProtoList needs the length of everything before the first item, so the
// items are gone through twice.
func writeProtoList(w *bufio.Writer, m Media, gvk schema.GroupVersionKind, meta metav1.ListMeta, items Items) error {
	listMeta, err := meta.Marshal()
	if err != nil {
		return err
	}
	metaField, itemsField := protowire.Number(fieldMetadata), protowire.Number(fieldItems)
	if m.As == AsPartial && m.Version == "v1beta1" {
		metaField, itemsField = 2, 1
	}
	size := sizeField(metaField, len(listMeta))
	err = items(func(o store.Object) error {
		b, err := protoOf(m, o)
		if err == nil {
			size += sizeField(itemsField, len(b))
		}
		return err
	})
	if err != nil {
		return err
	}
	scratch := envelopeHead(nil, gvk.GroupVersion().String(), gvk.Kind, size)
	scratch = protowire.AppendTag(scratch, metaField, protowire.BytesType)
	scratch = protowire.AppendBytes(scratch, listMeta)
	if _, err := w.Write(scratch); err != nil {
		return err
	}
	left := size - sizeField(metaField, len(listMeta))
	err = items(func(o store.Object) error {
		b, err := protoOf(m, o)
		if err != nil {
			return err
		}
		if left -= sizeField(itemsField, len(b)); left < 0 {
			return errChanged
		}
		scratch = protowire.AppendTag(scratch[:0], itemsField, protowire.BytesType)
		scratch = protowire.AppendVarint(scratch, uint64(len(b)))
		w.Write(scratch)
		_, err = w.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	if left != 0 {
		return errChanged
	}
	_, err = w.Write(envelopeTail)
	return err
}

func sizeField(num protowire.Number, size int) int {
	return protowire.SizeTag(num) + protowire.SizeBytes(size)
}

// writeCBORList writes an array of known length, as the API server does.
func writeCBORList(w *bufio.Writer, m Media, gvk schema.GroupVersionKind, meta metav1.ListMeta, items Items) error {
	if m.As == AsTable {
		return notAcceptable(true, false)
	}
	count := 0
	if err := items(func(store.Object) error { count++; return nil }); err != nil {
		return err
	}
	w.Write(selfDescribed)
	w.WriteByte(0xa4) // a map of four, in the order of the API server's encoder
	parts := func(values ...any) error {
		for _, value := range values {
			b, err := direct.Marshal(value)
			if err != nil {
				return err
			}
			w.Write(b)
		}
		return nil
	}
	if err := parts("kind", gvk.Kind, "items"); err != nil {
		return err
	}
	w.Write(cborHead(4, uint64(count)))
	err := items(func(o store.Object) error {
		if count--; count < 0 {
			return errChanged
		}
		b, err := cborOf(m, o, true)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	if count != 0 {
		return errChanged
	}
	return parts("metadata", meta, "apiVersion", gvk.GroupVersion().String())
}
