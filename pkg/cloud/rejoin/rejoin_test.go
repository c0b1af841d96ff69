package rejoin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

const day = 24 * time.Hour

// A node that was away for longer than its certificate gets a new one, which
// upstream's signer has made of its key.
func TestAccepted(t *testing.T) {
	for _, tc := range []struct {
		name    string
		expired time.Duration // negative: it is still good
		made    time.Duration // before the certificate
		sign    func(*x509.Certificate)
	}{
		{name: "expired a minute ago", expired: time.Minute, made: time.Minute},
		{name: "expired 89 days ago", expired: 89 * day, made: time.Hour},
		{name: "not expired: the node's clock is wrong", expired: -day, made: time.Hour},
		{name: "certificate dated back by the signer", expired: day, made: -6 * time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, true, nil)
			end := time.Now().Add(-tc.expired)
			begin := end.Add(-30 * day)
			c.node("west-1", begin.Add(-tc.made), nil)
			body, key := request(t, "west-1", nil)
			old := c.ca.nodeCertificate(t, "west-1", begin, end, nil)
			status, text, header := c.ask(c.client(old), body)
			if status != http.StatusOK || header.Get("Content-Type") != "application/x-pem-file" {
				t.Fatalf("%d %s %s", status, header.Get("Content-Type"), text)
			}
			block, _ := pem.Decode([]byte(text))
			if block == nil || block.Type != "CERTIFICATE" {
				t.Fatalf("answer: %s", text)
			}
			got, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if !key.PublicKey.Equal(got.PublicKey) || got.Subject.String() != "CN=system:node:west-1,O=system:nodes" {
				t.Errorf("certificate of %s", got.Subject)
			}
			if _, err := got.Verify(x509.VerifyOptions{Roots: c.ca.pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
			if e := c.said(); !strings.Contains(e, EventAccepted) || !strings.Contains(e, "serial 2a") {
				t.Errorf("event: %q", e)
			}
			if n := c.counted(accepted); n != 1 {
				t.Errorf("metric: %v", n)
			}
			if log := c.logs.String(); !strings.Contains(log, "node=west-1") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// certificates with which nobody gets anything, and no Node gets an event.
func TestBadCertificate(t *testing.T) {
	c := newCluster(t, true, nil)
	now := time.Now()
	begin, end := now.Add(-60*day), now.Add(-30*day)
	c.node("west-1", begin, nil)
	body, _ := request(t, "west-1", nil)
	other := newAuthority(t, now.Add(-365*day), now.Add(365*day))
	is := func(change func(*x509.Certificate)) tls.Certificate {
		return c.ca.nodeCertificate(t, "west-1", begin, end, change)
	}
	selfSigned := func() tls.Certificate {
		pair := is(nil)
		template, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t)
		template.PublicKey = nil
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	// A node's certificate is no authority, whoever signs with it.
	signedByNode := func() tls.Certificate {
		pair := c.ca.nodeCertificate(t, "west-2", begin, end, nil)
		parent, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		leaf := (&authority{certificate: parent, key: pair.PrivateKey.(crypto.Signer)}).nodeCertificate(t, "west-1", begin, end, nil)
		leaf.Certificate = append(leaf.Certificate, pair.Certificate[0])
		return leaf
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakRSA := func() tls.Certificate {
		template, err := x509.ParseCertificate(is(nil).Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, c.ca.certificate, weak.Public(), c.ca.key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: weak}
	}
	longChain := func() tls.Certificate {
		pair := is(nil)
		for range maxChain {
			pair.Certificate = append(pair.Certificate, c.ca.certificate.Raw)
		}
		return pair
	}
	for name, certificate := range map[string]tls.Certificate{
		"another authority":     other.nodeCertificate(t, "west-1", begin, end, nil),
		"self-signed":           selfSigned(),
		"signed by a node":      signedByNode(),
		"not valid yet":         c.ca.nodeCertificate(t, "west-1", now.Add(time.Hour), now.Add(day), nil),
		"never valid":           c.ca.nodeCertificate(t, "west-1", end, begin, nil),
		"a serving certificate": is(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"no purpose":            is(func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"any purpose":           is(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"two purposes":          is(func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }),
		"an authority":          is(func(c *x509.Certificate) { c.IsCA = true }),
		"admin": is(func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}
		}),
		"admin that is a node":     is(func(c *x509.Certificate) { c.Subject.Organization = []string{"system:masters"} }),
		"node and admin":           is(func(c *x509.Certificate) { c.Subject.Organization = []string{"system:nodes", "system:masters"} }),
		"no organization":          is(func(c *x509.Certificate) { c.Subject.Organization = nil }),
		"a service account":        is(func(c *x509.Certificate) { c.Subject.CommonName = "system:serviceaccount:kube-system:x" }),
		"no name":                  is(func(c *x509.Certificate) { c.Subject.CommonName = "system:node:" }),
		"a name that is no Node's": is(func(c *x509.Certificate) { c.Subject.CommonName = "system:node:../pods" }),
		"a unit, too":              is(func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"x"} }),
		"two common names": is(func(c *x509.Certificate) {
			name := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "system:node:west-1"}
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{name, name}
		}),
		"alternative names":       is(func(c *x509.Certificate) { c.DNSNames = []string{"west-1"} }),
		"alternative addresses":   is(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }),
		"a key that is too short": weakRSA(),
		"a long chain":            longChain(),
		"an unknown critical purpose": is(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			before := c.counted(badCertificate)
			status, text, _ := c.ask(c.client(certificate), body)
			if status != http.StatusForbidden {
				t.Errorf("%d %s", status, text)
			}
			if got := c.counted(badCertificate) - before; got != 1 {
				t.Errorf("metric: %v", got)
			}
		})
	}
	if e := c.said(); e != "" {
		t.Errorf("event on a Node by somebody who is not known: %s", e)
	}
	if got := c.requests(); got != 0 {
		t.Errorf("%d CertificateSigningRequests", got)
	}
	t.Run("none", func(t *testing.T) {
		answer, err := c.client().Post("https://"+c.address+Path, requestType, bytes.NewReader(body))
		if err == nil {
			answer.Body.Close()
			t.Error("answered without a client certificate")
		}
	})
	t.Run("old TLS", func(t *testing.T) {
		old := c.client(is(nil))
		old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
		answer, err := old.Post("https://"+c.address+Path, requestType, bytes.NewReader(body))
		if err == nil {
			answer.Body.Close()
			t.Error("speaks TLS 1.2")
		}
	})
	t.Run("with another's key", func(t *testing.T) {
		stolen := is(nil)
		stolen.PrivateKey = newKey(t)
		answer, err := c.client(stolen).Post("https://"+c.address+Path, requestType, bytes.NewReader(body))
		if err == nil {
			answer.Body.Close()
			t.Error("answered to a certificate without its key")
		}
	})
}

