package identity

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

// StoreBindings returns Bindings over the objects of the store.
func StoreBindings(s interface {
	Get(store.Key) (store.Object, bool, error)
}, nodeName string) Bindings {
	return storeBindings{get: s.Get, nodeName: nodeName}
}

type storeBindings struct {
	get      func(store.Key) (store.Object, bool, error)
	nodeName string
}

func (b storeBindings) PodExists(namespace, name, uid string) bool {
	o, ok := b.find("pods", namespace, name, uid)
	if !ok {
		return false
	}
	var pod corev1.Pod
	// The store may hold pods of other nodes, too, if an operator asked for them.
	return decode(o, &pod) == nil && pod.Spec.NodeName == b.nodeName
}

func (b storeBindings) ServiceAccountExists(namespace, name, uid string) bool {
	_, ok := b.find("serviceaccounts", namespace, name, uid)
	return ok
}

func (b storeBindings) find(resource, namespace, name, uid string) (store.Object, bool) {
	o, ok, err := b.get(store.Key{Version: "v1", Resource: resource, Namespace: namespace, Name: name})
	if err != nil || !ok || uid == "" || o.UID != uid {
		return store.Object{}, false
	}
	return o, true
}

// decode reads a stored object of a built-in kind.
func decode(o store.Object, into interface{ Unmarshal([]byte) error }) error {
	if o.Format == store.FormatProtobuf {
		return into.Unmarshal(o.Data)
	}
	return json.Unmarshal(o.Data, into)
}
