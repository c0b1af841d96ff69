package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/agentapi"
)

// Files of the node's client certificate. Each holds the chain and the key in PEM.
const (
	currentFile = "node-client-current.pem"
	// nextFile is a certificate that was received and not yet shown to an API
	// server; the current one is kept until it was accepted.
	nextFile = "node-client-next.pem"
)

// CertificateOptions configure Certificates.
type CertificateOptions struct {
	Dir       string   // where node-client-current.pem is; required
	NodeName  string   // required
	ClusterCA string   // file; required
	Servers   []string // https URLs of the API servers; required
	// Bootstrap is a kubeconfig with a bootstrap token, used and then removed
	// when there is no certificate that can be used.
	Bootstrap string
	// RejoinPort of the control-plane nodes. Default agentapi.RejoinPort.
	RejoinPort int
	// RetryMin and RetryMax bound the pause after a failure, which doubles each
	// time and is spread by 25 %. Default 5 s and 5 min.
	RetryMin, RetryMax time.Duration
	Now                func() time.Time
	Logger             *slog.Logger
}

// Certificates owns the node's client certificate: gets it, renews it when 70 to
// 90 % of its life are over, and joins again when it ran out. Safe for concurrent
// use.
type Certificates struct {
	o       CertificateOptions
	servers []*url.URL
	ca      *caFile
	wake    chan struct{}

	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
	next    *tls.Certificate
	refused bool
	problem error // why there is no certificate, if it was set aside
}

// NewCertificates reads the certificate that is there. None, or one that cannot
// be read, is no error: it is set aside and another one is asked for.
func NewCertificates(o CertificateOptions) (*Certificates, error) {
	if o.Dir == "" || o.NodeName == "" || o.ClusterCA == "" {
		return nil, errors.New("certificates: the directory, the node's name and the cluster's CA file are required")
	}
	servers, err := parseServers(o.Servers)
	if err != nil {
		return nil, err
	}
	if o.RejoinPort == 0 {
		o.RejoinPort = agentapi.RejoinPort
	}
	defaultTo(&o.RetryMin, 5*time.Second)
	defaultTo(&o.RetryMax, 5*time.Minute)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	c := &Certificates{o: o, servers: servers, ca: &caFile{path: o.ClusterCA}, wake: make(chan struct{}, 1)}
	if cert := c.load(currentFile); cert != nil {
		c.use(cert)
	}
	c.next = c.load(nextFile)
	return c, nil
}

// Certificate implements CertificateSource.
func (c *Certificates) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.current == nil && c.problem != nil:
		return nil, fmt.Errorf("the node has no client certificate: %w", c.problem)
	case c.current == nil:
		return nil, errors.New("the node has no client certificate yet")
	case c.o.Now().After(c.current.Leaf.NotAfter):
		return nil, fmt.Errorf("the node's client certificate expired on %s", c.current.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return c.current, nil
}

// Refused implements CertificateSource.
func (c *Certificates) Refused() {
	c.mu.Lock()
	known := c.refused
	c.refused = true
	c.mu.Unlock()
	if known {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Expires says when the current certificate runs out; zero if there is none.
func (c *Certificates) Expires() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return time.Time{}
	}
	return c.current.Leaf.NotAfter
}

// use makes cert the current one. c.mu need not be held.
func (c *Certificates) use(cert *tls.Certificate) {
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.next, c.refused, c.problem = cert, nil, false, nil
	// Spread, so that a site that joined at once does not renew at once.
	c.renewAt = cert.Leaf.NotBefore.Add(time.Duration(float64(life) * (0.7 + 0.2*rand.Float64())))
}

// need says what has to be done about the certificate.
type need int

const (
	nothing     need = iota
	toProve          // a received certificate waits to be accepted
	toBootstrap      // with a bootstrap token
	toRejoin         // with the certificate that ran out
	toRenew          // in time
)

func (c *Certificates) need() (need, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	bad := c.current == nil || c.refused || now.After(c.current.Leaf.NotAfter)
	bootstrap := false
	if bad && c.o.Bootstrap != "" {
		_, err := os.Stat(c.o.Bootstrap)
		bootstrap = err == nil
	}
	switch {
	case c.next != nil:
		return toProve, now
	case bootstrap:
		return toBootstrap, now
	case bad && c.current != nil:
		return toRejoin, now
	case bad:
		return nothing, now.Add(c.o.RetryMin) // until somebody brings a bootstrap file
	case !now.Before(c.renewAt):
		return toRenew, now
	}
	return nothing, c.renewAt
}

