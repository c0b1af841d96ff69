package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Room is waited for, half of it is for kept clients, and all of it comes back.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(4 * heldStep)
		fill := func(n int, kept bool) (*heldList, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			l := &heldList{room: r}
			return l, l.fill(ctx, bytes.NewReader(make([]byte, n)), kept)
		}
		small, err := fill(heldStep, false)
		if err != nil || small.taken != 2*heldStep {
			t.Fatalf("took %d, %v", small.taken, err)
		}
		if other, err := fill(1, false); !apierrors.IsTooManyRequests(err) || !errors.As(err, &unusable{}) {
			t.Fatalf("clients that are not kept have more than half: %v", err)
		} else {
			other.Close()
		}
		kept, err := fill(heldStep+1, true)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(500*time.Millisecond, func() { small.Close() })
		began := time.Now()
		late, err := fill(heldStep-1, true)
		if err != nil || time.Since(began) != 500*time.Millisecond {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		kept.Close()
		late.Close()
		if r.free != 4*heldStep {
			t.Errorf("%d of %d bytes came back", r.free, 4*heldStep)
		}
	})
}

func TestHeldListLimits(t *testing.T) {
	r := newRoom(2 * maxHeldList)
	l := &heldList{room: r}
	if err := l.fill(t.Context(), bytes.NewReader(make([]byte, maxHeldList+1)), true); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a list of more than the most: %v", err)
	}
	l.Close()
	l = &heldList{room: r}
	broken := iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(make([]byte, 10))))
	if err := l.fill(t.Context(), broken, true); !errors.Is(err, iotest.ErrTimeout) || errors.As(err, &unusable{}) {
		t.Errorf("a body that breaks off: %v", err)
	}
	l.Close()
	l = &heldList{room: r}
	if err := l.fill(t.Context(), io.MultiReader(bytes.NewReader(make([]byte, 100)), iotest.ErrReader(io.ErrUnexpectedEOF)), true); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body that is cut: %v", err)
	}
	l.Close()
	if r.free != 2*maxHeldList {
		t.Errorf("%d bytes came back", r.free)
	}
}

// The shelf is bounded, gives back what nobody asks for, and never what is being
// written.
func TestShelf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.limit = 100
		key := func(i int) shelfKey { return shelfKey{query: store.Query{FieldSelector: fmt.Sprint(i)}} }
		put := func(i, n int) *shelved {
			t.Helper()
			if !s.reserve(n) {
				t.Fatalf("no room for %d", i)
			}
			return s.put(key(i), &wire.Encoded{}, n)
		}
		s.giveBack(put(1, 40))
		second := put(2, 40)
		if s.take(key(3)) != nil {
			t.Error("a list that nobody made is there")
		}
		first := s.take(key(1))
		if first == nil {
			t.Fatal("the first list is gone")
		}
		if s.reserve(40) {
			t.Error("room was made of lists that are being written")
		}
		s.giveBack(first)
		third := put(3, 40) // instead of the first
		if s.take(key(1)) != nil {
			t.Error("the list that was not in use is still there")
		}
		s.clear()
		if s.bytes != 80 {
			t.Errorf("%d bytes count, while 80 are being written", s.bytes)
		}
		s.giveBack(second)
		s.giveBack(third)
		if s.bytes != 0 {
			t.Errorf("%d bytes are left", s.bytes)
		}
		s.giveBack(put(4, 10))
		time.Sleep(s.keep - time.Second)
		s.giveBack(s.take(key(4)))
		time.Sleep(s.keep - time.Second)
		synctest.Wait()
		if s.bytes != 10 {
			t.Errorf("a list that was asked for is gone")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.bytes != 0 || len(s.lists) != 0 {
			t.Errorf("%d bytes are held for nobody", s.bytes)
		}
		s.giveBack(put(5, 10))
		s.giveBack(put(5, 10)) // two have made it at once
		if s.bytes != 10 {
			t.Errorf("%d bytes for one list of 10", s.bytes)
		}
		s.clear()
	})
}

func TestRecent(t *testing.T) {
	now := time.Now()
	r := newRecent(func() time.Time { return now })
	key := recentKey{query: store.Query{Resource: "pods"}}
	sum := r.sum(200, "application/json", "", []byte("body"))
	for _, other := range []uint64{r.sum(404, "application/json", "", []byte("body")), r.sum(200, "application/cbor", "", []byte("body")), r.sum(200, "application/json", "gzip", []byte("body")), r.sum(200, "application/json", "", []byte("bodies"))} {
		if other == sum {
			t.Error("two answers have one sum")
		}
	}
	if r.has(key, sum) {
		t.Error("what was never kept is known")
	}
	r.add(key, sum)
	if !r.has(key, sum) || r.has(key, sum+1) || r.has(recentKey{query: key.query, node: true}, sum) {
		t.Error("only this answer to this question was kept")
	}
	now = now.Add(recentFor)
	if r.has(key, sum) {
		t.Error("it was kept long ago")
	}
	r.add(key, sum)
	now = now.Add(-time.Hour) // the clock was set
	if r.has(key, sum) {
		t.Error("it was kept in the future")
	}
	for i := range 2 * maxRecent {
		r.add(recentKey{query: store.Query{FieldSelector: fmt.Sprint(i)}}, 1)
	}
	if len(r.known) > maxRecent {
		t.Errorf("%d answers are remembered", len(r.known))
	}
	r.forget()
	if len(r.known) != 0 {
		t.Error("forgotten answers are known")
	}
}

// Over both protocols, a write to a client that takes nothing ends, and one to a
// client that is idle in between does not.
func TestRecorderStall(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			failed := make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				w := &recorder{ResponseWriter: rw, stall: 200 * time.Millisecond}
				if r.URL.Path == "/idle" {
					for range 2 {
						_, _ = io.WriteString(w, "x")
						w.Flush()
						time.Sleep(500 * time.Millisecond)
					}
					return
				}
				for {
					if _, err := w.Write(make([]byte, 1<<20)); err != nil {
						close(failed)
						return
					}
				}
			}))
			server.EnableHTTP2 = http2
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			resp, err := server.Client().Get(server.URL + "/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			select {
			case <-failed:
			case <-time.After(10 * time.Second):
				t.Fatal("a write to a client that takes nothing does not end")
			}
			idle, err := server.Client().Get(server.URL + "/idle")
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Body.Close()
			if all, err := io.ReadAll(idle.Body); string(all) != "xx" || err != nil {
				t.Errorf("an idle answer: %q, %v", all, err)
			}
		})
	}
}

// Who is answered from the store waits for what is on its way into it, and not
// for ever.
func TestPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPending()
		pods := schema.GroupResource{Resource: "pods"}
		waited := func() time.Duration {
			began := time.Now()
			p.wait(t.Context(), pods)
			return time.Since(began)
		}
		if d := waited(); d != 0 {
			t.Errorf("waited %s for nothing", d)
		}
		defer p.begin(schema.GroupResource{Resource: "secrets"})()
		first, second := p.begin(pods), p.begin(pods)
		time.AfterFunc(100*time.Millisecond, first)
		time.AfterFunc(300*time.Millisecond, second)
		if d := waited(); d != 300*time.Millisecond {
			t.Errorf("waited %s, want until both were there", d)
		}
		defer p.begin(pods)()
		if d := waited(); d != pendingWait {
			t.Errorf("waited %s for what never comes", d)
		}
	})
}