func (c *cluster) requests() int {
	c.t.Helper()
	list, err := c.api.CertificatesV1().CertificateSigningRequests().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return len(list.Items)
}

// What is true of the certificate and the Node decides.
func TestJudged(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		expired time.Duration
		made    time.Duration // of the Node after the certificate's begin
		node    func(*corev1.Node)
		none    bool
		want    result
		status  int
	}{
		{name: "too long ago", expired: 91 * day, want: expiredTooLong, status: 403},
		{name: "no such Node", expired: day, none: true, want: noNode, status: 403},
		{name: "Node deleted and made again", expired: day, made: 20 * day, want: newerNode, status: 403},
		{name: "shut out", expired: day, node: func(n *corev1.Node) { n.Annotations = map[string]string{NoRejoin: "true"} }, want: shutOut, status: 403},
		{name: "annotation says no", expired: day, node: func(n *corev1.Node) { n.Annotations = map[string]string{NoRejoin: "false"} }, want: accepted, status: 200},
		{name: "heartbeat is there", expired: day, node: func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue }, want: connected, status: 503},
		{name: "heartbeat is there, not ready", expired: day, node: func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }, want: connected, status: 503},
		{name: "never had a heartbeat", expired: day, node: func(n *corev1.Node) { n.Status.Conditions = nil }, want: accepted, status: 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, tc.want == accepted, nil)
			end := now.Add(-tc.expired)
			begin := end.Add(-30 * day)
			if !tc.none {
				c.node("west-1", begin.Add(tc.made), tc.node)
			}
			body, _ := request(t, "west-1", nil)
			status, text, header := c.ask(c.client(c.ca.nodeCertificate(t, "west-1", begin, end, nil)), body)
			if status != tc.status || c.counted(tc.want) != 1 {
				t.Errorf("%d %s, %s=%v", status, text, tc.want, c.counted(tc.want))
			}
			if (status == 503) != (header.Get("Retry-After") != "") {
				t.Errorf("status %d, Retry-After %q", status, header.Get("Retry-After"))
			}
			event := c.said()
			switch {
			case tc.none && event != "":
				t.Errorf("event: %s", event)
			case !tc.none && tc.want != accepted && (!strings.Contains(event, EventRefused) || !strings.Contains(event, string(tc.want))):
				t.Errorf("event: %q", event)
			}
			if n := c.requests(); (n == 1) != (tc.want == accepted) {
				t.Errorf("%d CertificateSigningRequests", n)
			}
		})
	}
}

