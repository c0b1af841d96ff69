package agent

import (
	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// podsOf is the view that the kubelet of a node keeps of its pods.
func podsOf(node string) store.Query {
	return store.Query{Version: "v1", Resource: "pods", FieldSelector: "spec.nodeName=" + node}
}

// bindings are what tokens are bound to, as this node knows it.
type bindings struct {
	identity.Bindings
	store *store.Store
	pods  store.Query
}

// PodExists believes the view of the node's pods, if it is whole: a pod that was
// also read by its name stays in the store as it was then, and its token must
// not be good after it is gone.
func (b bindings) PodExists(namespace, name, uid string) bool {
	if !b.Bindings.PodExists(namespace, name, uid) {
		return false
	}
	view, ok, err := b.store.View(b.pods)
	if err != nil {
		return false
	}
	if !ok || !view.Complete {
		return true
	}
	members, err := b.store.Versions(b.pods)
	if err != nil {
		return false
	}
	_, member := members[store.Key{Version: "v1", Resource: "pods", Namespace: namespace, Name: name}]
	return member
}
