package fabric

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/pkg/sandbox/spec"
)

// A socket must work however deep its folder is: the name of a Unix socket has
// at most 107 bytes.
func TestSocketInADeepFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 60))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also over the socket of a fabric that has died
		l, err := listenIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { respond(w, Status{APIPort: 7}, nil) })
		server := &http.Server{Handler: mux}
		go func() { _ = server.Serve(l) }()
		status, err := NewClient(dir).Status(t.Context())
		if err != nil || status.APIPort != 7 {
			t.Errorf("%+v, %v", status, err)
		}
		server.Close()
	}
	if info, err := os.Stat(filepath.Join(dir, SocketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may use the socket: %v, %v", info, err)
	}
	if _, err := NewClient(dir).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "network") {
		t.Errorf("without a fabric: %v", err)
	}
}

func TestRequestsAreStrict(t *testing.T) {
	called := false
	h := handle(func(bootRequest) error { called = true; return nil })
	for name, body := range map[string]string{
		"nothing": "", "no JSON": "x", "unknown field": `{"machine":"a","evil":1}`, "other type": `{"machine":1}`,
		"huge": `{"machine":"` + strings.Repeat("a", maxBody) + `"}`,
	} {
		w := httptest.NewRecorder()
		h(w, httptest.NewRequest("POST", "/boot", strings.NewReader(body)))
		if w.Code != http.StatusBadRequest || called {
			t.Errorf("%s: status %d, called %v", name, w.Code, called)
		}
	}
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest("POST", "/boot", strings.NewReader(`{"machine":"a"}`)))
	if w.Code != http.StatusOK || !called {
		t.Errorf("status %d, called %v", w.Code, called)
	}
}

func TestAddresses(t *testing.T) {
	if got := macOf(netip.MustParseAddr("172.30.1.11")).String(); got != "02:00:ac:1e:01:0b" {
		t.Errorf("hardware address %s", got)
	}
	if got := ipNet(netip.MustParsePrefix("10.244.3.0/24")).String(); got != "10.244.3.0/24" {
		t.Errorf("network %s", got)
	}
	s, err := spec.Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := apiAddress(s).String(); got != "172.30.0.11:6443" {
		t.Errorf("API server %s", got)
	}
}
