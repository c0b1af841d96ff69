package serve_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/edge/hub/serve"
)

func secret(namespace, name, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{"k": []byte(value)}}
}

// send writes bytes as they are over TLS and returns the answer.
func (h *hub) send(t *testing.T, cert *tls.Certificate, request string) *http.Response {
	t.Helper()
	config := &tls.Config{RootCAs: poolOf(h.pki.CA()), ServerName: "127.0.0.1"}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.Dial("tcp", h.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return resp
}

// Everybody who is not somebody is refused, online and offline.
func TestCredentials(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("secrets", secret("default", "s", "planted"))
	const account = "default:app"
	c.allow(account, "default", "", "secrets", []string{"get"}, "s")
	c.put("pods", pod("app", nodeName, nil))
	h := newHub(t, c)
	if _, err := typed(t, h.asNode()).CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := typed(t, h.asNode()).CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1", ResourceVersion: "0"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "RBAC and keys are there", func() bool {
		views, _ := h.store.Views("rbac.authorization.k8s.io", "")
		_, keys, _ := h.store.Document("/openid/v1/jwks")
		return keys && len(views) >= 0
	})
	foreign := newAuthority(t, "system:node-ca")
	forger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	hour := time.Now().Add(time.Hour)
	good := c.token(account, "app", "pods-default-app", hour)
	withCert := func(a *authority, name string, groups ...string) *rest.Config {
		cert := a.issue(t, name, groups)
		config := h.as("")
		config.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: poolOf(h.pki.CA()), Certificates: []tls.Certificate{*cert}}}
		config.TLSClientConfig = rest.TLSClientConfig{}
		return config
	}
	agent := h.as("")
	agent.UserAgent = "kubelet/v1.37.2 (linux/amd64) kubernetes/abc"
	cases := []struct {
		name    string
		config  *rest.Config
		offline bool // only then
	}{
		{"nothing", h.as(""), false},
		{"a kubelet's User-Agent", agent, false},
		{"a certificate of the cluster", withCert(c.ca, "system:node:"+nodeName, "system:nodes"), false},
		{"an administrator's certificate", withCert(c.ca, "admin", "system:masters"), false},
		{"a certificate of somebody else", withCert(foreign, "system:node:"+nodeName, "system:nodes"), false},
		{"a forged token", h.as(signToken(t, forger, account, "", "", hour)), false},
		{"an expired token", h.as(c.token(account, "", "", time.Now().Add(-time.Hour*24*400))), false},
		{"a token with another subject spliced in", h.as(splice(good, c.token("kube-system:kube-proxy", "", "", hour))), false},
		{"no token at all", h.as("not.a.token"), false},
		{"the token of a pod that is gone", h.as(c.token(account, "gone", "uid-of-gone", hour)), true},
	}
	check := func(t *testing.T, online bool) {
		for _, test := range cases {
			if online && test.offline {
				continue
			}
			_, err := typed(t, test.config).CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{})
			if !apierrors.IsUnauthorized(err) {
				t.Errorf("%s: %v, want 401", test.name, err)
			}
		}
		if _, err := typed(t, h.as(good)).CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{}); err != nil {
			t.Errorf("the good token: %v", err)
		}
	}
	t.Run("online", func(t *testing.T) { check(t, true) })
	h.cut()
	t.Run("offline", func(t *testing.T) { check(t, false) })
	for _, line := range strings.Split(h.log.String(), "\n") {
		if strings.Contains(line, good) || strings.Contains(line, "planted") || strings.Contains(line, good[strings.LastIndex(good, ".")+1:]) {
			t.Errorf("a secret was logged: %s", line)
		}
	}
	if !strings.Contains(h.log.String(), "refused a request") {
		t.Error("no audit line for what was refused")
	}
}

// splice puts the claims of one token between the header and signature of another.
func splice(signed, claims string) string {
	a, b := strings.Split(signed, "."), strings.Split(claims, ".")
	return a[0] + "." + b[1] + "." + a[2]
}

