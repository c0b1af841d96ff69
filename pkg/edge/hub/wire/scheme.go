package wire

import (
	"encoding/json"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	kjson "sigs.k8s.io/json"

	"skerry.dev/skerry/pkg/edge/store"
)

// BuiltIn reports whether objects of this group and version are compiled in, so
// that they can be asked for as protobuf and converted.
func BuiltIn(group, version string) bool {
	return version != "" && version != runtime.APIVersionInternal && group != metaGroup &&
		scheme.Scheme.IsVersionRegistered(schema.GroupVersion{Group: group, Version: version})
}

func builtInKind(gvk schema.GroupVersionKind) bool {
	return BuiltIn(gvk.Group, gvk.Version) && scheme.Scheme.Recognizes(gvk)
}

func gvkOf(o store.Object) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: o.Group, Version: o.Version, Kind: o.Kind}
}

func groupVersion(k store.Key) schema.GroupVersion {
	return schema.GroupVersion{Group: k.Group, Version: k.Version}
}

// kindsByResource guesses from the compiled-in kinds; some lists do not name
// theirs before the items.
var kindsByResource = sync.OnceValue(func() map[schema.GroupVersionResource]string {
	kinds := map[schema.GroupVersionResource]string{}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if gvk.Version == runtime.APIVersionInternal {
			continue
		}
		plural, _ := meta.UnsafeGuessKindToResource(gvk)
		if gvk.Kind == "Endpoints" {
			plural.Resource = "endpoints"
		}
		kinds[plural] = gvk.Kind
	}
	return kinds
})

func kindOf(k store.Key) string {
	return kindsByResource()[schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}]
}

// message is what every generated API type has.
type message interface {
	runtime.Object
	Unmarshal([]byte) error
	Marshal() ([]byte, error)
}

func newTyped(gvk schema.GroupVersionKind) (message, error) {
	if !builtInKind(gvk) {
		return nil, notConvertible(gvk)
	}
	obj, err := scheme.Scheme.New(gvk)
	if err != nil {
		return nil, fmt.Errorf("making a %s: %w", gvk.Kind, err)
	}
	m, ok := obj.(message)
	if !ok {
		return nil, notConvertible(gvk)
	}
	return m, nil
}

func notConvertible(gvk schema.GroupVersionKind) error {
	return statusError(406, "NotAcceptable", fmt.Sprintf("%s is not compiled in and can only be had in the encoding that it is kept in", gvk))
}

// Typed decodes an object, with its kind and apiVersion set: a typed one of a
// built-in kind, else *unstructured.Unstructured. FromTyped is the way back.
func Typed(o store.Object) (runtime.Object, error) {
	gvk := gvkOf(o)
	if o.Format == store.FormatProtobuf || builtInKind(gvk) {
		obj, err := newTyped(gvk)
		if err != nil {
			return nil, err
		}
		if o.Format == store.FormatProtobuf {
			err = obj.Unmarshal(o.Data)
		} else {
			err = kjson.UnmarshalCaseSensitivePreserveInts(o.Data, obj)
		}
		if err != nil {
			return nil, fmt.Errorf("decoding %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
		}
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		return obj, nil
	}
	content := map[string]any{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(o.Data, &content); err != nil {
		return nil, fmt.Errorf("decoding %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	if content == nil {
		content = map[string]any{}
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvk)
	return u, nil
}

// FromTyped encodes an object for the store. Name and namespace are taken from
// the object.
func FromTyped(obj runtime.Object, k store.Key) (store.Object, error) {
	o := store.Object{Key: k}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		o.Kind = u.GetKind()
		data, err := json.Marshal(u.Object)
		if err != nil {
			return store.Object{}, fmt.Errorf("encoding %s %s/%s: %w", o.Kind, u.GetNamespace(), u.GetName(), err)
		}
		o.Format, o.Data = store.FormatJSON, data
		if builtInKind(gvkOf(o)) {
			typed, err := Typed(o)
			if err != nil {
				return store.Object{}, err
			}
			return FromTyped(typed, k)
		}
		return identified(o)
	}
	kinds, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return store.Object{}, fmt.Errorf("encoding %T: %w", obj, err)
	}
	for _, gvk := range kinds {
		if gvk.GroupVersion() == groupVersion(k) {
			o.Kind = gvk.Kind
		}
	}
	if o.Kind == "" {
		return store.Object{}, fmt.Errorf("encoding %T: it is not of %s", obj, groupVersion(k))
	}
	m, ok := obj.(message)
	if !ok {
		return store.Object{}, fmt.Errorf("encoding %T: it has no protobuf form", obj)
	}
	if o.Data, err = m.Marshal(); err != nil {
		return store.Object{}, fmt.Errorf("encoding %T: %w", obj, err)
	}
	o.Format = store.FormatProtobuf
	return identified(o)
}

// identified fills in what an object's metadata says of it.
func identified(o store.Object) (store.Object, error) {
	head, err := headOf(o)
	if err != nil {
		return store.Object{}, err
	}
	if head.name != "" {
		o.Name = head.name
	}
	if head.namespace != "" {
		o.Namespace = head.namespace
	}
	o.UID = head.uid
	if o.ResourceVersion, err = parseResourceVersion(head.resourceVersion); err != nil {
		return store.Object{}, fmt.Errorf("%s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return o, nil
}

func badRequest(format string, args ...any) error {
	return apierrors.NewBadRequest(fmt.Sprintf(format, args...))
}
