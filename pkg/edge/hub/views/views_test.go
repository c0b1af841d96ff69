package views

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func acquire(t testing.TB, n *node, c identity.Caller, q store.Query) *View {
	t.Helper()
	h, err := n.vs.Acquire(within(t), c, q)
	if err != nil {
		t.Fatalf("acquiring %s: %v", q, err)
	}
	t.Cleanup(h.Release)
	return h
}

func list(t testing.TB, h *View) (map[string]string, uint64) {
	t.Helper()
	out := map[string]string{}
	rv, err := h.List(within(t), wire.Options{}, store.Key{}, func(o store.Object) error {
		k, s, err := describe(o)
		out[k] = s
		return err
	})
	if err != nil {
		t.Fatalf("listing %s: %v", h.q, err)
	}
	return out, rv
}

func watchFrom(t testing.TB, h *View, o wire.Options) *Watcher {
	t.Helper()
	w, err := h.Watch(within(t), o)
	if err != nil {
		t.Fatalf("watching %s: %v", h.q, err)
	}
	t.Cleanup(w.Stop)
	return w
}

// next returns the next event as "ADDED ns/name data@rv", without bookmarks.
func next(t testing.TB, w *Watcher) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for {
		e, err := w.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return "EOF"
		case err != nil:
			t.Fatalf("waiting for an event: %v", err)
		case e.Type == watch.Error:
			t.Log(e.Status.Message)
			return fmt.Sprintf("ERROR %d %s", e.Status.Code, e.Status.Reason)
		case e.Type == watch.Bookmark && e.InitialEventsEnd:
			return "END"
		case e.Type == watch.Bookmark:
			continue
		}
		k, s, err := describe(e.Object)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %s %s", e.Type, k, s)
	}
}

func expect(t testing.TB, w *Watcher, want ...string) {
	t.Helper()
	for _, s := range want {
		if got := next(t, w); got != s {
			t.Fatalf("event %q, want %q", got, s)
		}
	}
}

func in(ns, label string) store.Query {
	q := allMaps
	q.Namespace, q.LabelSelector = ns, label
	return q
}

func exact(ns, name string) store.Query {
	q := allMaps
	q.Namespace, q.FieldSelector = ns, "metadata.name="+name
	return q
}

func yes() *bool { b := true; return &b }

func rvOf(n uint64) string { return fmt.Sprint(n) }