func TestBadRequest(t *testing.T) {
	c := newCluster(t, true, func(o *Options) { o.Now = jumpingClock() })
	now := time.Now()
	begin, end := now.Add(-60*day), now.Add(-30*day)
	c.node("west-1", begin, nil)
	good, _ := request(t, "west-1", nil)
	is := func(change func(*x509.CertificateRequest)) []byte {
		body, _ := request(t, "west-1", change)
		return body
	}
	forged := func() []byte {
		block, _ := pem.Decode(good)
		der := bytes.Clone(block.Bytes)
		der[len(der)-1] ^= 1
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der})
	}
	withHeaders := func() []byte {
		block, _ := pem.Decode(good)
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes, Headers: map[string]string{"a": "b"}})
	}
	client := c.client(c.ca.nodeCertificate(t, "west-1", begin, end, nil))
	for name, body := range map[string][]byte{
		"nothing":             {},
		"text":                []byte("hello"),
		"DER":                 {0x30, 0x03, 0x02, 0x01, 0x00},
		"a certificate":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.certificate.Raw}),
		"no request inside":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}),
		"two requests":        append(bytes.Clone(good), good...),
		"something before":    append([]byte("x\n"), good...),
		"something after":     append(bytes.Clone(good), 'x'),
		"headers":             withHeaders(),
		"forged":              forged(),
		"another node":        is(func(r *x509.CertificateRequest) { r.Subject.CommonName = "system:node:west-2" }),
		"admin":               is(func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} }),
		"two organizations":   is(func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:nodes", "system:masters"} }),
		"a unit":              is(func(r *x509.CertificateRequest) { r.Subject.OrganizationalUnit = []string{"x"} }),
		"alternative names":   is(func(r *x509.CertificateRequest) { r.DNSNames = []string{"kubernetes"} }),
		"alternative URIs":    is(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }),
		"more than 16 KiB":    append(bytes.Clone(good), bytes.Repeat([]byte("\n"), maxBody)...),
		"much more than that": bytes.Repeat([]byte("A"), 10<<20),
	} {
		t.Run(name, func(t *testing.T) {
			before := c.counted(badRequest)
			resp, err := client.Post("https://"+c.address+Path, requestType, bytes.NewReader(body))
			if err != nil {
				if len(body) > maxBody {
					return // the connection was closed in the middle of it
				}
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || c.counted(badRequest)-before != 1 {
				t.Errorf("%s, metric %v", resp.Status, c.counted(badRequest)-before)
			}
			if e := c.said(); !strings.Contains(e, EventRefused) {
				t.Errorf("event: %q", e)
			}
		})
	}
	if n := c.requests(); n != 0 {
		t.Errorf("%d CertificateSigningRequests", n)
	}
	for name, tc := range map[string]struct {
		method, path, kind string
		status             int
	}{
		"another type":   {"POST", Path, "application/json", 400},
		"no type":        {"POST", Path, "", 400},
		"GET":            {"GET", Path, requestType, 405},
		"another path":   {"POST", "/", requestType, 404},
		"a path below":   {"POST", Path + "/x", requestType, 404},
		"type with more": {"POST", Path, requestType + "; charset=x", 200},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(tc.method, "https://"+c.address+tc.path, bytes.NewReader(good))
			if err != nil {
				t.Fatal(err)
			}
			if tc.kind != "" {
				r.Header.Set("Content-Type", tc.kind)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tc.status {
				t.Errorf("%s, want %d", resp.Status, tc.status)
			}
		})
	}
}

