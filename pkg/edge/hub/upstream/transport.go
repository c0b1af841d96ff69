package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// drainFor is how long requests of a replaced certificate may go on. The API
// server ends watches itself within ten minutes.
const drainFor = 15 * time.Minute

// lane is one pool of connections: with the node's certificate or without any,
// HTTP/2 or HTTP/1.1.
type lane struct {
	u         *Upstream
	certified bool
	upgrade   bool

	mu  sync.Mutex
	now *generation
	old []*generation
}

// generation is the connections of one certificate and one CA. Connections keep
// the certificate that they were opened with, so a new certificate needs new ones.
type generation struct {
	cert    *tls.Certificate
	pool    *x509.CertPool
	http    *http.Transport
	quiet   bool // the end of a connection is no news
	open    atomic.Int32
	retired time.Time
}

func (l *lane) transport() (*http.Transport, error) {
	var cert *tls.Certificate
	if l.certified {
		var err error
		if cert, err = l.u.o.Certificates.Certificate(); err != nil {
			return nil, err
		}
	}
	pool, err := l.u.ca.pool()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now != nil && l.now.cert == cert && l.now.pool == pool {
		return l.now.http, nil
	}
	if l.now != nil {
		l.now.retired = time.Now()
		l.u.conns.expect(l.now)
		l.old = append(l.old, l.now)
	}
	l.now = l.u.generation(cert, pool, l.upgrade)
	return l.now.http, nil
}

// sweep closes what is left of replaced generations when it is idle.
func (l *lane) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kept []*generation
	for _, g := range l.old {
		g.http.CloseIdleConnections()
		if time.Since(g.retired) > drainFor {
			l.u.conns.closeAll(g)
		}
		if g.open.Load() > 0 {
			kept = append(kept, g)
		}
	}
	l.old = kept
}

func (u *Upstream) generation(cert *tls.Certificate, pool *x509.CertPool, http1 bool) *generation {
	g := &generation{cert: cert, pool: pool, quiet: http1}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!http1)
	g.http = &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return u.dial(ctx, g, network, address)
		},
		TLSClientConfig:     u.tlsConfig(cert, pool),
		TLSHandshakeTimeout: 2 * u.o.DialTimeout,
		Protocols:           protocols,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     5 * time.Minute,
		ReadBufferSize:      8 << 10,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:           u.o.IdlePing,
			PingTimeout:               u.o.IdlePing / 2,
			WriteByteTimeout:          u.o.IdlePing,
			MaxReceiveBufferPerStream: 1 << 20,
		},
	}
	if http1 {
		g.http.IdleConnTimeout = 30 * time.Second
		g.http.DisableCompression = true
	}
	return g
}

func (u *Upstream) tlsConfig(cert *tls.Certificate, pool *x509.CertPool) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Time: u.o.Now}
	if cert != nil {
		// Whatever authorities the server names: it is the only one there is.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return config
}

// sender is the RoundTripper of one caller.
type sender struct {
	u     *Upstream
	lane  *lane
	token string
	// direct requests are sent whatever the state says: they are how the node
	// gets the certificate that it needs to be online.
	direct bool
}

// RoundTrip sends a request to the server in use, or to the next one if no
// connection can be made. A request is not sent again once a connection had it,
// unless it is a bodiless read.
func (s *sender) RoundTrip(req *http.Request) (*http.Response, error) {
	body := &heldBody{ReadCloser: req.Body}
	resp, err := s.roundTrip(req, body)
	if err != nil {
		body.release()
		s.u.metrics.failed()
		return nil, err
	}
	s.u.metrics.answered(resp.StatusCode)
	return resp, nil
}

func (s *sender) roundTrip(req *http.Request, body *heldBody) (*http.Response, error) {
	u := s.u
	if !s.direct && !u.Online() {
		return nil, u.link.offlineError()
	}
	if !s.lane.certified && s.token == "" {
		return nil, errors.New("the request has no credential that can be passed on")
	}
	transport, err := s.lane.transport()
	if err != nil {
		u.Suspect(err)
		return nil, err
	}
	first := int(u.current.Load())
	var failure error
	for i := range u.servers {
		index := (first + i) % len(u.servers)
		resp, used, err := s.try(transport, req, body, index)
		if err == nil {
			u.current.CompareAndSwap(int32(first), int32(index))
			u.contact(resp)
			return resp, nil
		}
		if cause := context.Cause(req.Context()); cause != nil {
			// The client went away, which says nothing about the link; or a
			// deadline passed, which does.
			if !errors.Is(cause, context.Canceled) {
				u.Suspect(fmt.Errorf("%s: %w", u.servers[index].Host, cause))
			}
			return nil, err
		}
		u.Suspect(err)
		failure = err
		if used && !repeatable(req) {
			break
		}
	}
	if !s.direct && !u.Online() {
		offline := u.link.get()
		return nil, &offlineError{since: offline.Since, reason: offline.Reason, cause: failure}
	}
	return nil, failure
}

// contact takes note of an answer. Some answers mean that the server is not well.
func (u *Upstream) contact(resp *http.Response) {
	u.link.answered()
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusInternalServerError:
		// An extension API server that is down answers so all day: now and then
		// is often enough to ask.
		now, last := time.Now().Unix(), u.sick.Load()
		if now-last >= 10 && u.sick.CompareAndSwap(last, now) {
			u.Suspect(fmt.Errorf("%s answers %s", resp.Request.URL.Host, resp.Status))
		}
	}
}

func repeatable(req *http.Request) bool {
	return (req.Method == http.MethodGet || req.Method == http.MethodHead) && (req.Body == nil || req.Body == http.NoBody)
}

// try sends the request to one server. used says that a connection had it.
func (s *sender) try(transport *http.Transport, req *http.Request, body *heldBody, index int) (resp *http.Response, used bool, err error) {
	var got atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) {
			got.Store(true)
			body.use()
		},
	})
	out := req.Clone(ctx)
	server := s.u.servers[index]
	out.URL.Scheme, out.URL.Host, out.Host = server.Scheme, server.Host, ""
	out.RequestURI = ""
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = body
	}
	s.credential(out.Header)
	resp, err = transport.RoundTrip(out)
	return resp, got.Load(), err
}

// credential makes the header say who the caller is, and nothing else.
func (s *sender) credential(h http.Header) {
	h.Del("Authorization")
	for name := range h {
		// Only a front proxy's certificate gives these a meaning; ours is none,
		// and must not look like one.
		if strings.HasPrefix(name, "X-Remote-") || (s.lane.certified && strings.HasPrefix(name, "Impersonate-")) {
			h.Del(name)
		}
	}
	if s.token != "" {
		h.Set("Authorization", "Bearer "+s.token)
	}
}

// heldBody keeps a request's body open while no connection has it, so that
// another server can be tried.
type heldBody struct {
	io.ReadCloser
	mu     sync.Mutex
	used   bool
	closed bool
}

func (b *heldBody) use() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = true
}

func (b *heldBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.used || b.closed {
		return nil
	}
	b.closed = true
	return b.ReadCloser.Close()
}

// release closes the body whatever happened to it.
func (b *heldBody) release() {
	if b.ReadCloser == nil {
		return
	}
	b.use()
	b.Close()
}
