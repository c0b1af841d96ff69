package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"skerry.dev/skerry/pkg/edge/store"
)

const testIssuer = "https://kubernetes.default.svc.cluster.local"

var (
	rsaKey     = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSA   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecdsaKey   = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	rotatedKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// documents are what the API server publishes about its signer, made by its own
// code.
func documents(t testing.TB, issuer string, public ...any) (configuration, jwks []byte) {
	t.Helper()
	getter, err := serviceaccount.StaticPublicKeysGetter(public)
	if err != nil {
		t.Fatal(err)
	}
	provider, err := serviceaccount.NewOpenIDMetadataProvider(issuer, "", "api:6443", getter)
	if err != nil {
		t.Fatal(err)
	}
	configuration, _ = provider.GetConfigJSON()
	jwks, _ = provider.GetKeysetJSON()
	return configuration, jwks
}

type tokenSpec struct {
	issuer    string
	key       any
	audiences []string
	lives     int64 // seconds; default 3607
	pod       *core.Pod
	node      *core.Node
	secret    *core.Secret
}

var (
	testAccount = core.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "sa-uid"}}
	testPod     = &core.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till-0", UID: "pod-uid"}}
	thisNode    = &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "edge-1", UID: "node-uid"}}
)

// sign makes a token as the API server does.
func (s tokenSpec) sign(t testing.TB) string {
	t.Helper()
	if s.issuer == "" {
		s.issuer = testIssuer
	}
	if s.key == nil {
		s.key = rsaKey()
	}
	if s.audiences == nil {
		s.audiences = []string{testIssuer}
	}
	if s.lives == 0 {
		s.lives = 3607
	}
	public, private, err := serviceaccount.Claims(testAccount, s.pod, s.secret, s.node, nil, nil, s.lives, 0, s.audiences, nil)
	if err != nil {
		t.Fatal(err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(s.issuer, s.key)
	if err != nil {
		t.Fatal(err)
	}
	token, err := generator.GenerateToken(context.Background(), public, private)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Path: filepath.Join(t.TempDir(), "store.db"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

type marshaler interface{ Marshal() ([]byte, error) }

// put stores one object as a member of the whole view of its resource.
func put(t testing.TB, s *store.Store, group, resource, kind, namespace, name, uid string, obj marshaler) {
	t.Helper()
	data, err := obj.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	q := store.Query{Group: group, Version: "v1", Resource: resource}
	k := store.Key{Group: group, Version: "v1", Resource: resource, Namespace: namespace, Name: name}
	var b store.Batch
	b.SetView(store.View{Query: q, Kind: kind, Node: true, Complete: true, ResourceVersion: 10, Synced: time.Now()})
	b.Put(store.Object{Key: k, Kind: kind, UID: uid, ResourceVersion: 10, Format: store.FormatProtobuf, Data: data})
	b.Join(q, k)
	if err := s.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
}

func putPod(t testing.TB, s *store.Store, name, uid, node string) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: node}}
	put(t, s, "", "pods", "Pod", "shop", name, uid, pod)
}

// fixture is an Authenticator over a real store that knows the cluster's keys.
type fixture struct {
	*Authenticator
	store *store.Store
	pki   *NodePKI
}

func newFixture(t testing.TB, change func(*AuthenticatorOptions)) fixture {
	t.Helper()
	s := openStore(t)
	configuration, jwks := documents(t, testIssuer, rsaKey().Public(), ecdsaKey().Public())
	var b store.Batch
	b.PutDocument(issuerPath, configuration)
	b.PutDocument(keysPath, jwks)
	if err := s.Apply(&b, store.Durable); err != nil {
		t.Fatal(err)
	}
	pki, err := EnsurePKI(t.TempDir(), "edge-1", hubNames, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	o := AuthenticatorOptions{
		NodeName: "edge-1", PKI: pki, Documents: s, Bindings: StoreBindings(s, "edge-1"), Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	a, err := NewAuthenticator(o)
	if err != nil {
		t.Fatal(err)
	}
	return fixture{a, s, pki}
}

func ask(a *Authenticator, token string, online bool) (Caller, error) {
	r := httptest.NewRequest(http.MethodGet, "https://hub/api", nil)
	r.TLS = nil
	r.Header.Set("Authorization", "Bearer "+token)
	return a.Authenticate(r, online)
}

// expect is what should come of a token.
type expect string

const (
	known   expect = "verified"
	passed  expect = "passed on"
	refused expect = "401"
)

func judge(t *testing.T, c Caller, err error) expect {
	t.Helper()
	switch {
	case err != nil:
		if !apierrors.IsUnauthorized(err) {
			t.Errorf("not a 401: %v", err)
		}
		return refused
	case c.Verified:
		return known
	default:
		if c.User.Name != "" || c.PodUID != "" || c.ID() != "unverified" {
			t.Errorf("unverified, and yet it is somebody: %+v", c)
		}
		return passed
	}
}

func TestTokens(t *testing.T) {
	f := newFixture(t, nil)
	putPod(t, f.store, "till-0", "pod-uid", "edge-1")
	putPod(t, f.store, "elsewhere", "elsewhere-uid", "edge-2")
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "sa-uid"}}
	podRef := func(name, uid string) *core.Pod {
		return &core.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)}}
	}
	good := tokenSpec{pod: testPod, node: thisNode}.sign(t)
	parts := strings.Split(good, ".")
	for _, tc := range []struct {
		name            string
		token           string
		online, offline expect
	}{
		{"RSA, bound to a pod here", good, known, known},
		{"ECDSA", tokenSpec{pod: testPod, node: thisNode, key: ecdsaKey()}.sign(t), known, known},
		{"without a node claim", tokenSpec{pod: testPod}.sign(t), known, known},
		{"several audiences", tokenSpec{pod: testPod, audiences: []string{"vault", testIssuer}}.sign(t), known, known},
		{"expired an hour ago", tokenSpec{pod: testPod, lives: -3600}.sign(t), refused, known},
		{"expired eight days ago", tokenSpec{pod: testPod, lives: -8 * 86400}.sign(t), refused, refused},
		{"another audience", tokenSpec{pod: testPod, audiences: []string{"vault"}}.sign(t), passed, refused},
		{"another issuer", tokenSpec{pod: testPod, issuer: "https://other"}.sign(t), passed, refused},
		{"a key that is not published", tokenSpec{pod: testPod, key: otherRSA()}.sign(t), passed, refused},
		{"a forged signature", parts[0] + "." + parts[1] + "." + forge(parts[2]), refused, refused},
		{"changed claims", parts[0] + "." + b64(`{"iss":"`+testIssuer+`","sub":"system:serviceaccount:kube-system:admin","exp":9999999999}`) + "." + parts[2], refused, refused},
		{"no signature", b64(`{"alg":"none"}`) + "." + parts[1] + ".", passed, refused},
		{"the public key as a shared secret", hmacToken(t, good), passed, refused},
		{"a pod of another node, by the store", tokenSpec{pod: podRef("elsewhere", "elsewhere-uid")}.sign(t), known, refused},
		{"a pod of another node, by its claim", tokenSpec{pod: testPod, node: &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "edge-2", UID: "x"}}}.sign(t), passed, refused},
		{"an earlier pod of that name", tokenSpec{pod: podRef("till-0", "earlier")}.sign(t), known, refused},
		{"a pod that is not known", tokenSpec{pod: podRef("nobody", "nobody")}.sign(t), known, refused},
		{"bound to a secret", tokenSpec{secret: &core.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", UID: "u"}}}.sign(t), known, refused},
		{"bound to nothing, account not known", tokenSpec{}.sign(t), known, refused},
		{"no JWT", "abcdef.0123456789abcdef", passed, refused},
		{"far too long", strings.Repeat("a", maxToken+1), refused, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // the second time from memory
				c, err := ask(f.Authenticator, tc.token, true)
				if got := judge(t, c, err); got != tc.online {
					t.Errorf("online: %s, want %s (%v)", got, tc.online, err)
				}
				c, err = ask(f.Authenticator, tc.token, false)
				if got := judge(t, c, err); got != tc.offline {
					t.Errorf("offline: %s, want %s (%v)", got, tc.offline, err)
				}
				if err != nil && strings.Contains(err.Error(), tc.token) {
					t.Error("the error quotes the token")
				}
			}
		})
	}
	put(t, f.store, "", "serviceaccounts", "ServiceAccount", "shop", "till", "sa-uid", account)
	c, err := ask(f.Authenticator, tokenSpec{}.sign(t), false)
	if got := judge(t, c, err); got != known {
		t.Errorf("bound to nothing, account known: %s (%v)", got, err)
	}
	secret := tokenSpec{secret: &core.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", UID: "u"}}}
	c, err = ask(f.Authenticator, secret.sign(t), false)
	if got := judge(t, c, err); got != refused {
		t.Errorf("bound to a secret, account known: %s", got)
	}
	c, err = ask(f.Authenticator, good, false)
	if err != nil {
		t.Fatal(err)
	}
	if c.User.Name != "system:serviceaccount:shop:till" || c.User.UID != "sa-uid" || c.PodUID != "pod-uid" || c.Token != good || c.Node ||
		fmt.Sprint(c.User.Groups) != "[system:serviceaccounts system:serviceaccounts:shop system:authenticated]" ||
		c.User.Extra["authentication.kubernetes.io/node-name"][0] != "edge-1" || c.ID() != c.User.Name {
		t.Errorf("caller %+v", c)
	}
	if ns, name, ok := c.ServiceAccount(); ns != "shop" || name != "till" || !ok {
		t.Errorf("service account %s/%s %v", ns, name, ok)
	}
}

