package views

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// A full disk must not freeze a watch, shorten a list, or lose anything for good.
func TestFullStore(t *testing.T) {
	c := newCloud(t)
	c.put("a", "small", "1")
	l := newLink(c)
	n := &node{t: t, path: filepath.Join(t.TempDir(), "store.db"), link: l, max: 1 << 20}
	n.start()
	t.Cleanup(func() { n.halt() })
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: "101"})
	big := strings.Repeat("x", 40<<10)
	put := func(i int) {
		t.Helper()
		rv := c.put("a", fmt.Sprintf("big%03d", i), big)
		if got := next(t, w); !strings.HasPrefix(got, fmt.Sprintf("ADDED a/big%03d ", i)) || !strings.HasSuffix(got, fmt.Sprintf("@%d", rv)) {
			t.Fatalf("event %.40q...", got)
		}
	}
	count := 0
	degraded := func() bool { return len(n.vs.Problems()) > 0 }
	for ; !degraded(); count++ {
		if count > 100 {
			t.Fatal("the store is never full")
		}
		put(count)
	}
	_, full, err := n.st.View(allMaps)
	if err != nil || !full {
		t.Fatal(err)
	}
	put(count)
	count++
	// From memory the view is whole: lists and new watches have everything.
	if got, _ := list(t, h); !maps.Equal(got, c.state(allMaps)) {
		t.Fatalf("a list of %d objects, want %d", len(got), len(c.state(allMaps)))
	}
	initial := watchFrom(t, h, wire.Options{})
	for range c.state(allMaps) {
		if got := next(t, initial); !strings.HasPrefix(got, "ADDED") {
			t.Fatalf("%.40q", got)
		}
	}
	// After a restart the store is where it was, and says so.
	stored, _, _ := n.st.View(allMaps)
	if stored.ResourceVersion >= c.revision() {
		t.Errorf("the store claims %d and cannot have it", stored.ResourceVersion)
	}
	// More than fits into memory: watches go on, lists are refused.
	for range 30 {
		put(count)
		count++
	}
	if _, err := h.Snapshot(within(t), wire.Options{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("a list that cannot be complete: %v, want 503", err)
	}
	// Space comes back: it is listed again, on the same watch.
	for i := range count {
		c.delete("a", fmt.Sprintf("big%03d", i))
	}
	c.put("a", "small", "2")
	for {
		if got := next(t, w); strings.Contains(got, "a/small 2@") {
			break
		} else if !strings.HasPrefix(got, "DELETED a/big") {
			t.Fatalf("%.40q", got)
		}
	}
	eventually(t, "the store is whole again", func() bool {
		for _, v := range n.vs.all() {
			v.mu.Lock()
			v.unwritten.retry = time.Time{} // do not wait for it
			v.mu.Unlock()
			v.flush()
		}
		return !degraded()
	})
	if got, _ := list(t, h); !maps.Equal(got, c.state(allMaps)) {
		t.Errorf("in the end %d objects", len(got))
	}
	l.set(false)
	n.halt()
	n.start()
	if got, rv := list(t, acquire(t, n, nodeCaller, store.Query{Version: "v1", Resource: "configmaps"})); len(got) != 1 || rv < c.revision()-1 {
		t.Errorf("after a restart %d objects at %d", len(got), rv)
	}
}
