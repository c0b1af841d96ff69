package closed

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
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/topology"
)

const startTimeout = 2 * time.Minute

// control is a control plane of two processes.
type control struct {
	dir, logs string
	url       string // as kube-proxy reaches it
	admin     *kubernetes.Clientset
	processes []*exec.Cmd
}

func startControl(ctx context.Context, o Options, dir, host string) (_ *control, err error) {
	c := &control{dir: dir, logs: o.Logs}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	ca, err := newAuthority(dir)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		ca.sign("apiserver", &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(host)}}),
		ca.sign("admin", &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}}),
		// The name that Kubernetes' own roles know.
		ca.sign("kube-proxy", &x509.Certificate{Subject: pkix.Name{CommonName: "system:kube-proxy"}}),
		ca.sign("sa", &x509.Certificate{Subject: pkix.Name{CommonName: "service accounts"}}))
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		_, ports[i], _ = net.SplitHostPort(l.Addr().String())
		_ = l.Close()
	}
	etcd, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	bin := filepath.Join(o.Dist, "bin")
	err = c.start(filepath.Join(bin, "etcd"), "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--unsafe-no-fsync", "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	err = c.start(filepath.Join(bin, "kube-apiserver"), "--etcd-servers", etcd, "--bind-address", "0.0.0.0", "--secure-port", ports[2],
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/12",
		"--tls-cert-file", file("apiserver.crt"), "--tls-private-key-file", file("apiserver.key"), "--client-ca-file", file("ca.crt"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file", file("sa.key"), "--service-account-key-file", file("sa.crt"),
		"--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount")
	if err != nil {
		return nil, err
	}
	c.url = "https://" + net.JoinHostPort(host, ports[2])
	c.admin, err = kubernetes.NewForConfig(&rest.Config{
		Host: "https://127.0.0.1:" + ports[2], QPS: 2000, Burst: 2000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: file("ca.crt"), CertFile: file("admin.crt"), KeyFile: file("admin.key")},
	})
	if err != nil {
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	return c, until(ctx, startTimeout, func() error {
		if _, err := c.admin.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return err
		}
		_, err := c.admin.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func (c *control) start(path string, args ...string) error {
	log, err := os.Create(filepath.Join(c.logs, "closed-"+filepath.Base(path)+".log"))
	if err != nil {
		return fmt.Errorf("making a log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	c.processes = append(c.processes, cmd)
	return nil
}

func (c *control) stop() {
	for i := len(c.processes) - 1; i >= 0; i-- {
		stop(c.processes[i])
	}
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	timer.Stop()
}

func until(ctx context.Context, limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func site(i int) string       { return fmt.Sprintf("site-%d", i) }
func node(i, n int) string    { return fmt.Sprintf("site-%d-node-%d", i, n) }
func service(i int) string    { return fmt.Sprintf("service-%d", i) }
func address(i, n int) string { return fmt.Sprintf("10.%d.%d.%d", i+1, n/250, n%250+1) }

func (c *control) fillNodes(ctx context.Context, o Options) error {
	err := parallel(o.Sites*o.SiteNodes, func(k int) error {
		i, n := k/o.SiteNodes, k%o.SiteNodes
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node(i, n), Labels: map[string]string{api.SiteLabel: site(i)}}}
		made, err := c.admin.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", i, n+1)}}
		_, err = c.admin.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("making nodes: %w", err)
	}
	return nil
}

// fill makes Services and, as their controller would, EndpointSlices.
func (c *control) fill(ctx context.Context, o Options, from, to int) error {
	err := parallel(to-from, func(k int) error {
		k += from
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: service(k), Annotations: map[string]string{topology.Annotation: `["` + api.SiteLabel + `"]`}},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
		if _, err := c.admin.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return err
		}
		// Slices hold at most a hundred endpoints, as the controller's do.
		for from := 0; from < o.Sites; from += 100 {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service(k), from), Labels: map[string]string{discoveryv1.LabelServiceName: service(k)}},
				AddressType: discoveryv1.AddressTypeIPv4,
				Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
			}
			for i := from; i < min(from+100, o.Sites); i++ {
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
					Addresses:  []string{address(i, k)},
					Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
					NodeName:   ptr.To(node(i, k%o.SiteNodes)),
					Zone:       ptr.To(site(i)),
					TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-6d4cf56db6-%05d", service(k), i),
						UID: "3a7c8a4e-6a3c-4f0e-9c0e-0123456789ab"},
				})
			}
			if _, err := c.admin.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("making Services: %w", err)
	}
	return nil
}

func parallel(count int, do func(int) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := 0
	for range 8 {
		wg.Go(func() {
			for {
				mu.Lock()
				k := next
				next++
				ended := first != nil || k >= count
				mu.Unlock()
				if ended {
					return
				}
				if err := do(k); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// authority signs certificates.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	err := a.sign("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	return a, err
}

// sign writes dir/name.crt and name.key.
func (a *authority) sign(name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making key %s: %w", name, err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return fmt.Errorf("making certificate %s: %w", name, err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	} else {
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("signing certificate %s: %w", name, err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding key %s: %w", name, err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("reading certificate %s: %w", name, err)
		}
		a.key = key
	}
	return errors.Join(
		os.WriteFile(filepath.Join(a.dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(a.dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
}
