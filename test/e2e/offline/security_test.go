//go:build e2e

package offline

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/agentapi"
)

// certificateExpires reads the end of the node's own client certificate.
func (s *subject) certificateExpires() time.Time {
	s.t.Helper()
	rest := []byte(s.node.Exec("cat", filepath.Join(agentapi.PKIDir, "node-client-current.pem")))
	for {
		block, next := pem.Decode(rest)
		if block == nil {
			s.t.Fatal("the node's certificate file has no certificate")
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				s.t.Fatal(err)
			}
			return cert.NotAfter
		}
		rest = next
	}
}

// podToken reads the token that a pod of the node has.
func (s *subject) podToken(pod string) string {
	s.t.Helper()
	return s.podFile(pod, "kube-api-access-*/token")
}

// podFile reads a file that the kubelet has projected into a pod.
func (s *subject) podFile(pod, name string) string {
	s.t.Helper()
	pods, err := s.onNode()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pods {
		if p.Name == pod {
			return strings.TrimSpace(s.node.Shell("cat /var/lib/kubelet/pods/" + string(p.UID) + "/volumes/kubernetes.io~projected/" + name))
		}
	}
	s.t.Fatalf("there is no pod %s", pod)
	return ""
}

// stranger is a client certificate that claims to be the node's.
func stranger(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// attempt is a request, and what it must be answered with.
type attempt struct {
	what, path string
	token      string
	cert       *tls.Certificate
	header     map[string]string
	online     []int // 0: refused before HTTP
	offline    []int // nil: as online
}

// attempts are what must be refused, and what must not.
func (s *subject) attempts(t *testing.T, tokens tokens) []attempt {
	t.Helper()
	const path = "/api/v1/namespaces/" + namespace
	const settings, secret = path + "/configmaps/settings", path + "/secrets/credentials"
	kubelet := map[string]string{"User-Agent": "kubelet/v1.37.2 (linux/amd64)"}
	node := "system:node:" + s.node.Name()
	refused, forbidden, allowed := []int{401}, []int{403}, []int{200}
	nowhere := []int{400, 403, 404, 301}
	ownPods := path + "/pods?fieldSelector=spec.nodeName%3D" + s.node.Name()
	return []attempt{
		{"no credential", settings, "", nil, nil, refused, nil},
		{"no credential, kubelet by name", secret, "", nil, kubelet, refused, nil},
		{"headers of a proxy", secret, "", nil, map[string]string{"X-Remote-User": node, "X-Remote-Group": "system:nodes"}, refused, nil},
		{"a certificate of another CA", secret, "", cert(stranger(t, s.node.Name())), nil, []int{401, 0}, nil},
		{"a certificate of the cluster", secret, "", s.clusterAdmin(t), nil, []int{401, 0}, nil},
		{"garbage", settings, "garbage", nil, nil, refused, nil},
		{"a token with another signature", settings, tokens.forged, nil, nil, refused, nil},
		{"an unsigned token", settings, tokens.unsigned, nil, nil, refused, nil},
		{"a token signed with another key", settings, tokens.otherKey, nil, nil, refused, nil},
		{"a token signed with the public key as a shared secret", settings, tokens.publicKey, nil, nil, refused, nil},
		{"a token that expired an hour ago", settings, tokens.expired, nil, nil, refused, allowed}, // that is what the grace is for
		{"a token that expired before the grace", settings, tokens.longExpired, nil, nil, refused, nil},
		{"a token of the future", settings, tokens.future, nil, nil, refused, nil},
		{"a token for others than the API server", settings, tokens.audience, nil, nil, refused, nil},
		{"the token of a pod that is gone", settings, tokens.gone, nil, nil, refused, nil},
		{"the token of an earlier pod of that name", settings, tokens.earlier, nil, nil, refused, nil},
		// The cloud can tell that the pod exists, and this node cannot.
		{"the token of a pod of another node", settings, tokens.elsewhere, nil, nil, allowed, refused},
		{"the token of another pod of this node", settings, tokens.neighbour, nil, nil, forbidden, nil},
		{"a pod's token for what it may see", settings, tokens.good, nil, nil, allowed, nil},
		{"a pod's token for the pods that it may see", ownPods, tokens.good, nil, nil, allowed, nil},
		{"a pod's token for what only the kubelet may see", secret, tokens.good, nil, nil, forbidden, nil},
		{"the same, kubelet by name", secret, tokens.good, nil, kubelet, forbidden, nil},
		{"the same, as somebody else", secret, tokens.good, nil, map[string]string{"Impersonate-User": node}, forbidden, nil},
		{"the same, by a detour", path + "/configmaps/../secrets/credentials", tokens.good, nil, nil, nowhere, nil},
		{"the same, by a hidden detour", path + "/configmaps/%2e%2e/secrets/credentials", tokens.good, nil, nil, nowhere, nil},
		{"the same, with an empty segment", path + "//secrets/credentials", tokens.good, nil, nil, nowhere, nil},
		{"another object of that kind", path + "/configmaps/kube-root-ca.crt", tokens.good, nil, nil, forbidden, nil},
		{"all of that kind", path + "/configmaps", tokens.good, nil, nil, forbidden, nil},
		{"the pods of another namespace", "/api/v1/namespaces/kube-system/pods", tokens.good, nil, nil, forbidden, nil},
		{"the pods of all namespaces on this node", "/api/v1/pods?fieldSelector=spec.nodeName%3D" + s.node.Name(), tokens.good, nil, nil, forbidden, nil},
	}
}

// form is a way to ask for something.
type form struct {
	what, path string
	header     map[string]string
	also       []int // that it may be answered with where it is refused
}

// forms are the ways to ask for what a path names: what may not be read may not
// be listed or watched either.
func forms(path string) []form {
	all := []form{{what: "GET", path: path}}
	collection, query, _ := strings.Cut(path, "?")
	if parts := strings.Split(collection, "/"); len(parts) == 7 && query == "" && !strings.Contains(path, "..") && !strings.Contains(path, "%") && !strings.Contains(path, "//") {
		collection, query = strings.Join(parts[:6], "/"), "fieldSelector=metadata.name%3D"+parts[6]
	}
	with := func(more string) string { return collection + "?" + strings.TrimPrefix(query+"&"+more, "&") }
	watch := with("watch=true&timeoutSeconds=2")
	return append(all,
		form{what: "LIST of what is kept", path: with("resourceVersion=0")},
		form{what: "WATCH", path: watch},
		form{what: "WATCH from what is kept", path: watch + "&resourceVersion=0"},
		form{what: "WATCH with a list before", path: watch + "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"},
		form{what: "WATCH over a web socket", path: watch, header: map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
			also: []int{503}}, // not without the cloud, whoever asks
		form{what: "WATCH as long ago", path: strings.Replace(path, "/api/v1/", "/api/v1/watch/", 1), also: []int{400, 404}},
	)
}

// security tries what must be refused, in all forms, and what must not, on both
// listeners.
func (s *subject) security(t *testing.T, when string, tokens tokens) {
	t.Helper()
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM([]byte(s.node.Exec("cat", filepath.Join(agentapi.PKIDir, "node-ca.crt")))) {
		t.Fatal("the node's CA file has no certificate")
	}
	count := 0
	for _, test := range s.attempts(t, tokens) {
		want := test.online
		if when == "offline" && test.offline != nil {
			want = test.offline
		}
		ways := forms(test.path)
		switch {
		case !slices.Contains(want, 200):
		case strings.Contains(test.path, "?"):
			ways = ways[:3] // it may list and watch, too
		default:
			ways = ways[:1]
		}
		for _, way := range ways {
			for _, address := range []string{agentapi.HubAddress, agentapi.PodAddress} {
				code, body := s.ask(ca, address, test, way)
				count++
				ok := slices.Contains(want, code) || (code != 200 && slices.Contains(way.also, code))
				if !ok || (code != 200 && strings.Contains(body, s.planted)) {
					t.Errorf("%s, %s at %s, %s: %d, want one of %v: %s", when, test.what, address, way.what, code, want, body)
				}
			}
		}
	}
	s.Step("%s: %d requests answered as they must be", when, count)
}

// ask sends one request; code 0 means that it was refused before HTTP.
func (s *subject) ask(ca *x509.CertPool, address string, test attempt, way form) (code int, body string) {
	s.t.Helper()
	config := &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12}
	if test.cert != nil {
		config.Certificates = []tls.Certificate{*test.cert}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return test.cert, nil }
	}
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DialContext: s.node.Connect, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequestWithContext(s.Context(), http.MethodGet, "https://"+address+way.path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if test.token != "" {
		request.Header.Set("Authorization", "Bearer "+test.token)
	}
	for _, headers := range []map[string]string{test.header, way.header} {
		for key, value := range headers {
			request.Header.Set(key, value)
		}
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		data = append(data, err.Error()...)
	}
	return answer.StatusCode, string(data)
}

