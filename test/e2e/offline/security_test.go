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
	pods, err := s.onNode()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pods {
		if p.Name == pod {
			return strings.TrimSpace(s.node.Shell("cat /var/lib/kubelet/pods/" + string(p.UID) + "/volumes/kubernetes.io~projected/kube-api-access-*/token"))
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

// security tries what must be refused, and what must not, on both listeners.
func (s *subject) security(t *testing.T, when string) {
	t.Helper()
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM([]byte(s.node.Exec("cat", filepath.Join(agentapi.PKIDir, "node-ca.crt")))) {
		t.Fatal("the node's CA file has no certificate")
	}
	token := s.podToken("asking")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatal("the pod's token is no JWT")
	}
	forged := parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))
	unsigned := "eyJhbGciOiJub25lIn0." + parts[1] + "."
	path := "/api/v1/namespaces/" + namespace
	admin := s.clusterAdmin(t)
	for _, test := range []struct {
		what, path string
		token      string
		cert       *tls.Certificate
		header     map[string]string
		want       []int
	}{
		{"no credential", path + "/configmaps/settings", "", nil, nil, []int{401}},
		{"no credential, kubelet by name", path + "/secrets/credentials", "", nil, map[string]string{"User-Agent": "kubelet/v1.37.2 (linux/amd64)"}, []int{401}},
		{"headers of a proxy", path + "/secrets/credentials", "", nil, map[string]string{"X-Remote-User": "system:node:" + s.node.Name(), "X-Remote-Group": "system:nodes"}, []int{401}},
		{"a certificate of another CA", path + "/secrets/credentials", "", cert(stranger(t, s.node.Name())), nil, []int{401, 0}},
		{"a certificate of the cluster", path + "/secrets/credentials", "", admin, nil, []int{401, 0}},
		{"garbage", path + "/configmaps/settings", "garbage", nil, nil, []int{401}},
		{"a forged token", path + "/configmaps/settings", forged, nil, nil, []int{401}},
		{"an unsigned token", path + "/configmaps/settings", unsigned, nil, nil, []int{401}},
		{"a pod's token for what it may see", path + "/configmaps/settings", token, nil, nil, []int{200}},
		{"a pod's token for what only the kubelet may see", path + "/secrets/credentials", token, nil, nil, []int{403}},
		{"the same, kubelet by name", path + "/secrets/credentials", token, nil, map[string]string{"User-Agent": "kubelet/v1.37.2 (linux/amd64)"}, []int{403}},
		{"the same, as somebody else", path + "/secrets/credentials", token, nil, map[string]string{"Impersonate-User": "system:node:" + s.node.Name()}, []int{403}},
		{"the same, by a detour", path + "/configmaps/../secrets/credentials", token, nil, nil, []int{400, 403, 404, 301}},
		{"the same, by a hidden detour", path + "/configmaps/%2e%2e/secrets/credentials", token, nil, nil, []int{400, 403, 404, 301}},
		{"the same, with an empty segment", path + "//secrets/credentials", token, nil, nil, []int{400, 403, 404, 301}},
		{"another object of that kind", path + "/configmaps/kube-root-ca.crt", token, nil, nil, []int{403}},
		{"all of that kind", path + "/configmaps", token, nil, nil, []int{403}},
		{"the pods of another namespace", "/api/v1/namespaces/kube-system/pods", token, nil, nil, []int{403}},
	} {
		for _, address := range []string{agentapi.HubAddress, agentapi.PodAddress} {
			config := &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12}
			if test.cert != nil {
				config.Certificates = []tls.Certificate{*test.cert}
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return test.cert, nil }
			}
			client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DialContext: s.dial, DisableKeepAlives: true},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			request, err := http.NewRequestWithContext(s.Context(), http.MethodGet, "https://"+address+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.token != "" {
				request.Header.Set("Authorization", "Bearer "+test.token)
			}
			for key, value := range test.header {
				request.Header.Set(key, value)
			}
			code, body := 0, "" // 0: refused before HTTP
			if answer, err := client.Do(request); err == nil {
				data, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
				answer.Body.Close()
				code, body = answer.StatusCode, string(data)
			} else {
				body = err.Error()
			}
			ok := false
			for _, want := range test.want {
				ok = ok || code == want
			}
			if !ok || (code != 200 && strings.Contains(body, s.planted)) {
				t.Errorf("%s, %s at %s: %d, want one of %v: %s", when, test.what, address, code, test.want, body)
			}
		}
	}
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