func TestManyClientsShareOneStream(t *testing.T) {
	for _, proto := range []bool{false, true} {
		t.Run(fmt.Sprintf("proto=%v", proto), func(t *testing.T) {
			c := newCloud(t)
			c.proto = proto
			for i := range 1203 { // three pages
				c.put("a", fmt.Sprintf("m%04d", i), "x")
			}
			n := newNode(t, newLink(c))
			var all []*Watcher
			for i := range 10 {
				h := acquire(t, n, pod(fmt.Sprint("p", i)), allMaps)
				got, rv := list(t, h)
				if want := c.state(allMaps); !maps.Equal(got, want) || rv != c.revision() {
					t.Fatalf("listed %d at %d, want %d at %d", len(got), rv, len(want), c.revision())
				}
				all = append(all, watchFrom(t, h, wire.Options{ResourceVersion: rvOf(rv)}))
			}
			rv := c.put("a", "new", "1")
			c.put("a", "new", "2")
			c.delete("a", "new")
			for _, w := range all {
				expect(t, w, fmt.Sprintf("ADDED a/new 1@%d", rv), fmt.Sprintf("MODIFIED a/new 2@%d", rv+1), fmt.Sprintf("DELETED a/new 2@%d", rv+2))
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.lists != 3 || c.watches != 1 {
				t.Errorf("%d pages listed and %d watches upstream, want 3 and 1", c.lists, c.watches)
			}
		})
	}
}

func TestSelectorsOfClientsAreEvaluatedHere(t *testing.T) {
	c := newCloud(t)
	c.put("a", "one", "1", "app=web")
	c.put("a", "two", "1", "app=db")
	c.put("b", "three", "1", "app=web")
	n := newNode(t, newLink(c), wholeMaps)
	web := watchFrom(t, acquire(t, n, nodeCaller, in("a", "app=web")), wire.Options{SendInitialEvents: yes(), AllowWatchBookmarks: true})
	db := watchFrom(t, acquire(t, n, pod("p"), in("", "app=db")), wire.Options{})
	named := watchFrom(t, acquire(t, n, pod("p"), exact("b", "three")), wire.Options{})
	expect(t, web, "ADDED a/one 1@101", "END")
	expect(t, db, "ADDED a/two 1@102")
	expect(t, named, "ADDED b/three 1@103")
	c.put("a", "one", "2", "app=db")
	c.put("a", "two", "2", "app=db")
	c.put("a", "one", "3", "app=web")
	c.put("b", "three", "2", "app=none")
	c.delete("a", "one")
	c.delete("b", "three")
	expect(t, web, "DELETED a/one 1@104", "ADDED a/one 3@106", "DELETED a/one 3@108")
	expect(t, db, "ADDED a/one 2@104", "MODIFIED a/two 2@105", "DELETED a/one 2@106")
	expect(t, named, "MODIFIED b/three 2@107", "DELETED b/three 2@109")
	if c.lists != 1 || c.watches != 1 {
		t.Errorf("%d lists and %d watches upstream, want one each", c.lists, c.watches)
	}
	// A watch that resumes gets the same.
	again := watchFrom(t, acquire(t, n, nodeCaller, in("a", "app=web")), wire.Options{ResourceVersion: "103"})
	expect(t, again, "DELETED a/one 1@104", "ADDED a/one 3@106", "DELETED a/one 3@108")
	if _, err := n.vs.Acquire(within(t), nodeCaller, store.Query{Version: "v1", Resource: "configmaps", FieldSelector: "spec.x=1"}); !apierrors.IsBadRequest(err) {
		t.Errorf("an unknown field: %v, want 400", err)
	}
}

func TestResumeAndExpiry(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "0")
	n := newNode(t, newLink(c), func(o *Options) { o.WindowEvents = 5 })
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "101"})
	for i := range 8 {
		c.put("a", "m", fmt.Sprint(i+1))
		expect(t, w, fmt.Sprintf("MODIFIED a/m %d@%d", i+1, 102+i))
	}
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "107"}), "MODIFIED a/m 7@108", "MODIFIED a/m 8@109")
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "102"}), "ERROR 410 Expired", "EOF")
	// A client that is ahead of the view is not told what it knows: it had a list
	// that passed through. Where that cannot have been, it begins anew.
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "111"}), "ERROR 410 Expired", "EOF")
	if err := n.st.Raise(111); err != nil {
		t.Fatal(err)
	}
	ahead := watchFrom(t, h, wire.Options{ResourceVersion: "111"})
	c.put("a", "m", "9")
	c.put("a", "m", "10")
	c.put("a", "m", "11")
	expect(t, ahead, "MODIFIED a/m 11@112")
	// Timeouts end a watch, with a bookmark at last.
	short := watchFrom(t, h, wire.Options{ResourceVersion: "112", Timeout: 30 * time.Millisecond, AllowWatchBookmarks: true})
	c.tick(5)
	last := uint64(0)
	for {
		e, err := short.Next(within(t))
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		last = e.Object.ResourceVersion
	}
	if last != 0 && last != 117 {
		t.Errorf("the last bookmark is at %d, want 117", last)
	}
	if _, err := h.Snapshot(within(t), wire.Options{ResourceVersion: "100", ResourceVersionMatch: "Exact"}); !apierrors.IsResourceExpired(err) {
		t.Errorf("an exact list of the past: %v, want 410", err)
	}
	n.link.set(false)
	eventually(t, "the view is not live", func() bool { return !h.Live() })
	if _, err := h.Snapshot(within(t), wire.Options{ResourceVersion: "9999"}); !apierrors.IsTimeout(err) {
		t.Errorf("a list of the future: %v, want 504", err)
	}
}

