package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"skerry.dev/skerry/pkg/edge/store"
)

// Where the API server publishes its issuer and keys. They are kept in the store
// under the same names.
const (
	issuerPath = "/.well-known/openid-configuration"
	keysPath   = "/openid/v1/jwks"
)

const (
	maxKeyDocument = 256 << 10
	maxKeys        = 64
	refreshKeys    = 24 * time.Hour
	// An unknown key makes the hub ask at most this often: anybody can make up
	// key IDs.
	refreshUnknown = 30 * time.Second
)

// keySet is one version of the issuer's keys; never changed.
type keySet struct {
	issuer string
	keys   []jose.JSONWebKey
}

// find returns the keys of an ID, or all if the token names none.
func (s *keySet) find(id string) []jose.JSONWebKey {
	if id == "" {
		return s.keys
	}
	var out []jose.JSONWebKey
	for _, key := range s.keys {
		if key.KeyID == id {
			out = append(out, key)
		}
	}
	return out
}

// parseKeys reads the two documents. Keys of other kinds are left out.
func parseKeys(configuration, jwks []byte) (*keySet, error) {
	if len(configuration) > maxKeyDocument || len(jwks) > maxKeyDocument {
		return nil, fmt.Errorf("the issuer's documents have more than %d bytes", maxKeyDocument)
	}
	var c struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(configuration, &c); err != nil {
		return nil, fmt.Errorf("the issuer's configuration: %w", err)
	}
	if c.Issuer == "" {
		return nil, errors.New("the issuer's configuration names no issuer")
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("the issuer's keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the issuer has more than %d keys", maxKeys)
	}
	out := &keySet{issuer: c.Issuer}
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || !key.IsPublic() || (key.Use != "" && key.Use != "sig") {
			continue
		}
		switch public := key.Key.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() < 2048 {
				continue
			}
		case *ecdsa.PublicKey:
		default:
			continue
		}
		out.keys = append(out.keys, key)
	}
	if len(out.keys) == 0 {
		return nil, errors.New("the issuer has no key that can be used")
	}
	return out, nil
}

// issuerKeys keeps the keys fresh.
type issuerKeys struct {
	docs    Documents
	fetch   Fetch
	log     *slog.Logger
	current atomic.Pointer[keySet]
	wanted  chan struct{}

	mu sync.Mutex
}

func newIssuerKeys(o AuthenticatorOptions) (*issuerKeys, error) {
	k := &issuerKeys{docs: o.Documents, fetch: o.Fetch, log: o.Logger, wanted: make(chan struct{}, 1)}
	configuration, ok1, err1 := o.Documents.Document(issuerPath)
	jwks, ok2, err2 := o.Documents.Document(keysPath)
	if err := errors.Join(err1, err2); err != nil {
		// Tokens cannot be verified until the keys are fetched again; certificates can.
		k.log.Error("reading the cluster's token keys from the store", "error", err)
		return k, nil
	}
	if !ok1 || !ok2 {
		return k, nil
	}
	set, err := parseKeys(configuration, jwks)
	if err != nil {
		k.log.Error("the stored token keys cannot be used", "error", err)
		return k, nil
	}
	k.current.Store(set)
	return k, nil
}

func (k *issuerKeys) get() *keySet { return k.current.Load() }

// missing tells that a key was asked for that is not there.
func (k *issuerKeys) missing() {
	select {
	case k.wanted <- struct{}{}:
	default:
	}
}

func (k *issuerKeys) run(ctx context.Context, online func() bool) {
	if k.fetch == nil {
		return
	}
	var last time.Time // of a success
	pause := time.Second
	for ctx.Err() == nil {
		if !online() {
			// Without any keys, clients are waiting to be known.
			nap := time.Second
			if k.current.Load() == nil {
				nap = 200 * time.Millisecond
			}
			if !wait(ctx, nil, nap) {
				return
			}
			continue
		}
		if err := k.refresh(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			k.log.Warn("getting the cluster's token keys", "error", err, "retry", pause)
			if !wait(ctx, nil, pause) {
				return
			}
			pause = min(2*pause, refreshUnknown)
			continue
		}
		pause, last = time.Second, time.Now()
		if !wait(ctx, nil, refreshUnknown) || !wait(ctx, k.wanted, refreshKeys-time.Since(last)) {
			return
		}
	}
}

// wait is over after d, or when wake says so; false when ctx ends.
func wait(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}

// refresh gets the documents and keeps them if they changed.
func (k *issuerKeys) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	configuration, err := k.fetch(ctx, issuerPath)
	if err != nil {
		return err
	}
	jwks, err := k.fetch(ctx, keysPath)
	if err != nil {
		return err
	}
	set, err := parseKeys(configuration, jwks)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var batch store.Batch
	for _, doc := range []struct {
		name  string
		value []byte
	}{{issuerPath, configuration}, {keysPath, jwks}} {
		have, ok, err := k.docs.Document(doc.name)
		if err == nil && ok && string(have) == string(doc.value) {
			continue
		}
		batch.PutDocument(doc.name, doc.value)
	}
	if batch.Len() == 0 && k.current.Load() != nil {
		return nil
	}
	// Used even if they cannot be kept: the old ones may be worthless.
	k.current.Store(set)
	k.log.Info("the cluster's token keys are known", "issuer", set.issuer, "keys", len(set.keys))
	if batch.Len() == 0 {
		return nil
	}
	if err := k.docs.Apply(&batch, store.Durable); err != nil {
		return fmt.Errorf("keeping the cluster's token keys: %w", err)
	}
	return nil
}
