package mesh

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// authority is a cluster's certificate authority.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pool        *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-10 * 365 * 24 * time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	a.certificate = sign(t, template, template, key.Public(), key)
	a.pool.AddCert(a.certificate)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, public any, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// issue makes a certificate as the cluster makes those of nodes, but for what
// change does to it.
func (a *authority) issue(t testing.TB, name string, change func(*x509.Certificate)) *tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: nodePrefix + name, Organization: []string{nodesGroup}},
		NotBefore:    time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	key := newKey(t)
	leaf := sign(t, template, a.certificate, key.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// node is one mesh and what it has received.
type node struct {
	*Mesh
	name string
	stop func()

	crashed atomic.Bool

	mu   sync.Mutex
	got  map[string][]string
	wake chan struct{}
}

// members is what all nodes of a test know of each other.
type members struct {
	mu        sync.Mutex
	addresses map[string][]netip.AddrPort
}

func (m *members) set(name string, addresses ...netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.addresses == nil {
		m.addresses = map[string][]netip.AddrPort{}
	}
	m.addresses[name] = addresses
}

func (m *members) get(name string) ([]netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addresses, ok := m.addresses[name]
	return addresses, ok
}

const loopback = "127.0.0.1:0"

// start runs a mesh, and makes it a member.
func start(t testing.TB, site *members, a *authority, name, listen string, certificate *tls.Certificate) *node {
	t.Helper()
	n := &node{name: name, got: map[string][]string{}, wake: make(chan struct{}, 1)}
	mesh, err := New(Options{
		Self: name, Listen: netip.MustParseAddrPort(listen), Logger: slog.New(slog.DiscardHandler),
		Certificate: func() (*tls.Certificate, error) { return certificate, nil },
		Authority:   func() (*x509.CertPool, error) { return a.pool, nil },
		Addresses:   site.get,
		Receive: func(from string, data []byte) {
			n.mu.Lock()
			n.got[from] = append(n.got[from], string(data))
			n.mu.Unlock()
			select {
			case n.wake <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Mesh = mesh
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := mesh.Run(ctx); err != nil && !n.crashed.Load() {
			t.Errorf("%s: %v", name, err)
		}
	}()
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(n.stop)
	site.set(name, mesh.Address())
	return n
}

// has waits until a message has arrived.
func (n *node) has(from, message string, within time.Duration) error {
	deadline := time.After(within)
	for {
		n.mu.Lock()
		for _, got := range n.got[from] {
			if got == message {
				n.mu.Unlock()
				return nil
			}
		}
		n.mu.Unlock()
		select {
		case <-n.wake:
		case <-deadline:
			return fmt.Errorf("%s has not received %q of %s within %v", n.name, message, from, within)
		}
	}
}

func (n *node) count(from string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.got[from])
}
