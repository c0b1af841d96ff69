package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// publisher is the API server's side of the key documents.
type publisher struct {
	mu                  sync.Mutex
	configuration, jwks []byte
	down                bool
	asked               int
}

func (p *publisher) fetch(_ context.Context, path string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path == issuerPath {
		p.asked++
	}
	switch {
	case p.down:
		return nil, errors.New("503")
	case path == issuerPath:
		return p.configuration, nil
	case path == keysPath:
		return p.jwks, nil
	}
	return nil, errors.New("404 " + path)
}

func (p *publisher) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func TestKeysAreFetchedKeptAndFollowed(t *testing.T) {
	// Keys are made outside of the bubble, which would wait for them.
	first, second := ecdsaKey(), rotatedKey()
	s := openStore(t)
	pki, err := EnsurePKI(t.TempDir(), "edge-1", hubNames, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := &publisher{down: true}
		p.configuration, p.jwks = documents(t, testIssuer, first.Public())
		var gate sync.Mutex
		online := false
		isOnline := func() bool {
			gate.Lock()
			defer gate.Unlock()
			return online
		}
		o := AuthenticatorOptions{
			NodeName: "edge-1", PKI: pki, Documents: s, Bindings: StoreBindings(s, "edge-1"), Fetch: p.fetch, Logger: slog.New(slog.DiscardHandler),
		}
		a, err := NewAuthenticator(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go a.Run(ctx, isOnline)
		check := func(key any, want expect) {
			t.Helper()
			c, err := ask(a, signAt(t, key), true)
			if got := judge(t, c, err); got != want {
				t.Errorf("%s, want %s (%v)", got, want, err)
			}
		}
		time.Sleep(time.Hour)
		if p.count() != 0 {
			t.Error("asked while offline")
		}
		check(first, passed) // and wanted
		gate.Lock()
		online = true
		gate.Unlock()
		time.Sleep(10 * time.Second)
		p.mu.Lock()
		p.down = false
		p.mu.Unlock()
		time.Sleep(time.Minute)
		check(first, known)
		old := signAt(t, first)
		if _, err := ask(a, old, true); err != nil {
			t.Error(err)
		}
		asked := p.count()
		time.Sleep(20 * time.Hour)
		if p.count() != asked {
			t.Errorf("asked %d times without a reason", p.count()-asked)
		}
		time.Sleep(5 * time.Hour)
		if p.count() != asked+1 {
			t.Errorf("asked %d times in a day", p.count()-asked)
		}
		// The cluster's key is replaced: an unknown key is followed soon, and
		// made up keys do not make the hub ask all the time.
		p.mu.Lock()
		p.configuration, p.jwks = documents(t, testIssuer, second.Public())
		asked = p.asked
		p.mu.Unlock()
		check(second, passed)
		time.Sleep(refreshUnknown + time.Second)
		check(second, known)
		check(first, passed) // not published any more
		c, err := ask(a, old, true)
		if got := judge(t, c, err); got != passed {
			t.Errorf("a token that was verified with the old key: %s", got)
		}
		for range 600 {
			check(first, passed)
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.count() - asked; n > 4 {
			t.Errorf("asked %d times in a minute and a half", n)
		}
		cancel()
		synctest.Wait()

		// What is kept serves the next start.
		o.Fetch = nil
		if a, err = NewAuthenticator(o); err != nil {
			t.Fatal(err)
		}
		check(second, known)
	})
}

// signAt makes a token that is good by the bubble's clock.
func signAt(t *testing.T, key any) string {
	t.Helper()
	// serviceaccount.Claims keeps time.Now, which is the bubble's in a bubble.
	return tokenSpec{pod: testPod, key: key, lives: 1 << 30}.sign(t)
}

func TestDamagedKeyDocumentsAreNoEnd(t *testing.T) {
	f := newFixture(t, nil)
	var b store.Batch
	b.PutDocument(keysPath, []byte("\x00\x00"))
	if err := f.store.Apply(&b, store.Durable); err != nil {
		t.Fatal(err)
	}
	a, err := NewAuthenticator(f.o)
	if err != nil {
		t.Fatal(err)
	}
	token := tokenSpec{pod: testPod}.sign(t)
	c, err := ask(a, token, true)
	if got := judge(t, c, err); got != passed {
		t.Errorf("online: %s", got)
	}
	c, err = ask(a, token, false)
	if got := judge(t, c, err); got != refused {
		t.Errorf("offline: %s", got)
	}
}
