package rejoin

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	userPrefix = "system:node:"
	nodesGroup = "system:nodes"

	// issueTolerance is by how much a Node may seem younger than its node's
	// certificate: the cluster's signer dates certificates back by five minutes,
	// clocks of control-plane nodes differ, and a kubelet may register its Node
	// after it got its certificate.
	issueTolerance = 10 * time.Minute
	// maxChain bounds how many certificates a caller may show.
	maxChain = 4
)

// identity is a node that showed its certificate.
type identity struct {
	node        string
	certificate *x509.Certificate
}

func (i *identity) serial() string { return fmt.Sprintf("%x", i.certificate.SerialNumber) }

// expired is for how long the certificate has been over; 0: it has not ended.
func (i *identity) expired(now time.Time) time.Duration {
	return max(0, now.Sub(i.certificate.NotAfter)).Round(time.Second)
}

// identify says which node shows this chain. Everything must be as it was when
// the certificate was good: the chain to the cluster's authority, the purpose,
// the subject, and nothing in it that a node's client certificate does not have.
// TLS has proved that the caller has the key. Only the end of the validity is
// not looked at here.
func identify(chain []*x509.Certificate, authorities *x509.CertPool, now time.Time) (*identity, *refusal) {
	no := func(format string, args ...any) (*identity, *refusal) {
		return nil, refuse(badCertificate, http.StatusForbidden, format, args...)
	}
	if len(chain) > maxChain {
		return no("more than %d certificates", maxChain)
	}
	leaf := chain[0]
	if leaf.NotBefore.After(now) {
		return no("the certificate is not valid before %s; is a clock wrong?", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	if !leaf.NotAfter.After(leaf.NotBefore) {
		return no("the certificate was never valid")
	}
	at := now
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: authorities, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		r := refuse(badCertificate, http.StatusForbidden, "the certificate is not one of this cluster's for clients")
		r.err = err
		return nil, r
	}
	if leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(leaf.UnknownExtKeyUsage) > 0 {
		return no("the certificate is not for clients and nothing else")
	}
	if err := noNames(leaf.DNSNames, leaf.EmailAddresses, len(leaf.IPAddresses)+len(leaf.URIs)); err != nil {
		return no("the certificate is not a node's: %v", err)
	}
	node, err := nodeOf(leaf.Subject)
	if err != nil {
		return no("the certificate is not a node's: %v", err)
	}
	if err := saneKey(leaf.PublicKey); err != nil {
		return no("the certificate's key: %v", err)
	}
	return &identity{node: node, certificate: leaf}, nil
}

// nodeOf reads a node's name from a subject of exactly CN=system:node:NAME and
// O=system:nodes.
func nodeOf(subject pkix.Name) (string, error) {
	name, ok := strings.CutPrefix(subject.CommonName, userPrefix)
	if !ok {
		return "", fmt.Errorf("its common name does not begin with %s", userPrefix)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return "", errors.New("its common name ends in no name of a Node")
	}
	if !slices.Equal(subject.Organization, []string{nodesGroup}) {
		return "", fmt.Errorf("its organization is not %s alone", nodesGroup)
	}
	if len(subject.Names) != 2 {
		return "", errors.New("its subject has more than a common name and an organization")
	}
	return name, nil
}

func noNames(dns, email []string, others int) error {
	if len(dns)+len(email)+others > 0 {
		return errors.New("it has alternative names")
	}
	return nil
}

func saneKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return errors.New("its curve is not P-256, P-384 or P-521")
		}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("RSA with %d bits; it must have 2048 to 8192", bits)
		}
	case ed25519.PublicKey:
	default:
		return errors.New("neither ECDSA, RSA nor Ed25519")
	}
	return nil
}

// judge says whether the node may have a new certificate.
func judge(i *identity, node *corev1.Node, now time.Time, maxExpired time.Duration) *refusal {
	if over := i.expired(now); over > maxExpired {
		return refuse(expiredTooLong, http.StatusForbidden,
			"the certificate ended %s ago, which is more than %s: the node has to join again", over, maxExpired)
	}
	// A certificate of an earlier Node of this name: that machine was removed
	// from the cluster, and another one may have the name now.
	if made := node.CreationTimestamp.Time; made.After(i.certificate.NotBefore.Add(issueTolerance)) {
		return refuse(newerNode, http.StatusForbidden,
			"Node %s was made on %s, after the certificate: the node has to join again", node.Name, made.UTC().Format(time.RFC3339))
	}
	if node.Annotations[NoRejoin] == "true" {
		return refuse(shutOut, http.StatusForbidden, "Node %s has the annotation %s", node.Name, NoRejoin)
	}
	// Who has a good certificate of the node has no use for another; then this
	// one is a copy, or the node's heartbeat is from a moment ago.
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionUnknown {
			no := refuse(connected, http.StatusServiceUnavailable,
				"Node %s has a heartbeat: somebody holds a good certificate of it", node.Name)
			no.retry = 60
			return no
		}
	}
	return nil
}

// decodeRequest reads one PEM block CERTIFICATE REQUEST and nothing else.
func decodeRequest(body []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(body)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(block.Headers) > 0 {
		return nil, errors.New("the body must be one PEM block CERTIFICATE REQUEST")
	}
	// pem.Decode skips what stands before a block.
	if !strings.HasPrefix(strings.TrimSpace(string(body)), "-----BEGIN CERTIFICATE REQUEST-----") || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("the body must be one PEM block CERTIFICATE REQUEST and nothing else")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("the certificate request cannot be read")
	}
	if err := saneKey(request.PublicKey); err != nil {
		return nil, fmt.Errorf("the key of the certificate request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, errors.New("the signature of the certificate request is wrong")
	}
	if err := noNames(request.DNSNames, request.EmailAddresses, len(request.IPAddresses)+len(request.URIs)); err != nil {
		return nil, fmt.Errorf("the certificate request: %w", err)
	}
	return request, nil
}

// sameSubject says that a request is for what the certificate is for.
func (i *identity) sameSubject(request *x509.CertificateRequest) error {
	name, err := nodeOf(request.Subject)
	if err != nil {
		return fmt.Errorf("the certificate request is not a node's: %w", err)
	}
	if name != i.node {
		return errors.New("the certificate request is for another node than the certificate")
	}
	return nil
}
