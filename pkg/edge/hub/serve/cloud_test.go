package serve_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	nodeName = "n1"
	issuer   = "https://kubernetes.default.svc.cluster.local"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t testing.TB, name string, groups []string, hosts ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func certPEM(cert *tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
}

func keyPEM(t testing.TB, cert *tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// kinds are the resources that the far end has.
var kinds = map[string]struct {
	schema.GroupVersionKind
	namespaced bool
}{
	"pods":                {schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, true},
	"nodes":               {schema.GroupVersionKind{Version: "v1", Kind: "Node"}, false},
	"configmaps":          {schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, true},
	"secrets":             {schema.GroupVersionKind{Version: "v1", Kind: "Secret"}, true},
	"services":            {schema.GroupVersionKind{Version: "v1", Kind: "Service"}, true},
	"events":              {schema.GroupVersionKind{Version: "v1", Kind: "Event"}, true},
	"serviceaccounts":     {schema.GroupVersionKind{Version: "v1", Kind: "ServiceAccount"}, true},
	"endpointslices":      {schema.GroupVersionKind{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"}, true},
	"leases":              {schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, true},
	"runtimeclasses":      {schema.GroupVersionKind{Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass"}, false},
	"roles":               {schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}, true},
	"rolebindings":        {schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"}, true},
	"clusterroles":        {schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"}, false},
	"clusterrolebindings": {schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"}, false},
	"widgets":             {schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}, true},
}

// seen is what the far end saw of a request.
type seen struct {
	method, path, query string
	name                string // of the client certificate
	header              http.Header
}

type change struct {
	revision uint64
	kind     string
	resource string
	object   *unstructured.Unstructured
}

type grant struct {
	user, namespace, group, resource string
	verbs, names                     []string
}

// cloud behaves as an API server does, as far as these tests need it.
type cloud struct {
	t      testing.TB
	ca     *authority
	key    *ecdsa.PrivateKey
	server *httptest.Server

	mu       sync.Mutex
	revision uint64
	objects  map[string]map[string]*unstructured.Unstructured // by resource, then namespace/name
	log      []change
	changed  chan struct{}
	requests []seen
	grants   []grant
	pause    time.Duration // before each answer
	broken   int           // answer this code to everything
	mute     bool          // nobody may ask what it may do
	spoil    func(path string, body []byte) []byte
}

func newCloud(t testing.TB) *cloud {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{t: t, ca: newAuthority(t, "cluster-ca"), key: key, revision: 100, objects: map[string]map[string]*unstructured.Unstructured{}, changed: make(chan struct{})}
	c.server = httptest.NewUnstartedServer(c)
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	c.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{*c.ca.issue(t, "kube-apiserver", nil, "127.0.0.1", "kubernetes.default.svc")},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"},
	}
	c.server.EnableHTTP2 = true
	c.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.server.StartTLS()
	t.Cleanup(func() {
		c.server.CloseClientConnections()
		go c.server.Close() // waits for handlers of broken connections
	})
	return c
}

func id(namespace, name string) string { return namespace + "/" + name }

// put creates or replaces an object.
func (c *cloud) put(resource string, object any) *unstructured.Unstructured {
	c.t.Helper()
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		c.t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(raw)}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.putLocked(resource, u)
}

func (c *cloud) putLocked(resource string, u *unstructured.Unstructured) *unstructured.Unstructured {
	c.revision++
	u.SetGroupVersionKind(kinds[resource].GroupVersionKind)
	u.SetResourceVersion(strconv.FormatUint(c.revision, 10))
	if u.GetUID() == "" {
		u.SetUID(types.UID(resource + "-" + u.GetNamespace() + "-" + u.GetName()))
	}
	if created := u.GetCreationTimestamp(); created.IsZero() {
		u.SetCreationTimestamp(metav1.NewTime(time.Unix(1_700_000_000, 0)))
	}
	if c.objects[resource] == nil {
		c.objects[resource] = map[string]*unstructured.Unstructured{}
	}
	kind := "ADDED"
	if c.objects[resource][id(u.GetNamespace(), u.GetName())] != nil {
		kind = "MODIFIED"
	}
	c.objects[resource][id(u.GetNamespace(), u.GetName())] = u
	c.note(change{c.revision, kind, resource, u})
	return u
}

func (c *cloud) note(e change) {
	c.log = append(c.log, e)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cloud) remove(resource, namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.objects[resource][id(namespace, name)]
	delete(c.objects[resource], id(namespace, name))
	c.revision++
	u = u.DeepCopy()
	u.SetResourceVersion(strconv.FormatUint(c.revision, 10))
	c.note(change{c.revision, "DELETED", resource, u})
}

func (c *cloud) get(resource, namespace, name string) *unstructured.Unstructured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[resource][id(namespace, name)]
}

// seenAt returns the requests for a path, so far.
func (c *cloud) seenAt(path string) []seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []seen
	for _, s := range c.requests {
		if s.path == path {
			all = append(all, s)
		}
	}
	return all
}

func (c *cloud) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// allow grants rights to a service account ("ns:name"), with RBAC objects that
// say the same.
func (c *cloud) allow(account, namespace, group, resource string, verbs []string, names ...string) {
	c.t.Helper()
	user := "system:serviceaccount:" + account
	accountNamespace, accountName, _ := strings.Cut(account, ":")
	c.set(func() { c.grants = append(c.grants, grant{user, namespace, group, resource, verbs, names}) })
	role := map[string]any{
		"metadata": map[string]any{"name": strings.ReplaceAll(account, ":", "-") + "-" + resource},
		"rules":    []any{map[string]any{"apiGroups": []any{group}, "resources": []any{resource}, "verbs": anys(verbs), "resourceNames": anys(names)}},
	}
	binding := map[string]any{
		"metadata": map[string]any{"name": strings.ReplaceAll(account, ":", "-") + "-" + resource},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": accountNamespace, "name": accountName}},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": strings.ReplaceAll(account, ":", "-") + "-" + resource},
	}
	if namespace == "" {
		c.put("clusterroles", &unstructured.Unstructured{Object: role})
		c.put("clusterrolebindings", &unstructured.Unstructured{Object: binding})
		return
	}
	binding["roleRef"].(map[string]any)["kind"] = "Role"
	role["metadata"].(map[string]any)["namespace"], binding["metadata"].(map[string]any)["namespace"] = namespace, namespace
	c.put("roles", &unstructured.Unstructured{Object: role})
	c.put("rolebindings", &unstructured.Unstructured{Object: binding})
}

func anys(all []string) []any {
	out := []any{}
	for _, one := range all {
		out = append(out, one)
	}
	return out
}

func (c *cloud) token(account, podName, podUID string, expires time.Time) string {
	c.t.Helper()
	return signToken(c.t, c.key, account, podName, podUID, expires)
}

func signToken(t testing.TB, key *ecdsa.PrivateKey, account, podName, podUID string, expires time.Time) string {
	t.Helper()
	namespace, name, _ := strings.Cut(account, ":")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	private := map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name, "uid": "sa-" + name}}
	if podName != "" {
		private["pod"] = map[string]any{"name": podName, "uid": podUID}
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: issuer, Subject: "system:serviceaccount:" + account, Audience: jwt.Audience{issuer},
		IssuedAt: jwt.NewNumericDate(expires.Add(-2 * time.Hour)), NotBefore: jwt.NewNumericDate(expires.Add(-2 * time.Hour)), Expiry: jwt.NewNumericDate(expires),
	}).Claims(map[string]any{"kubernetes.io": private}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// caller authenticates as the API server does.
func (c *cloud) caller(r *http.Request) (user string, ok bool) {
	if len(r.TLS.PeerCertificates) > 0 {
		return r.TLS.PeerCertificates[0].Subject.CommonName, true
	}
	raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", false
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", false
	}
	var claims jwt.Claims
	if token.Claims(&c.key.PublicKey, &claims) != nil || claims.Validate(jwt.Expected{Time: time.Now()}) != nil {
		return "", false
	}
	return claims.Subject, true
}

