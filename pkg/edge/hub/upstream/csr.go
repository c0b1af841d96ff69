package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeconfigv1 "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

const (
	csrPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	// signingTimeout is how long a request waits to be approved and signed.
	signingTimeout = 15 * time.Minute
	maxAnswer      = 256 << 10
)

// directNode and directToken send requests whatever the state of the link says.
func (u *Upstream) directNode() http.RoundTripper {
	return &sender{u: u, lane: u.node, direct: true}
}

func (u *Upstream) directToken(token string) http.RoundTripper {
	return &sender{u: u, lane: u.token, token: token, direct: true}
}

// newRequest makes a key and a signing request for the node's identity, in PEM.
func newRequest(nodeName string) (request, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: nodeUser(nodeName), Organization: []string{nodesGroup}},
	}, private)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pemBlock("CERTIFICATE REQUEST", der), pemBlock("EC PRIVATE KEY", keyDER), nil
}

// obtain gets a certificate from the cluster's signer, as kubelet does.
//
// client-go's certificate manager does the same. It costs the process 5 MB,
// because it brings a typed client for each API.
func (c *Certificates) obtain(ctx context.Context, u *Upstream, via http.RoundTripper) error {
	request, key, err := newRequest(c.o.NodeName)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, signingTimeout)
	defer cancel()
	csr := certificatesv1.CertificateSigningRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    request,
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}
	body, err := json.Marshal(csr)
	if err != nil {
		return err
	}
	if _, err := call(ctx, via, http.MethodPost, csrPath, body, &csr); err != nil {
		return fmt.Errorf("posting a signing request: %w", err)
	}
	name := csr.Name
	var failure error
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		for _, condition := range csr.Status.Conditions {
			if condition.Status != corev1.ConditionTrue && condition.Status != "" {
				continue
			}
			switch condition.Type {
			case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
				return fmt.Errorf("signing request %s: %s: %s %s", name, condition.Type, condition.Reason, condition.Message)
			}
		}
		if len(csr.Status.Certificate) > 0 {
			return c.adopt(ctx, u, csr.Status.Certificate, key)
		}
		if !sleep(ctx, pause) {
			if failure == nil {
				failure = errors.New("is it approved?")
			}
			return fmt.Errorf("signing request %s was not signed within %s: %w", name, signingTimeout, failure)
		}
		csr = certificatesv1.CertificateSigningRequest{}
		code, err := call(ctx, via, http.MethodGet, csrPath+"/"+url.PathEscape(name), nil, &csr)
		if code >= 400 && code < 500 && code != http.StatusTooManyRequests {
			return fmt.Errorf("waiting for signing request %s: %w", name, err)
		}
		failure = err // a link that comes and goes is no reason for another request
	}
}

// call sends a request and reads the answer. code is 0 without one.
func call(ctx context.Context, via http.RoundTripper, method, path string, body []byte, into any) (code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := do(ctx, via, method, path, nil, "application/json", "application/json", body)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode >= 300 {
		var status metav1.Status
		if json.Unmarshal(data, &status) == nil && status.Message != "" {
			return resp.StatusCode, fmt.Errorf("%s: %s", resp.Status, status.Message)
		}
		return resp.StatusCode, errors.New(resp.Status)
	}
	return resp.StatusCode, json.Unmarshal(data, into)
}

// bootstrapToken reads the token of a kubeconfig's current context.
func bootstrapToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the bootstrap kubeconfig: %w", err)
	}
	var config kubeconfigv1.Config
	if err := yaml.Unmarshal(data, &config); err != nil {
		return "", fmt.Errorf("reading %s: not a kubeconfig", path) // the error may quote the token
	}
	user := ""
	for _, named := range config.Contexts {
		if named.Name == config.CurrentContext {
			user = named.Context.AuthInfo
		}
	}
	for _, named := range config.AuthInfos {
		if named.Name == user && named.AuthInfo.Token != "" {
			return named.AuthInfo.Token, nil
		}
	}
	return "", fmt.Errorf("%s has no token for its current context", path)
}

// rejoin asks the control-plane nodes for a certificate, with the one that ran
// out, which say who may.
func (c *Certificates) rejoin(ctx context.Context, u *Upstream) error {
	c.mu.Lock()
	old := c.current
	c.mu.Unlock()
	request, key, err := newRequest(c.o.NodeName)
	if err != nil {
		return err
	}
	var failures []error
	for _, server := range c.servers {
		host := net.JoinHostPort(server.Hostname(), strconv.Itoa(c.o.RejoinPort))
		chain, err := c.askRejoin(ctx, host, old, request)
		if err == nil {
			return c.adopt(ctx, u, chain, key)
		}
		failures = append(failures, fmt.Errorf("%s: %w", host, err))
	}
	return errors.Join(failures...)
}

func (c *Certificates) askRejoin(ctx context.Context, host string, old *tls.Certificate, request []byte) ([]byte, error) {
	pool, err := c.ca.pool()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion:           tls.VersionTLS12,
			RootCAs:              pool,
			Time:                 c.o.Now,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return old, nil },
		},
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+host+"/rejoin", strings.NewReader(string(request)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %.200q", resp.Status, strings.TrimSpace(string(data)))
	}
	return data, nil
}
