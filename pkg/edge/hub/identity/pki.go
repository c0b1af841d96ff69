package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Files of the node's own PKI, below its directory.
const (
	NodeCACert  = "node-ca.crt"
	NodeCAKey   = "node-ca.key"
	ServingCert = "hub.crt"
	ServingKey  = "hub.key"
	KubeletCert = "kubelet.crt"
	KubeletKey  = "kubelet.key"
)

const (
	caLife   = 100 * 365 * 24 * time.Hour
	leafLife = 2 * 365 * 24 * time.Hour
)

// epoch is when the certificates begin: a node without a clock of its own boots
// in 1970, and must trust itself then.
var epoch = time.Unix(0, 0).UTC()

// NodePKI is the certificate authority of one node, trusted on this node only,
// and the two certificates that it signs: the hub's for serving and the
// kubelet's for calling the hub. Safe for concurrent use.
type NodePKI struct {
	dir, nodeName string
	sans          []string
	log           *slog.Logger
	now           func() time.Time

	mu      sync.Mutex
	ca      *x509.Certificate
	caKey   *ecdsa.PrivateKey
	serving *tls.Certificate
	pool    *x509.CertPool
}

// EnsurePKI makes what is missing in dir, sets aside and makes anew what cannot
// be read, and renews what has less than a third of its life left or serves other
// names. sans are the DNS names and addresses that the hub serves.
//
// A new authority is made only if the old one cannot be used. Who trusts it must
// refer to NodeCACert by file, as must the kubelet to its certificate and key.
func EnsurePKI(dir, nodeName string, sans []string, logger *slog.Logger) (*NodePKI, error) {
	return ensurePKI(dir, nodeName, sans, logger, time.Now)
}

func ensurePKI(dir, nodeName string, sans []string, logger *slog.Logger, now func() time.Time) (*NodePKI, error) {
	if nodeName == "" || len(sans) == 0 {
		return nil, errors.New("the node's PKI needs the node's name and the names that the hub serves")
	}
	if logger == nil {
		logger = slog.Default()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the node's PKI: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the node's PKI: %w", err)
	}
	p := &NodePKI{dir: dir, nodeName: nodeName, sans: slices.Clone(sans), log: logger, now: now}
	slices.Sort(p.sans)
	if err := p.ensure(); err != nil {
		return nil, fmt.Errorf("the node's PKI in %s: %w", dir, err)
	}
	return p, nil
}

// Run renews certificates that are due, daily, until ctx ends.
func (p *NodePKI) Run(ctx context.Context) {
	ticker := time.NewTicker(24 * time.Hour)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := p.ensure(); err != nil {
				p.log.Error("renewing the node's own certificates", "dir", p.dir, "error", err)
			}
		}
	}
}

// CA returns the authority's certificate in PEM.
func (p *NodePKI) CA() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return encodePEM("CERTIFICATE", p.ca.Raw)
}

// Pool returns the authority's certificate as a pool.
func (p *NodePKI) Pool() *x509.CertPool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pool
}

// TLSConfig is for the hub's listeners. It asks for a client certificate and
// takes any: the Authenticator judges it, so that a refusal can be explained.
func (p *NodePKI) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.serving, nil
		},
	}
}