// A pod reads offline what RBAC lets it read, and nothing that only the kubelet
// may.
func TestAuthorizationOffline(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for _, name := range []string{"mine", "other"} {
		c.put("secrets", secret("default", name, "v"))
	}
	c.put("pods", pod("p1", nodeName, nil))
	const account = "default:app"
	c.allow(account, "default", "", "secrets", []string{"get", "list", "watch"}, "mine")
	h := newHub(t, c)
	h.keepApp()
	node := typed(t, h.asNode())
	for _, name := range []string{"mine", "other"} {
		if _, err := node.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: "0"}); err != nil {
			t.Fatal(err)
		}
	}
	h.waitRBAC()
	h.cut()
	pods := typed(t, h.asApp())
	if s, err := pods.CoreV1().Secrets("default").Get(ctx, "mine", metav1.GetOptions{}); err != nil || string(s.Data["k"]) != "v" {
		t.Errorf("its own: %v, %v", s, err)
	}
	if l, err := pods.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=mine"}); err != nil || len(l.Items) != 1 {
		t.Errorf("its own in a list: %v, %v", l, err)
	}
	forbidden := func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want 403", what, err)
		}
	}
	_, err := pods.CoreV1().Secrets("default").Get(ctx, "other", metav1.GetOptions{})
	forbidden("the kubelet's secret", err)
	_, err = pods.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
	forbidden("all secrets", err)
	_, err = pods.CoreV1().Secrets("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=other"})
	forbidden("a watch of the kubelet's secret", err)
	_, err = pods.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	forbidden("the kubelet's pods", err)
}

// keepApp makes the pod app of service account default/app known on the node.
func (h *hub) keepApp() {
	h.t.Helper()
	h.cloud.put("pods", pod("app", nodeName, nil))
	if _, err := typed(h.t, h.asNode()).CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1", ResourceVersion: "0"}); err != nil {
		h.t.Fatal(err)
	}
	h.waitRBAC()
}

func (h *hub) asApp() *rest.Config {
	return h.as(h.cloud.token("default:app", "app", "pods-default-app", time.Now().Add(time.Hour)))
}

func (h *hub) waitRBAC() {
	h.t.Helper()
	eventually(h.t, 10*time.Second, "RBAC and the issuer's keys are kept", func() bool {
		for _, resource := range []string{"roles", "rolebindings", "clusterroles", "clusterrolebindings"} {
			views, err := h.store.Views("rbac.authorization.k8s.io", resource)
			if err != nil || len(views) == 0 || !views[0].Complete {
				return false
			}
		}
		_, ok, err := h.store.Document("/openid/v1/jwks")
		return ok && err == nil
	})
}

// The far end sees one identity for each request: the node's certificate for the
// node, the own token and no certificate for everybody else.
func TestIdentityUpstream(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const account = "default:app"
	c.allow(account, "default", "", "configmaps", []string{"get", "list", "watch"})
	c.put("configmaps", configMap("default", "for-node", nil))
	c.put("configmaps", configMap("default", "for-pod", nil))
	h := newHub(t, c)
	h.keepApp()
	token := h.asApp().BearerToken
	smuggled := http.Header{
		"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}, "X-Remote-Extra-Scopes": {"all"}, "Skerry-Source": {"x"},
	}
	with := func(more http.Header) http.Header {
		out := smuggled.Clone()
		for name, values := range more {
			out[name] = values
		}
		return out
	}
	h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/configmaps/for-node", smuggled.Clone())
	h.raw(h.as(token), "GET", "/api/v1/namespaces/default/configmaps/for-pod", with(nil))
	nodes, pods := c.seenAt("/api/v1/namespaces/default/configmaps/for-node"), c.seenAt("/api/v1/namespaces/default/configmaps/for-pod")
	if len(nodes) != 1 || nodes[0].name != "system:node:"+nodeName || nodes[0].header.Get("Authorization") != "" {
		t.Errorf("for the node: %+v", nodes)
	}
	if len(pods) != 1 || pods[0].name != "" || pods[0].header.Get("Authorization") != "Bearer "+token {
		t.Errorf("for the pod: %+v", pods)
	}
	for _, s := range append(nodes, pods...) {
		for name := range s.header {
			if strings.HasPrefix(name, "X-Remote") || strings.HasPrefix(name, "Skerry") || strings.HasPrefix(name, "X-Forwarded") {
				t.Errorf("the header %s went upstream", name)
			}
		}
	}
	// The node's certificate beside somebody's token is not the node, or is
	// refused; in no case goes the token upstream with the certificate.
	both := h.asNode()
	both.BearerToken = token
	h.raw(both, "GET", "/api/v1/namespaces/default/configmaps/both", nil)
	for _, s := range c.seenAt("/api/v1/namespaces/default/configmaps/both") {
		if s.name != "" && s.header.Get("Authorization") != "" {
			t.Errorf("two credentials in one request: %+v", s)
		}
	}
	// Impersonation is the token's own right online, nobody's else.
	impersonate := http.Header{"Impersonate-User": {"admin"}}
	if resp := h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/configmaps/impersonated", impersonate.Clone()); resp.StatusCode != 403 || len(c.seenAt("/api/v1/namespaces/default/configmaps/impersonated")) != 0 {
		t.Errorf("the node impersonates: %s", resp.Status)
	}
	h.raw(h.as(token), "GET", "/api/v1/namespaces/default/configmaps/as-pod", impersonate.Clone())
	if seen := c.seenAt("/api/v1/namespaces/default/configmaps/as-pod"); len(seen) != 1 || seen[0].header.Get("Impersonate-User") != "admin" {
		t.Errorf("a token impersonates: %+v", seen)
	}
	h.cut()
	if resp := h.raw(h.as(token), "GET", "/api/v1/namespaces/default/configmaps/as-pod", impersonate.Clone()); resp.StatusCode != 403 {
		t.Errorf("impersonation offline: %s, want 403", resp.Status)
	}
}