func TestOfflineAndBack(t *testing.T) {
	c := newCloud(t)
	c.put("a", "one", "1")
	c.put("a", "two", "1", "app=db")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	_, rv := list(t, h)
	w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(rv)})
	acquire(t, n, nodeCaller, in("b", "")) // an empty answer is knowledge
	l.set(false)
	c.put("a", "one", "2")
	c.put("a", "three", "1")
	c.delete("a", "two")
	if got, _ := list(t, acquire(t, n, pod("p"), in("a", "app=db"))); len(got) != 1 {
		t.Errorf("offline list of a wider view: %v", got)
	}
	if got, _ := list(t, acquire(t, n, nodeCaller, exact("a", "nothing"))); len(got) != 0 {
		t.Errorf("absence is known, and %v is listed", got)
	}
	if _, err := n.vs.Acquire(within(t), nodeCaller, store.Query{Version: "v1", Resource: "secrets", Namespace: "a"}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("a resource that was never synchronised: %v, want 503", err)
	}
	// A restart changes nothing.
	n.halt()
	n.start()
	h = acquire(t, n, nodeCaller, allMaps)
	if got, again := list(t, h); len(got) != 2 || again != rv {
		t.Errorf("after a restart %v at %d, want 2 at %d", got, again, rv)
	}
	w.Stop()
	w = watchFrom(t, h, wire.Options{ResourceVersion: rvOf(rv)})
	lists := c.lists
	l.set(true)
	expect(t, w, "MODIFIED a/one 2@103", "ADDED a/three 1@104", "DELETED a/two 1@105")
	if c.lists != lists {
		t.Errorf("%d lists to catch up by watching", c.lists-lists)
	}
}

func TestRelistSendsDifferences(t *testing.T) {
	c := newCloud(t)
	for i := range 6 {
		c.put("a", fmt.Sprint("m", i), "1", "app=web")
	}
	l := newLink(c)
	n := newNode(t, l, wholeMaps)
	h := acquire(t, n, nodeCaller, allMaps)
	_, rv := list(t, h)
	w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(rv)})
	web := watchFrom(t, acquire(t, n, nodeCaller, in("a", "app=web")), wire.Options{ResourceVersion: rvOf(rv)})
	l.set(false)
	c.put("a", "m3", "2", "app=db") // 107
	c.delete("a", "m0")
	c.delete("a", "m1")
	c.put("a", "new", "1", "app=web") // 110
	c.put("a", "m2", "2", "app=web")  // 111
	c.tick(3)
	c.compact()
	l.set(true)
	expect(t, w, "MODIFIED a/m3 2@107", "ADDED a/new 1@110", "MODIFIED a/m2 2@111", "DELETED a/m0 1@111", "DELETED a/m1 1@114")
	expect(t, web, "DELETED a/m3 2@107", "ADDED a/new 1@110", "MODIFIED a/m2 2@111", "DELETED a/m0 1@111", "DELETED a/m1 1@114")
	// Whoever was cut off in the middle gets the rest.
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "110"}), "MODIFIED a/m2 2@111", "DELETED a/m0 1@111", "DELETED a/m1 1@114")
	if got, at := list(t, h); at != 114 || !maps.Equal(got, c.state(allMaps)) {
		t.Errorf("after the relist %v at %d", got, at)
	}
}

// A name that is used again is another object, also when the cloud cannot tell
// what happened in between.
func TestRelistTellsAnotherObjectOfTheSameName(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	c.put("a", "n", "1")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "102"})
	l.set(false)
	c.put("a", "n", "2")
	c.delete("a", "m")
	c.put("a", "m", "new")
	c.compact()
	l.set(true)
	expect(t, w, "MODIFIED a/n 2@103", "DELETED a/m 1@103", "ADDED a/m new@105")
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "103"}), "DELETED a/m 1@103", "ADDED a/m new@105")

	// Also when another view has stored it first.
	first, second := acquire(t, n, nodeCaller, in("a", "")), acquire(t, n, nodeCaller, exact("a", "m"))
	w1, w2 := watchFrom(t, first, wire.Options{ResourceVersion: "105"}), watchFrom(t, second, wire.Options{ResourceVersion: "105"})
	l.set(false)
	c.delete("a", "m")
	c.put("a", "m", "newer")
	c.compact()
	l.set(true)
	expect(t, w, "DELETED a/m new@105", "ADDED a/m newer@107")
	expect(t, w1, "DELETED a/m new@105", "ADDED a/m newer@107")
	expect(t, w2, "DELETED a/m new@105", "ADDED a/m newer@107")
}