func (p *NodePKI) ensure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ensureCA(); err != nil {
		return err
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "skerry-hub"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, san := range p.sans {
		if ip := net.ParseIP(san); ip != nil {
			serving.IPAddresses = append(serving.IPAddresses, ip)
		} else {
			serving.DNSNames = append(serving.DNSNames, san)
		}
	}
	pair, err := p.ensureLeaf(ServingCert, ServingKey, serving)
	if err != nil {
		return err
	}
	p.serving = pair
	_, err = p.ensureLeaf(KubeletCert, KubeletKey, &x509.Certificate{
		Subject:     pkix.Name{CommonName: nodeUserPrefix + p.nodeName, Organization: []string{nodesGroup}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func (p *NodePKI) ensureCA() error {
	pair, err := p.load(NodeCACert, NodeCAKey)
	if err == nil {
		key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		switch {
		case !ok || !pair.Leaf.IsCA:
			err = errors.New("not a certificate authority with an ECDSA key")
		case p.due(pair.Leaf):
			err = errors.New("it is about to expire")
		default:
			p.setCA(pair.Leaf, key)
			return nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		p.log.Warn("the node's certificate authority cannot be used and is made anew", "dir", p.dir, "error", err)
	}
	p.setAside(NodeCACert, NodeCAKey)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := serialNumber()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial number keeps apart the authorities that a node had: clients
		// tell them by their subject.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("skerry-node-ca@%s-%x", p.nodeName, serial.Bytes()[:4])},
		NotBefore:             epoch,
		NotAfter:              p.after(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if err := p.save(NodeCACert, NodeCAKey, der, key); err != nil {
		return err
	}
	p.setCA(cert, key)
	return nil
}

func (p *NodePKI) setCA(cert *x509.Certificate, key *ecdsa.PrivateKey) {
	if p.ca != nil && p.ca.Equal(cert) {
		return
	}
	p.ca, p.caKey, p.pool = cert, key, x509.NewCertPool()
	p.pool.AddCert(cert)
}

// ensureLeaf returns the certificate in the files if it is the wanted one and not
// due, else a new one.
func (p *NodePKI) ensureLeaf(certFile, keyFile string, want *x509.Certificate) (*tls.Certificate, error) {
	pair, err := p.load(certFile, keyFile)
	if err == nil {
		switch have := pair.Leaf; {
		case have.CheckSignatureFrom(p.ca) != nil:
			err = errors.New("it is not signed by the node's authority")
		case p.due(have):
			err = errors.New("it is due")
		case have.Subject.String() != want.Subject.String() || !slices.Equal(have.DNSNames, want.DNSNames) ||
			!slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal):
			err = errors.New("it has other names")
		default:
			return pair, nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		p.log.Info("a certificate of the node is made anew", "file", filepath.Join(p.dir, certFile), "reason", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	want.SerialNumber, want.NotBefore, want.NotAfter = serial, epoch, p.after(leafLife)
	want.KeyUsage, want.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	der, err := x509.CreateCertificate(rand.Reader, want, p.ca, key.Public(), p.caKey)
	if err != nil {
		return nil, err
	}
	if err := p.save(certFile, keyFile, der, key); err != nil {
		return nil, err
	}
	return p.load(certFile, keyFile)
}

// built is no later than the first start of this program: a clock before it is
// wrong, and must not make certificates that end before the node's real time.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (p *NodePKI) after(life time.Duration) time.Time {
	now := p.now()
	if now.Before(built) {
		now = built
	}
	return now.Add(life).UTC().Truncate(time.Second)
}

// due reports whether less than a third of the life that was meant is left. The
// life of a certificate does not count from the epoch.
func (p *NodePKI) due(cert *x509.Certificate) bool {
	life := leafLife
	if cert.IsCA {
		life = caLife
	}
	return p.now().After(cert.NotAfter.Add(-life / 3))
}

func (p *NodePKI) load(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := os.ReadFile(filepath.Join(p.dir, certFile))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(p.dir, keyFile))
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &pair, nil
}

// save writes the key first: a certificate without its key is made anew, a key
// without its certificate, too.
func (p *NodePKI) save(certFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(p.dir, keyFile), encodePEM("EC PRIVATE KEY", keyDER), 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(p.dir, certFile), encodePEM("CERTIFICATE", der), 0o644)
}

func (p *NodePKI) setAside(names ...string) {
	for _, name := range names {
		path := filepath.Join(p.dir, name)
		if err := os.Rename(path, path+".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.log.Error("setting aside", "error", err)
		}
	}
}

func serialNumber() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and never short
	return new(big.Int).SetBytes(b[:]), nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writeFile replaces a file so that a power cut leaves the old or the new one. A
// file that has these bytes already is left alone.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