// forge changes a signature in its middle, where each bit counts.
func forge(signature string) string {
	b := []byte(signature)
	if b[20] == 'A' {
		b[20] = 'B'
	} else {
		b[20] = 'A'
	}
	return string(b)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// hmacToken is the classic: HS256 with the published key as the secret.
func hmacToken(t *testing.T, good string) string {
	t.Helper()
	public := must(x509.MarshalPKIXPublicKey(rsaKey().Public()))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: public}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := must(jwt.ParseSigned(good, algorithms)).UnsafeClaimsWithoutVerification(&all); err != nil {
		t.Fatal(err)
	}
	return must(jwt.Signed(signer).Claims(all).Serialize())
}

func TestATokenDiesWithItsPod(t *testing.T) {
	now := time.Now()
	f := newFixture(t, func(o *AuthenticatorOptions) { o.Now = func() time.Time { return now } })
	putPod(t, f.store, "till-0", "pod-uid", "edge-1")
	token := tokenSpec{pod: testPod}.sign(t)
	if _, err := ask(f.Authenticator, token, false); err != nil {
		t.Fatal(err)
	}
	var b store.Batch
	b.Delete(store.Key{Version: "v1", Resource: "pods", Namespace: "shop", Name: "till-0"})
	if err := f.store.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
	now = now.Add(bindingTTL)
	if c, err := ask(f.Authenticator, token, false); err == nil {
		t.Errorf("%+v after its pod was deleted", c)
	}
}