// Requests that two readers could understand differently are not served.
func TestTricks(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("secrets", secret("private", "s", "v"))
	const account = "default:app"
	c.allow(account, "default", "", "configmaps", []string{"get", "list", "watch"})
	h := newHub(t, c)
	token := c.token(account, "", "", time.Now().Add(time.Hour))
	h.waitRBAC()
	check := func(t *testing.T) {
		for name, request := range map[string]string{
			"dot segments":         "GET /api/v1/namespaces/default/configmaps/../../private/secrets/s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"encoded dot segments": "GET /api/v1/namespaces/default/configmaps/%2e%2e/%2e%2e/private/secrets/s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"encoded slash":        "GET /api/v1/namespaces/default/configmaps/a%2fb HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"empty segments":       "GET //api/v1//namespaces/default/configmaps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"backslash":            "GET /api/v1/namespaces/default\\configmaps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"nul":                  "GET /api/v1/namespaces/default/configmaps/a%00b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"absolute URI":         "GET https://elsewhere/api/v1/nodes HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"CONNECT":              "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"TRACE":                "TRACE /api HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"two Authorizations":   "GET /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\nAuthorization: Bearer x\r\n\r\n",
			"dropped credential":   "GET /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: h\r\nConnection: authorization\r\nAuthorization: Bearer TOKEN\r\n\r\n",
			"two lengths":          "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
			"smuggled chunks":      "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer TOKEN\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		} {
			resp := h.send(t, nil, strings.ReplaceAll(request, "TOKEN", token))
			if resp.StatusCode != 400 && resp.StatusCode != 401 && resp.StatusCode != 501 {
				t.Errorf("%s: %s, want 400", name, resp.Status)
			}
		}
	}
	t.Run("online", check)
	h.cut()
	t.Run("offline", check)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.requests {
		if strings.Contains(s.path, "private") || strings.Contains(s.path, "..") || strings.Contains(s.path, "//") {
			t.Errorf("%s %s went upstream", s.method, s.path)
		}
	}
}

// exec and its like pass through as a two-way stream, with half-close.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const account = "default:app"
	c.put("pods", pod("p1", nodeName, nil))
	c.allow(account, "default", "", "pods/exec", []string{"create", "get"})
	h := newHub(t, c)
	h.keepApp()
	token := h.asApp().BearerToken
	conn, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: poolOf(h.pki.CA()), ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "POST /api/v1/namespaces/default/pods/p1/exec?command=sh HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nSec-Websocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eHg\r\n\r\n", token)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%v, %v", resp, err)
	}
	for _, word := range []string{"hello", "again"} {
		fmt.Fprint(conn, word)
		answer := make([]byte, len(word))
		if _, err := io.ReadFull(reader, answer); err != nil || string(answer) != strings.ToUpper(word) {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); err != nil || string(rest) != "bye" {
		t.Errorf("after half-close: %q, %v", rest, err)
	}
	for _, s := range c.seenAt("/api/v1/namespaces/default/pods/p1/exec") {
		if got := s.header.Get("Sec-Websocket-Protocol"); got != "v5.channel.k8s.io" {
			t.Errorf("protocols upstream: %q", got)
		}
	}
	h.cut()
	resp = h.send(t, nil, fmt.Sprintf("POST /api/v1/namespaces/default/pods/p1/exec HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", token))
	if resp.StatusCode != 503 {
		t.Errorf("offline: %s, want 503", resp.Status)
	}
}