func (c *cloud) authorized(user, verb, group, resource, namespace, name string) bool {
	if user == "system:node:"+nodeName {
		return namespace != "private" || resource != "secrets"
	}
	for _, g := range c.grants {
		if g.user == user && g.group == group && g.resource == resource && slices.Contains(g.verbs, verb) &&
			(g.namespace == "" || g.namespace == namespace) && (len(g.names) == 0 || slices.Contains(g.names, name)) {
			return true
		}
	}
	return false
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	entry := seen{method: r.Method, path: r.URL.Path, query: r.URL.RawQuery, header: r.Header.Clone()}
	if len(r.TLS.PeerCertificates) > 0 {
		entry.name = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	c.mu.Lock()
	c.requests = append(c.requests, entry)
	pause, broken := c.pause, c.broken
	c.mu.Unlock()
	if pause > 0 && r.URL.Path != "/readyz" && r.URL.Path != "/livez" {
		select {
		case <-time.After(pause):
		case <-r.Context().Done():
		}
	}
	if broken != 0 {
		http.Error(w, "no backend", broken)
		return
	}
	user, ok := c.caller(r)
	if !ok {
		c.status(w, r, errors.NewUnauthorized("Unauthorized"))
		return
	}
	segments := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if documented := c.documents(w, r); documented {
		return
	}
	var group, version string
	switch {
	case segments[0] == "api" && len(segments) > 2:
		version, segments = segments[1], segments[2:]
	case segments[0] == "apis" && len(segments) > 3:
		group, version, segments = segments[1], segments[2], segments[3:]
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "404 page not found\n")
		return
	}
	namespace, name, sub := "", "", ""
	if segments[0] == "namespaces" && len(segments) > 2 {
		namespace, segments = segments[1], segments[2:]
	}
	resource := segments[0]
	if len(segments) > 1 {
		name = segments[1]
	}
	if len(segments) > 2 {
		sub = segments[2]
	}
	if resource == "selfsubjectaccessreviews" {
		c.review(w, r, user)
		return
	}
	kind, ok := kinds[resource]
	if !ok || kind.Group != group || kind.Version != version {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "404 page not found\n")
		return
	}
	query := r.URL.Query()
	verb := map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	selected := name
	if verb == "get" && name == "" {
		if verb = "list"; query.Get("watch") == "true" || query.Get("watch") == "1" {
			verb = "watch"
		}
		if field, err := fields.ParseSelector(query.Get("fieldSelector")); err == nil {
			selected, _ = field.RequiresExactMatch("metadata.name")
		}
	}
	authResource := resource
	if sub != "" {
		authResource += "/" + sub
	}
	c.mu.Lock()
	allowed := c.authorized(user, verb, group, authResource, namespace, selected)
	c.mu.Unlock()
	if !allowed {
		c.status(w, r, errors.NewForbidden(schema.GroupResource{Group: group, Resource: resource}, name, fmt.Errorf("user %q", user)))
		return
	}
	switch {
	case sub == "exec":
		c.exec(w, r)
	case sub == "token":
		c.tokenRequest(w, r, namespace, name)
	case verb == "list":
		c.list(w, r, resource, namespace)
	case verb == "watch":
		c.watch(w, r, resource, namespace)
	case verb == "get":
		if u := c.get(resource, namespace, name); u != nil {
			c.answer(w, r, http.StatusOK, u)
		} else {
			c.status(w, r, errors.NewNotFound(schema.GroupResource{Group: group, Resource: resource}, name))
		}
	case verb == "create" || verb == "update":
		body, _ := io.ReadAll(r.Body)
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			c.status(w, r, errors.NewBadRequest(err.Error()))
			return
		}
		raw, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		u := &unstructured.Unstructured{Object: raw}
		c.mu.Lock()
		if verb == "create" && c.objects[resource][id(namespace, u.GetName())] != nil {
			c.mu.Unlock()
			c.status(w, r, errors.NewAlreadyExists(schema.GroupResource{Group: group, Resource: resource}, u.GetName()))
			return
		}
		u.SetNamespace(namespace)
		u = c.putLocked(resource, u)
		c.mu.Unlock()
		c.answer(w, r, map[string]int{"create": 201, "update": 200}[verb], u)
	case verb == "delete":
		c.remove(resource, namespace, name)
		c.answer(w, r, http.StatusOK, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
	case verb == "patch":
		c.patch(w, r, resource, namespace, name)
	default:
		c.status(w, r, errors.NewMethodNotSupported(schema.GroupResource{Group: group, Resource: resource}, verb))
	}
}

