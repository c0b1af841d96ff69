//go:build e2e

package sites

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/dynamic"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/test/controlplane"
)

func init() { log.SetLogger(logr.Discard()) }

var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}()

// cloud is a control plane of etcd, kube-apiserver and skerry-controller-managers.
type cloud struct {
	*controlplane.ControlPlane
	t     *testing.T
	dir   string
	admin client.Client
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	dir := t.TempDir()
	control, err := controlplane.Start(t.Context(), controlplane.Options{Dir: dir})
	check(t, err)
	t.Cleanup(control.Stop)
	c := &cloud{ControlPlane: control, t: t, dir: dir}
	c.install()
	c.admin, err = client.New(control.Config(), client.Options{Scheme: scheme})
	check(t, err)
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that comes by itself, and returns how long it
// took.
func eventually(t *testing.T, atMost time.Duration, what string, fn func() error) time.Duration {
	t.Helper()
	var err error
	start := time.Now()
	for time.Since(start) < atMost {
		if err = fn(); err == nil {
			return time.Since(start)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s did not come within %s: %v", what, atMost, err)
	return 0
}

// as is a client with a user's certificate.
func (c *cloud) as(t *testing.T, name string, groups ...string) client.Client {
	t.Helper()
	config, err := c.User(name, groups...)
	check(t, err)
	as, err := client.New(config, client.Options{Scheme: scheme, Mapper: c.admin.RESTMapper()})
	check(t, err)
	return as
}

// install applies what `skerry init` applies.
func (c *cloud) install() {
	c.t.Helper()
	d, err := dynamic.NewForConfig(c.Config())
	check(c.t, err)
	for _, of := range []func() ([]*unstructured.Unstructured, error){cluster.Policies, cluster.CRDs, cluster.Hub} {
		objects, err := of()
		check(c.t, err)
		for _, object := range objects {
			plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
			var resource dynamic.ResourceInterface = d.Resource(plural)
			if namespace := object.GetNamespace(); namespace != "" {
				resource = d.Resource(plural).Namespace(namespace)
			}
			content, err := json.Marshal(object)
			check(c.t, err)
			eventually(c.t, 30*time.Second, object.GetKind()+" "+object.GetName(), func() error {
				yes := true
				_, err := resource.Patch(c.t.Context(), object.GetName(), types.ApplyPatchType, content, metav1.PatchOptions{FieldManager: "test", Force: &yes})
				return err
			})
		}
	}
	for _, crd := range []string{"sites", "nodereports"} {
		eventually(c.t, 30*time.Second, "type "+crd, func() error {
			_, err := d.Resource(v1alpha1.GroupVersion.WithResource(crd)).List(c.t.Context(), metav1.ListOptions{})
			return err
		})
	}
}

// manager is one skerry-controller-manager, with the rights of its service
// account.
type manager struct {
	*controlplane.Process
	health string
}

func (c *cloud) manager(name string) *manager {
	c.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "skerry-controller-manager"}}
	hour := int64(7200)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}
	check(c.t, c.admin.SubResource("token").Create(c.t.Context(), account, request))
	var addresses [3]string
	for i := range addresses {
		var err error
		addresses[i], err = controlplane.FreeAddress()
		check(c.t, err)
	}
	config := rest.AnonymousClientConfig(c.Config())
	config.BearerToken = request.Status.Token
	file := func(name string) string { return filepath.Join(c.dir, name) }
	kubeconfig := file(name + ".kubeconfig")
	check(c.t, controlplane.WriteKubeconfig(kubeconfig, config))
	m := &manager{health: addresses[0]}
	m.Process = c.Program(name, "skerry-controller-manager", "--kubeconfig="+kubeconfig, "--health-address="+m.health, "--grid-webhook-address="+addresses[1], "--listen="+addresses[2],
		"--tls-cert-file="+file("server.crt"), "--tls-private-key-file="+file("server.key"), "--client-ca-file="+file("ca.crt"))
	check(c.t, m.Start())
	return m
}

// metric reads a metric; -1 if there is none.
func (m *manager) metric(name string) float64 {
	resp, err := http.Get("http://" + m.health + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	sum := -1.0
	for line := range strings.Lines(string(text)) {
		field := strings.Fields(line)
		if len(field) == 2 && (field[0] == name || strings.HasPrefix(field[0], name+"{")) {
			var v float64
			if _, err := fmt.Sscan(field[1], &v); err == nil {
				sum = max(sum, 0) + v
			}
		}
	}
	return sum
}

// machine is what a node's kubelet and observer are to the cloud: a certificate,
// a heartbeat and a report.
type machine struct {
	c    *cloud
	name string
	site string
	uid  types.UID
	// as is a client with the node's own certificate.
	as   client.Client
	skew time.Duration

	writes sync.Mutex // one write of the report at a time
	mu     sync.Mutex
	beats  bool
	report *v1alpha1.NodeReport
}

// join makes the Node of a machine as its administrator, and starts its heart.
func (c *cloud) join(t *testing.T, site, name string) *machine {
	t.Helper()
	m := &machine{c: c, name: name, site: site, beats: true, as: c.as(t, "system:node:"+name, "system:nodes")}
	m.makeNode(t)
	// The heart beats as long as the machine's own test, a little off the others.
	ctx := t.Context()
	check(t, m.beat(ctx))
	go func() {
		ticker := time.NewTicker(10 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				m.mu.Lock()
				beats, report := m.beats, m.report
				m.mu.Unlock()
				if beats {
					_ = m.beat(ctx)
				}
				if report != nil {
					_ = m.write(ctx, report)
				}
			}
		}
	}()
	return m
}

