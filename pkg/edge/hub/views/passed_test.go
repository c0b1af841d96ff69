package views

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// object is a config map as the cloud has it.
func object(t testing.TB, n *node, ns, name, value string, rv uint64) store.Object {
	t.Helper()
	uid := ""
	if have, ok, err := n.st.Get(store.Key{Version: "v1", Resource: "configmaps", Namespace: ns, Name: name}); err == nil && ok {
		uid = have.UID
	}
	body := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":%q,"name":%q,"uid":%q,"resourceVersion":"%d"},"data":{"v":%q}}`, ns, name, uid, rv, value)
	o, err := wire.Decode("application/json", body, store.Key{Version: "v1", Resource: "configmaps", Namespace: ns, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func expectShown(t testing.TB, n *node, rv uint64) {
	t.Helper()
	if got := n.st.Revision(); got < rv {
		t.Errorf("the store's revision is %d, clients have seen %d", got, rv)
	}
}

// TestSaw: an object that was answered is in the store at once, and its event
// reaches watchers all the same.
func TestSaw(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	c.put("a", "other", "1")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "102"})
	stored := func() uint64 {
		o, _, err := n.st.Get(store.Key{Version: "v1", Resource: "configmaps", Namespace: "a", Name: "m"})
		if err != nil {
			t.Fatal(err)
		}
		return o.ResourceVersion
	}
	saw := func(o store.Object, d store.Durability) {
		t.Helper()
		if err := n.vs.Saw(o, d); err != nil {
			t.Fatal(err)
		}
	}
	// The answer is here, and the link is lost before the event.
	l.set(false)
	o := object(t, n, "a", "m", "2", 103)
	saw(o, store.Durable)
	if stored() != 103 || n.st.Revision() != 103 {
		t.Fatalf("stored at %d, revision %d", stored(), n.st.Revision())
	}
	saw(object(t, n, "a", "m", "1", 101), store.Soon)
	saw(object(t, n, "a", "unknown", "1", 109), store.Soon)
	foreign := object(t, n, "a", "m", "x", 110)
	foreign.UID = "another"
	saw(foreign, store.Soon)
	if stored() != 103 {
		t.Errorf("an older, an unknown or a foreign object was stored: at %d", stored())
	}
	c.put("a", "m", "2")
	c.put("a", "other", "2")
	l.set(true)
	expect(t, w, "MODIFIED a/m 2@103", "MODIFIED a/other 2@104")
}

// TestListThatPassed: a view that a passed list agrees with has reached its
// revision, also for the next agent; one that it does not agree with has not,
// and lists.
func TestListThatPassed(t *testing.T) {
	c := newCloud(t)
	c.bookmarks = time.Hour
	c.put("a", "m", "1")
	c.put("a", "n", "1")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "102"})
	c.tick(50)
	pass := func(rv uint64, items ...store.Object) error {
		t.Helper()
		k := n.vs.NewKeeper(allMaps, "ConfigMap", true)
		for _, o := range items {
			if err := k.Add(within(t), o); err != nil {
				t.Fatal(err)
			}
		}
		return k.Done(within(t), rv)
	}
	at := func() uint64 { _, rv := list(t, h); return rv }
	for what, items := range map[string][]store.Object{
		"one is missing": {object(t, n, "a", "m", "1", 101)},
		"one is newer":   {object(t, n, "a", "m", "2", 140), object(t, n, "a", "n", "1", 102)},
		"one more":       {object(t, n, "a", "m", "1", 101), object(t, n, "a", "n", "1", 102), object(t, n, "a", "o", "1", 130)},
	} {
		if err := pass(152, items...); err == nil || at() != 102 {
			t.Errorf("%s: %v, the view is at %d", what, err, at())
		}
	}
	if err := pass(152, object(t, n, "a", "m", "1", 101), object(t, n, "a", "n", "1", 102)); err != nil || at() != 152 {
		t.Fatalf("the same: %v, the view is at %d", err, at())
	}
	rv := c.put("a", "m", "2")
	expect(t, w, fmt.Sprintf("MODIFIED a/m 2@%d", rv))
	// With an event on its way it waits for that.
	c.tick(10)
	done := make(chan error, 1)
	rv = c.revision() + 1
	go func() {
		done <- pass(rv+5, object(t, n, "a", "m", "3", rv), object(t, n, "a", "n", "1", 102))
	}()
	time.Sleep(20 * time.Millisecond)
	c.put("a", "m", "3")
	if err := <-done; err != nil || at() != rv+5 {
		t.Errorf("with an event on its way: %v, the view is at %d", err, at())
	}
	l.set(false)
	n.halt()
	n.start()
	h = acquire(t, n, nodeCaller, allMaps)
	if got, at := list(t, h); at != rv+5 || !maps.Equal(got, c.state(allMaps)) {
		t.Errorf("after a restart: %v at %d, want %d", got, at, rv+5)
	}
}

// TestAnotherObjectAfterARestart: two views have an object, one of them has heard
// that it was replaced by another one of the name, and then the agent is
// restarted. Clients of the other view must not take the two for one.
func TestAnotherObjectAfterARestart(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l)
	acquire(t, n, nodeCaller, in("a", ""))
	acquire(t, n, nodeCaller, exact("a", "m"))
	l.set(false)
	n.halt()
	// As if the agent had been killed when one view had listed and one had not.
	c.delete("a", "m")
	rv := c.put("a", "m", "2")
	n.start()
	o := object(t, n, "a", "m", "2", rv)
	o.UID = fmt.Sprint("uid-", rv)
	b := &store.Batch{}
	b.Put(o)
	b.SetView(store.View{Query: in("a", ""), Kind: "ConfigMap", Node: true, Complete: true, ResourceVersion: rv})
	b.SetRevision(rv)
	if err := n.st.Apply(b, store.Soon); err != nil {
		t.Fatal(err)
	}
	n.halt()
	c.compact()
	n.start()
	w := watchFrom(t, acquire(t, n, nodeCaller, exact("a", "m")), wire.Options{ResourceVersion: "101"})
	l.set(true)
	expect(t, w, "ERROR 410 Expired", "EOF")
}

// TestDeletionEndsKeptGets: what a GET kept is gone when a followed view hears
// that the object is deleted, and nothing else is.
func TestDeletionEndsKeptGets(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1", "app=x")
	c.put("a", "changed", "1", "app=x")
	c.put("b", "m", "1")
	l := newLink(c)
	n := newNode(t, l)
	for _, name := range []string{"m", "changed"} {
		rv := map[string]uint64{"m": 101, "changed": 102}[name]
		if err := n.vs.Keep(within(t), exact("a", name), "ConfigMap", true, rv, []store.Object{object(t, n, "a", name, "1", rv)}); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, n, nodeCaller, in("a", "app=x")) // knows only that they do not match
	h := acquire(t, n, nodeCaller, in("a", ""))
	c.put("a", "changed", "2")
	c.delete("a", "m")
	eventually(t, "the deletion", func() bool { got, _ := list(t, h); return len(got) == 1 })
	l.set(false)
	for name, want := range map[string]int{"m": 0, "changed": 1} {
		if got, _, err := n.st.Size(exact("a", name)); err != nil || got != want {
			t.Errorf("the kept GET of %s has %d objects (%v), want %d", name, got, err, want)
		}
	}
	if got, _ := list(t, acquire(t, n, nodeCaller, exact("a", "m"))); len(got) != 0 {
		t.Errorf("found after its deletion: %v", got)
	}
}
