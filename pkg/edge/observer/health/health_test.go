package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skerry.dev/skerry/pkg/edge/observer/detect"
)

var errDead = errors.New("no answer")

func TestHysteresis(t *testing.T) {
	for _, test := range []struct {
		name, looks string // + answered, - did not
		age         time.Duration
		down        bool
	}{
		{"nothing yet", "", time.Hour, false},
		{"well", "+++", time.Hour, false},
		{"missed two", "++--", time.Hour, false},
		{"missed three", "+---", time.Hour, true},
		{"answered once", "+---+", time.Hour, true},
		{"is back", "+---++", time.Hour, false},
		{"restarts again and again", "+---+-+-+-", time.Hour, true},
		{"is starting", "-----", time.Minute, false},
		{"never started", "-----", time.Hour, true},
		{"died young", "+---", time.Second, true},
	} {
		var p part
		for _, look := range test.looks {
			err := error(nil)
			if look == '-' {
				err = errDead
			}
			p.note(err, test.age)
		}
		if p.down != test.down {
			t.Errorf("%s: down %v", test.name, p.down)
		}
	}
}

func TestRun(t *testing.T) {
	var kubeletDown atomic.Bool
	kubelet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if kubeletDown.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer kubelet.Close()
	if err := askKubelet(t.Context(), kubelet.Client(), kubelet.URL); err != nil {
		t.Error(err)
	}
	kubeletDown.Store(true)
	if err := askKubelet(t.Context(), kubelet.Client(), kubelet.URL); err == nil {
		t.Error("a kubelet that is not well is taken for one that is")
	}
	// With the clock of a bubble, and programs that are not there.
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		Run(ctx, Options{Runtime: filepath.Join(t.TempDir(), "none.sock"), Changed: func(h detect.Health) {
			changes = append(changes, fmt.Sprintf("%v after %v", h, time.Since(begin)))
		}})
		if want := "{false false} after 0s, {false true} after 2m5s"; strings.Join(changes, ", ") != want {
			t.Errorf("changes: %v", changes)
		}
	})
}

// The runtime's protocol, as a server of HTTP/2 sees it. That containerd answers
// it is shown in the sandbox.
func TestRuntime(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "runtime.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	status := "0"
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.URL.Path != "/runtime.v1.RuntimeService/Version" || r.ProtoMajor != 2 || r.Header.Get("Content-Type") != "application/grpc" ||
			r.Header.Get("TE") != "trailers" || err != nil || string(body) != emptyMessage {
			t.Errorf("%s %s %v %q", r.Proto, r.URL.Path, r.Header, body)
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = io.WriteString(w, "\x00\x00\x00\x00\x03\x0a\x01v")
		w.Header().Set("Grpc-Status", status)
	})}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	r := newRuntime(socket)
	if err := r.version(t.Context()); err != nil {
		t.Error(err)
	}
	status = "14"
	if err := r.version(t.Context()); err == nil {
		t.Error("a runtime that is unavailable is taken for one that works")
	}
	server.Close()
	if err := r.version(t.Context()); err == nil {
		t.Error("a runtime that is gone is taken for one that works")
	}
}

func TestFromKubelet(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none := filepath.Join(dir, "none.yaml")
	for _, test := range []struct {
		name  string
		files []string
		want  Options
	}{
		{"nothing", []string{none}, Options{Kubelet: "http://127.0.0.1:10248/healthz", Runtime: defaultRuntime}},
		{"everything", []string{write("a", "healthzBindAddress: ::1\nhealthzPort: 1\ncontainerRuntimeEndpoint: unix:///run/crio.sock\n")},
			Options{Kubelet: "http://[::1]:1/healthz", Runtime: "/run/crio.sock"}},
		{"the later counts", []string{write("b", "containerRuntimeEndpoint: unix:///a\n"), write("c", "containerRuntimeEndpoint: /b\n")},
			Options{Kubelet: "http://127.0.0.1:10248/healthz", Runtime: "/b"}},
		{"switched off", []string{write("d", "healthzPort: 0\ncontainerRuntimeEndpoint: npipe:////a\n")}, Options{}},
		{"all addresses", []string{write("e", "healthzBindAddress: 0.0.0.0\n")}, Options{Kubelet: "http://127.0.0.1:10248/healthz", Runtime: defaultRuntime}},
		{"damaged", []string{write("f", "{")}, Options{Kubelet: "http://127.0.0.1:10248/healthz", Runtime: defaultRuntime}},
	} {
		got := FromKubelet(test.files...)
		if got.Kubelet != test.want.Kubelet || got.Runtime != test.want.Runtime {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}