// jumpingClock goes on a minute each time it is read, so that no limit is met.
func jumpingClock() func() time.Time {
	now := make(chan time.Time, 1)
	now <- time.Now()
	return func() time.Time {
		t := <-now
		now <- t.Add(time.Minute)
		return t
	}
}

func TestRequestKeys(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(bits int) any {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for name, tc := range map[string]struct {
		key any
		ok  bool
	}{"ECDSA": {newKey(t), true}, "Ed25519": {edKey, true}, "RSA 2048": {make(2048), true}, "RSA 1024": {make(1024), false}} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, tc.key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeRequest(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRateLimit(t *testing.T) {
	c := newCluster(t, false, nil)
	now := time.Now()
	c.node("west-1", now.Add(-60*day), func(n *corev1.Node) { n.Annotations = map[string]string{NoRejoin: "true"} })
	c.node("west-2", now.Add(-60*day), func(n *corev1.Node) { n.Annotations = map[string]string{NoRejoin: "true"} })
	ask := func(node string) int {
		body, _ := request(t, node, nil)
		status, _, _ := c.ask(c.client(c.ca.nodeCertificate(t, node, now.Add(-60*day), now.Add(-day), nil)), body)
		return status
	}
	for i := range limitBurst {
		if status := ask("west-1"); status != 403 {
			t.Fatalf("request %d: %d", i, status)
		}
	}
	if status := ask("west-1"); status != 429 {
		t.Errorf("one too many: %d", status)
	}
	if status := ask("west-2"); status != 403 {
		t.Errorf("another node: %d", status)
	}
	if c.counted(rateLimited) != 1 {
		t.Errorf("metric: %v", c.counted(rateLimited))
	}
}

func TestLimiterIsBounded(t *testing.T) {
	now := time.Now()
	l := newLimiter(func() time.Time { return now })
	name := func(i int) string { return string(rune('a'+i%26)) + time.Duration(i).String() }
	for i := range maxLimited {
		if !l.allow(name(i)) {
			t.Fatal(i)
		}
	}
	if l.allow("one more") {
		t.Error("more nodes are remembered than may be")
	}
	now = now.Add(limitEvery)
	if !l.allow("one more") || len(l.nodes) > 1 {
		t.Errorf("idle nodes are not forgotten: %d", len(l.nodes))
	}
}

// The API server or the signer fails in every way it can.
func TestFailures(t *testing.T) {
	gone := errors.New("etcdserver: request timed out")
	react := func(verb, resource, sub string, do func(clienttesting.Action) (bool, runtime.Object, error)) func(*cluster) {
		return func(c *cluster) {
			c.api.PrependReactor(verb, resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
				if a.GetSubresource() != sub {
					return false, nil, nil
				}
				return do(a)
			})
		}
	}
	fail := func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, gone }
	answer := func(change func(*certificatesv1.CertificateSigningRequest)) func(clienttesting.Action) (bool, runtime.Object, error) {
		return func(a clienttesting.Action) (bool, runtime.Object, error) {
			csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: a.(clienttesting.GetAction).GetName()}}
			change(csr)
			return true, csr, nil
		}
	}
	foreign := newAuthority(t, time.Now().Add(-day), time.Now().Add(day))
	for name, break_ := range map[string]func(*cluster){
		"node cannot be read":    react("get", "nodes", "", fail),
		"request cannot be made": react("create", "certificatesigningrequests", "", fail),
		"no right to approve":    react("update", "certificatesigningrequests", "approval", fail),
		"waiting fails":          react("get", "certificatesigningrequests", "", fail),
		"denied by another": react("get", "certificatesigningrequests", "", answer(func(c *certificatesv1.CertificateSigningRequest) {
			c.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: "True"}}
		})),
		"signer fails": react("get", "certificatesigningrequests", "", answer(func(c *certificatesv1.CertificateSigningRequest) {
			c.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateFailed, Status: "True"}}
		})),
		"another certificate is signed": react("get", "certificatesigningrequests", "", answer(func(c *certificatesv1.CertificateSigningRequest) {
			c.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.nodeCertificate(t, "west-1", time.Now(), time.Now().Add(day), nil).Certificate[0]})
		})),
		"no certificate is signed": react("get", "certificatesigningrequests", "", answer(func(c *certificatesv1.CertificateSigningRequest) {
			c.Status.Certificate = []byte("hello")
		})),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, false, nil)
			break_(c)
			now := time.Now()
			c.node("west-1", now.Add(-60*day), nil)
			body, _ := request(t, "west-1", nil)
			status, text, header := c.ask(c.client(c.ca.nodeCertificate(t, "west-1", now.Add(-60*day), now.Add(-day), nil)), body)
			if status != 503 || header.Get("Retry-After") == "" || c.counted(failed) != 1 {
				t.Errorf("%d %s %v", status, text, header)
			}
			if strings.Contains(text, gone.Error()) {
				t.Errorf("the caller is told the API server's errors: %s", text)
			}
		})
	}
}

