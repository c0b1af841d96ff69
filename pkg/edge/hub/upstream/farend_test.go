package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/identity"
)

var nodeCaller = identity.Caller{Node: true, Verified: true}

func podCaller(token string) identity.Caller { return identity.Caller{Token: token} }

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"}, NotBefore: time.Now().Add(-48 * time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, file: filepath.Join(t.TempDir(), "ca.crt")}
	if err := os.WriteFile(a.file, pemBlock("CERTIFICATE", der), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

var serials atomic.Int64

// sign makes a certificate for a public key.
func (a *authority) sign(t testing.TB, public any, subject pkix.Name, notBefore, notAfter time.Time) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1) + 1), Subject: subject, NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Error(err)
	}
	return pemBlock("CERTIFICATE", der)
}

// issue makes a certificate with its key, as one PEM and as a pair.
func (a *authority) issue(t testing.TB, name string, life time.Duration) ([]byte, *tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	begin, end := now.Add(-time.Hour), now.Add(life)
	data := append(a.sign(t, key.Public(), pkix.Name{CommonName: name, Organization: []string{nodesGroup}}, begin, end), pemBlock("EC PRIVATE KEY", der)...)
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		t.Fatal(err)
	}
	return data, &pair
}

// apiServer is the far end: real TLS, client certificates judged as the API
// server judges them.
type apiServer struct {
	*httptest.Server
	ca      *authority
	healthy atomic.Bool
	livez   atomic.Int32
	handler http.HandlerFunc
}

func newAPIServer(t *testing.T, ca *authority, handler http.HandlerFunc) *apiServer {
	t.Helper()
	s := &apiServer{ca: ca, handler: handler}
	s.healthy.Store(true)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	_, pair := ca.issue(t, "kube-apiserver", time.Hour)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*pair}, ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	if certs := r.TLS.PeerCertificates; len(certs) > 0 {
		_, err := certs[0].Verify(x509.VerifyOptions{Roots: s.ca.pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
	}
	if r.URL.Path == "/livez" {
		s.livez.Add(1)
		if !s.healthy.Load() {
			http.Error(w, "etcd failed", http.StatusInternalServerError)
		}
		return
	}
	s.handler(w, r)
}

func (s *apiServer) address() string { return s.Listener.Addr().String() }

// cable is a TCP link that can be cut: bytes stop, and nobody is told.
type cable struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	cut      bool
	changed  chan struct{}
	conns    []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, to: to, changed: make(chan struct{})}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			go c.copy(in, out)
			go c.copy(out, in)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, conn := range c.conns {
			conn.Close()
		}
	})
	return c
}

// copy moves bytes while the cable is whole. What arrives during a cut is lost,
// with all that follows on that connection.
func (c *cable) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	lost := false
	for {
		n, err := src.Read(buf)
		c.mu.Lock()
		lost = lost || c.cut
		c.mu.Unlock()
		if lost {
			if err != nil {
				return
			}
			continue
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
		if err != nil {
			dst.Close()
			return
		}
	}
}

func (c *cable) setCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
}

func (c *cable) url() string { return "https://" + c.listener.Addr().String() }

// source is a CertificateSource whose certificate the test sets.
type source struct {
	mu      sync.Mutex
	cert    *tls.Certificate
	err     error
	refused atomic.Int32
}

func (s *source) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert, s.err
}

func (s *source) set(cert *tls.Certificate, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert, s.err = cert, err
}

func (s *source) Refused() { s.refused.Add(1) }

// start runs an Upstream with short times.
func start(t *testing.T, ca *authority, certs CertificateSource, servers ...string) *Upstream {
	t.Helper()
	u, err := New(quick(Options{Servers: servers, CAFile: ca.file, NodeName: "edge-1", Certificates: certs}))
	if err != nil {
		t.Fatal(err)
	}
	run(t, u.Run)
	return u
}

func quick(o Options) Options {
	o.ProbeInterval, o.ProbeTimeout = 50*time.Millisecond, time.Second
	o.DialTimeout, o.IdlePing = time.Second, 600*time.Millisecond
	o.Logger = slog.New(slog.DiscardHandler)
	return o
}

func run(t *testing.T, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run does not end")
		}
	})
}

func eventually(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < within {
		if ok() {
			return time.Since(began)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("not within %s: %s", within, what)
	return 0
}

func get(t *testing.T, u *Upstream, c identity.Caller, path string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := do(ctx, u.Transport(c), http.MethodGet, path, url.Values{}, "", "", nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func decodePEM(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
