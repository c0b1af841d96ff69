//go:build e2e

package history

import (
	"errors"
	"fmt"
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

	"skerry.dev/skerry/test/controlplane"
)

const nodeName = "n1"

// cloud is a control plane of two processes.
type cloud struct {
	*controlplane.ControlPlane
	t     *testing.T
	dir   string
	admin *kubernetes.Clientset
}

func newCloud(t *testing.T, dir string) *cloud {
	t.Helper()
	control, err := controlplane.Start(t.Context(), controlplane.Options{
		Dir: dir,
		// Watches of these two go to etcd itself, so that a compaction reaches them at once.
		APIServer: []string{"--etcd-compaction-interval", "0", "--watch-cache-sizes", "configmaps#0,services#0"},
	})
	check(t, err)
	t.Cleanup(control.Stop)
	c := &cloud{ControlPlane: control, t: t, dir: dir, admin: client(t, control.Config())}
	c.furnish()
	return c
}

func client(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	config.QPS = -1
	set, err := kubernetes.NewForConfig(config)
	check(t, err)
	return set
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that comes by itself.
func eventually(t *testing.T, atMost time.Duration, what string, fn func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(atMost); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = fn(); err == nil {
			return
		}
	}
	t.Fatalf("%s did not come within %s: %v", what, atMost, err)
}

func (c *cloud) restartAPI() {
	c.t.Helper()
	check(c.t, c.APIServer.End(syscall.SIGKILL))
	check(c.t, c.APIServer.Start())
	check(c.t, c.Ready(c.t.Context()))
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
	check(c.t, c.APIServer.End(syscall.SIGKILL))
	check(c.t, c.Etcd.End(syscall.SIGTERM))
	check(c.t, fn(filepath.Join(c.dir, "etcd"), filepath.Join(c.dir, "etcd.backup")))
	check(c.t, c.Etcd.Start())
	c.restartAPI()
}

// compact forgets all history before now.
func (c *cloud) compact() {
	c.t.Helper()
	list, err := c.admin.CoreV1().Namespaces().List(c.t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := exec.Command("etcdctl", "--endpoints", c.EtcdURL, "compact", list.ResourceVersion).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "required revision has been compacted") {
		c.t.Fatalf("etcdctl: %v\n%s", err, out)
	}
}

// furnish makes what the node and its clients need.
func (c *cloud) furnish() {
	c.t.Helper()
	ctx := c.t.Context()
	for _, f := range []string{"10-rbac.yaml", "20-policy.yaml"} {
		path := filepath.Join("..", "..", "..", "cluster", "hub", f)
		if out, err := exec.Command("kubectl", "--kubeconfig", c.Kubeconfig(), "apply", "--validate=false", "-f", path).CombinedOutput(); err != nil {
			c.t.Fatalf("kubectl apply -f %s: %v\n%s", path, err, out)
		}
	}
	must := func(_ any, err error) {
		c.t.Helper()
		check(c.t, err)
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