// Files are read again when they change; a torn one does no harm.
func TestFilesChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	load := func() (string, error) {
		text, err := os.ReadFile(file)
		if err == nil && len(text) == 0 {
			err = errors.New("torn")
		}
		return string(text), err
	}
	at := time.Now().Add(-time.Hour)
	write := func(text string) {
		t.Helper()
		at = at.Add(time.Second)
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	get, lazy := cached(0, load, file), cached(time.Hour, load, file)
	if _, err := get(); err == nil {
		t.Error("no error for what was never there")
	}
	write("old")
	for name, get := range map[string]func() (string, error){"after the error": get, "first": lazy} {
		if now, err := get(); err != nil || now != "old" {
			t.Errorf("%s: %q %v", name, now, err)
		}
	}
	write("")
	if now, err := get(); err != nil || now != "old" {
		t.Errorf("torn: %q %v", now, err)
	}
	write("new")
	if now, err := get(); err != nil || now != "new" {
		t.Errorf("changed: %q %v", now, err)
	}
	if now, err := lazy(); err != nil || now != "old" {
		t.Errorf("looked at again too early: %q %v", now, err)
	}
}

// The serving certificate is renewed under the server.
func TestServingCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, time.Now().Add(-day), time.Now().Add(day))
	certificate, key := a.serving(t, dir)
	files := Files{Certificate: certificate, Key: key}
	get := files.certificate(0)
	first, err := get()
	if err != nil {
		t.Fatal(err)
	}
	a.serving(t, dir)
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(certificate, later, later); err != nil {
		t.Fatal(err)
	}
	second, err := get()
	if err != nil || bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Errorf("the old certificate is still served: %v", err)
	}
}

func TestListenSaysWhatIsMissing(t *testing.T) {
	c := newCluster(t, false, nil)
	caFile, caKey := c.ca.write(t, c.dir)
	for _, files := range []Files{
		{Certificate: caFile, Key: "/none", Authorities: caFile},
		{Certificate: caFile, Key: caKey, Authorities: "/none"},
		{Certificate: caFile, Key: caKey, Authorities: caKey},
	} {
		if _, err := Listen("127.0.0.1:0", files, Options{Client: c.api, Registry: c.registry}); err == nil {
			t.Errorf("listens with %v", files)
		}
	}
	if _, err := New(Options{MaxExpired: -1}); err == nil {
		t.Error("takes a negative time")
	}
}

func FuzzDecodeRequest(f *testing.F) {
	good, _ := request(f, "west-1", nil)
	f.Add(good)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----"))
	i := &identity{node: "west-1"}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRequest(body)
		if err != nil {
			return
		}
		if r.CheckSignature() != nil || len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.EmailAddresses) > 0 {
			t.Errorf("accepted %q", body)
		}
		if i.sameSubject(r) == nil && r.Subject.String() != "CN=system:node:west-1,O=system:nodes" {
			t.Errorf("subject %s is taken for the node's", r.Subject)
		}
	})
}
