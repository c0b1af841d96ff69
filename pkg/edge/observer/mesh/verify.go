package mesh

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	nodePrefix = "system:node:"
	nodesGroup = "system:nodes"
)

var (
	errOwnName  = errors.New("it has this node's own name")
	errWrongOne = errors.New("another node than the one that was called")
)

// verifyClient runs at the end of each handshake that another node has begun.
func (m *Mesh) verifyClient(state tls.ConnectionState) error {
	_, err := m.identify(state)
	if err != nil {
		m.counters.refused.Add(1)
		m.log.Debug("refused a neighbour", "err", err)
	}
	return err
}

// verifyServer runs at the end of each handshake that this node has begun.
func (m *Mesh) verifyServer(name string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		got, err := m.identify(state)
		if err == nil && got != name {
			err = fmt.Errorf("%w: %s", errWrongOne, got)
		}
		return err
	}
}

// identify says which node is at the other end. It need not be a member: see
// guests.
func (m *Mesh) identify(state tls.ConnectionState) (string, error) {
	pool, err := m.o.Authority()
	if err != nil {
		return "", fmt.Errorf("the cluster's authority: %w", err)
	}
	name, err := identify(state.PeerCertificates, pool, m.o.Now(), m.o.MaxExpired)
	if err != nil {
		return "", err
	}
	if name == m.o.Self {
		return "", errOwnName
	}
	return name, nil
}

// identify says whose certificate it is: that of a node, signed by the cluster
// for clients, and for nothing else. Certificates of nodes have no use as those
// of servers and no names but the subject's, so what crypto/tls would check does
// not fit.
//
// One that has run out is good for maxExpired longer: this node may be as unable
// to get a new one. One that is not valid yet is good: the clock is wrong here,
// and a neighbour is no less alive for it.
func identify(chain []*x509.Certificate, pool *x509.CertPool, now time.Time, maxExpired time.Duration) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("no certificate")
	}
	if len(chain) > 8 {
		return "", errors.New("too many certificates")
	}
	leaf := chain[0]
	if now.Sub(leaf.NotAfter) > maxExpired {
		return "", fmt.Errorf("the certificate ended %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	when := now
	if when.After(leaf.NotAfter) {
		when = leaf.NotAfter
	}
	if when.Before(leaf.NotBefore) {
		when = leaf.NotBefore
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: intermediates, CurrentTime: when,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return "", err
	}
	name, ok := strings.CutPrefix(leaf.Subject.CommonName, nodePrefix)
	organizations := leaf.Subject.Organization
	switch {
	case !ok || name == "" || len(organizations) != 1 || organizations[0] != nodesGroup:
		return "", fmt.Errorf("%q of %q is no node", leaf.Subject.CommonName, organizations)
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) > 0:
		return "", fmt.Errorf("the certificate of %q has other names", leaf.Subject.CommonName)
	}
	return name, nil
}
