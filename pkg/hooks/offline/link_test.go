package offline

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/kubernetes/pkg/kubelet/allocation"
	"k8s.io/kubernetes/pkg/kubelet/images"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"
)

// agent is the agent's end of the socket.
type agent struct {
	socket string
	asked  atomic.Int64
	handle atomic.Value // http.HandlerFunc
	server *http.Server
}

func (a *agent) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	a.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		if r.Method != http.MethodGet || r.URL.Path != "/online" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		a.handle.Load().(http.HandlerFunc)(w, r)
	})}
	go func() { _ = a.server.Serve(listener) }()
	t.Cleanup(func() { a.server.Close() })
}

func (a *agent) stop() { a.server.Close() }

func (a *agent) answer(status int, body string) {
	a.handle.Store(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
}

func TestLink(t *testing.T) {
	a := &agent{socket: filepath.Join(t.TempDir(), "s")}
	now := time.Now()
	l := newLink(a.socket)
	l.now = func() time.Time { return now }
	want := func(what string, offline bool) {
		t.Helper()
		if got := l.offline(); got != offline {
			t.Errorf("%s: offline=%v, want %v", what, got, offline)
		}
	}
	want("the agent was never there", true)
	a.answer(200, `{"online":true}`)
	a.start(t)
	want("within a second of the last question", true)
	now = now.Add(answerAge)
	want("the agent says online", false)
	for range 100 {
		want("asked often", false)
	}
	if n := a.asked.Load(); n != 1 {
		t.Errorf("%d questions to the agent within a second, want 1", n)
	}
	a.answer(200, `{"online":false,"since":"x"}`)
	now = now.Add(answerAge)
	want("the agent says offline", true)
	a.answer(200, `{"online":true}`)
	now = now.Add(answerAge)
	want("online again", false)
	a.stop()
	now = now.Add(patience)
	want("the agent restarts", false)
	now = now.Add(answerAge)
	want("the agent stays away", true)
	a.start(t)
	now = now.Add(answerAge)
	want("the agent is back", false)
	// None of these is an answer.
	for _, bad := range []struct {
		status int
		body   string
	}{
		{503, `{"online":false}`}, {302, `{"online":false}`}, {200, ``}, {200, `{}`}, {200, `{"online":"no"}`}, {200, `{"online":null}`},
		{200, `[false]`}, {200, `{"x":"` + strings.Repeat("x", 70<<10) + `","online":false}`},
	} {
		a.answer(bad.status, bad.body)
		now = now.Add(answerAge)
		want(fmt.Sprintf("%d %.20s", bad.status, bad.body), false)
	}
	now = now.Add(answerAge)
	now = now.Add(patience)
	want("nothing but bad answers", true)
}

func TestLinkHangs(t *testing.T) {
	a := &agent{socket: filepath.Join(t.TempDir(), "s")}
	a.handle.Store(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	a.start(t)
	l := newLink(a.socket)
	start := time.Now()
	if !l.offline() {
		t.Error("an agent that hangs is taken for online")
	}
	if took := time.Since(start); took < askTimeout/2 || took > 4*askTimeout {
		t.Errorf("took %s, want about %s", took, askTimeout)
	}
}

func hooksSet() [3]bool {
	return [3]bool{images.SkerryPullPolicy != nil, pullmanager.SkerryRecords != nil, allocation.SkerryTolerate != nil}
}

func TestInstall(t *testing.T) {
	defer func() {
		images.SkerryPullPolicy, pullmanager.SkerryRecords, allocation.SkerryTolerate = nil, nil, nil
	}()
	for _, tc := range []struct {
		env   map[string]string
		set   bool
		error string
	}{
		{env: nil},
		{env: map[string]string{StateVariable: "/s"}},
		{env: map[string]string{SocketVariable: "agent.sock"}, error: SocketVariable},
		{env: map[string]string{SocketVariable: "/a", StateVariable: "s"}, error: StateVariable},
		{env: map[string]string{SocketVariable: "/a"}, set: true},
	} {
		err := Install(func(name string) string { return tc.env[name] })
		if (err != nil) != (tc.error != "") || (err != nil && !strings.Contains(err.Error(), tc.error)) {
			t.Errorf("%v: %v", tc.env, err)
		}
		if got := hooksSet(); got != [3]bool{tc.set, tc.set, tc.set} {
			t.Errorf("%v: hooks set: %v, want %v", tc.env, got, tc.set)
		}
	}
}
