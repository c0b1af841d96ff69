package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"skerry.dev/skerry/pkg/edge/hub/identity"
)

// whoami answers which credentials arrived.
func whoami(w http.ResponseWriter, r *http.Request) {
	cert := "none"
	if len(r.TLS.PeerCertificates) > 0 {
		cert = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	var odd []string
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Remote") || strings.HasPrefix(name, "Impersonate") {
			odd = append(odd, name)
		}
	}
	slices.Sort(odd)
	fmt.Fprintf(w, "cert=%s auth=%q odd=%v proto=%d", cert, r.Header.Values("Authorization"), odd, r.ProtoMajor)
}

func TestEachCallerGoesWithItsOwnCredential(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, whoami)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	u.Settle(t.Context(), 5*time.Second)
	if !u.Online() {
		t.Fatalf("not online: %+v", u.State())
	}
	for _, tc := range []struct {
		name   string
		caller identity.Caller
		via    func(identity.Caller) http.RoundTripper
		want   string
	}{
		{"node", nodeCaller, u.Transport, `cert=system:node:edge-1 auth=[] odd=[] proto=2`},
		{"pod", podCaller("abc"), u.Transport, `cert=none auth=["Bearer abc"] odd=[Impersonate-User] proto=2`},
		{"node, upgrade", nodeCaller, u.UpgradeTransport, `cert=system:node:edge-1 auth=[] odd=[] proto=1`},
		{"pod, upgrade", podCaller("abc"), u.UpgradeTransport, `cert=none auth=["Bearer abc"] odd=[Impersonate-User] proto=1`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://anything/whoami", nil)
			req.Header.Set("Authorization", "Bearer somebody-else")
			req.Header.Set("X-Remote-User", "root")
			req.Header.Set("Impersonate-User", "root")
			resp, err := tc.via(tc.caller).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if string(body) != tc.want {
				t.Errorf("got %s, want %s", body, tc.want)
			}
			if req.Header.Get("X-Remote-User") == "" {
				t.Error("the caller's own request was changed")
			}
		})
	}
	if _, err := get(t, u, identity.Caller{}, "/whoami"); err == nil {
		t.Error("a request without a credential was sent")
	}
}

func TestALostLinkIsNoticedAndComesBack(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	release := make(chan struct{})
	defer close(release)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/watch" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-release:
			}
			return
		}
		fmt.Fprint(w, "hello")
	})
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	link := newCable(t, server.address())
	u := start(t, ca, &source{cert: cert}, link.url())
	var mu sync.Mutex
	var seen []bool
	defer u.Subscribe(func(online bool) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, online)
	})()
	eventually(t, 5*time.Second, "online at first", u.Online)
	changed := u.Changes()

	ended := follow(t, u.Transport(nodeCaller))

	// Nobody asks for anything: only the ping can notice.
	link.setCut(true)
	eventually(t, 8*time.Second, "offline after the cut", func() bool { return !u.Online() })
	select {
	case <-changed:
	default:
		t.Error("Changes was not closed")
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a watch over a lost link ended as if all were well")
		}
	case <-time.After(2 * time.Second):
		t.Error("a watch over a lost link goes on")
	}
	began := time.Now()
	_, err := get(t, u, nodeCaller, "/")
	if !errors.Is(err, ErrOffline) || time.Since(began) > 100*time.Millisecond {
		t.Errorf("offline a request takes %s and gives %v", time.Since(began), err)
	}
	if s := u.State(); s.Reason == "" || s.LastContact.IsZero() || s.Online {
		t.Errorf("state %+v", s)
	}

	link.setCut(false)
	took := eventually(t, 3*time.Second, "online after healing", u.Online)
	t.Logf("back after %s", took)
	if body, err := get(t, u, nodeCaller, "/"); err != nil || body != "hello" {
		t.Errorf("after healing: %q %v", body, err)
	}
	eventually(t, time.Second, "the subscriber has heard it", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) >= 3
	})
	mu.Lock()
	defer mu.Unlock()
	for i, online := range seen[1:] {
		if online == seen[i] {
			t.Errorf("the subscriber heard %v", seen)
		}
	}
}

func TestDefaultTimes(t *testing.T) {
	t.Parallel()
	o := Options{Servers: []string{"https://a"}, CAFile: "f", NodeName: "n", Certificates: &source{}}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	// A silent link: ping, its timeout, two probes.
	if worst := o.IdlePing + o.IdlePing/2; worst > 15*time.Second {
		t.Errorf("a dead connection is noticed after %s", worst)
	}
	if worst := o.ProbeTimeout * 5 / 3; worst > 5*time.Second {
		t.Errorf("two probes take %s", worst)
	}
}

