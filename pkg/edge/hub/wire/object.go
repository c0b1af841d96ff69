package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/edge/store"
)

// Meta reads the metadata of an object without decoding the rest. Its type is
// that of the object.
func Meta(o store.Object) (*metav1.PartialObjectMetadata, error) {
	read := jsonMeta
	if o.Format == store.FormatProtobuf {
		read = protoMeta
	}
	p, err := read(o)
	if err != nil {
		return nil, err
	}
	p.SetGroupVersionKind(gvkOf(o))
	return p, nil
}

// WithResourceVersion returns the object with another resourceVersion. Nothing
// else changes, not even what is unknown here.
func WithResourceVersion(o store.Object, rv uint64) (store.Object, error) {
	o.ResourceVersion = rv
	return withMeta(o, metaResourceVersion, "resourceVersion", strconv.FormatUint(rv, 10))
}

func withMeta(o store.Object, number protowire.Number, key, text string) (store.Object, error) {
	var err error
	if o.Format == store.FormatProtobuf {
		o.Data, err = protoWithMeta(o.Data, number, text)
	} else {
		o.Data, err = jsonWithMeta(o.Data, key, text)
	}
	if err != nil {
		return store.Object{}, fmt.Errorf("setting the %s of %s %s/%s: %w", key, o.Kind, o.Namespace, o.Name, err)
	}
	return o, nil
}

// encodingOf reads a Content-Type; none means JSON.
func encodingOf(contentType string) (Encoding, error) {
	if contentType == "" {
		return JSON, nil
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["as"] != "" {
		return 0, unsupportedMediaType(contentType)
	}
	switch mediaType {
	case typeJSON:
		return JSON, nil
	case typeYAML:
		return YAML, nil
	case typeProtobuf:
		return Protobuf, nil
	case typeCBOR, typeCBORSeq:
		return CBOR, nil
	}
	return 0, unsupportedMediaType(contentType)
}

// Decode reads the body of one object. k says which (Name and Namespace are
// taken from the body when empty). A built-in kind comes out as protobuf. The
// error is an apierrors.APIStatus.
func Decode(contentType string, body []byte, k store.Key) (store.Object, error) {
	encoding, err := encodingOf(contentType)
	if err != nil {
		return store.Object{}, err
	}
	o, err := decode(encoding, body, "", k)
	if err != nil {
		return store.Object{}, badRequest("unable to decode: %v", err)
	}
	if builtInKind(gvkOf(o)) && encoding == Protobuf {
		// The bytes are kept as they are, but they must be readable.
		if _, err := Typed(o); err != nil {
			return store.Object{}, badRequest("unable to decode: %v", err)
		}
	}
	if k.Name != "" && o.Name != k.Name {
		return store.Object{}, badRequest("the name of the object (%s) does not match the name on the URL (%s)", o.Name, k.Name)
	}
	if k.Namespace != "" && o.Namespace == "" {
		// As upstream: who names it in the path need not name it in the body.
		o.Namespace = k.Namespace
		if o, err = withMeta(o, metaNamespace, "namespace", k.Namespace); err != nil {
			return store.Object{}, badRequest("unable to decode: %v", err)
		}
	}
	if k.Namespace != "" && o.Namespace != k.Namespace {
		return store.Object{}, badRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return o, nil
}

// decode reads one object of the group, version and resource of k, into the form
// that the store has it in. kind is what it is if it does not say. The bytes of
// the result are its own.
func decode(encoding Encoding, body []byte, kind string, k store.Key) (store.Object, error) {
	o := store.Object{Key: store.Key{Group: k.Group, Version: k.Version, Resource: k.Resource}, Kind: kind}
	if encoding == Protobuf {
		e, err := openEnvelope(body)
		if err != nil {
			return store.Object{}, err
		}
		if err := typed(&o, e.apiVersion, e.kind); err != nil {
			return store.Object{}, err
		}
		o.Format, o.Data = store.FormatProtobuf, slices.Clone(e.raw)
		return identified(o)
	}
	var err error
	switch encoding {
	case CBOR:
		body, err = cborToJSON(body)
	case YAML:
		body, err = yaml.YAMLToJSON(body)
	}
	if err != nil {
		return store.Object{}, err
	}
	h, err := readJSONHead(body)
	if err != nil {
		return store.Object{}, err
	}
	if err := typed(&o, h.APIVersion, h.Kind); err != nil {
		return store.Object{}, err
	}
	gvk := gvkOf(o)
	if builtInKind(gvk) {
		obj, err := newTyped(gvk)
		if err != nil {
			return store.Object{}, err
		}
		if err := jsonInto(body, obj); err != nil {
			return store.Object{}, err
		}
		o.Format = store.FormatProtobuf
		if o.Data, err = obj.Marshal(); err != nil {
			return store.Object{}, err
		}
		return identified(o)
	}
	compact := bytes.Buffer{}
	if err := json.Compact(&compact, body); err != nil {
		return store.Object{}, err
	}
	data, err := jsonWithType(compact.Bytes(), gvk.GroupVersion().String(), gvk.Kind)
	if err != nil {
		return store.Object{}, err
	}
	o.Format, o.Data = store.FormatJSON, slices.Clone(data)
	return identified(o)
}

// typed completes o's kind from what its bytes say, and checks the version.
func typed(o *store.Object, apiVersion, kind string) error {
	if kind != "" {
		o.Kind = kind
	} else if o.Kind == "" {
		o.Kind = kindOf(o.Key)
	}
	switch {
	case o.Kind == "":
		return errors.New("Object 'Kind' is missing")
	case o.Group == "" && o.Kind == "Status":
		return errors.New("it is a Status")
	}
	if want := groupVersion(o.Key).String(); apiVersion != "" && apiVersion != want {
		return fmt.Errorf("the API version in the data (%s) does not match the expected API version (%s)", apiVersion, want)
	}
	return nil
}

func cborToJSON(body []byte) ([]byte, error) {
	content := map[string]any{}
	if err := direct.Unmarshal(body, &content); err != nil {
		return nil, fmt.Errorf("decoding CBOR: %w", err)
	}
	return json.Marshal(content)
}