func TestClocks(t *testing.T) {
	real := time.Now()
	for _, tc := range []struct {
		name     string
		clock    time.Time
		lastSeen time.Time
		lives    int64
		want     expect // offline, with a grace of one hour
	}{
		{"right", real, time.Time{}, 3600, known},
		{"1970, nothing seen", time.Unix(30, 0), time.Time{}, 3600, refused}, // the token is of the far future
		{"1970, the store knows better", time.Unix(30, 0), real, 3600, known},
		{"1970, expired by what the store knows", time.Unix(30, 0), real.Add(3 * time.Hour), 3600, refused},
		{"half an hour slow", real.Add(-30 * time.Minute), time.Time{}, 3600, known},
		{"expired within the grace", real, time.Time{}, -1800, known},
		{"expired beyond the grace", real, time.Time{}, -2 * 3600, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, func(o *AuthenticatorOptions) {
				o.Now = func() time.Time { return tc.clock }
				o.LastSeen = func() time.Time { return tc.lastSeen }
				o.OfflineTokenGrace = func() time.Duration { return time.Hour }
			})
			putPod(t, f.store, "till-0", "pod-uid", "edge-1")
			c, err := ask(f.Authenticator, tokenSpec{pod: testPod, lives: tc.lives}.sign(t), false)
			if got := judge(t, c, err); got != tc.want {
				t.Errorf("%s, want %s (%v)", got, tc.want, err)
			}
		})
	}
}

func TestBearer(t *testing.T) {
	for value, want := range map[string]string{
		"Bearer abc": "abc", "bearer  abc ": "abc", "Bearer": "", "Bearer ": "", "Basic abc": "", "abc": "", "": "", "Bearer a b": "",
	} {
		got, err := bearer(http.Header{"Authorization": {value}})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", value, got, err)
		}
	}
	if _, err := bearer(http.Header{"Authorization": {"Bearer a", "Bearer b"}}); err == nil {
		t.Error("two credentials in one request")
	}
	if _, err := bearer(http.Header{}); err == nil {
		t.Error("anonymous")
	}
}

// testCA signs client certificates that are not of the node's authority.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) testCA {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return testCA{must(x509.ParseCertificate(der)), key}
}