func TestSlowIsNotDown(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(1500 * time.Millisecond):
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "late")
	})
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	before := server.livez.Load()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := fails(u.Do(ctx, http.MethodGet, "/", nil, "", "", nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request over its deadline: %v", err)
	}
	eventually(t, 2*time.Second, "the deadline led to a probe", func() bool { return server.livez.Load() > before })
	if body, err := get(t, u, nodeCaller, "/"); err != nil || body != "late" {
		t.Errorf("slow answer: %q %v", body, err)
	}
	if !u.Online() {
		t.Errorf("slow was taken for down: %+v", u.State())
	}

	// A client that goes away is no suspicion.
	before = server.livez.Load()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := fails(u.Do(ctx, http.MethodGet, "/", nil, "", "", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	time.Sleep(150 * time.Millisecond)
	if server.livez.Load() != before {
		t.Error("a client that went away led to a probe")
	}
}

// A connection needs three round trips, an answer over one that is there needs
// one: a link that is slow by so much that no probe's connection is made in time
// is still a link.
func TestVerySlowIsNotDown(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, whoami)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	link := newCable(t, server.address())
	u := start(t, ca, &source{cert: cert}, link.url())
	eventually(t, 5*time.Second, "online", u.Online)
	if _, err := get(t, u, nodeCaller, "/"); err != nil {
		t.Fatal(err)
	}
	link.listener.Close() // no new connections
	u.Suspect(errors.New("test"))
	time.Sleep(3 * time.Second)
	if !u.Online() {
		t.Errorf("%+v", u.State())
	}
}

// follow sends a GET, reads the answer to its end, and tells how it ended.
func follow(t *testing.T, via http.RoundTripper) <-chan error {
	t.Helper()
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(ended)
		resp, err := do(t.Context(), via, http.MethodGet, "/watch", nil, "", "", nil)
		close(begun)
		if err == nil {
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
		}
		ended <- err
	}()
	<-begun
	return ended
}

// fails is the error of a request that should have none but that.
func fails(resp *http.Response, err error) error {
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func TestFailOver(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var hits [2]atomic.Int32
	count := func(i int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			hits[i].Add(1)
			fmt.Fprintf(w, "%d:%s", i, body)
		}
	}
	servers := []*apiServer{newAPIServer(t, ca, count(0)), newAPIServer(t, ca, count(1))}
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, servers[0].URL, servers[1].URL)
	eventually(t, 5*time.Second, "online", u.Online)
	post := func() (string, error) {
		resp, err := u.Do(t.Context(), http.MethodPost, "/", nil, "text/plain", "", []byte("once"))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	first, err := post()
	if err != nil {
		t.Fatal(err)
	}
	used := int(first[0] - '0')
	other := 1 - used
	servers[used].CloseClientConnections()
	servers[used].Close()
	// A write that a dying connection had may be lost, and its client is told;
	// all later ones find the other server.
	answered := 0
	for i := range 3 {
		got, err := post()
		if err == nil && got == fmt.Sprintf("%d:once", other) {
			answered++
		} else if i > 0 || err == nil {
			t.Errorf("after the server died: %q %v", got, err)
		}
	}
	if n := int(hits[other].Load()); n != answered {
		t.Errorf("the other server had %d requests, and answered %d", n, answered)
	}
	eventually(t, 3*time.Second, "the state names the other server", func() bool {
		s := u.State()
		return s.Online && s.Server == "https://"+servers[other].address()
	})
}

func TestAWriteIsNeverSentTwice(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var hits atomic.Int32
	broken := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		hits.Add(1)
		panic(http.ErrAbortHandler) // the stream is reset after the request was read
	}
	a, b := newAPIServer(t, ca, broken), newAPIServer(t, ca, broken)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, a.URL, b.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	for i := range 3 {
		if resp, err := u.Do(t.Context(), http.MethodPatch, "/", nil, "text/plain", "", []byte("once")); err == nil {
			resp.Body.Close()
			t.Error("an aborted request gave an answer")
		}
		if got := int(hits.Load()); got != i+1 {
			t.Errorf("%d writes reached the servers %d times", i+1, got)
		}
	}
}