func (m *machine) makeNode(t *testing.T) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.name}}
	if m.site != "" {
		node.Labels = map[string]string{api.SiteLabel: m.site}
	}
	check(t, m.c.admin.Create(t.Context(), node))
	m.uid = node.UID
}

func (m *machine) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// powerOff ends the heartbeat, and the report.
func (m *machine) powerOff() { m.set(func() { m.beats, m.report = false, nil }) }

func (m *machine) powerOn(t *testing.T) {
	t.Helper()
	m.set(func() { m.beats = true })
	check(t, m.beat(t.Context()))
}

func (m *machine) beat(ctx context.Context) error {
	now := metav1.NewMicroTime(time.Now().Add(m.skew))
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: m.name}}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"renewTime":%q}}`, now.UTC().Format("2006-01-02T15:04:05.000000Z07:00")))
	if err := m.as.Patch(ctx, lease, patch); client.IgnoreNotFound(err) != nil {
		return err
	} else if err == nil {
		return nil
	}
	lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &m.name, RenewTime: &now}
	return m.as.Create(ctx, lease)
}

// says starts a report, which is renewed until the next: "west-1=Unreachable".
func (m *machine) says(t *testing.T, self v1alpha1.SelfReport, about ...string) {
	t.Helper()
	r := &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: m.name}, Spec: v1alpha1.NodeReportSpec{Self: self}}
	for _, both := range about {
		name, state, _ := strings.Cut(both, "=")
		var node corev1.Node
		check(t, m.c.admin.Get(t.Context(), client.ObjectKey{Name: name}, &node))
		r.Spec.Neighbours = append(r.Spec.Neighbours, v1alpha1.NeighbourReport{Node: name, UID: node.UID, State: v1alpha1.NeighbourState(state)})
	}
	m.set(func() { m.report = r })
	check(t, m.write(t.Context(), r))
}

func (m *machine) write(ctx context.Context, r *v1alpha1.NodeReport) error {
	m.writes.Lock()
	defer m.writes.Unlock()
	r = r.DeepCopy()
	r.Spec.RenewTime = metav1.NewMicroTime(time.Now().Add(m.skew))
	was := &v1alpha1.NodeReport{}
	if err := m.as.Get(ctx, client.ObjectKey{Name: r.Name}, was); err != nil {
		return m.as.Create(ctx, r)
	}
	was.Spec = r.Spec
	return m.as.Update(ctx, was)
}

// unsay ends the report; the object stays, as that of a machine without power.
func (m *machine) unsay() { m.set(func() { m.report = nil }) }

func (m *machine) node(t *testing.T) *corev1.Node {
	t.Helper()
	node := &corev1.Node{}
	check(t, m.c.admin.Get(t.Context(), client.ObjectKey{Name: m.name}, node))
	return node
}

func (m *machine) verdict(t *testing.T) corev1.NodeCondition {
	t.Helper()
	for _, c := range m.node(t).Status.Conditions {
		if c.Type == api.AliveCondition {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// becomes waits for a verdict, "False NeighboursCannotReachIt".
func (m *machine) becomes(t *testing.T, atMost time.Duration, want string) time.Duration {
	t.Helper()
	return eventually(t, atMost, m.name+": "+want, func() error {
		if got := m.verdict(t); strings.TrimSpace(string(got.Status)+" "+got.Reason) != want {
			return fmt.Errorf("it is %s %s (%s)", got.Status, got.Reason, got.Message)
		}
		return nil
	})
}

// stays watches that a verdict does not change.
func (m *machine) stays(t *testing.T, d time.Duration, want string) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if got := m.verdict(t); string(got.Status)+" "+got.Reason != want {
			t.Fatalf("%s is %s %s (%s), want %s", m.name, got.Status, got.Reason, got.Message, want)
		}
	}
}

// site returns the Site, once its status fits.
func (c *cloud) site(t *testing.T, name string, fits func(s *v1alpha1.Site) error) *v1alpha1.Site {
	t.Helper()
	site := &v1alpha1.Site{}
	eventually(t, 40*time.Second, "site "+name, func() error {
		if err := c.admin.Get(t.Context(), client.ObjectKey{Name: name}, site); err != nil {
			return err
		}
		return fits(site)
	})
	return site
}

// counts wants a status of nodes, connected, held, dead, unknown.
func counts(want ...int32) func(s *v1alpha1.Site) error {
	return func(s *v1alpha1.Site) error {
		got := []int32{s.Status.Nodes, s.Status.Connected, s.Status.Held, s.Status.Dead, s.Status.Unknown}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("nodes, connected, held, dead, unknown are %v, want %v", got, want)
		}
		return nil
	}
}
