package views

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// TestCatchUp runs against a server that counts renewals, at most ten at once.
func TestCatchUp(t *testing.T) {
	for _, tc := range []struct {
		name                string
		cloud, shown, known uint64
		missing             bool // the lease
		forbidden           bool
		renewals            int
		err                 error
		fails               bool
	}{
		{name: "ahead already", cloud: 500, shown: 400},
		{name: "equal", cloud: 400, shown: 400, renewals: 1},
		{name: "behind", cloud: 300, shown: 400, renewals: 101},
		{name: "restored from a backup", cloud: 100, shown: 20_000, err: ErrRestored},
		{name: "restored a moment ago", cloud: 300, shown: 400, known: 301, err: ErrRestored},
		{name: "no lease", cloud: 300, shown: 400, missing: true, renewals: 101},
		{name: "leases are refused", cloud: 300, shown: 400, forbidden: true, fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			rev, times, now, most := tc.cloud, map[string]bool{}, 0, 0
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				now++
				most = max(most, now)
				defer func() { now--; mu.Unlock() }()
				switch {
				case r.Method == http.MethodGet && r.URL.Path == "/api/v1/nodes" && r.FormValue("limit") == "1":
					_, _ = fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"%d"},"items":[]}`, rev)
				case tc.forbidden:
					w.WriteHeader(403)
					_, _ = w.Write([]byte(`{"kind":"Status","status":"Failure","reason":"Forbidden","code":403}`))
				case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/leases/n1") && !tc.missing:
					_, _ = w.Write([]byte(`{}`))
				case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/kube-node-lease/leases") && tc.missing:
					tc.missing = false
					rev++
					w.WriteHeader(201)
					_, _ = w.Write([]byte(`{}`))
				case r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/leases/n1") && !tc.missing:
					var body struct{ Spec struct{ RenewTime string } }
					if err := json.NewDecoder(r.Body).Decode(&body); err != nil || times[body.Spec.RenewTime] {
						w.WriteHeader(400) // the same again is no write
						return
					}
					times[body.Spec.RenewTime] = true
					rev++
					_, _ = w.Write([]byte(`{}`))
				default:
					w.WriteHeader(404)
					_, _ = w.Write([]byte(`{"kind":"Status","status":"Failure","reason":"NotFound","code":404}`))
				}
			}))
			defer srv.Close()
			do := func(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error) {
				req, err := http.NewRequestWithContext(ctx, method, srv.URL+path+"?"+query.Encode(), bytes.NewReader(body))
				if err != nil {
					return nil, err
				}
				req.Header.Set("Content-Type", contentType)
				return srv.Client().Do(req)
			}
			got, err := CatchUp(within(t), do, "n1", tc.shown, tc.known)
			switch {
			case tc.err != nil:
				if !errors.Is(err, tc.err) {
					t.Fatalf("%v, want %v", err, tc.err)
				}
			case tc.fails:
				if err == nil {
					t.Fatal("no error")
				}
			case err != nil || got <= tc.shown || got != rev:
				t.Fatalf("revision %d (%v), the cloud has %d", got, err, rev)
			}
			if len(times) != tc.renewals {
				t.Errorf("%d renewals, want %d", len(times), tc.renewals)
			}
		})
	}
}
