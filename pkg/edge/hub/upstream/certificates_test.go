package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
)

// signer is the far end's signing: a CSR is signed at the second look.
type signer struct {
	t     *testing.T
	ca    *authority // that signs
	life  time.Duration
	deny  atomic.Bool
	mu    sync.Mutex
	csrs  map[string]*certificatesv1.CertificateSigningRequest
	looks map[string]int
	via   []string // the credential of each POST
}

func (s *signer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !strings.HasPrefix(r.URL.Path, csrPath) {
		http.NotFound(w, r)
		return
	}
	credential := r.Header.Get("Authorization")
	if len(r.TLS.PeerCertificates) > 0 {
		credential = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	if credential == "" {
		http.Error(w, "anonymous", http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodPost {
		s.via = append(s.via, credential)
		csr := &certificatesv1.CertificateSigningRequest{}
		if err := json.NewDecoder(r.Body).Decode(csr); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || len(csr.Spec.Usages) != 2 {
			s.t.Errorf("CSR for %s, usages %v", csr.Spec.SignerName, csr.Spec.Usages)
		}
		csr.Name = fmt.Sprintf("%s%d", csr.GenerateName, len(s.csrs))
		s.csrs[csr.Name] = csr
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(csr)
		return
	}
	csr := s.csrs[strings.TrimPrefix(r.URL.Path, csrPath+"/")]
	if csr == nil {
		http.NotFound(w, r)
		return
	}
	if s.looks[csr.Name]++; s.looks[csr.Name] == 2 {
		if s.deny.Load() {
			csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "Policy", Message: "not today",
			})
		} else {
			csr.Status.Certificate = signRequest(s.t, s.ca, csr.Spec.Request, s.life)
		}
	}
	_ = json.NewEncoder(w).Encode(csr)
}

func signRequest(t *testing.T, ca *authority, request []byte, life time.Duration) []byte {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		t.Errorf("no request: %q", request)
		return nil
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || parsed.CheckSignature() != nil {
		t.Errorf("bad request: %v", err)
		return nil
	}
	return ca.sign(t, parsed.PublicKey, parsed.Subject, time.Now().Add(-life/100), time.Now().Add(life))
}

func newSigner(t *testing.T, ca *authority, life time.Duration) *signer {
	return &signer{t: t, ca: ca, life: life, csrs: map[string]*certificatesv1.CertificateSigningRequest{}, looks: map[string]int{}}
}

// startBoth runs Certificates and the Upstream that uses them.
func startBoth(t *testing.T, ca *authority, o CertificateOptions, server string) (*Certificates, *Upstream) {
	t.Helper()
	o.NodeName, o.ClusterCA, o.Servers = "edge-1", ca.file, []string{server}
	o.RetryMin, o.RetryMax = 50*time.Millisecond, 200*time.Millisecond
	o.Logger = slog.New(slog.DiscardHandler)
	c, err := NewCertificates(o)
	if err != nil {
		t.Fatal(err)
	}
	u := start(t, ca, c, server)
	run(t, func(ctx context.Context) error { return c.Run(ctx, u) })
	return c, u
}

const bootstrapKubeconfig = `apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: c, user: boot}}, {name: b, context: {cluster: c, user: other}}]
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443"}}]
users: [{name: other, user: {token: wrong}}, {name: boot, user: {token: abcdef.0123456789abcdef}}]
`

func TestBootstrapThenRotation(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	s := newSigner(t, ca, time.Hour)
	server := newAPIServer(t, ca, s.serve)
	dir := t.TempDir()
	bootstrap := filepath.Join(dir, "bootstrap.conf")
	if err := os.WriteFile(bootstrap, []byte(bootstrapKubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	c, u := startBoth(t, ca, CertificateOptions{Dir: filepath.Join(dir, "pki"), Bootstrap: bootstrap}, server.URL)
	eventually(t, 8*time.Second, "online with a certificate of its own", u.Online)
	first := c.Expires()
	eventually(t, 2*time.Second, "the bootstrap file is removed", func() bool {
		_, err := os.Stat(bootstrap)
		return os.IsNotExist(err)
	})
	time.Sleep(1100 * time.Millisecond) // certificates count whole seconds
	makeDue(c)
	eventually(t, 8*time.Second, "the certificate is renewed", func() bool { return c.Expires().After(first) })
	if !u.Online() {
		t.Error("the renewal took the node offline")
	}
	s.mu.Lock()
	via := append([]string{}, s.via...)
	s.mu.Unlock()
	if len(via) < 2 || via[0] != "Bearer abcdef.0123456789abcdef" || via[1] != nodeUser("edge-1") {
		t.Errorf("requests were posted by %q", via)
	}
	info, err := os.Stat(filepath.Join(dir, "pki", currentFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "pki", ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRenewalIsSpread(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	_, pair := ca.issue(t, nodeUser("edge-1"), 9*time.Hour) // ten hours in all
	begin := pair.Leaf.NotBefore
	var c Certificates
	seen := map[time.Time]bool{}
	for range 50 {
		c.use(pair)
		if at := c.renewAt.Sub(begin); at < 7*time.Hour || at > 9*time.Hour {
			t.Errorf("renewed after %s of 10 h", at)
		}
		seen[c.renewAt] = true
	}
	if len(seen) < 40 {
		t.Errorf("only %d different times", len(seen))
	}
}

// makeDue lets the time for renewal come.
func makeDue(c *Certificates) {
	c.mu.Lock()
	c.renewAt = time.Now()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func TestADeniedRequestIsTriedAgain(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	s := newSigner(t, ca, time.Hour)
	s.deny.Store(true)
	server := newAPIServer(t, ca, s.serve)
	dir := t.TempDir()
	bootstrap := filepath.Join(dir, "bootstrap.conf")
	if err := os.WriteFile(bootstrap, []byte(bootstrapKubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	_, u := startBoth(t, ca, CertificateOptions{Dir: dir, Bootstrap: bootstrap}, server.URL)
	eventually(t, 8*time.Second, "two requests", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.via) >= 2
	})
	if u.Online() {
		t.Error("online without a certificate")
	}
	if _, err := os.Stat(bootstrap); err != nil {
		t.Error("the bootstrap file was removed although there is no certificate")
	}
	s.deny.Store(false)
	eventually(t, 8*time.Second, "online at last", u.Online)
}

func TestARefusedNewCertificateIsDropped(t *testing.T) {
	t.Parallel()
	ca, foreign := newAuthority(t), newAuthority(t)
	s := newSigner(t, foreign, time.Hour) // the API server will not take what it signs
	server := newAPIServer(t, ca, s.serve)
	dir := t.TempDir()
	data, pair := ca.issue(t, nodeUser("edge-1"), 10*time.Minute)
	pair.Leaf = decodePEM(t, data)
	if err := os.WriteFile(filepath.Join(dir, currentFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	c, u := startBoth(t, ca, CertificateOptions{Dir: dir}, server.URL) // 60 of 70 minutes are over: 86 %
	makeDue(c)
	eventually(t, 8*time.Second, "a new certificate was asked for", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.via) >= 2
	})
	if !u.Online() || !c.Expires().Equal(pair.Leaf.NotAfter) {
		t.Errorf("the good certificate was given up: online %v, expires %v", u.Online(), c.Expires())
	}
	now, err := os.ReadFile(filepath.Join(dir, currentFile))
	if err != nil || string(now) != string(data) {
		t.Error("the file of the good certificate was changed")
	}
}

// rejoinServer is the far end of the rejoin protocol.
func rejoinServer(t *testing.T, ca *authority, handler http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	_, pair := ca.issue(t, "skerry-controller-manager", time.Hour)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*pair}, ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	return n
}

func TestAnExpiredCertificateRejoins(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		life time.Duration // of the old certificate, from now
		by   string        // who signed it
	}{
		{name: "expired", life: -time.Minute},
		{name: "refused", life: time.Hour, by: "foreign"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ca, foreign := newAuthority(t), newAuthority(t)
			server := newAPIServer(t, ca, whoami)
			var asked atomic.Int32
			port := rejoinServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.Path != "/rejoin" || r.Header.Get("Content-Type") != "application/pkcs10" ||
					len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != nodeUser("edge-1") {
					t.Errorf("%s %s %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
				}
				if asked.Add(1) == 1 {
					http.Error(w, "busy", http.StatusServiceUnavailable)
					return
				}
				request, _ := io.ReadAll(io.LimitReader(r.Body, 16<<10))
				w.Header().Set("Content-Type", "application/x-pem-file")
				_, _ = w.Write(signRequest(t, ca, request, time.Hour))
			})
			dir := t.TempDir()
			signedBy := ca
			if tc.by != "" {
				signedBy = foreign
			}
			data, _ := signedBy.issue(t, nodeUser("edge-1"), tc.life)
			if err := os.WriteFile(filepath.Join(dir, currentFile), data, 0o600); err != nil {
				t.Fatal(err)
			}
			c, u := startBoth(t, ca, CertificateOptions{Dir: dir, RejoinPort: port}, server.URL)
			eventually(t, 8*time.Second, "online with a new certificate", u.Online)
			if !c.Expires().After(time.Now().Add(30*time.Minute)) || asked.Load() < 2 {
				t.Errorf("expires %s after %d requests", c.Expires(), asked.Load())
			}
			again, err := NewCertificates(CertificateOptions{Dir: dir, NodeName: "edge-1", ClusterCA: ca.file, Servers: []string{server.URL}})
			if err != nil || !again.Expires().Equal(c.Expires()) {
				t.Errorf("after a restart: %v %v", again.Expires(), err)
			}
		})
	}
}

// A bootstrap token of long ago must not keep a node from rejoining.
func TestAStaleBootstrapFileIsNoObstacle(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "Unauthorized", http.StatusUnauthorized) })
	port := rejoinServer(t, ca, func(w http.ResponseWriter, r *http.Request) {
		request, _ := io.ReadAll(r.Body)
		_, _ = w.Write(signRequest(t, ca, request, time.Hour))
	})
	dir := t.TempDir()
	bootstrap := filepath.Join(dir, "bootstrap.conf")
	data, _ := ca.issue(t, nodeUser("edge-1"), -time.Minute)
	for path, content := range map[string][]byte{bootstrap: []byte(bootstrapKubeconfig), filepath.Join(dir, currentFile): data} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, u := startBoth(t, ca, CertificateOptions{Dir: dir, Bootstrap: bootstrap, RejoinPort: port}, server.URL)
	eventually(t, 8*time.Second, "online with a new certificate", u.Online)
}