// A local change takes a resourceVersion that the cloud uses for something else.
func TestLocalAndCloudShareAResourceVersion(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l, func(o *Options) {
		o.BeforeLive = func(context.Context) error { c.tick(10); return nil }
	})
	c.tick(0)
	h := acquire(t, n, nodeCaller, allMaps)
	eventually(t, "the revision of now", func() bool { _, rv := list(t, h); return rv == c.revision() })
	rv := c.revision()
	w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(rv)})
	l.set(false)
	old, _, err := n.st.Get(store.Key{Version: "v1", Resource: "configmaps", Namespace: "a", Name: "m"})
	if err != nil {
		t.Fatal(err)
	}
	now, err := wire.WithResourceVersion(old, rv+1)
	if err != nil {
		t.Fatal(err)
	}
	b := &store.Batch{}
	b.Put(now)
	b.SetRevision(now.ResourceVersion)
	if err := n.st.Apply(b, store.Durable); err != nil {
		t.Fatal(err)
	}
	if err := n.vs.Publish(within(t), &old, &now); err != nil {
		t.Fatal(err)
	}
	expect(t, w, fmt.Sprintf("MODIFIED a/m 1@%d", rv+1))
	if got := c.put("b", "other", "1"); got != rv+1 {
		t.Fatalf("the cloud is at %d, the test needs %d", got, rv+1)
	}
	l.set(true)
	expect(t, w, "ERROR 410 Expired", "EOF")
}

func TestCutInTheMiddleOfARelistKeepsTheOldView(t *testing.T) {
	c := newCloud(t)
	for i := range 700 {
		c.put("a", fmt.Sprintf("m%03d", i), "1")
	}
	l := newLink(c)
	n := newNode(t, l)
	list(t, acquire(t, n, nodeCaller, allMaps))
	l.set(false)
	for i := range 700 {
		c.put("b", fmt.Sprintf("m%03d", i), "1")
	}
	for i := range 350 {
		c.delete("a", fmt.Sprintf("m%03d", 2*i))
	}
	c.compact()
	cut := make(chan struct{})
	c.mu.Lock()
	c.fail = func(r *http.Request) int {
		if r.FormValue("continue") == "" {
			return 0
		}
		select {
		case <-cut:
		default:
			close(cut)
		}
		return 503
	}
	c.mu.Unlock()
	l.set(true)
	acquire(t, n, nodeCaller, allMaps)
	<-cut
	l.set(false)
	n.halt()
	n.start()
	if got, _ := list(t, acquire(t, n, nodeCaller, allMaps)); len(got) != 700 {
		t.Fatalf("%d objects after half a relist, want the 700 of before", len(got))
	}
	c.mu.Lock()
	c.fail = nil
	c.mu.Unlock()
	l.set(true)
	h := acquire(t, n, nodeCaller, allMaps)
	eventually(t, "the whole list", func() bool { got, _ := list(t, h); return maps.Equal(got, c.state(allMaps)) })
	views, err := n.st.Views("", "configmaps")
	if err != nil || len(views) != 1 {
		t.Errorf("views in the store: %v (%v), want one", views, err)
	}
}

func TestLocalChangesAndCatchUp(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	c.put("a", "other", "1")
	l := newLink(c)
	live := make(chan struct{})
	n := newNode(t, l, func(o *Options) {
		o.BeforeLive = func(context.Context) error {
			if l.Online() && c.revision() > 102 {
				<-live
				c.tick(100) // the lease was renewed
			}
			return nil
		}
	})
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "102"})
	l.set(false)
	old, _, err := n.st.Get(store.Key{Version: "v1", Resource: "configmaps", Namespace: "a", Name: "m"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		now, err := wire.WithResourceVersion(old, n.st.Revision()+1)
		if err != nil {
			t.Fatal(err)
		}
		b := &store.Batch{}
		b.Put(now)
		b.SetRevision(now.ResourceVersion)
		if err := n.st.Apply(b, store.Durable); err != nil {
			t.Fatal(err)
		}
		if err := n.vs.Publish(within(t), &old, &now); err != nil {
			t.Fatal(err)
		}
		expect(t, w, fmt.Sprintf("MODIFIED a/m 1@%d", 103+i))
		old = now
	}
	if _, rv := list(t, h); rv != 105 {
		t.Errorf("the list is at %d, want 105", rv)
	}
	// In the cloud something happened at 103, which clients of this node know
	// as something else.
	c.put("a", "third", "1")
	l.set(true)
	time.Sleep(30 * time.Millisecond)
	if w.Pending() {
		t.Error("the cloud was presented before its revision was beyond what clients have seen")
	}
	c.put("a", "m", "2") // the outbox has replayed the change
	close(live)
	expect(t, w, "ERROR 410 Expired", "EOF")
	h = acquire(t, n, nodeCaller, allMaps)
	got, rv := list(t, h)
	if rv <= 105 || !maps.Equal(got, c.state(allMaps)) {
		t.Errorf("%v at %d", got, rv)
	}
	stored, _, _ := n.st.Get(old.Key)
	if _, s, _ := describe(stored); s != "2@104" {
		t.Errorf("the store has %s, want the cloud's 2@104", s)
	}
}

