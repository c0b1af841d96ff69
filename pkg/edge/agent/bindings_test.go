package agent

import (
	"path/filepath"
	"testing"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// The token of a pod is good for as long as the node's view has the pod, and no
// longer, though the store may.
func TestBindings(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Options{Path: filepath.Join(dir, "store.db"), KeyFile: filepath.Join(dir, "store.key")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pods := podsOf("east-1")
	key := store.Key{Version: "v1", Resource: "pods", Namespace: "shop", Name: "till"}
	apply := func(change func(*store.Batch)) {
		t.Helper()
		batch := &store.Batch{}
		change(batch)
		if err := s.Apply(batch, store.Soon); err != nil {
			t.Fatal(err)
		}
	}
	b := bindings{Bindings: identity.StoreBindings(s, "east-1"), store: s, pods: pods}
	exists := func(when string, uid string, want bool) {
		t.Helper()
		if got := b.PodExists("shop", "till", uid); got != want {
			t.Errorf("%s: pod with UID %s exists: %v, want %v", when, uid, got, want)
		}
	}
	exists("before", "1", false)

	single := store.Query{Version: "v1", Resource: "pods", Namespace: "shop", FieldSelector: "metadata.name=till"}
	apply(func(batch *store.Batch) {
		batch.SetView(store.View{Query: single, ResourceVersion: 7, Complete: true})
		batch.Put(store.Object{Key: key, Kind: "Pod", UID: "1", ResourceVersion: 7, Format: store.FormatJSON, Data: []byte(`{"spec":{"nodeName":"east-1"}}`)})
		batch.Join(single, key)
	})
	exists("read once, and never listed", "1", true)

	apply(func(batch *store.Batch) {
		batch.SetView(store.View{Query: pods, ResourceVersion: 7, Complete: true})
		batch.Join(pods, key)
	})
	exists("listed", "1", true)
	exists("listed", "2", false)

	apply(func(batch *store.Batch) { batch.Leave(pods, key) })
	if _, ok, err := s.Get(key); err != nil || !ok {
		t.Fatalf("the store has forgotten the pod (%v): this proves nothing", err)
	}
	exists("deleted, and still as it was read once", "1", false)

	apply(func(batch *store.Batch) { batch.SetView(store.View{Query: pods, ResourceVersion: 8}) })
	exists("in a view that is not whole", "1", true)
}