func (c *cloud) patch(w http.ResponseWriter, r *http.Request, resource, namespace, name string) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	locked := true
	unlock := func() {
		if locked {
			locked = false
			c.mu.Unlock()
		}
	}
	defer unlock()
	u := c.objects[resource][id(namespace, name)]
	if u == nil {
		unlock()
		c.status(w, r, errors.NewNotFound(schema.GroupResource{Resource: resource}, name))
		return
	}
	before, _ := u.MarshalJSON()
	typed, err := scheme.Scheme.New(kinds[resource].GroupVersionKind)
	if err != nil {
		unlock()
		c.status(w, r, errors.NewInternalError(err))
		return
	}
	after, err := strategicpatch.StrategicMergePatch(before, body, typed)
	if err != nil {
		unlock()
		c.status(w, r, errors.NewBadRequest(err.Error()))
		return
	}
	next := &unstructured.Unstructured{}
	if err := next.UnmarshalJSON(after); err != nil {
		unlock()
		c.status(w, r, errors.NewBadRequest(err.Error()))
		return
	}
	next = c.putLocked(resource, next)
	unlock()
	c.answer(w, r, http.StatusOK, next)
}

func (c *cloud) documents(w http.ResponseWriter, r *http.Request) bool {
	send := func(contentType string, value any) {
		body, _ := json.Marshal(value)
		etag := fmt.Sprintf("%q", base64.RawURLEncoding.EncodeToString(body[:min(9, len(body))])+strconv.Itoa(len(body)))
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(body)
	}
	const plain = "application/json"
	resources := func(group, version string) any {
		list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: schema.GroupVersion{Group: group, Version: version}.String()}
		for name, kind := range kinds {
			if kind.Group == group {
				list.APIResources = append(list.APIResources, metav1.APIResource{Name: name, Kind: kind.Kind, Namespaced: kind.namespaced, Verbs: metav1.Verbs{"get", "list", "watch"}})
			}
		}
		slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
		return list
	}
	switch path := r.URL.Path; path {
	case "/readyz", "/livez", "/healthz":
		fmt.Fprint(w, "ok")
	case "/version":
		send(plain, map[string]string{"major": "1", "minor": "37", "gitVersion": "v1.37.2"})
	case "/api":
		send(plain, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	case "/apis":
		groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		for _, name := range []string{"coordination.k8s.io", "discovery.k8s.io", "example.com", "node.k8s.io"} {
			v := metav1.GroupVersionForDiscovery{GroupVersion: name + "/v1", Version: "v1"}
			groups.Groups = append(groups.Groups, metav1.APIGroup{Name: name, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
		}
		send(plain, groups)
	case "/api/v1":
		send(plain, resources("", "v1"))
	case "/openapi/v2":
		send("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", map[string]string{"swagger": "2.0"})
	case "/.well-known/openid-configuration":
		send(plain, map[string]any{"issuer": issuer, "jwks_uri": issuer + "/openid/v1/jwks", "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"}})
	case "/openid/v1/jwks":
		send("application/jwk-set+json", jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &c.key.PublicKey, KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	default:
		group, version, ok := strings.Cut(strings.TrimPrefix(path, "/apis/"), "/")
		if !strings.HasPrefix(path, "/apis/") || !ok || version != "v1" || group != "example.com" {
			return false
		}
		send(plain, resources(group, version))
	}
	return true
}

func (c *cloud) review(w http.ResponseWriter, r *http.Request, user string) {
	var review struct {
		metav1.TypeMeta `json:",inline"`
		Spec            struct {
			ResourceAttributes struct{ Namespace, Verb, Group, Resource, Name string }
		} `json:"spec"`
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	_ = json.NewDecoder(r.Body).Decode(&review)
	at := review.Spec.ResourceAttributes
	c.mu.Lock()
	if c.mute {
		c.mu.Unlock()
		c.status(w, r, errors.NewForbidden(schema.GroupResource{Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}, "", nil))
		return
	}
	review.Status.Allowed = c.authorized(user, at.Verb, at.Group, at.Resource, at.Namespace, at.Name)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}

func (c *cloud) tokenRequest(w http.ResponseWriter, r *http.Request, namespace, name string) {
	body, _ := io.ReadAll(r.Body)
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		c.status(w, r, errors.NewBadRequest(err.Error()))
		return
	}
	raw, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	u := &unstructured.Unstructured{Object: raw}
	u.SetName(name)
	u.SetNamespace(namespace)
	expires := time.Now().Add(time.Hour)
	_ = unstructured.SetNestedField(u.Object, c.token(namespace+":"+name, "", "", expires), "status", "token")
	_ = unstructured.SetNestedField(u.Object, expires.UTC().Format(time.RFC3339), "status", "expirationTimestamp")
	c.answer(w, r, http.StatusCreated, u)
}

// exec echoes, in capitals, until the client closes its half.
func (c *cloud) exec(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		c.t.Errorf("the upgrade came over %s: %v", r.Proto, err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	buffer := make([]byte, 1024)
	for {
		n, err := rw.Read(buffer)
		if n > 0 {
			_, _ = conn.Write(bytes.ToUpper(buffer[:n]))
		}
		if err != nil {
			_, _ = conn.Write([]byte("bye"))
			return
		}
	}
}

var protobufSerializer = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

// encode writes as the client accepts it.
func (c *cloud) encode(r *http.Request, u runtime.Object) (contentType string, body []byte) {
	gvk := u.GetObjectKind().GroupVersionKind()
	if strings.Contains(strings.Split(r.Header.Get("Accept"), ",")[0], "protobuf") && gvk.Group != "example.com" {
		typed, err := scheme.Scheme.New(gvk)
		if err != nil {
			c.t.Errorf("making a %s: %v", gvk, err)
			return "", nil
		}
		raw, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(u)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, typed); err != nil {
			c.t.Errorf("converting a %s: %v", gvk, err)
		}
		typed.GetObjectKind().SetGroupVersionKind(gvk)
		var out bytes.Buffer
		if err := protobufSerializer.Encode(typed, &out); err != nil {
			c.t.Errorf("encoding a %s: %v", gvk, err)
		}
		return "application/vnd.kubernetes.protobuf", out.Bytes()
	}
	body, err := json.Marshal(u)
	if err != nil {
		c.t.Error(err)
	}
	return "application/json", body
}

func (c *cloud) answer(w http.ResponseWriter, r *http.Request, code int, u runtime.Object) {
	contentType, body := c.encode(r, u)
	c.mu.Lock()
	spoil := c.spoil
	c.mu.Unlock()
	if spoil != nil {
		body = spoil(r.URL.Path, body)
	}
	if len(body) > 128<<10 && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		// As the API server does.
		var packed bytes.Buffer
		packer, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		_, _ = packer.Write(body)
		_ = packer.Close()
		body = packed.Bytes()
		w.Header().Set("Content-Encoding", "gzip")
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

func (c *cloud) status(w http.ResponseWriter, r *http.Request, err *errors.StatusError) {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	c.answer(w, r, int(status.Code), &status)
}

func (c *cloud) selects(r *http.Request, namespace string) func(u *unstructured.Unstructured) bool {
	label, err1 := labels.Parse(r.URL.Query().Get("labelSelector"))
	field, err2 := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err1 != nil || err2 != nil {
		c.t.Error(err1, err2)
	}
	return func(u *unstructured.Unstructured) bool {
		node, _, _ := unstructured.NestedString(u.Object, "spec", "nodeName")
		return (namespace == "" || namespace == u.GetNamespace()) && label.Matches(labels.Set(u.GetLabels())) &&
			field.Matches(fields.Set{"metadata.name": u.GetName(), "metadata.namespace": u.GetNamespace(), "spec.nodeName": node})
	}
}

func (c *cloud) list(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	selects := c.selects(r, namespace)
	c.mu.Lock()
	gvk := kinds[resource].GroupVersionKind
	gvk.Kind += "List"
	list := &unstructured.UnstructuredList{Object: map[string]any{}}
	list.SetGroupVersionKind(gvk)
	list.SetResourceVersion(strconv.FormatUint(c.revision, 10))
	var names []string
	for name, u := range c.objects[resource] {
		if selects(u) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	after := r.URL.Query().Get("continue")
	if strings.HasPrefix(after, "skerry.") {
		c.t.Error("a token of the hub went upstream")
	}
	for _, name := range names {
		if after != "" && name <= after {
			continue
		}
		if limit > 0 && len(list.Items) == limit {
			last := list.Items[limit-1]
			list.SetContinue(id(last.GetNamespace(), last.GetName()))
			break
		}
		list.Items = append(list.Items, *c.objects[resource][name])
	}
	c.mu.Unlock()
	if list.Items == nil {
		list.Items = []unstructured.Unstructured{}
	}
	c.answer(w, r, http.StatusOK, list)
}

func (c *cloud) watch(w http.ResponseWriter, r *http.Request, resource, namespace string) {
	selects, query := c.selects(r, namespace), r.URL.Query()
	ctx := r.Context()
	if seconds, _ := strconv.Atoi(query.Get("timeoutSeconds")); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	from, _ := strconv.ParseUint(query.Get("resourceVersion"), 10, 64)
	c.mu.Lock()
	var events []change
	if from == 0 || query.Get("sendInitialEvents") == "true" {
		for _, u := range c.objects[resource] {
			events = append(events, change{c.revision, "ADDED", resource, u})
		}
		from = c.revision
		if query.Get("sendInitialEvents") == "true" {
			end := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{
				"resourceVersion": strconv.FormatUint(from, 10), "annotations": map[string]any{metav1.InitialEventsAnnotationKey: "true"}}}}
			end.SetGroupVersionKind(kinds[resource].GroupVersionKind)
			events = append(events, change{from, "BOOKMARK", resource, end})
		}
	}
	c.mu.Unlock()
	contentType, _ := c.encode(r, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}})
	w.Header().Set("Content-Type", contentType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	for {
		for _, e := range events {
			if e.kind != "BOOKMARK" && !selects(e.object) {
				continue
			}
			_, body := c.encode(r, e.object)
			if strings.HasPrefix(contentType, "application/json") {
				_ = json.NewEncoder(w).Encode(map[string]any{"type": e.kind, "object": json.RawMessage(body)})
				continue
			}
			event := metav1.WatchEvent{Type: e.kind, Object: runtime.RawExtension{Raw: body}}
			frame, err := event.Marshal()
			if err != nil {
				c.t.Error(err)
			}
			length := len(frame)
			_, _ = w.Write(append([]byte{byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}, frame...))
		}
		_ = http.NewResponseController(w).Flush()
		c.mu.Lock()
		changed := c.changed
		events = nil
		for _, e := range c.log {
			if e.revision > from && e.resource == resource {
				events = append(events, e)
			}
		}
		from = c.revision
		c.mu.Unlock()
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// line is the link between the hub and the cloud.
type line struct {
	t      testing.TB
	target string
	addr   string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	holed    chan struct{} // closed: bytes are not carried
}

func newLine(t testing.TB, target string) *line {
	l := &line{t: t, target: target, conns: map[net.Conn]bool{}, holed: make(chan struct{})}
	l.addr = "127.0.0.1:0"
	l.heal()
	t.Cleanup(l.cut)
	return l
}

func (l *line) heal() {
	listener, err := net.Listen("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	l.listener, l.addr = listener, listener.Addr().String()
	l.holed = make(chan struct{})
	holed := l.holed
	l.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.carry(conn, holed)
		}
	}()
}

// cut closes everything; new connections are refused.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.listener.Close()
	for conn := range l.conns {
		_ = conn.Close()
	}
	l.conns = map[net.Conn]bool{}
}

// hole takes connections and bytes, and carries nothing.
func (l *line) hole() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.holed)
}

func (l *line) carry(conn net.Conn, holed chan struct{}) {
	l.mu.Lock()
	l.conns[conn] = true
	l.mu.Unlock()
	defer conn.Close()
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer far.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			select {
			case <-holed:
				if err == nil {
					continue
				}
				return
			default:
			}
			if n > 0 {
				if _, err := to.Write(buffer[:n]); err != nil {
					return
				}
			}
			if err != nil {
				if half, ok := to.(*net.TCPConn); ok {
					_ = half.CloseWrite()
				}
				return
			}
		}
	}
	go pipe(far, conn)
	pipe(conn, far)
	<-done
}
