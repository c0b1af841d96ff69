package identity

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	maxToken = 16 << 10
	// leeway is for clocks that differ a little, the same as the API server's.
	leeway = time.Minute
)

// algorithms that a token may be signed with: those that an API server can have
// keys for. In particular no "none" and no shared secret.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512}

type objectRef struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// kubernetesClaims are what the API server's signer writes besides the standard
// claims.
type kubernetesClaims struct {
	Kubernetes struct {
		Namespace      string     `json:"namespace"`
		ServiceAccount objectRef  `json:"serviceaccount"`
		Pod            *objectRef `json:"pod"`
		Node           *objectRef `json:"node"`
		// Tokens that are bound to something else cannot be judged here.
		Secret     json.RawMessage `json:"secret"`
		Validating json.RawMessage `json:"validatingwebhookconfiguration"`
		Mutating   json.RawMessage `json:"mutatingwebhookconfiguration"`
	} `json:"kubernetes.io"`
}

// claims are what a token says.
type claims struct {
	jwt.Claims
	kubernetesClaims
}

// parsedToken is a token whose claims are not to be believed yet.
type parsedToken struct {
	jwt    *jwt.JSONWebToken
	keyID  string
	claims claims
}

// parseToken reads a token of bounded size.
func parseToken(raw string) (*parsedToken, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	parsed, err := jwt.ParseSigned(raw, algorithms)
	if err != nil {
		return nil, errors.New("the token is not a signed JSON Web Token of a known algorithm") // err may quote it
	}
	if len(parsed.Headers) != 1 {
		return nil, errors.New("the token has not exactly one signature")
	}
	t := &parsedToken{jwt: parsed, keyID: parsed.Headers[0].KeyID}
	if err := parsed.UnsafeClaimsWithoutVerification(&t.claims.Claims, &t.claims.kubernetesClaims); err != nil {
		return nil, errors.New("the token's claims cannot be read")
	}
	return t, nil
}

// verified is a token whose signature is good. Time and bindings are judged with
// each use.
type verified struct {
	claims claims
	caller Caller
	keys   *keySet // that it was verified with

	mu    sync.Mutex
	bound time.Time // when the binding was last found in the store
}

func (a *Authenticator) token(raw string, online bool) (Caller, error) {
	v, err := a.verify(raw)
	unknown := Caller{Token: raw}
	switch {
	case errors.Is(err, errUnknownSigner) && online:
		return unknown, nil
	case err != nil:
		return Caller{}, unauthorized("%v", err)
	}
	now := a.now()
	c := v.claims
	grace := time.Duration(0)
	if !online {
		grace = max(a.o.OfflineTokenGrace(), 0)
	}
	if c.Expiry == nil || now.After(c.Expiry.Time().Add(leeway+grace)) {
		return Caller{}, unauthorized("the token expired on %s%s", expiry(c), clockHint(a.o.Now(), now))
	}
	if online {
		// A token for another audience, or of a pod of another node, is none of
		// the hub's business: the API server judges it.
		if !a.forUs(v) || v.claims.Kubernetes.Node != nil && v.claims.Kubernetes.Node.Name != a.o.NodeName {
			return unknown, nil
		}
		return v.caller, nil
	}
	// The signer wrote its present time there: a much later one than ours is not
	// believed, a little later means that our clock is slow.
	for _, begin := range []*jwt.NumericDate{c.NotBefore, c.IssuedAt} {
		if begin != nil && begin.Time().After(now.Add(leeway+grace)) {
			return Caller{}, unauthorized("the token is not valid before %s", begin.Time().UTC().Format(time.RFC3339))
		}
	}
	if !a.forUs(v) {
		return Caller{}, unauthorized("the token is not for the API server but for %q", []string(c.Audience))
	}
	if err := a.bound(v, now); err != nil {
		return Caller{}, unauthorized("%v", err)
	}
	return v.caller, nil
}

func expiry(c claims) string {
	if c.Expiry == nil {
		return "no date at all"
	}
	return c.Expiry.Time().UTC().Format(time.RFC3339)
}

func clockHint(clock, used time.Time) string {
	if used.Sub(clock) > leeway {
		return fmt.Sprintf(" (the node's clock says %s, which cannot be true)", clock.UTC().Format(time.RFC3339))
	}
	return ""
}

