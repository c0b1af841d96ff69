package rejoin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
)

// authority is a certificate authority.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB, from, to time.Time) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// nodeCertificate is what the cluster's signer makes for a kubelet, and
// change what is different about it.
func (a *authority) nodeCertificate(t testing.TB, node string, from, to time.Time, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(42), Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		NotBefore: from, NotAfter: to, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) write(t testing.TB, dir string) (certificate, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	writePEM(t, certificate, "CERTIFICATE", a.certificate.Raw)
	writePEM(t, key, "PRIVATE KEY", der)
	return certificate, key
}

func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serving writes a serving certificate for 127.0.0.1.
func (a *authority) serving(t testing.TB, dir string) (certificate, key string) {
	t.Helper()
	pair := a.nodeCertificate(t, "", time.Now().Add(-time.Hour), time.Now().Add(time.Hour), func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "kube-apiserver"}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "apiserver.crt"), filepath.Join(dir, "apiserver.key")
	writePEM(t, certificate, "CERTIFICATE", pair.Certificate[0])
	writePEM(t, key, "PRIVATE KEY", der)
	return certificate, key
}

// cluster is the rejoin server as it listens, before a client that keeps objects
// and upstream's own signing controller.
type cluster struct {
	t        testing.TB
	dir      string
	ca       *authority
	api      *fake.Clientset
	registry *prometheus.Registry
	events   *record.FakeRecorder
	address  string
	logs     *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCluster(t testing.TB, sign bool, change func(*Options)) *cluster {
	t.Helper()
	now := time.Now()
	c := &cluster{
		t: t, dir: t.TempDir(), ca: newAuthority(t, now.AddDate(-5, 0, 0), now.AddDate(5, 0, 0)),
		api: fake.NewClientset(), registry: prometheus.NewRegistry(), events: record.NewFakeRecorder(100), logs: &logBuffer{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	caFile, caKey := c.ca.write(t, c.dir)
	if sign {
		factory := informers.NewSharedInformerFactory(c.api, 0)
		controller, err := signer.NewKubeletClientCSRSigningController(ctx, c.api, factory.Certificates().V1().CertificateSigningRequests(), caFile, caKey, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		running.Go(func() { controller.Run(ctx, 1) })
	}
	certificate, key := c.ca.serving(t, c.dir)
	o := Options{Client: c.api, Registry: c.registry, Events: c.events, Logger: slog.New(slog.NewTextHandler(c.logs, nil))}
	if change != nil {
		change(&o)
	}
	l, err := Listen("127.0.0.1:0", Files{Certificate: certificate, Key: key, Authorities: caFile}, o)
	if err != nil {
		t.Fatal(err)
	}
	c.address = l.Address().String()
	running.Go(func() {
		if err := l.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// node makes a Node that was made at this time and is unreachable.
func (c *cluster) node(name string, made time.Time, change func(*corev1.Node)) {
	c.t.Helper()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid", CreationTimestamp: metav1.NewTime(made)},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}},
	}
	if change != nil {
		change(n)
	}
	if _, err := c.api.CoreV1().Nodes().Create(context.Background(), n, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// request is what a node asks for; the key is the new one.
func request(t testing.TB, node string, change func(*x509.CertificateRequest)) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key
}

// client is a node with a certificate: of any date, as Go's TLS sends it.
func (c *cluster) client(certificates ...tls.Certificate) *http.Client {
	config := &tls.Config{RootCAs: c.ca.pool()}
	if len(certificates) > 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificates[0], nil }
	}
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func (c *cluster) ask(client *http.Client, body []byte) (int, string, http.Header) {
	c.t.Helper()
	resp, err := client.Post("https://"+c.address+Path, requestType, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

// said returns the event that was written, or "".
func (c *cluster) said() string {
	select {
	case e := <-c.events.Events:
		return e
	default:
		return ""
	}
}

// counted returns the metric of one result.
func (c *cluster) counted(r result) float64 {
	c.t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "skerry_rejoin_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == string(r) {
				return m.GetCounter().GetValue()
			}
		}
	}
	c.t.Fatalf("no metric for result %s", r)
	return 0
}
