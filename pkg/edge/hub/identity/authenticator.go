package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/lru"

	"skerry.dev/skerry/pkg/edge/store"
)

const (
	defaultTokenGrace = 168 * time.Hour
	// bindingTTL is how long a token's pod or service account is not looked up
	// again in the store.
	bindingTTL = 5 * time.Second
	// verifiedTokens and verifiedCertificates bound what is remembered.
	verifiedTokens       = 512
	verifiedCertificates = 32
)

// Documents is where the cluster's keys are kept; *store.Store is one.
type Documents interface {
	Document(name string) ([]byte, bool, error)
	Apply(b *store.Batch, d store.Durability) error
}

// Bindings says whether the object that a token is bound to still exists, as far
// as this node knows. See StoreBindings.
type Bindings interface {
	// PodExists reports whether the pod with this UID is bound to this node.
	PodExists(namespace, name, uid string) bool
	ServiceAccountExists(namespace, name, uid string) bool
}

// Fetch gets a document from the API server with the node's identity.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// AuthenticatorOptions configure an Authenticator.
type AuthenticatorOptions struct {
	NodeName  string    // required
	PKI       *NodePKI  // required
	ClusterCA string    // file; only to explain why its certificates are refused
	Documents Documents // required
	Bindings  Bindings  // required
	// Fetch gets the issuer's configuration and keys. nil: only what Documents
	// has is used.
	Fetch Fetch
	// Audiences that a token must have one of. Default: the issuer.
	Audiences []string
	// OfflineTokenGrace says how long after its expiry a token is accepted while
	// the cloud is away. Default 168 h; online it is 0.
	OfflineTokenGrace func() time.Duration
	// LastSeen is the newest time that the node has heard of. A clock that is
	// behind it is wrong, and expiry is judged by LastSeen. Optional.
	LastSeen func() time.Time
	Now      func() time.Time // default time.Now
	Logger   *slog.Logger     // default slog.Default()
}

// Authenticator finds out who sent a request. Safe for concurrent use.
type Authenticator struct {
	o            AuthenticatorOptions
	keys         *issuerKeys
	tokens       *lru.Cache // sha256 of the token -> *verified
	certificates *lru.Cache // sha256 of the certificate -> Caller
}

// NewAuthenticator returns an Authenticator that knows the keys in Documents.
func NewAuthenticator(o AuthenticatorOptions) (*Authenticator, error) {
	if o.NodeName == "" || o.PKI == nil || o.Documents == nil || o.Bindings == nil {
		return nil, errors.New("authenticator: the node's name, its PKI, documents and bindings are required")
	}
	if o.OfflineTokenGrace == nil {
		o.OfflineTokenGrace = func() time.Duration { return defaultTokenGrace }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	keys, err := newIssuerKeys(o)
	if err != nil {
		return nil, err
	}
	return &Authenticator{o: o, keys: keys, tokens: lru.New(verifiedTokens), certificates: lru.New(verifiedCertificates)}, nil
}

// Run keeps the issuer's keys fresh until ctx ends: daily, and soon after a token
// with an unknown key was seen. online says whether Fetch can succeed.
func (a *Authenticator) Run(ctx context.Context, online func() bool) { a.keys.run(ctx, online) }

// Authenticate returns who sent the request. The error is an apierrors 401.
//
// Online, a token that is known to be bad is refused; one of an unknown issuer or
// key is passed with Verified=false, for the API server to judge. Offline, only
// what can be verified here passes.
func (a *Authenticator) Authenticate(r *http.Request, online bool) (Caller, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		// A certificate decides, as it does at the API server, whatever else the
		// request carries; one of an authority that is none of the cluster's (of
		// a service mesh) says nothing, and a token may follow it.
		leaf := r.TLS.PeerCertificates[0]
		caller, err := a.certificate(leaf)
		if err == nil || len(r.Header.Values("Authorization")) == 0 || !errors.As(err, new(x509.UnknownAuthorityError)) {
			return caller, err
		}
	}
	token, err := bearer(r.Header)
	if err != nil {
		return Caller{}, unauthorized("%v", err)
	}
	return a.token(token, online)
}

func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", errors.New("the request has no credential, and the hub takes no anonymous requests")
	case 1:
	default:
		return "", errors.New("the request has several Authorization headers")
	}
	scheme, token, ok := strings.Cut(strings.TrimSpace(values[0]), " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", errors.New("the Authorization header is not a bearer token")
	}
	if strings.ContainsAny(token, " \t\r\n") {
		return "", errors.New("the bearer token is malformed")
	}
	return token, nil
}

func (a *Authenticator) certificate(leaf *x509.Certificate) (Caller, error) {
	pool := a.o.PKI.Pool()
	now := a.now()
	key := certificateKey{sha256.Sum256(leaf.Raw), pool}
	if cached, ok := a.certificates.Get(key); ok && now.Before(leaf.NotAfter) {
		return cached.(Caller), nil
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		if a.ofCluster(leaf) {
			return Caller{}, unauthorized("the client certificate %q is of the cluster's authority: the hub cannot pass it on. "+
				"Use a service account token here, or the API server's own address", leaf.Subject.CommonName)
		}
		return Caller{}, &refusal{unauthorized("the client certificate is not accepted: %v", err), err}
	}
	want := nodeUserPrefix + a.o.NodeName
	if leaf.Subject.CommonName != want || !slices.Contains(leaf.Subject.Organization, nodesGroup) {
		return Caller{}, unauthorized("the client certificate is not for %s of %s", want, nodesGroup)
	}
	caller := Caller{
		User:     User{Name: want, Groups: []string{nodesGroup, authenticatedGroup}},
		Node:     true,
		Verified: true,
	}
	a.certificates.Add(key, caller)
	return caller, nil
}

type certificateKey struct {
	sum  [sha256.Size]byte
	pool *x509.CertPool
}

// ofCluster reports whether the cluster's authority signed the certificate.
func (a *Authenticator) ofCluster(leaf *x509.Certificate) bool {
	if a.o.ClusterCA == "" {
		return false
	}
	data, err := os.ReadFile(a.o.ClusterCA)
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:       pool,
		CurrentTime: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2),
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// now is the clock's time, or a later one if the clock is known to be wrong.
func (a *Authenticator) now() time.Time {
	now := a.o.Now()
	if now.Before(built) {
		now = built
	}
	if a.o.LastSeen != nil {
		if seen := a.o.LastSeen(); now.Before(seen) {
			now = seen
		}
	}
	return now
}

// refusal is a 401 with its cause.
type refusal struct {
	*apierrors.StatusError
	cause error
}

func (r *refusal) Unwrap() []error { return []error{r.StatusError, r.cause} }

func unauthorized(format string, args ...any) *apierrors.StatusError {
	return apierrors.NewUnauthorized(fmt.Sprintf(format, args...))
}
