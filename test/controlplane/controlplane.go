// Package controlplane starts an etcd, a kube-apiserver and, if wanted, a
// kube-controller-manager on loopback: a cluster without nodes, for tests and
// benchmarks of what runs beside the control plane. It needs no root. It must
// not know what is tested.
package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Options of a control plane.
type Options struct {
	Dir string // for certificates, data and logs
	Bin string // folder of the programs; empty: they are in PATH
	// Controllers are those of kube-controller-manager, as its --controllers
	// takes them; without any it is not started.
	Controllers string
	// APIServer are more flags of kube-apiserver.
	APIServer []string
}

// ControlPlane is a running one.
type ControlPlane struct {
	o         Options
	address   string
	processes []*Process
	key       *ecdsa.PrivateKey
	authority *x509.Certificate
}

// Process is one of its programs.
type Process struct {
	Name string
	cmd  *exec.Cmd
	done chan struct{}
	log  string
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Start starts a control plane and waits until its API server is ready.
func Start(ctx context.Context, o Options) (c *ControlPlane, err error) {
	c = &ControlPlane{o: o}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	if c.address, err = freeAddress(); err != nil {
		return nil, err
	}
	if err := c.certificates(); err != nil {
		return nil, err
	}
	client, err := freeAddress()
	if err != nil {
		return nil, err
	}
	peer, err := freeAddress()
	if err != nil {
		return nil, err
	}
	client, peer = "http://"+client, "http://"+peer
	file := func(name string) string { return filepath.Join(o.Dir, name) }
	if err := c.start("etcd", "--data-dir", file("etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer,
		"--unsafe-no-fsync", "--log-level", "warn", "--quota-backend-bytes", "4294967296"); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(c.address)
	if err := c.start("kube-apiserver", append([]string{
		"--etcd-servers", client, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/16",
		"--tls-cert-file", file("server.crt"), "--tls-private-key-file", file("server.key"), "--client-ca-file", file("ca.crt"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file", file("server.key"),
		"--service-account-key-file", file("server.crt"), "--authorization-mode", "Node,RBAC", "--disable-admission-plugins", "ServiceAccount",
	}, o.APIServer...)...); err != nil {
		return nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if o.Controllers != "" {
		if err := c.kubeconfig(); err != nil {
			return nil, err
		}
		if err := c.start("kube-controller-manager", "--kubeconfig", file("kubeconfig"), "--leader-elect=false", "--secure-port", "0",
			"--use-service-account-credentials=false", "--kube-api-qps", "1000", "--kube-api-burst", "2000", "--controllers", o.Controllers); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Config is an administrator's.
func (c *ControlPlane) Config() *rest.Config {
	file := func(name string) string { return filepath.Join(c.o.Dir, name) }
	return &rest.Config{
		Host: "https://" + c.address, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: file("ca.crt"), CertFile: file("admin.crt"), KeyFile: file("admin.key")},
	}
}

// Process returns one of its programs by name, nil if it does not run.
func (c *ControlPlane) Process(name string) *Process {
	for _, p := range c.processes {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Stop ends all of it.
func (c *ControlPlane) Stop() {
	for i := len(c.processes) - 1; i >= 0; i-- {
		p := c.processes[i]
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
		<-p.done
	}
	c.processes = nil
}

func (c *ControlPlane) start(name string, args ...string) error {
	path := filepath.Join(c.o.Bin, name)
	if c.o.Bin == "" {
		found, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("%w: make builds it into _output/<arch>/bin", err)
		}
		path = found
	}
	p := &Process{Name: name, log: filepath.Join(c.o.Dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	c.processes = append(c.processes, p)
	return nil
}

func (c *ControlPlane) ready(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		for _, p := range c.processes {
			select {
			case <-p.done:
				text, _ := os.ReadFile(p.log)
				lines := strings.Split(strings.TrimSpace(string(text)), "\n")
				return fmt.Errorf("%s ended:\n%s", p.Name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
			default:
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(errors.New("the API server does not get ready"), err)
		}
	}
}

func (c *ControlPlane) certificates() error {
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	return errors.Join(
		c.sign("ca", ca),
		c.sign("server", &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}),
		c.sign("admin", &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}}),
	)
}

// sign writes NAME.crt and NAME.key.
func (c *ControlPlane) sign(name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := c.authority, c.key
	if parent == nil {
		parent, signer = template, key
	} else {
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return err
	}
	if c.authority == nil {
		if c.authority, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		c.key = key
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(c.o.Dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(c.o.Dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
}

func (c *ControlPlane) kubeconfig() error {
	return os.WriteFile(c.Kubeconfig(), fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "https://%s", certificate-authority: ca.crt}}]
users: [{name: a, user: {client-certificate: admin.crt, client-key: admin.key}}]
`, c.address), 0o600)
}

// Kubeconfig is the file with an administrator's, written when there are
// controllers.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.o.Dir, "kubeconfig") }

// freeAddress is an address on loopback that nobody listened on a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
