package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/store"
)

// EncodeEvent returns one frame of a watch.
func EncodeEvent(m Media, e Event) ([]byte, error) {
	var inner []byte
	var err error
	switch e.Type {
	case watch.Error:
		inner, err = encodeStatus(m.Encoding, e.Status)
	case watch.Bookmark:
		var o store.Object
		if o, err = bookmark(e); err == nil {
			inner, err = encodeObject(m, o)
		}
	case watch.Added, watch.Modified, watch.Deleted:
		inner, err = encodeObject(m, e.Object)
	default:
		err = fmt.Errorf("unknown event type %q", e.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding a watch event: %w", err)
	}
	switch m.Encoding {
	case JSON:
		out := make([]byte, 0, len(inner)+len(e.Type)+24)
		out = append(append(append(out, `{"type":"`...), e.Type...), `","object":`...)
		return append(append(out, inner...), "}\n"...), nil
	case Protobuf:
		object := sizeField(1, len(inner))
		size := sizeField(1, len(e.Type)) + sizeField(2, object)
		out := binary.BigEndian.AppendUint32(make([]byte, 0, size+4), uint32(size))
		out = protowire.AppendTag(out, 1, protowire.BytesType)
		out = protowire.AppendString(out, string(e.Type))
		out = protowire.AppendTag(out, 2, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(object))
		out = protowire.AppendTag(out, 1, protowire.BytesType)
		return protowire.AppendBytes(out, inner), nil
	case CBOR:
		out, err := direct.Marshal(&metav1.WatchEvent{Type: string(e.Type), Object: runtime.RawExtension{Raw: inner}})
		if err != nil {
			return nil, fmt.Errorf("encoding a watch event: %w", err)
		}
		return append(selfDescribed[:3:3], out...), nil
	}
	return nil, notAcceptable(true, true)
}

// bookmark is the empty object that carries a resourceVersion.
func bookmark(e Event) (store.Object, error) {
	o := e.Object
	if o.Kind == "" {
		o.Kind = kindOf(o.Key)
	}
	p := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.FormatUint(o.ResourceVersion, 10)}}
	if e.InitialEventsEnd {
		p.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	var err error
	if builtInKind(gvkOf(o)) {
		o.Format = store.FormatProtobuf
		o.Data, err = p.Marshal()
		return o, err
	}
	p.SetGroupVersionKind(gvkOf(o))
	o.Format = store.FormatJSON
	o.Data, err = json.Marshal(&p)
	return o, err
}

func encodeStatus(encoding Encoding, status *metav1.Status) ([]byte, error) {
	if status == nil {
		return nil, fmt.Errorf("an error without a status")
	}
	s := *status
	s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	switch encoding {
	case Protobuf:
		b, err := s.Marshal()
		return envelope(s.APIVersion, s.Kind, b), err
	case CBOR:
		b, err := direct.Marshal(&s)
		return append(selfDescribed[:3:3], b...), err
	}
	return json.Marshal(&s)
}
