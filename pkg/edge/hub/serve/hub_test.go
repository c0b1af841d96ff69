package serve_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/outbox"
	"skerry.dev/skerry/pkg/edge/hub/serve"
	"skerry.dev/skerry/pkg/edge/hub/tokens"
	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/store"
)

type certificateSource struct{ cert *tls.Certificate }

func (s certificateSource) Certificate() (*tls.Certificate, error) { return s.cert, nil }
func (s certificateSource) Refused()                               {}

// hub is a whole hub over real parts, behind a real link to the far end.
type hub struct {
	t        testing.TB
	cloud    *cloud
	line     *line
	dir      string
	addr     string
	pki      *identity.NodePKI
	store    *store.Store
	upstream *upstream.Upstream
	registry *prometheus.Registry
	log      *logBuffer
	stop     func()
}

// logBuffer keeps what is logged, for tests to look at.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newHub(t testing.TB, c *cloud, change ...func(*serve.Options)) *hub {
	t.Helper()
	h := &hub{t: t, cloud: c, dir: t.TempDir(), line: newLine(t, c.server.Listener.Addr().String()), log: &logBuffer{}}
	if err := os.WriteFile(filepath.Join(h.dir, "ca.crt"), c.ca.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	h.start(change...)
	h.waitOnline(true)
	t.Cleanup(func() {
		h.stop()
		if t.Failed() && os.Getenv("HUB_LOG") != "" {
			t.Log(h.log.String())
		}
	})
	return h
}

// start opens everything over what the folder has.
func (h *hub) start(change ...func(*serve.Options)) {
	t := h.t
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	logger := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	h.registry = prometheus.NewRegistry()
	h.store, err = store.Open(store.Options{Path: filepath.Join(h.dir, "store.db"), KeyFile: filepath.Join(h.dir, "store.key"), JournalPath: filepath.Join(h.dir, "journal"), Logger: logger})
	fatal(err)
	h.pki, err = identity.EnsurePKI(filepath.Join(h.dir, "pki"), nodeName, []string{"127.0.0.1", "localhost", "kubernetes.default.svc"}, logger)
	fatal(err)
	caFile := filepath.Join(h.dir, "ca.crt")
	h.upstream, err = upstream.New(upstream.Options{
		Servers: []string{"https://" + h.line.addr}, CAFile: caFile, NodeName: nodeName,
		Certificates:  certificateSource{h.cloud.ca.issue(t, "system:node:"+nodeName, []string{"system:nodes"})},
		ProbeInterval: 50 * time.Millisecond, ProbeTimeout: time.Second, DialTimeout: time.Second, IdlePing: 500 * time.Millisecond, Logger: logger,
	})
	fatal(err)
	authenticator, err := identity.NewAuthenticator(identity.AuthenticatorOptions{
		NodeName: nodeName, PKI: h.pki, ClusterCA: caFile, Documents: h.store, Bindings: identity.StoreBindings(h.store, nodeName), Logger: logger,
		Fetch: func(ctx context.Context, path string) ([]byte, error) {
			resp, err := h.upstream.Do(ctx, http.MethodGet, path, nil, "", "*/*", nil)
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return nil, fmt.Errorf("status %d", resp.StatusCode)
			}
			return io.ReadAll(resp.Body)
		},
	})
	fatal(err)
	var vs *views.Views
	out, err := outbox.New(outbox.Options{Store: h.store, NodeName: nodeName, Online: h.upstream.Online, Changes: h.upstream.Changes, Do: h.upstream.Do, Logger: logger,
		Publish: func(ctx context.Context, old, new *store.Object) error { return vs.Publish(ctx, old, new) }})
	fatal(err)
	vs, err = views.New(views.Options{
		Store: h.store, Upstream: h.upstream, Rebase: out.Rebase, Permanent: identity.RBACQueries(), FirstSync: 2 * time.Second, Logger: logger,
		Whole: func() []schema.GroupResource {
			return []schema.GroupResource{{Resource: "services"}, {Group: "discovery.k8s.io", Resource: "endpointslices"}}
		},
		BeforeLive: func(ctx context.Context) error {
			out.Settle()
			if _, err := vs.CatchUp(ctx, h.upstream.Do, nodeName); err != nil {
				return err
			}
			_ = out.Replay(ctx)
			return nil
		},
	})
	fatal(err)
	options := serve.Options{
		NodeName: nodeName, Upstream: h.upstream, Authenticator: authenticator,
		Authorizer: identity.NewAuthorizer(identity.AuthorizerOptions{Objects: h.store, Transport: h.upstream.Transport, Logger: logger}),
		Store:      h.store, Views: vs, Writer: out, Tokens: tokens.New(tokens.Options{Store: h.store, Logger: logger}),
		Keep: func(user, group, resource string) (int, int64, bool) {
			return 1000, 8 << 20, user == "system:serviceaccount:kube-system:kube-proxy"
		},
		NodeCA: h.pki.CA, HubURL: "https://127.0.0.1:10270", PodAddress: "169.254.20.10", PodPort: 10270, Registry: h.registry, Logger: logger,
		HeaderDeadline: time.Second, WriteDeadline: 2 * time.Second,
	}
	for _, c := range change {
		c(&options)
	}
	handler, err := serve.New(options)
	fatal(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(err)
	h.addr = listener.Addr().String()

	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = h.upstream.Run(ctx) })
	group.Go(func() { authenticator.Run(ctx, h.upstream.Online) })
	group.Go(func() { _ = vs.Run(ctx) })
	group.Go(func() { _ = out.Run(ctx) })
	group.Go(func() { handler.Run(ctx) })
	h.upstream.Settle(ctx, time.Second)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := serve.Serve(ctx, handler, h.pki.TLSConfig(), 400*time.Millisecond, logger, listener); err != nil {
			t.Errorf("serving: %v", err)
		}
	}()
	var once sync.Once
	opened := h.store
	h.stop = func() {
		once.Do(func() {
			cancel()
			<-served
			group.Wait()
			if err := opened.Close(); err != nil {
				t.Errorf("closing the store: %v", err)
			}
		})
	}
}

