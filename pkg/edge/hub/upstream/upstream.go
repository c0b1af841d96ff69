// Package upstream is the hub's way to the API server: which server, with whose
// credential, and whether there is one at all. It owns the node's client
// certificate, too. It must not know what the requests are about, and it never
// sends one caller's request with the credential of another.
package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/pkg/edge/hub/identity"
)

// ErrOffline is returned at once for each request while no API server can be
// reached. Errors that wrap it say why, and since when.
var ErrOffline = errors.New("the API server cannot be reached")

// CertificateSource has the node's client certificate; *Certificates is one.
type CertificateSource interface {
	// Certificate returns the current one, the same pointer until it changes, or
	// an error that says why there is none that can be used.
	Certificate() (*tls.Certificate, error)
	// Refused tells that the API server did not accept the current one.
	Refused()
}

// Options configure an Upstream.
type Options struct {
	Servers      []string // https URLs; required
	CAFile       string   // of the cluster; read again when it changes; required
	NodeName     string   // required
	Certificates CertificateSource
	// ProbeInterval is how often the API server is tried while it is away.
	// Default 1 s, ±25 %.
	ProbeInterval time.Duration
	// ProbeTimeout bounds one try. Default 3 s.
	ProbeTimeout time.Duration
	DialTimeout  time.Duration // default 3 s
	// IdlePing is how long a connection may be silent before it is checked;
	// without an answer within half of that it is closed. Default 10 s.
	IdlePing time.Duration
	// Now is the time that certificates are judged by. Default time.Now.
	Now      func() time.Time
	Registry prometheus.Registerer // nil: no metrics
	Logger   *slog.Logger          // default slog.Default()
}

func (o *Options) complete() error {
	if len(o.Servers) == 0 || o.CAFile == "" || o.NodeName == "" || o.Certificates == nil {
		return errors.New("servers, the cluster's CA file, the node's name and its certificates are required")
	}
	defaultTo(&o.ProbeInterval, time.Second)
	defaultTo(&o.ProbeTimeout, 3*time.Second)
	defaultTo(&o.DialTimeout, 3*time.Second)
	defaultTo(&o.IdlePing, 10*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

func defaultTo(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Upstream is the way to the API server. Safe for concurrent use.
type Upstream struct {
	o       Options
	servers []*url.URL
	current atomic.Int32 // index of the server in use
	ca      *caFile
	conns   conns
	link    link
	metrics metrics
	sick    atomic.Int64 // Unix time when an answer 5xx was last looked into

	suspicions chan struct{}
	settled    chan struct{} // closed when the first round of probes is over
	settleOnce sync.Once

	node, nodeUpgrade, token, tokenUpgrade *lane
}

// New returns an Upstream that is offline until Run has reached a server.
func New(o Options) (*Upstream, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	servers, err := parseServers(o.Servers)
	if err != nil {
		return nil, err
	}
	u := &Upstream{
		o:          o,
		servers:    servers,
		ca:         &caFile{path: o.CAFile},
		suspicions: make(chan struct{}, 1),
		settled:    make(chan struct{}),
	}
	if _, err := u.ca.pool(); err != nil {
		return nil, err
	}
	u.link.init()
	u.node = &lane{u: u, certified: true}
	u.nodeUpgrade = &lane{u: u, certified: true, upgrade: true}
	u.token = &lane{u: u}
	u.tokenUpgrade = &lane{u: u, upgrade: true}
	if err := u.metrics.register(o.Registry, u); err != nil {
		return nil, fmt.Errorf("registering the metrics of the link: %w", err)
	}
	return u, nil
}

func parseServers(raw []string) ([]*url.URL, error) {
	var out []*url.URL
	for _, s := range raw {
		parsed, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("API server address: %w", err)
		}
		if parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil || parsed.RawQuery != "" ||
			(parsed.Path != "" && parsed.Path != "/") {
			return nil, fmt.Errorf("API server address %q must be https://HOST:PORT", s)
		}
		host := parsed.Host
		if parsed.Port() == "" {
			host = net.JoinHostPort(parsed.Hostname(), "443")
		}
		out = append(out, &url.URL{Scheme: "https", Host: host})
	}
	return out, nil
}

// Online reports whether requests are sent. State says more.
func (u *Upstream) Online() bool { return u.link.isOnline.Load() }

// State returns what is known about the link.
func (u *Upstream) State() State {
	s := u.link.get()
	s.Server = u.servers[u.current.Load()].String()
	return s
}

// Changes returns a channel that is closed when Online changes the next time.
func (u *Upstream) Changes() <-chan struct{} { return u.link.changes() }

// Subscribe calls fn with each change of Online, in order, one call at a time, in
// a goroutine of its own. The first call tells the present state. cancel does not
// wait for a call that runs.
func (u *Upstream) Subscribe(fn func(online bool)) (cancel func()) { return u.link.subscribe(fn) }

// Settle waits until the first try to reach a server is over, at most atMost.
func (u *Upstream) Settle(ctx context.Context, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-u.settled:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Suspect tells that something looked as if the link were gone (an answer that
// did not come in time). A probe finds out; nothing else happens.
func (u *Upstream) Suspect(reason error) {
	u.o.Logger.Debug("is the link gone?", "because", reason)
	select {
	case u.suspicions <- struct{}{}:
	default: // one is being looked into
	}
}

// Transport sends requests as the caller: the node with the node's certificate,
// everybody else with the caller's token and without a certificate. Credentials
// in the request's headers are replaced. Scheme and host of the URL are those of
// the server in use.
func (u *Upstream) Transport(c identity.Caller) http.RoundTripper {
	return u.transport(c, u.node, u.token)
}

// UpgradeTransport is Transport over HTTP/1.1, for requests that switch
// protocols.
func (u *Upstream) UpgradeTransport(c identity.Caller) http.RoundTripper {
	return u.transport(c, u.nodeUpgrade, u.tokenUpgrade)
}

func (u *Upstream) transport(c identity.Caller, node, token *lane) http.RoundTripper {
	if c.Node {
		return &sender{u: u, lane: node}
	}
	return &sender{u: u, lane: token, token: c.Token}
}

// Do sends a request with the node's identity. The caller closes the body. Any
// status code is an answer, not an error.
func (u *Upstream) Do(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error) {
	return do(ctx, u.Transport(identity.Caller{Node: true}), method, path, query, contentType, accept, body)
}

func do(ctx context.Context, via http.RoundTripper, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error) {
	target := &url.URL{Scheme: "https", Host: "api", Path: path, RawQuery: query.Encode()}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), reader)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	req.Header.Set("User-Agent", "skerry-agent")
	return via.RoundTrip(req)
}
