package manager

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServer has one Node, which is shut out, and takes events.
func apiServer(t *testing.T, events chan<- string) string {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes/west-1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(corev1.Node{
			TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: "west-1", UID: "u", Annotations: map[string]string{"skerry.dev/no-rejoin": "true"}},
		})
	})
	mux.HandleFunc("POST /api/v1/namespaces/default/events", func(w http.ResponseWriter, r *http.Request) {
		var e corev1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		events <- e.InvolvedObject.Name + " " + e.Reason + " " + e.Source.Component
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(e)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {}}]\n", server.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// pki writes an authority and a certificate of 127.0.0.1, and returns one of a
// node that ran out.
func pki(t *testing.T) (options Options, pool *x509.CertPool, node tls.Certificate) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return key
	}
	now, dir := time.Now(), t.TempDir()
	caKey := newKey()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	sign := func(template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
		must(err)
		return der
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	caDER := sign(ca, caKey)
	parsed, err := x509.ParseCertificate(caDER)
	must(err)
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	serving, nodeKey := newKey(), newKey()
	keyDER, err := x509.MarshalPKCS8PrivateKey(serving)
	must(err)
	options.Files.Authorities = write("ca.crt", "CERTIFICATE", caDER)
	options.Files.Key = write("s.key", "PRIVATE KEY", keyDER)
	options.Files.Certificate = write("s.crt", "CERTIFICATE", sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, serving))
	node = tls.Certificate{PrivateKey: nodeKey, Certificate: [][]byte{sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour),
		Subject:     pkix.Name{CommonName: "system:node:west-1", Organization: []string{"system:nodes"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, nodeKey)}}
	return options, pool, node
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestRun(t *testing.T) {
	events := make(chan string, 10)
	files, pool, node := pki(t)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	var o Options
	o.AddFlags(flags)
	health, listen := freeAddress(t), freeAddress(t)
	if err := flags.Parse([]string{"--kubeconfig=" + apiServer(t, events), "--health-address=" + health, "--listen=" + listen,
		"--tls-cert-file=" + files.Files.Certificate, "--tls-private-key-file=" + files.Files.Key, "--client-ca-file=" + files.Files.Authorities}); err != nil {
		t.Fatal(err)
	}
	if o.MaxExpired != 2160*time.Hour {
		t.Errorf("--max-expired is %s by default", o.MaxExpired)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o, slog.New(slog.DiscardHandler)) }()
	get := func(path string) (string, error) {
		resp, err := http.Get("http://" + health + path)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.Status + " " + string(text), err
	}
	var text string
	var err error
	for range 100 {
		if text, err = get("/healthz"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil || !strings.HasPrefix(text, "200") {
		t.Fatal(text, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &node, nil }}}}
	resp, err := client.Post("https://"+listen+"/rejoin", "application/pkcs10", bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a node that is shut out got %s", resp.Status)
	}
	select {
	case e := <-events:
		if e != "west-1 RejoinRefused skerry-controller-manager" {
			t.Errorf("event %q", e)
		}
	case <-time.After(5 * time.Second):
		t.Error("no event")
	}
	if text, err := get("/metrics"); err != nil || !strings.Contains(text, `skerry_rejoin_requests_total{result="ShutOut"} 1`) {
		t.Errorf("metrics: %.500s %v", text, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRunSaysWhatIsWrong(t *testing.T) {
	files, _, _ := pki(t)
	kubeconfig := apiServer(t, make(chan string, 1))
	for want, change := range map[string]func(*Options){
		"--leader-elect-renew": func(o *Options) { o.Election.Renew = time.Hour },
		"--max-expired":        func(o *Options) { o.MaxExpired = 0 },
		"API server":           func(o *Options) { o.Kubeconfig = "/none" },
		"serving certificate":  func(o *Options) { o.Files.Certificate = "/none" },
		"--health-address":     func(o *Options) { o.HealthAddress = "nowhere" },
	} {
		o := Options{Kubeconfig: kubeconfig, HealthAddress: "127.0.0.1:0", Listen: "127.0.0.1:0", MaxExpired: time.Hour, Files: files.Files,
			Election: Election{Elect: true, Namespace: "kube-system", Lease: 15 * time.Second, Renew: 10 * time.Second, Retry: 2 * time.Second}}
		change(&o)
		if err := Run(context.Background(), o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