func TestAReadIsTriedElsewhere(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var hits atomic.Int32
	flaky := func(w http.ResponseWriter, r *http.Request) {
		if hits.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "here")
	}
	a, b := newAPIServer(t, ca, flaky), newAPIServer(t, ca, flaky)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, a.URL, b.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	if body, err := get(t, u, nodeCaller, "/"); err != nil || body != "here" {
		t.Errorf("%q %v", body, err)
	}
}

func TestBodyOfADialFailureIsStillThere(t *testing.T) {
	t.Parallel()
	// A streamed body cannot be read again: the dead server must not touch it.
	ca := newAuthority(t)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadURL := "https://" + dead.Addr().String()
	dead.Close()
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, deadURL, server.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	u.current.Store(0)
	body := &tracked{Reader: strings.NewReader("streamed")}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api/", body)
	resp, err := u.Transport(podCaller("x")).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, _ := io.ReadAll(resp.Body); string(got) != "streamed" {
		t.Errorf("got %q", got)
	}
	eventually(t, time.Second, "the body is closed", body.closed.Load)
}

type tracked struct {
	io.Reader
	closed atomic.Bool
}

func (b *tracked) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errors.New("read after close")
	}
	return b.Reader.Read(p)
}

func (b *tracked) Close() error { b.closed.Store(true); return nil }

func TestFlappingNeedsTwoSuccesses(t *testing.T) {
	t.Parallel()
	var l link
	l.init()
	for range 3 {
		if l.flapping() {
			t.Error("too early")
		}
		l.set(true, "")
		l.set(false, "gone")
	}
	if !l.flapping() {
		t.Error("three losses within a minute are no flapping")
	}
	l.drops = []time.Time{time.Now().Add(-2 * time.Minute), time.Now().Add(-2 * time.Minute), time.Now()}
	if l.flapping() {
		t.Error("old losses count for ever")
	}
}

func TestFlappingServer(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, whoami)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	for i := range 4 {
		server.healthy.Store(true)
		before := server.livez.Load()
		eventually(t, 5*time.Second, "online", u.Online)
		if i == 3 && server.livez.Load()-before < 2 {
			t.Error("one success was enough for a flapping link")
		}
		server.healthy.Store(false)
		u.Suspect(errors.New("test"))
		eventually(t, 5*time.Second, "offline", func() bool { return !u.Online() })
	}
	if reason := u.State().Reason; !strings.Contains(reason, "500") {
		t.Errorf("reason %q", reason)
	}
}

// Offline is offline for requests under way, too: their clients are to ask again,
// and get an answer out of the store.
func TestGoingOfflineEndsOpenRequests(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	watches := []<-chan error{
		follow(t, u.Transport(nodeCaller)),
		follow(t, u.Transport(podCaller("x"))),
	}
	select {
	case err := <-watches[0]:
		t.Fatal("ended at once", err)
	case err := <-watches[1]:
		t.Fatal("ended at once", err)
	case <-time.After(50 * time.Millisecond):
	}
	server.healthy.Store(false)
	u.Suspect(errors.New("test"))
	eventually(t, 5*time.Second, "offline", func() bool { return !u.Online() })
	for _, ended := range watches {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("ended as if all were well")
			}
		case <-time.After(2 * time.Second):
			t.Fatal("goes on")
		}
	}
}

func TestARefusedCertificateIsNotOnline(t *testing.T) {
	t.Parallel()
	ca, foreign := newAuthority(t), newAuthority(t)
	server := newAPIServer(t, ca, whoami)
	_, bad := foreign.issue(t, nodeUser("edge-1"), time.Hour)
	_, good := ca.issue(t, nodeUser("edge-1"), time.Hour)
	certs := &source{cert: bad}
	u := start(t, ca, certs, server.URL)
	eventually(t, 5*time.Second, "the source is told", func() bool { return certs.refused.Load() > 0 })
	if s := u.State(); s.Online || !strings.Contains(s.Reason, "401") || s.LastContact.IsZero() {
		t.Errorf("state %+v", s)
	}
	certs.set(nil, errors.New("expired on Monday"))
	eventually(t, 5*time.Second, "the reason is the certificate's", func() bool { return strings.Contains(u.State().Reason, "expired on Monday") })
	certs.set(good, nil)
	eventually(t, 5*time.Second, "online", u.Online)
	// A connection whose pings are answered says nothing about the certificate.
	if _, err := get(t, u, podCaller("x"), "/"); err != nil {
		t.Fatal(err)
	}
	certs.set(nil, errors.New("expired on Tuesday"))
	eventually(t, 5*time.Second, "offline when it ran out", func() bool {
		return !u.Online() && strings.Contains(u.State().Reason, "expired on Tuesday")
	})
}