func TestBootstrapToken(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ data, want string }{
		"good":             {bootstrapKubeconfig, "abcdef.0123456789abcdef"},
		"no such context":  {strings.Replace(bootstrapKubeconfig, "current-context: a", "current-context: x", 1), ""},
		"no token":         {strings.Replace(bootstrapKubeconfig, "token: abcdef", "nothing: abcdef", 1), ""},
		"not a kubeconfig": {"\t{", ""},
		"empty":            {"", ""},
	} {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, []byte(tc.data), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := bootstrapToken(path)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
}

func TestAnUnprovenCertificateSurvivesARestart(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := newAPIServer(t, ca, whoami)
	dir := t.TempDir()
	old, _ := ca.issue(t, nodeUser("edge-1"), -time.Minute)
	next, pair := ca.issue(t, nodeUser("edge-1"), time.Hour)
	for name, data := range map[string][]byte{currentFile: old, nextFile: next} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, u := startBoth(t, ca, CertificateOptions{Dir: dir, RejoinPort: 1}, server.URL)
	eventually(t, 8*time.Second, "online with the next certificate", u.Online)
	if !c.Expires().Equal(decodePEM(t, next).NotAfter) || pair == nil {
		t.Error("another certificate is used")
	}
	if _, err := os.Stat(filepath.Join(dir, nextFile)); !os.IsNotExist(err) {
		t.Error("the next certificate is still waiting")
	}
}

func TestWhatIsNotThisNodesCertificateIsSetAside(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	other, _ := ca.issue(t, nodeUser("edge-2"), time.Hour)
	good, _ := ca.issue(t, nodeUser("edge-1"), time.Hour)
	for name, data := range map[string][]byte{
		"of another node": other,
		"torn":            good[:len(good)/2],
		"empty":           {},
		"zeros":           make([]byte, 4096),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, currentFile)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := NewCertificates(CertificateOptions{Dir: dir, NodeName: "edge-1", ClusterCA: ca.file, Servers: []string{"https://10.0.0.1:6443"}, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Certificate(); err == nil || !strings.Contains(err.Error(), "set aside") {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(path + ".bad"); err != nil {
				t.Error(err)
			}
		})
	}
}