// One client cannot use up what others need, least of all the node.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const greedy, modest = "default:greedy", "default:modest"
	for _, account := range []string{greedy, modest} {
		c.allow(account, "", "", "configmaps", []string{"get", "list", "watch"})
	}
	h := newHub(t, c, func(o *serve.Options) {
		o.Limits = serve.Limits{Streams: 8, StreamsPerCaller: 4}
	})
	open := func(config *rest.Config) error {
		w, err := typed(t, config).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: "1"})
		if err == nil {
			t.Cleanup(w.Stop)
		}
		return err
	}
	first := h.as(c.token(greedy, "", "", time.Now().Add(time.Hour)))
	for i := range 4 {
		if err := open(first); err != nil {
			t.Fatalf("watch %d: %v", i, err)
		}
	}
	if resp := h.raw(first, "GET", "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=1", nil); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one watch more: %s, want 429 with Retry-After", resp.Status)
	}
	second := h.as(c.token(modest, "", "", time.Now().Add(time.Hour)))
	for i := range 2 {
		if err := open(second); err != nil {
			t.Errorf("watch %d of another client: %v", i, err)
		}
	}
	if resp := h.raw(second, "GET", "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=1", nil); resp.StatusCode != 429 {
		t.Errorf("a watch out of the node's reserve: %s, want 429", resp.Status)
	}
	for i := range 2 {
		if err := open(h.asNode()); err != nil {
			t.Errorf("watch %d of the node: %v", i, err)
		}
	}
}

// What passes through lives no longer than the link; what the hub answers itself
// outlives it.
func TestCutOver(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const account = "default:app"
	c.allow(account, "", "", "configmaps", []string{"get", "list", "watch"})
	c.put("configmaps", configMap("default", "a", nil))
	h := newHub(t, c)
	through, err := typed(t, h.as(c.token(account, "", "", time.Now().Add(time.Hour)))).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer through.Stop()
	own, err := typed(t, h.asNode()).CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Stop()
	h.line.hole()
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// Somebody who needs an answer finds out that there is none.
	go func() {
		for waiting.Err() == nil && h.upstream.Online() {
			_, _ = typed(t, h.asNode()).CoreV1().ConfigMaps("default").Get(waiting, "a", metav1.GetOptions{})
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range through.ResultChan() {
		}
	}()
	select {
	case <-ended:
	case <-waiting.Done():
		t.Error("a watch that passes through hangs on a dead link")
	}
	select {
	case e, ok := <-own.ResultChan():
		t.Errorf("the node's own watch: %v, %t", e, ok)
	case <-time.After(100 * time.Millisecond):
	}
}

// Bodies have bounds, and headers too.
func TestBounds(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	h := newHub(t, c)
	config := h.asNode()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest("PATCH", "https://"+h.addr+"/api/v1/namespaces/default/pods/p/status", strings.NewReader(strings.Repeat("x", 4<<20)))
	req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of 4 MiB: %s, want 413", resp.Status)
	}
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tlsConn := tls.Client(conn, &tls.Config{RootCAs: poolOf(h.pki.CA()), ServerName: "127.0.0.1"})
	_ = tlsConn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(tlsConn, "GET /api HTTP/1.1\r\nHost: h\r\nX: %s\r\n\r\n", strings.Repeat("y", 100<<10))
	answer, err := http.ReadResponse(bufio.NewReader(tlsConn), nil)
	if err == nil && answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 100 KiB: %s, want 431", answer.Status)
	}
}

// The node does not see through somebody else's view what the cloud denies it.
func TestNodeSeesItsOwnViewsOnly(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("secrets", secret("private", "s", "v"))
	const account = "kube-system:kube-proxy"
	c.allow(account, "private", "", "secrets", []string{"get", "list", "watch"})
	proxy := pod("proxy", nodeName, nil)
	proxy.Namespace = "kube-system"
	c.put("pods", proxy)
	h := newHub(t, c)
	h.keepApp()
	kept := typed(t, h.as(c.token(account, "proxy", "pods-kube-system-proxy", time.Now().Add(time.Hour)))).CoreV1().Secrets("private")
	node := typed(t, h.asNode()).CoreV1().Secrets("private")
	if _, err := kept.List(ctx, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Get(ctx, "s", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the secret is kept", func() bool {
		views, err := h.store.Views("", "secrets")
		return err == nil && len(views) == 2
	})
	if _, err := node.Get(ctx, "s", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("online: %v, want the cloud's 403", err)
	}
	h.cut()
	if _, err := kept.Get(ctx, "s", metav1.GetOptions{}); err != nil {
		t.Errorf("who may: %v", err)
	}
	_, err := node.Get(ctx, "s", metav1.GetOptions{})
	unavailable(t, "a GET of the node", err)
	_, err = node.List(ctx, metav1.ListOptions{})
	unavailable(t, "a LIST of the node", err)
	_, err = node.Watch(ctx, metav1.ListOptions{})
	unavailable(t, "a WATCH of the node", err)
}
