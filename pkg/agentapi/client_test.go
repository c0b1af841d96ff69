package agentapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if _, err := Get(t.Context(), socket); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"node":"east-1","online":true,"unsent":3}`
	code := http.StatusOK
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	got, err := Get(t.Context(), socket)
	if err != nil || got.Node != "east-1" || !got.Online || got.Unsent != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	body = "not JSON"
	if _, err := Get(t.Context(), socket); err == nil {
		t.Error("an answer that is no status was taken for one")
	}
	code = http.StatusInternalServerError
	if _, err := Get(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "not JSON") {
		t.Errorf("an error of the agent: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Get(gone, socket); err == nil {
		t.Error("a call that was cancelled succeeded")
	}
	// The socket of an agent that is gone.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	server.Close()
	if _, err := Get(t.Context(), socket); !errors.Is(err, ErrNoAgent) {
		t.Errorf("a socket without an agent: %v", err)
	}
}
