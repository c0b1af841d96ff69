//go:build e2e

package history

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

const nodeName = "n1"

// cloud is a control plane of two processes.
type cloud struct {
	t         *testing.T
	dir       string
	address   string // of the API server
	etcdURL   string
	etcd, api *process
	admin     *kubernetes.Clientset
}

func newCloud(t *testing.T, dir string) *cloud {
	c := &cloud{t: t, dir: dir, address: freeAddress(t)}
	ca := newAuthority(t, dir)
	ca.sign("apiserver", &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	ca.sign("admin", &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}})
	ca.sign("node", &x509.Certificate{Subject: pkix.Name{CommonName: "system:node:" + nodeName, Organization: []string{"system:nodes"}}})
	ca.sign("sa", &x509.Certificate{Subject: pkix.Name{CommonName: "service accounts"}})

	c.etcdURL = "http://" + freeAddress(t)
	peer := "http://" + freeAddress(t)
	c.etcd = newProcess(t, dir, "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", c.etcdURL, "--advertise-client-urls", c.etcdURL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--unsafe-no-fsync", "--log-level", "warn")
	_, port, _ := net.SplitHostPort(c.address)
	file := func(name string) string { return filepath.Join(dir, name) }
	c.api = newProcess(t, dir, "kube-apiserver", "--etcd-servers", c.etcdURL, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/16",
		"--tls-cert-file", file("apiserver.crt"), "--tls-private-key-file", file("apiserver.key"), "--client-ca-file", file("ca.crt"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--service-account-signing-key-file", file("sa.key"), "--service-account-key-file", file("sa.crt"),
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--disable-admission-plugins", "ServiceAccount",
		// Watches of these two go to etcd itself, so that a compaction reaches them at once.
		"--etcd-compaction-interval", "0", "--watch-cache-sizes", "configmaps#0,services#0")
	c.admin = client(t, &rest.Config{Host: "https://" + c.address, TLSClientConfig: rest.TLSClientConfig{CAFile: file("ca.crt"), CertFile: file("admin.crt"), KeyFile: file("admin.key")}})
	c.etcd.start()
	c.startAPI()
	c.furnish()
	return c
}

func client(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	config.QPS, config.Burst = 1000, 1000
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func (c *cloud) startAPI() {
	c.t.Helper()
	c.api.start()
	eventually(c.t, 90*time.Second, "the API server", func() error {
		if !c.api.alive() {
			c.t.Fatalf("kube-apiserver ended:\n%s", c.api.tail(20))
		}
		_, err := c.admin.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(c.t.Context())
		return err
	})
}

func (c *cloud) restartAPI() {
	c.t.Helper()
	c.api.end(syscall.SIGKILL)
	c.startAPI()
}

// backUp copies etcd's data; restore puts the copy in the place of what is there.
func (c *cloud) backUp() {
	c.t.Helper()
	c.stopped(func(data, backup string) error { return os.CopyFS(backup, os.DirFS(data)) })
}

func (c *cloud) restore() {
	c.t.Helper()
	c.stopped(func(data, backup string) error {
		return errors.Join(os.RemoveAll(data), os.Rename(backup, data))
	})
}

// write makes n revisions that are about nothing that anybody follows.
func (c *cloud) write(n int) {
	c.t.Helper()
	leases := c.admin.CoordinationV1().Leases("default")
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "clock"}}
	if _, err := leases.Create(c.t.Context(), lease, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
	for i := range n {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"n":"%d"}}}`, i)
		if _, err := leases.Patch(c.t.Context(), lease.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cloud) stopped(fn func(data, backup string) error) {
	c.t.Helper()
	c.api.end(syscall.SIGKILL)
	c.etcd.end(syscall.SIGTERM)
	if err := fn(filepath.Join(c.dir, "etcd"), filepath.Join(c.dir, "etcd.backup")); err != nil {
		c.t.Fatal(err)
	}
	c.etcd.start()
	c.startAPI()
}

// compact forgets all history before now.
func (c *cloud) compact() {
	c.t.Helper()
	list, err := c.admin.CoreV1().Namespaces().List(c.t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := exec.Command("etcdctl", "--endpoints", c.etcdURL, "compact", list.ResourceVersion).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "required revision has been compacted") {
		c.t.Fatalf("etcdctl: %v\n%s", err, out)
	}
}

// furnish makes what the node and its clients need.
func (c *cloud) furnish() {
	c.t.Helper()
	ctx := c.t.Context()
	for _, ns := range []string{"default", "kube-system", "kube-node-lease"} {
		eventually(c.t, 30*time.Second, "namespace "+ns, func() error {
			_, err := c.admin.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
			return err
		})
	}
	for _, f := range []string{"10-rbac.yaml", "20-policy.yaml"} {
		path := filepath.Join("..", "..", "..", "cluster", "hub", f)
		kubeconfig := filepath.Join(c.dir, "kubeconfig")
		write(c.t, kubeconfig, fmt.Appendf(nil, "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], clusters: [{name: a, cluster: {server: 'https://%s', certificate-authority: ca.crt}}], users: [{name: a, user: {client-certificate: admin.crt, client-key: admin.key}}]}", c.address))
		if out, err := exec.Command("kubectl", "--kubeconfig", kubeconfig, "apply", "--validate=false", "-f", path).CombinedOutput(); err != nil {
			c.t.Fatalf("kubectl apply -f %s: %v\n%s", path, err, out)
		}
	}
	must := func(_ any, err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	must(c.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, metav1.CreateOptions{}))
	must(c.admin.CoordinationV1().Leases("kube-node-lease").Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(nodeName), LeaseDurationSeconds: ptr.To[int32](40)},
	}, metav1.CreateOptions{}))
	for name, role := range map[string]string{"kube-proxy": "system:node-proxier", "coredns": "history:coredns"} {
		must(c.admin.CoreV1().ServiceAccounts("kube-system").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
		must(c.admin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "history:" + name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "kube-system", Name: name}},
		}, metav1.CreateOptions{}))
	}
	must(c.admin.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "history:coredns"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"services", "configmaps"}, Verbs: []string{"get", "list", "watch"}}},
	}, metav1.CreateOptions{}))
	// Tokens are good on this node because of a pod of it.
	for _, name := range []string{"kube-proxy", "coredns"} {
		pod := newPod(name)
		pod.Namespace, pod.Spec.ServiceAccountName = "kube-system", name
		must(c.admin.CoreV1().Pods("kube-system").Create(ctx, pod, metav1.CreateOptions{}))
	}
	// The node may read what a pod of it uses, whether it exists or not.
	holder := newPod("holder")
	for i := range names {
		holder.Spec.Volumes = append(holder.Spec.Volumes,
			corev1.Volume{Name: fmt.Sprint("c", i), VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprint("cm-", i)}}}},
			corev1.Volume{Name: fmt.Sprint("s", i), VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: fmt.Sprint("secret-", i)}}})
	}
	must(c.admin.CoreV1().Pods("default").Create(ctx, holder, metav1.CreateOptions{}))
}

// token is that of a service account's pod, good for the whole test.
func (c *cloud) token(name string) string {
	c.t.Helper()
	pod, err := c.admin.CoreV1().Pods("kube-system").Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := c.admin.CoreV1().ServiceAccounts("kube-system").CreateToken(c.t.Context(), name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: ptr.To[int64](36000), BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Status.Token
}

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: nodeName, Containers: []corev1.Container{{Name: "main", Image: "image"}}, TerminationGracePeriodSeconds: ptr.To[int64](30),
			AutomountServiceAccountToken: ptr.To(false),
		},
	}
}