// Run gets and renews the certificate through u until ctx ends.
func (c *Certificates) Run(ctx context.Context, u *Upstream) error {
	pause := c.o.RetryMin
	for ctx.Err() == nil {
		changed := u.Changes()
		what, at := c.need()
		if what == toRenew && !u.Online() {
			what, at = nothing, c.o.Now().Add(time.Hour) // coming online wakes us
		}
		if what == nothing {
			pause = c.o.RetryMin
			// At most an hour: clocks are set while we sleep.
			c.wait(ctx, min(time.Hour, max(at.Sub(c.o.Now()), 100*time.Millisecond)), changed)
			continue
		}
		err := c.act(ctx, u, what)
		if err == nil {
			pause = c.o.RetryMin
			continue
		}
		if ctx.Err() != nil {
			break
		}
		delay := time.Duration(float64(pause) * (0.75 + rand.Float64()/2))
		c.o.Logger.Warn("no new client certificate for the node", "error", err, "retry", delay.Round(time.Second))
		pause = min(2*pause, c.o.RetryMax)
		if what != toRenew {
			changed = nil // flapping is no reason to hurry
		}
		c.wait(ctx, delay, changed)
	}
	return nil
}

// wait sleeps until d is over, or u changes, or the certificate was refused.
func (c *Certificates) wait(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-changed:
	case <-c.wake:
	}
}

func (c *Certificates) act(ctx context.Context, u *Upstream, what need) error {
	switch what {
	case toProve:
		c.mu.Lock()
		cert := c.next
		c.mu.Unlock()
		return c.prove(ctx, u, cert)
	case toBootstrap:
		token, err := bootstrapToken(c.o.Bootstrap)
		if err == nil {
			err = c.obtain(ctx, u, u.directToken(token))
		}
		if err != nil {
			err = fmt.Errorf("joining with the bootstrap token: %w", err)
			if c.Expires().IsZero() || ctx.Err() != nil {
				return err
			}
			// The token may be of long ago. What ran out may still help.
			return errors.Join(err, c.act(ctx, u, toRejoin))
		}
		if err := os.Remove(c.o.Bootstrap); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.o.Logger.Warn("the bootstrap kubeconfig is not needed any more and could not be removed", "error", err)
		}
		return nil
	case toRejoin:
		if err := c.rejoin(ctx, u); err != nil {
			return fmt.Errorf("joining again: %w", err)
		}
		return nil
	default:
		if err := c.obtain(ctx, u, u.directNode()); err != nil {
			return fmt.Errorf("renewing: %w", err)
		}
		return nil
	}
}

// adopt writes down a certificate that was received, and proves it.
func (c *Certificates) adopt(ctx context.Context, u *Upstream, chain, key []byte) error {
	pemBytes := slices.Concat(withNewline(chain), key)
	cert, err := c.parse(pemBytes)
	if err != nil {
		return fmt.Errorf("the certificate that was received: %w", err)
	}
	if c.o.Now().After(cert.Leaf.NotAfter) {
		return fmt.Errorf("the certificate that was received expired on %s", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := writeFile(filepath.Join(c.o.Dir, nextFile), pemBytes); err != nil {
		return err
	}
	c.mu.Lock()
	c.next = cert
	c.mu.Unlock()
	return c.prove(ctx, u, cert)
}

// prove shows a certificate to an API server and makes it the current one if it
// is accepted. One that is refused is dropped; without an answer it waits.
func (c *Certificates) prove(ctx context.Context, u *Upstream, cert *tls.Certificate) error {
	var failure error
	for _, server := range u.servers {
		limited, cancel := context.WithTimeout(ctx, u.o.ProbeTimeout)
		err := u.ask(limited, server, cert)
		cancel()
		if err == nil {
			if err := rename(c.o.Dir, nextFile, currentFile); err != nil {
				return err
			}
			c.use(cert)
			c.o.Logger.Info("the node has a new client certificate", "expires", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
			return nil
		}
		failure = err
	}
	if errors.Is(failure, errRefused) || c.o.Now().After(cert.Leaf.NotAfter) {
		c.mu.Lock()
		c.next = nil
		c.mu.Unlock()
		if err := os.Remove(filepath.Join(c.o.Dir, nextFile)); err != nil {
			return err
		}
		return fmt.Errorf("a new certificate is dropped: %w", failure)
	}
	return fmt.Errorf("a new certificate waits to be tried: %w", failure)
}

// load reads a certificate file. What cannot be read is set aside.
func (c *Certificates) load(name string) *tls.Certificate {
	path := filepath.Join(c.o.Dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var cert *tls.Certificate
	if err == nil {
		cert, err = c.parse(data)
	}
	if err != nil {
		c.o.Logger.Error("the node's client certificate cannot be used and is set aside", "file", path, "error", err)
		c.problem = fmt.Errorf("%s was set aside: %w", name, err)
		if err := os.Rename(path, path+".bad"); err != nil {
			c.o.Logger.Error("setting aside", "error", err)
		}
		return nil
	}
	return cert
}

// parse reads a chain and its key, and checks that it is this node's.
func (c *Certificates) parse(data []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	if got, want := cert.Leaf.Subject.CommonName, nodeUser(c.o.NodeName); got != want {
		return nil, fmt.Errorf("it is for %q, not for %q", got, want)
	}
	if !slices.Contains(cert.Leaf.Subject.Organization, nodesGroup) {
		return nil, fmt.Errorf("it is not of the group %s", nodesGroup)
	}
	return &cert, nil
}

const nodesGroup = "system:nodes"

func nodeUser(node string) string { return "system:node:" + node }