// errUnknownSigner means that nothing here can tell whether a token is good.
var errUnknownSigner = errors.New("the token is not of an issuer and a key that this node knows")

// verify checks the signature of a token, once.
func (a *Authenticator) verify(raw string) (*verified, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	sum := sha256.Sum256([]byte(raw))
	keys := a.keys.get()
	if cached, ok := a.tokens.Get(sum); ok {
		if v := cached.(*verified); v.keys == keys {
			return v, nil
		}
	}
	t, err := parseToken(raw)
	if err != nil {
		// A webhook or OIDC may know what to make of it.
		return nil, fmt.Errorf("%w: %w", errUnknownSigner, err)
	}
	if keys == nil {
		a.keys.missing()
		return nil, fmt.Errorf("%w: the cluster's keys were never received", errUnknownSigner)
	}
	if t.claims.Issuer != keys.issuer {
		return nil, errUnknownSigner
	}
	candidates := keys.find(t.keyID)
	if len(candidates) == 0 {
		a.keys.missing()
		return nil, errUnknownSigner
	}
	v := &verified{keys: keys}
	good := false
	for _, key := range candidates {
		if key.Algorithm != "" && key.Algorithm != t.jwt.Headers[0].Algorithm {
			continue
		}
		if t.jwt.Claims(key.Key, &v.claims.Claims, &v.claims.kubernetesClaims) == nil {
			good = true
			break
		}
	}
	if !good {
		return nil, errors.New("the token's signature is wrong")
	}
	k := v.claims.Kubernetes
	user := serviceAccountUserPrefix + k.Namespace + ":" + k.ServiceAccount.Name
	if k.Namespace == "" || k.ServiceAccount.Name == "" || k.ServiceAccount.UID == "" || v.claims.Subject != user {
		return nil, errors.New("the token is not one of a service account")
	}
	v.caller = Caller{
		User: User{
			Name:   user,
			UID:    k.ServiceAccount.UID,
			Groups: []string{serviceAccountsGroup, serviceAccountsGroup + ":" + k.Namespace, authenticatedGroup},
			Extra:  map[string][]string{},
		},
		Token:    raw,
		Verified: true,
	}
	extra := func(name, value string) { v.caller.User.Extra["authentication.kubernetes.io/"+name] = []string{value} }
	if k.Pod != nil {
		v.caller.PodUID = k.Pod.UID
		extra("pod-name", k.Pod.Name)
		extra("pod-uid", k.Pod.UID)
	}
	if k.Node != nil {
		extra("node-name", k.Node.Name)
		extra("node-uid", k.Node.UID)
	}
	if v.claims.ID != "" {
		extra("credential-id", "JTI="+v.claims.ID)
	}
	a.tokens.Add(sum, v)
	return v, nil
}

// forUs reports whether the token has one of the API server's audiences.
func (a *Authenticator) forUs(v *verified) bool {
	if len(a.o.Audiences) == 0 {
		return slices.Contains(v.claims.Audience, v.keys.issuer)
	}
	return slices.ContainsFunc(a.o.Audiences, func(s string) bool { return slices.Contains(v.claims.Audience, s) })
}

// bound checks that what the token is bound to is still there, as far as this
// node can know without the cloud.
func (a *Authenticator) bound(v *verified, now time.Time) error {
	k := v.claims.Kubernetes
	if len(k.Secret)+len(k.Validating)+len(k.Mutating) > 0 {
		return errors.New("the token is bound to an object that only the cloud can look up")
	}
	if k.Node != nil && k.Node.Name != a.o.NodeName {
		return fmt.Errorf("the token is bound to node %s, not to this one", k.Node.Name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if since := now.Sub(v.bound); since >= 0 && since < bindingTTL {
		return nil
	}
	if k.Pod != nil {
		if !a.o.Bindings.PodExists(k.Namespace, k.Pod.Name, k.Pod.UID) {
			return fmt.Errorf("the token's pod %s/%s (UID %s) is not on this node", k.Namespace, k.Pod.Name, k.Pod.UID)
		}
	} else if !a.o.Bindings.ServiceAccountExists(k.Namespace, k.ServiceAccount.Name, k.ServiceAccount.UID) {
		return fmt.Errorf("service account %s/%s (UID %s) is not known on this node", k.Namespace, k.ServiceAccount.Name, k.ServiceAccount.UID)
	}
	v.bound = now
	return nil
}