func TestRestoredCloud(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	c.put("a", "n", "1")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "102"})
	l.set(false)
	c.restore(40)
	c.put("a", "m", "0")
	l.set(true)
	expect(t, w, "ERROR 410 Expired", "EOF")
	eventually(t, "the restored state", func() bool {
		got, rv := list(t, h)
		return rv == 41 && maps.Equal(got, c.state(allMaps))
	})
}

func TestSlowWatcherIsEnded(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "0")
	n := newNode(t, newLink(c), func(o *Options) { o.QueueEvents = 10 })
	h := acquire(t, n, nodeCaller, allMaps)
	slow := watchFrom(t, h, wire.Options{ResourceVersion: "101"})
	quick := watchFrom(t, h, wire.Options{ResourceVersion: "101"})
	for i := range 30 {
		c.put("a", "m", fmt.Sprint(i))
		expect(t, quick, fmt.Sprintf("MODIFIED a/m %d@%d", i, 102+i))
	}
	expect(t, slow, "EOF")
	expect(t, watchFrom(t, h, wire.Options{ResourceVersion: "130"}), "MODIFIED a/m 29@131")
}

func TestCredentials(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l)
	w1 := watchFrom(t, acquire(t, n, pod("one"), allMaps), wire.Options{ResourceVersion: "101"})
	w2 := watchFrom(t, acquire(t, n, pod("two"), allMaps), wire.Options{ResourceVersion: "101"})
	l.set(false)
	c.mu.Lock()
	c.refuse["token-two"] = 401
	c.mu.Unlock()
	l.set(true)
	c.put("a", "m", "2")
	expect(t, w1, "MODIFIED a/m 2@102") // with the other's credential
	l.set(false)
	c.mu.Lock()
	c.refuse["token-one"], c.refuse["node"] = 403, 403
	c.mu.Unlock()
	l.set(true)
	expect(t, w1, "ERROR 403 Forbidden", "EOF")
	expect(t, w2, "MODIFIED a/m 2@102", "ERROR 403 Forbidden", "EOF")
	if _, err := n.vs.Acquire(within(t), pod("two"), allMaps); !apierrors.IsUnauthorized(err) {
		t.Errorf("no credential is left: %v, want 401", err)
	}
	// What the cloud has not shown to the node is not shown to it here.
	c.mu.Lock()
	delete(c.refuse, "token-one")
	c.mu.Unlock()
	acquire(t, n, pod("one"), allMaps)
	if _, err := n.vs.Acquire(within(t), nodeCaller, allMaps); !apierrors.IsForbidden(err) {
		t.Errorf("the node, of another's view: %v, want 403", err)
	}
	l.set(false)
	if _, err := n.vs.Acquire(within(t), nodeCaller, allMaps); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("the node, offline, of another's view: %v, want 503", err)
	}
	l.set(true)
	c.mu.Lock()
	delete(c.refuse, "node")
	c.mu.Unlock()
	acquire(t, n, nodeCaller, allMaps)
	if v, _, _ := n.st.View(allMaps); !v.Node {
		t.Error("the node may see the view, and it is not written down")
	}
}

func TestQuotaAndGrace(t *testing.T) {
	c := newCloud(t)
	l := newLink(c)
	n := newNode(t, l, func(o *Options) {
		o.MaxViews = func(identity.Caller) int { return 2 }
		o.Grace = 100 * time.Millisecond
	})
	h, err := n.vs.Acquire(within(t), pod("p"), in("a", ""))
	if err != nil {
		t.Fatal(err)
	}
	acquire(t, n, pod("p"), in("b", ""))
	if _, err := n.vs.Acquire(within(t), pod("p"), in("c", "")); !apierrors.IsTooManyRequests(err) {
		t.Errorf("a third view: %v, want 429", err)
	}
	acquire(t, n, pod("q"), in("a", ""))
	w := watchFrom(t, h, wire.Options{})
	h.Release()
	time.Sleep(300 * time.Millisecond)
	c.put("a", "m", "1")
	expect(t, w, "ADDED a/m 1@101") // a watch holds its view
	w.Stop()
}

