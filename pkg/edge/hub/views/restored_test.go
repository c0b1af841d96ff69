package views

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// TestRestoredFromABackup: a cloud that begins a second time at an earlier
// revision, far or little behind. Watches get 410 once, everything stored is
// replaced though it has higher resourceVersions, also what nobody follows, and
// from then on all is as ever: over a reconnect and a restart.
func TestRestoredFromABackup(t *testing.T) {
	for _, behind := range []uint64{50, 20_000} {
		t.Run(fmt.Sprint(behind), func(t *testing.T) {
			c := newCloud(t)
			c.tick(behind)
			for i := range 150 {
				c.put("a", fmt.Sprintf("m%03d", i), "before", "app=web")
			}
			kept := c.put("b", "kept", "before")
			l := newLink(c)
			n := &node{}
			*n = node{t: t, path: t.TempDir() + "/store.db", link: l}
			n.start(catchesUp(&n))
			t.Cleanup(func() { n.halt() })
			h := acquire(t, n, nodeCaller, in("a", ""))
			if err := n.vs.Keep(within(t), exact("b", "kept"), "ConfigMap", true, kept, []store.Object{object(t, n, "b", "kept", "before", kept)}); err != nil {
				t.Fatal(err)
			}
			before := c.revision()
			w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(before)})
			expectShown(t, n, before)

			l.set(false)
			c.restore(before - behind)
			low := c.put("a", "m000", "after")
			c.put("a", "new", "after")
			c.put("b", "kept", "after")
			l.set(true)
			expect(t, w, "ERROR 410 Expired", "EOF")
			same := func() bool {
				got, rv := list(t, acquire(t, n, nodeCaller, in("a", "")))
				return rv <= c.revision() && maps.Equal(got, c.state(in("a", "")))
			}
			eventually(t, "the restored state", same)
			if got := n.st.Revision(); got > c.revision() || got < low {
				t.Errorf("the store's revision is %d, the cloud's is %d", got, c.revision())
			}
			// What nobody follows comes when it is asked for.
			now := c.put("b", "kept", "newer")
			if err := n.vs.Keep(within(t), exact("b", "kept"), "ConfigMap", true, now, []store.Object{object(t, n, "b", "kept", "newer", now)}); err != nil {
				t.Fatal(err)
			}
			if o, ok, err := n.st.Get(store.Key{Version: "v1", Resource: "configmaps", Namespace: "b", Name: "kept"}); err != nil || !ok || o.ResourceVersion != now {
				t.Errorf("what was kept is at %d (%v, %v), want %d", o.ResourceVersion, ok, err, now)
			}

			// From here on as ever.
			for range 2 {
				h = acquire(t, n, nodeCaller, in("a", ""))
				_, at := list(t, h)
				w = watchFrom(t, h, wire.Options{ResourceVersion: rvOf(at)})
				l.set(false)
				rv := c.put("a", "m000", "again")
				l.set(true)
				expect(t, w, fmt.Sprintf("MODIFIED a/m000 again@%d", rv))
				eventually(t, "the state after a reconnect", same)
				w.Stop()
				n.halt()
				n.start(catchesUp(&n))
				_, at = list(t, acquire(t, n, nodeCaller, in("a", "")))
				if at > c.revision() {
					t.Errorf("a list at %d, the cloud is at %d", at, c.revision())
				}
			}
		})
	}
}

// TestRestoredWhileAway: the agent is restarted, offline, between the backup's
// restore and the first contact.
func TestRestoredWhileAway(t *testing.T) {
	c := newCloud(t)
	c.tick(30_000)
	c.put("a", "m", "before")
	c.put("a", "gone", "before")
	l := newLink(c)
	n := &node{}
	*n = node{t: t, path: t.TempDir() + "/store.db", link: l}
	n.start(catchesUp(&n))
	t.Cleanup(func() { n.halt() })
	acquire(t, n, nodeCaller, allMaps)
	l.set(false)
	c.restore(100)
	c.put("a", "m", "after")
	n.halt()
	n.start(catchesUp(&n))
	h := acquire(t, n, nodeCaller, allMaps)
	if got, rv := list(t, h); len(got) != 2 || rv < 30_000 {
		t.Errorf("offline: %v at %d", got, rv)
	}
	w := watchFrom(t, h, wire.Options{ResourceVersion: "30102"})
	l.set(true)
	expect(t, w, "ERROR 410 Expired", "EOF")
	eventually(t, "the restored state", func() bool {
		got, rv := list(t, acquire(t, n, nodeCaller, allMaps))
		return rv == c.revision() && maps.Equal(got, c.state(allMaps))
	})
	// The next change made here counts on from the new revision.
	if got := n.st.Revision(); got != c.revision() {
		t.Errorf("the store's revision is %d, the cloud's is %d", got, c.revision())
	}
}

// TestRestoredBehindALinkThatStays: nobody says that the link was lost; streams
// break, and the API server that they find again is another one's past.
func TestRestoredBehindALinkThatStays(t *testing.T) {
	c := newCloud(t)
	c.bookmarks, c.patient = time.Hour, true
	c.tick(500)
	c.put("a", "m", "before")
	c.put("a", "gone", "before")
	l := newLink(c)
	n := &node{}
	*n = node{t: t, path: t.TempDir() + "/store.db", link: l}
	n.start(catchesUp(&n))
	t.Cleanup(func() { n.halt() })
	h := acquire(t, n, nodeCaller, allMaps)
	w := watchFrom(t, h, wire.Options{ResourceVersion: rvOf(c.revision())})
	c.restore(100)
	c.put("a", "m", "after")
	c.srv.CloseClientConnections()
	expect(t, w, "ERROR 410 Expired", "EOF")
	eventually(t, "the restored state", func() bool {
		got, rv := list(t, acquire(t, n, nodeCaller, allMaps))
		return rv == c.revision() && maps.Equal(got, c.state(allMaps))
	})
}
