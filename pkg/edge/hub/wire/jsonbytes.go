package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"skerry.dev/skerry/pkg/edge/store"
)

var errJSON = errors.New("malformed JSON object")

// jsonHead is read with a case-sensitive decoder: "Metadata" is not metadata.
type jsonHead struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
	} `json:"metadata"`
}

func readJSONHead(data []byte) (*jsonHead, error) {
	h := &jsonHead{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, h); err != nil {
		return nil, fmt.Errorf("reading metadata: %w", err)
	}
	return h, nil
}

func headOf(o store.Object) (head, error) {
	if o.Format == store.FormatProtobuf {
		return protoHead(o.Data)
	}
	h, err := readJSONHead(o.Data)
	if err != nil {
		return head{}, err
	}
	m := h.Metadata
	return head{name: m.Name, namespace: m.Namespace, uid: m.UID, resourceVersion: m.ResourceVersion}, nil
}

func jsonMeta(o store.Object) (*metav1.PartialObjectMetadata, error) {
	p := &metav1.PartialObjectMetadata{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(o.Data, p); err != nil {
		return nil, fmt.Errorf("reading the metadata of %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return p, nil
}

// span is a member of an object: its key, and where its value stands.
type span struct {
	key        string
	start, end int64
}

// members lists the members of the object that begins at data[0], with offsets
// into data, and the offset behind its opening brace.
func members(data []byte) (spans []span, open int64, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	t, err := d.Token()
	if err != nil || t != json.Delim('{') {
		return nil, 0, errJSON
	}
	open = d.InputOffset()
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, 0, errJSON
		}
		key, ok := t.(string)
		if !ok {
			return nil, 0, errJSON
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, 0, errJSON
		}
		end := d.InputOffset()
		spans = append(spans, span{key: key, start: end - int64(len(raw)), end: end})
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, errJSON
	}
	return spans, open, nil
}

// setMember replaces the value of each member of that key, or adds one in front.
func setMember(data []byte, key string, change func(old []byte) ([]byte, error)) ([]byte, error) {
	spans, open, err := members(data)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(data)+64)
	from, found := int64(0), false
	for _, s := range spans {
		if s.key != key {
			continue
		}
		value, err := change(data[s.start:s.end])
		if err != nil {
			return nil, err
		}
		out = append(append(out, data[from:s.start]...), value...)
		from, found = s.end, true
	}
	if found {
		return append(out, data[from:]...), nil
	}
	value, err := change(nil)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	out = append(append(append(append(out, data[:open]...), name...), ':'), value...)
	if len(spans) > 0 {
		out = append(out, ',')
	}
	return append(out, data[open:]...), nil
}

func setString(data []byte, key, value string) ([]byte, error) {
	return setMember(data, key, func([]byte) ([]byte, error) { return json.Marshal(value) })
}

// jsonWithMeta changes nothing but one string of the metadata.
func jsonWithMeta(data []byte, key, text string) ([]byte, error) {
	return setMember(data, "metadata", func(old []byte) ([]byte, error) {
		if old == nil || string(old) == "null" {
			old = []byte("{}")
		}
		return setString(old, key, text)
	})
}

// jsonWithType makes sure that an object says what it is.
func jsonWithType(data []byte, apiVersion, kind string) ([]byte, error) {
	h, err := readJSONHead(data)
	if err != nil {
		return nil, err
	}
	if h.Kind != kind {
		if data, err = setString(data, "kind", kind); err != nil {
			return nil, err
		}
	}
	if h.APIVersion != apiVersion {
		if data, err = setString(data, "apiVersion", apiVersion); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func jsonInto(data []byte, into any) error {
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, into); err != nil {
		return fmt.Errorf("decoding JSON: %w", err)
	}
	return nil
}