func TestUnusedViewsStopAndAreForgotten(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l, func(o *Options) {
		o.Grace = 20 * time.Millisecond
		o.Forget = 2 * time.Second
	})
	h, err := n.vs.Acquire(within(t), nodeCaller, allMaps)
	if err != nil {
		t.Fatal(err)
	}
	h.Release()
	eventually(t, "the view is not followed", func() bool { return n.vs.lookup(allMaps) == nil })
	if _, ok := n.vs.Cover(exact("a", "m"), nil); !ok {
		t.Error("the copy of a view that is not followed is gone")
	}
	l.set(false)
	n.vs.forget(0)
	n.vs.forget(0)
	if _, ok := n.vs.Cover(allMaps, nil); !ok {
		t.Error("a view was forgotten while the cloud was away")
	}
	n.vs.forget(0)
	n.vs.forget(10 * time.Second)
	if _, ok := n.vs.Cover(allMaps, nil); ok {
		t.Error("a view that nobody asks for is kept")
	}
}

func TestSlowCloudIsNotDown(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l)
	list(t, acquire(t, n, nodeCaller, allMaps))
	n.halt()
	stuck := make(chan struct{})
	c.mu.Lock()
	c.fail = func(r *http.Request) int { return 503 }
	c.mu.Unlock()
	n.start()
	begin := time.Now()
	h := acquire(t, n, nodeCaller, allMaps)
	if took := time.Since(begin); took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("an older copy was given after %s, want about 300 ms", took)
	}
	if got, _ := list(t, h); len(got) != 1 || h.Live() {
		t.Errorf("%v, live %v", got, h.Live())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 600*time.Millisecond)
	defer cancel()
	if _, err := n.vs.Acquire(ctx, pod("p"), in("never", "app=seen")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a view without a copy: %v, want the request's own deadline", err)
	}
	close(stuck)
}