func (ca testCA) client(t *testing.T, name string, life time.Duration, usage x509.ExtKeyUsage, groups ...string) *tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key))
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestCertificates(t *testing.T) {
	cluster, foreign := newTestCA(t), newTestCA(t)
	clusterFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := writeFile(clusterFile, encodePEM("CERTIFICATE", cluster.cert.Raw), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, func(o *AuthenticatorOptions) { o.ClusterCA = clusterFile })
	putPod(t, f.store, "till-0", "pod-uid", "edge-1")
	node := testCA{f.pki.ca, f.pki.caKey}
	const me = "system:node:edge-1"
	kubelet := must(tls.LoadX509KeyPair(filepath.Join(f.pki.dir, KubeletCert), filepath.Join(f.pki.dir, KubeletKey)))
	clientAuth := x509.ExtKeyUsageClientAuth
	token := tokenSpec{pod: testPod}.sign(t)

	online := true
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := f.Authenticate(r, online)
		if err != nil {
			if !apierrors.IsUnauthorized(err) {
				t.Errorf("not a 401: %v", err)
			}
			fmt.Fprint(w, "401 ", err)
			return
		}
		fmt.Fprint(w, c.ID(), " ", c.Node, " ", c.Token == "")
	}))
	server.TLS = f.pki.TLSConfig()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	for _, tc := range []struct {
		name  string
		cert  *tls.Certificate
		token string
		want  string
	}{
		{"kubelet", &kubelet, "", "node true true"},
		{"kubelet with a token: the certificate decides", &kubelet, token, "node true true"},
		{"cluster's authority", cluster.client(t, me, time.Hour, clientAuth, nodesGroup), "", "401 the client certificate \"system:node:edge-1\" is of the cluster's authority"},
		{"cluster's authority, admin, with a token", cluster.client(t, "admin", time.Hour, clientAuth, "system:masters"), token, "401 the client certificate"},
		{"foreign authority", foreign.client(t, me, time.Hour, clientAuth, nodesGroup), "", "401 the client certificate is not accepted"},
		{"foreign authority with a token", foreign.client(t, "mesh", time.Hour, clientAuth), token, "system:serviceaccount:shop:till false false"},
		{"another node", node.client(t, "system:node:edge-2", time.Hour, clientAuth, nodesGroup), "", "401 "},
		{"not of the group", node.client(t, me, time.Hour, clientAuth, "system:masters"), "", "401 "},
		{"expired", node.client(t, me, -time.Minute, clientAuth, nodesGroup), "", "401 "},
		{"expired, with a token", node.client(t, me, -time.Minute, clientAuth, nodesGroup), token, "401 "},
		{"a serving certificate", node.client(t, me, time.Hour, x509.ExtKeyUsageServerAuth, nodesGroup), "", "401 "},
		{"nothing", nil, "", "401 the request has no credential"},
		{"token", nil, token, "system:serviceaccount:shop:till false false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: f.pki.Pool(), ServerName: "kubernetes.default.svc"}
			if tc.cert != nil {
				config.Certificates = []tls.Certificate{*tc.cert}
			}
			transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
			defer transport.CloseIdleConnections()
			for _, online = range []bool{true, false, true} {
				req := must(http.NewRequest(http.MethodGet, server.URL, nil))
				if tc.token != "" {
					req.Header.Set("Authorization", "Bearer "+tc.token)
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				var body bytes.Buffer
				if _, err := body.ReadFrom(resp.Body); err != nil {
					t.Error(err)
				}
				resp.Body.Close()
				if !strings.HasPrefix(body.String(), tc.want) {
					t.Errorf("online %v: %s, want %s", online, body.String(), tc.want)
				}
			}
		})
	}
}

func TestParseKeys(t *testing.T) {
	configuration, jwks := documents(t, testIssuer, rsaKey().Public())
	private := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: ecdsaKey(), KeyID: "x"}}}))
	secret := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: []byte("secret"), KeyID: "x"}}}))
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	weak := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: small.Public(), KeyID: "x"}}}))
	for name, tc := range map[string]struct {
		configuration, jwks []byte
		ok                  bool
	}{
		"good":              {configuration, jwks, true},
		"no issuer":         {[]byte(`{}`), jwks, false},
		"html":              {[]byte("<html>"), jwks, false},
		"no keys":           {configuration, []byte(`{"keys":[]}`), false},
		"a private key":     {configuration, private, false},
		"a shared secret":   {configuration, secret, false},
		"a weak key":        {configuration, weak, false},
		"far too long":      {configuration, append(jwks, bytes.Repeat([]byte(" "), maxKeyDocument)...), false},
		"far too many keys": {configuration, []byte(`{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`), false},
	} {
		if _, err := parseKeys(tc.configuration, tc.jwks); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