func TestAnUntrustedServerIsNotOnline(t *testing.T) {
	t.Parallel()
	ca, foreign := newAuthority(t), newAuthority(t)
	server := newAPIServer(t, foreign, whoami)
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	u.Settle(t.Context(), 5*time.Second)
	if s := u.State(); s.Online || !strings.Contains(s.Reason, "unknown authority") {
		t.Errorf("state %+v", s)
	}
}

func TestRotationLetsOpenRequestsFinish(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	finish := make(chan struct{})
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/watch" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-finish
		}
		fmt.Fprint(w, r.TLS.PeerCertificates[0].SerialNumber)
	})
	_, first := ca.issue(t, nodeUser("edge-1"), time.Hour)
	_, second := ca.issue(t, nodeUser("edge-1"), time.Hour)
	certs := &source{cert: first}
	u := start(t, ca, certs, server.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	watch, err := u.Do(t.Context(), http.MethodGet, "/watch", nil, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	certs.set(second, nil)
	serial, err := get(t, u, nodeCaller, "/")
	if err != nil || serial != second.Leaf.SerialNumber.String() {
		t.Errorf("after the rotation: serial %s, %v", serial, err)
	}
	time.Sleep(3 * u.o.IdlePing) // a sweep or two
	close(finish)
	if body, err := io.ReadAll(watch.Body); err != nil || string(body) != first.Leaf.SerialNumber.String() {
		t.Errorf("the open request: %q %v", body, err)
	}
	watch.Body.Close()
	eventually(t, 5*time.Second, "the old connection is closed", func() bool {
		u.node.mu.Lock()
		defer u.node.mu.Unlock()
		return len(u.node.old) == 0
	})
	if !u.Online() {
		t.Error("the rotation took the node offline")
	}
}

func TestCompressionIsTheClients(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Accept-Encoding")) })
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	u := start(t, ca, &source{cert: cert}, server.URL)
	eventually(t, 5*time.Second, "online", u.Online)
	for _, encoding := range []string{"identity", "zstd", ""} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api/", nil)
		want := encoding
		if encoding != "" {
			req.Header.Set("Accept-Encoding", encoding)
		} else {
			want = "gzip"
		}
		resp, err := u.Transport(nodeCaller).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != want {
			t.Errorf("Accept-Encoding %q arrives as %q", encoding, body)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	payload := bytes.Repeat([]byte("x"), 100_000)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(payload) })
	_, cert := ca.issue(t, nodeUser("edge-1"), time.Hour)
	registry := prometheus.NewRegistry()
	u, err := New(quick(Options{Servers: []string{server.URL}, CAFile: ca.file, NodeName: "edge-1", Certificates: &source{cert: cert}, Registry: registry}))
	if err != nil {
		t.Fatal(err)
	}
	run(t, u.Run)
	eventually(t, 5*time.Second, "online", u.Online)
	if _, err := get(t, u, nodeCaller, "/"); err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "/" + l.GetValue()
			}
			values[name] = value(m)
		}
	}
	if values["skerry_hub_online"] != 1 || values["skerry_hub_upstream_requests_total/200"] != 1 ||
		values["skerry_hub_upstream_bytes_total/received"] < 100_000 || values["skerry_hub_upstream_bytes_total/received"] > 130_000 ||
		values["skerry_hub_upstream_bytes_total/sent"] < 100 || values["skerry_hub_outage_seconds_total"] <= 0 {
		t.Errorf("%v", values)
	}
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"https://10.0.0.1:6443":  "https://10.0.0.1:6443",
		"https://api.example/":   "https://api.example:443",
		"https://[fd00::1]:6443": "https://[fd00::1]:6443",
		"https://[fd00::1]":      "https://[fd00::1]:443",
		"http://10.0.0.1:6443":   "",
		"https://":               "",
		"https://u:p@10.0.0.1":   "",
		"https://10.0.0.1/x":     "",
		"10.0.0.1:6443":          "",
	} {
		got, err := parseServers([]string{address})
		switch {
		case want == "" && err == nil:
			t.Errorf("%s is taken", address)
		case want != "" && (err != nil || got[0].String() != want):
			t.Errorf("%s: %v %v", address, got, err)
		}
	}
}