func TestKeepAndCover(t *testing.T) {
	c := newCloud(t)
	l := newLink(c)
	n := newNode(t, l)
	obj := func(name, data string, rv uint64) store.Object {
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"namespace":"a","resourceVersion":"%d","uid":"u"},"data":{"v":%q}}`, name, rv, data)
		o, err := wire.Decode("application/json", []byte(body), store.Key{Version: "v1", Resource: "configmaps"})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	keep := func(q store.Query, node bool, rv uint64, items ...store.Object) {
		t.Helper()
		if err := n.vs.Keep(within(t), q, "ConfigMap", node, rv, items); err != nil {
			t.Fatal(err)
		}
	}
	keep(exact("a", "m"), true, 0, obj("m", "1", 50))
	keep(exact("a", "none"), true, 0)
	keep(in("a", ""), false, 60, obj("m", "2", 55), obj("o", "1", 40))
	keep(in("a", ""), false, 58, obj("m", "1", 50), obj("gone", "1", 41)) // older: changes nothing
	keep(exact("a", "m"), true, 0, obj("m", "1", 50))                     // older than what is there
	l.set(false)
	if got, rv := list(t, acquire(t, n, pod("p"), in("a", ""))); rv != 60 || !maps.Equal(got, map[string]string{"a/m": "2@55", "a/o": "1@40"}) {
		t.Errorf("%v at %d", got, rv)
	}
	if got, _ := list(t, acquire(t, n, nodeCaller, exact("a", "m"))); !maps.Equal(got, map[string]string{"a/m": "2@55"}) {
		t.Errorf("one object: %v", got)
	}
	if got, _ := list(t, acquire(t, n, nodeCaller, exact("a", "none"))); len(got) != 0 {
		t.Errorf("what does not exist: %v", got)
	}
	if _, err := n.vs.Acquire(within(t), nodeCaller, exact("a", "o")); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("the node, of what only another was shown: %v, want 503", err)
	}
	for _, tc := range []struct {
		q    store.Query
		want store.Query
		ok   bool
	}{
		{in("a", "app=x"), in("a", ""), true},
		{exact("a", "none"), in("a", ""), true}, // which is fresher
		{exact("a", "unknown"), in("a", ""), true},
		{in("b", ""), store.Query{}, false},
		{allMaps, store.Query{}, false},
	} {
		got, ok := n.vs.Cover(tc.q, nil)
		if ok != tc.ok || got.Query != tc.want {
			t.Errorf("%s is covered by %s (%v), want %s (%v)", tc.q, got.Query, ok, tc.want, tc.ok)
		}
	}
	// A followed view is not overwritten.
	l.set(true)
	c.tick(100)
	rv := c.put("a", "m", "9")
	acquire(t, n, nodeCaller, in("a", ""))
	keep(exact("a", "p"), true, 0, obj("p", "1", 50))
	if _, ok, err := n.st.View(exact("a", "p")); ok || err != nil {
		t.Errorf("an answer is kept that a followed view has (%v)", err)
	}
	if !n.vs.Live(in("a", "")) {
		t.Error("the view is not live")
	}
	eventually(t, "the new state", func() bool {
		got, _ := list(t, acquire(t, n, nodeCaller, in("a", "")))
		return got["a/m"] == fmt.Sprintf("9@%d", rv)
	})
	i := slices.IndexFunc(n.vs.Status(), func(s agentapi.ViewStatus) bool {
		return s.Live && s.Namespace == "a" && s.Objects == 2
	})
	if i < 0 {
		t.Errorf("status: %+v", n.vs.Status())
	}
}

func TestSnapshotStaysAsItWas(t *testing.T) {
	c := newCloud(t)
	for i := range 50 {
		c.put("a", fmt.Sprintf("m%02d", i), "1", "app=web")
	}
	n := newNode(t, newLink(c), wholeMaps)
	h := acquire(t, n, nodeCaller, in("a", "app=web"))
	want := c.state(in("a", "app=web"))
	s, err := h.Snapshot(within(t), wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	items := s.Items(within(t), store.Key{}, 0)
	w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(s.ResourceVersion())})
	for pass := range 3 {
		got, count := map[string]string{}, 0
		err := items(func(o store.Object) error {
			k, d, err := describe(o)
			got[k] = d
			if count++; count == 20 {
				switch pass { // in the middle of it
				case 0:
					c.put("a", "m05", "2", "app=web")
					c.put("a", "m30", "2", "app=web")
					expect(t, w, "MODIFIED a/m05 2@151", "MODIFIED a/m30 2@152")
				case 1:
					c.delete("a", "m31")
					c.put("a", "m32", "2", "app=db")
					c.put("a", "m30x", "2", "app=web")
					c.put("a", "m00", "3", "app=web")
					expect(t, w, "DELETED a/m31 1@153", "DELETED a/m32 1@154", "ADDED a/m30x 2@155", "MODIFIED a/m00 3@156")
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("pass %d differs: %d objects, want %d", pass, len(got), len(want))
		}
	}
	var page []string
	after := store.Key{}
	for {
		before := len(page)
		if err := s.Items(within(t), after, 7)(func(o store.Object) error {
			after = o.Key
			page = append(page, o.Name)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(page) == before {
			break
		}
	}
	if len(page) != 50 || !slices.IsSorted(page) {
		t.Errorf("in pages: %s", strings.Join(page, " "))
	}
}

func TestFresh(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	n := newNode(t, l)
	h := acquire(t, n, nodeCaller, allMaps)
	for i := range 20 {
		c.put("a", "m", fmt.Sprint(i))
		if err := h.Fresh(within(t)); err != nil {
			t.Fatal(err)
		}
		if got, _ := list(t, h); !maps.Equal(got, c.state(allMaps)) {
			t.Fatalf("after Fresh: %v, want %v", got, c.state(allMaps))
		}
	}
	l.set(false)
	eventually(t, "the view is not live", func() bool { return !h.Live() })
	if err := h.Fresh(within(t)); err == nil {
		t.Error("freshness was proved without a cloud")
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	c := newCloud(t)
	c.put("a", "m", "1")
	l := newLink(c)
	before := runtime.NumGoroutine()
	n := newNode(t, l)
	for i := range 20 {
		h := acquire(t, n, pod(fmt.Sprint(i)), in("a", fmt.Sprintf("n!=%d", i)))
		w, err := h.Watch(within(t), wire.Options{SendInitialEvents: yes()})
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			expect(t, w, "ADDED a/m 1@101")
		}
		w.Stop()
		h.Release()
	}
	n.halt()
	l.set(false)
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
	if n.vs.windowBytes.Load() < 0 {
		t.Error("the account of windows is wrong")
	}
	n.vs.snapMu.Lock()
	defer n.vs.snapMu.Unlock()
	if len(n.vs.snaps) != 0 {
		t.Errorf("%d snapshots are open", len(n.vs.snaps))
	}
}