// restart ends the hub and starts it again over the same folder.
func (h *hub) restart() {
	h.t.Helper()
	h.stop()
	h.start()
}

func (h *hub) waitOnline(online bool) {
	h.t.Helper()
	eventually(h.t, 5*time.Second, fmt.Sprintf("online is %t", online), func() bool { return h.upstream.Online() == online })
}

func (h *hub) cut() {
	h.t.Helper()
	h.line.cut()
	h.waitOnline(false)
}

func (h *hub) heal() {
	h.t.Helper()
	h.line.heal()
	h.waitOnline(true)
}

func eventually(t testing.TB, atMost time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(atMost); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", atMost, what)
		}
	}
}

// asNode is a client with the kubelet's credential at the hub.
func (h *hub) asNode() *rest.Config {
	return &rest.Config{Host: "https://" + h.addr, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData:   h.pki.CA(),
		CertFile: filepath.Join(h.dir, "pki", identity.KubeletCert),
		KeyFile:  filepath.Join(h.dir, "pki", identity.KubeletKey),
	}}
}

// as is a client with a token.
func (h *hub) as(token string) *rest.Config {
	return &rest.Config{Host: "https://" + h.addr, QPS: -1, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: h.pki.CA()}}
}

func protobufOf(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return c
}

// raw sends one request over HTTP/1.1 or 2 with any headers.
func (h *hub) raw(config *rest.Config, method, path string, header http.Header) *http.Response {
	h.t.Helper()
	transport, err := rest.TransportFor(config)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	h.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "https://"+h.addr+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	h.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func body(t testing.TB, resp *http.Response) string {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return string(raw)
}

func poolOf(pem []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}