func cert(c tls.Certificate) *tls.Certificate { return &c }

// clusterAdmin is the administrator's certificate, which the cluster's CA has
// signed. The hub cannot pass it on, and must not take it for anything.
func (s *subject) clusterAdmin(t *testing.T) *tls.Certificate {
	t.Helper()
	read := func(name string) []byte {
		return []byte(s.ControlPlane().ReadFile("etc/kubernetes/pki/" + name))
	}
	c, err := tls.X509KeyPair(read("apiserver-kubelet-client.crt"), read("apiserver-kubelet-client.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// secretsAtRest looks for planted secrets in what the agent leaves on the disk,
// and at who may read it.
func (s *subject) secretsAtRest() {
	s.t.Helper()
	token := s.podToken("asking")
	for what, secret := range map[string]string{"a Secret": s.planted, "a token": strings.Split(token, ".")[2]} {
		out := s.node.Shell("grep -rlaF -e '" + secret + "' " + agentapi.StateDir + " " + filepath.Dir(agentapi.Socket) + " 2>/dev/null || true")
		if strings.TrimSpace(out) != "" {
			s.t.Errorf("%s is readable in %s", what, out)
		}
	}
	if out := s.node.Shell("find " + agentapi.StateDir + " -type f -perm /077 ! -name '*.crt'"); strings.TrimSpace(out) != "" {
		s.t.Errorf("others than root may read %s", out)
	}
	if out := s.node.Shell("grep -rlaF -e settings " + agentapi.StateDir); strings.TrimSpace(out) == "" {
		s.t.Error("the store does not hold a ConfigMap's name: this looks in the wrong place")
	}
}
