package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/store"
)

// EventReader reads the events of a watch; a frame is at most maxFrame bytes.
type EventReader struct {
	encoding Encoding
	key      store.Key
	frame    func() (kind watch.EventType, object []byte, err error)
	err      error
}

// NewEventReader reads events of the group, version and resource of k.
func NewEventReader(contentType string, body io.Reader, k store.Key, maxFrame int64) (*EventReader, error) {
	encoding, err := encodingOf(contentType)
	if err != nil {
		return nil, err
	}
	r := &EventReader{encoding: encoding, key: k}
	switch encoding {
	case JSON:
		r.frame = jsonFrames(body, maxFrame)
	case Protobuf:
		r.frame = protoFrames(body, maxFrame)
	case CBOR:
		r.frame = cborFrames(body, maxFrame)
	default:
		return nil, unsupportedMediaType(contentType)
	}
	return r, nil
}

// Next returns the next event; io.EOF at the end of the stream, between two
// frames. After an error it returns the same one again.
func (r *EventReader) Next() (Event, error) {
	if r.err != nil {
		return Event{}, r.err
	}
	e, err := r.next()
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("reading a watch of %s: %w", r.key.Resource, err)
	}
	r.err = err
	return e, err
}

func (r *EventReader) next() (Event, error) {
	kind, object, err := r.frame()
	if err != nil {
		return Event{}, err
	}
	e := Event{Type: kind}
	switch kind {
	case watch.Error:
		e.Status, err = decodeStatus(r.encoding, object)
		return e, err
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark:
	default:
		return Event{}, fmt.Errorf("unknown event type %q", kind)
	}
	if e.Object, err = decode(r.encoding, object, "", r.key); err != nil {
		return Event{}, err
	}
	if kind == watch.Bookmark {
		p, err := Meta(e.Object)
		if err != nil {
			return Event{}, err
		}
		if e.Object.ResourceVersion == 0 {
			return Event{}, errors.New("a bookmark without a resourceVersion")
		}
		e.InitialEventsEnd = p.Annotations[metav1.InitialEventsAnnotationKey] == "true"
		e.Object = store.Object{
			Key:  store.Key{Group: r.key.Group, Version: r.key.Version, Resource: r.key.Resource},
			Kind: e.Object.Kind, ResourceVersion: e.Object.ResourceVersion,
		}
		return e, nil
	}
	if e.Object.Name == "" {
		return Event{}, errors.New("an event's object has no name")
	}
	return e, nil
}

func jsonFrames(body io.Reader, maxFrame int64) func() (watch.EventType, []byte, error) {
	limited := &budget{r: body}
	d := json.NewDecoder(limited)
	return func() (watch.EventType, []byte, error) {
		limited.left = maxFrame + 4096
		raw := json.RawMessage{}
		if err := d.Decode(&raw); err != nil {
			return "", nil, err
		}
		if int64(len(raw)) > maxFrame {
			return "", nil, errTooMuch
		}
		frame := struct {
			Type   watch.EventType `json:"type"`
			Object json.RawMessage `json:"object"`
		}{}
		err := jsonInto(raw, &frame)
		return frame.Type, frame.Object, err
	}
}

// keepFrame is how large a buffer may stay for the next frame.
const keepFrame = 64 << 10

func protoFrames(body io.Reader, maxFrame int64) func() (watch.EventType, []byte, error) {
	p := &protoReader{r: bufio.NewReaderSize(body, 4<<10)}
	return func() (watch.EventType, []byte, error) {
		if cap(p.buf) > keepFrame {
			p.buf = nil
		}
		length := [4]byte{}
		if _, err := io.ReadFull(p.r, length[:]); err != nil {
			return "", nil, err
		}
		p.left = uint64(binary.BigEndian.Uint32(length[:]))
		frame, err := p.bytes(p.left, maxFrame)
		if err != nil {
			return "", nil, err
		}
		kind, _, err := protoPath(frame, 1)
		if err != nil {
			return "", nil, err
		}
		object, _, err := protoPath(frame, 2, 1)
		return watch.EventType(kind), object, err
	}
}

func cborFrames(body io.Reader, maxFrame int64) func() (watch.EventType, []byte, error) {
	c := &cborReader{r: bufio.NewReaderSize(body, 4<<10)}
	return func() (watch.EventType, []byte, error) {
		if cap(c.buf) > keepFrame {
			c.buf = nil
		}
		b, err := c.item(maxFrame)
		if err != nil {
			return "", nil, err
		}
		frame := metav1.WatchEvent{}
		err = direct.Unmarshal(b, &frame)
		return watch.EventType(frame.Type), frame.Object.Raw, err
	}
}

func decodeStatus(encoding Encoding, b []byte) (*metav1.Status, error) {
	status := &metav1.Status{}
	var err error
	switch encoding {
	case Protobuf:
		var e opened
		if e, err = openEnvelope(b); err == nil {
			err = status.Unmarshal(e.raw)
		}
	case CBOR:
		err = direct.Unmarshal(b, status)
	default:
		err = jsonInto(b, status)
	}
	if err != nil {
		return nil, err
	}
	return status, nil
}
