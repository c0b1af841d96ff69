// Package controlplane starts an etcd, a kube-apiserver and, if wanted, a
// kube-controller-manager on loopback, and whatever else is to end with them: a
// cluster without nodes, for tests and benchmarks of what runs beside the control
// plane, or talks to it. Each process can be ended, by any signal, and started
// again. It needs no root. It must not know what is tested.
package controlplane

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Options of a control plane.
type Options struct {
	// Dir is for data (etcd's in etcd), logs (NAME.log), the administrator's
	// kubeconfig, and ca.crt, server.crt and server.key.
	Dir string
	Bin string // folder of the programs; empty: they are in PATH
	// Controllers are those of kube-controller-manager, as its --controllers
	// takes them; without any it is not started.
	Controllers string
	// APIServer are more flags of kube-apiserver.
	APIServer []string
}

// ControlPlane is a running one.
type ControlPlane struct {
	Address         string // of the API server
	EtcdURL         string
	Etcd, APIServer *Process

	o         Options
	processes []*Process
	ca        *x509.Certificate
	caKey     crypto.Signer
	admin     *rest.Config
}

// Start starts a control plane and waits until its API server is ready.
func Start(ctx context.Context, o Options) (*ControlPlane, error) {
	c := &ControlPlane{o: o}
	if err := c.start(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	var addresses [3]string
	for i := range addresses {
		var err error
		if addresses[i], err = FreeAddress(); err != nil {
			return err
		}
	}
	c.Address, c.EtcdURL = addresses[0], "http://"+addresses[1]
	if err := c.certificates(); err != nil {
		return fmt.Errorf("making certificates: %w", err)
	}
	peer := "http://" + addresses[2]
	file := func(name string) string { return filepath.Join(c.o.Dir, name) }
	c.Etcd = c.Program("etcd", "etcd", "--data-dir", file("etcd"), "--listen-client-urls", c.EtcdURL, "--advertise-client-urls", c.EtcdURL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer,
		"--unsafe-no-fsync", "--log-level", "warn", "--quota-backend-bytes", "4294967296")
	_, port, _ := net.SplitHostPort(c.Address)
	c.APIServer = c.Program("kube-apiserver", "kube-apiserver", append([]string{
		"--etcd-servers", c.EtcdURL, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/16",
		"--tls-cert-file", file("server.crt"), "--tls-private-key-file", file("server.key"), "--client-ca-file", file("ca.crt"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file", file("server.key"),
		"--service-account-key-file", file("server.crt"), "--authorization-mode", "Node,RBAC",
		"--enable-admission-plugins", "NodeRestriction", "--disable-admission-plugins", "ServiceAccount",
	}, c.o.APIServer...)...)
	for _, p := range []*Process{c.Etcd, c.APIServer} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	if err := c.Ready(ctx); err != nil {
		return err
	}
	if c.o.Controllers == "" {
		return nil
	}
	return c.Program("kube-controller-manager", "kube-controller-manager", "--kubeconfig", c.Kubeconfig(), "--leader-elect=false", "--secure-port", "0",
		"--use-service-account-credentials=false", "--kube-api-qps", "1000", "--kube-api-burst", "2000", "--controllers", c.o.Controllers).Start()
}

// Stop kills all of it.
func (c *ControlPlane) Stop() {
	for i := len(c.processes) - 1; i >= 0; i-- {
		_ = c.processes[i].End(syscall.SIGKILL)
	}
}

// Ready waits until the API server serves, and has the namespaces that it makes.
func (c *ControlPlane) Ready(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		for _, namespace := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, "kube-node-lease"} {
			if err == nil {
				_, err = client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
			}
		}
		if err == nil {
			return nil
		}
		for _, p := range []*Process{c.Etcd, c.APIServer} {
			if !p.Alive() {
				return fmt.Errorf("%s ended:\n%s", p.Name, p.Tail(20))
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(errors.New("the API server does not get ready"), err)
		}
	}
}

// Config is an administrator's.
func (c *ControlPlane) Config() *rest.Config { return rest.CopyConfig(c.admin) }

// Kubeconfig is the file with an administrator's.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.o.Dir, "kubeconfig") }

// FreeAddress is an address on loopback that nobody listened on a moment ago.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
