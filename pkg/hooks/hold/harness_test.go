package hold

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	coordv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	restfake "k8s.io/client-go/rest/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/tainteviction"

	"skerry.dev/api"
)

// Upstream's defaults. Time in these tests is synctest's, so they cost nothing.
const (
	// A little over upstream's 5 s: the worker that writes taints comes every
	// 100 ms, and a pass at the same instant would meet it before or behind the
	// informer, by chance.
	monitorPeriod   = 5*time.Second + 13700*time.Microsecond
	startupGrace    = 60 * time.Second
	gracePeriod     = 50 * time.Second
	heartbeatPeriod = 10 * time.Second
	// evictedAfter is when a pod with the default tolerations is gone for sure.
	evictedAfter = gracePeriod + 300*time.Second + 30*time.Second
)

// TestMain drops upstream's handlers of errors: one waits between two errors, by
// a clock that each bubble of synctest sets back.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil
	m.Run()
}

// cluster is an API server without the server, upstream's own node lifecycle and
// taint eviction controllers, and kubelets that do no more than send heartbeats.
type cluster struct {
	t       *testing.T
	api     *fake.Clientset
	monitor time.Duration
	hold    *Hold // of the controller that runs now; nil: upstream
	stop    func()

	mu     sync.Mutex
	events []string // "node/reason"
}

// run makes a cluster in a bubble of synctest, runs the test in it, and stops
// everything. With held false the hook stays nil: the control.
func run(t *testing.T, held bool, test func(c *cluster)) {
	t.Helper()
	runWithPeriod(t, held, monitorPeriod, test)
}

func runWithPeriod(t *testing.T, held bool, monitor time.Duration, test func(c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, api: fake.NewClientset(), monitor: monitor}
		c.node("cloud", "")
		c.start(held)
		defer func() { c.stop() }()
		test(c)
	})
}

// client is the fake clientset with a REST client for core/v1, which the event
// sink of the node lifecycle controller insists on.
type client struct {
	*fake.Clientset
	rest rest.Interface
}

type core struct {
	typedcorev1.CoreV1Interface
	rest rest.Interface
}

func (c client) CoreV1() typedcorev1.CoreV1Interface { return core{c.Clientset.CoreV1(), c.rest} }
func (c core) RESTClient() rest.Interface            { return c.rest }

var _ kubernetes.Interface = client{}

// start runs the controllers, as a process that has just been started would.
func (c *cluster) start(held bool) {
	c.hold, nodelifecycle.SkerryHold = nil, nil
	if held {
		c.hold = New()
		nodelifecycle.SkerryHold = c.hold
	}
	cl := client{c.api, &restfake.RESTClient{
		NegotiatedSerializer: scheme.Codecs.WithoutConversion(),
		GroupVersion:         v1.SchemeGroupVersion,
		VersionedAPIPath:     "/api/v1",
		Client:               restfake.CreateHTTPClient(c.receiveEvent),
	}}
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	factory := informers.NewSharedInformerFactory(cl, 0)
	pods, nodes := factory.Core().V1().Pods(), factory.Core().V1().Nodes()
	lifecycle, err := nodelifecycle.NewNodeLifecycleController(ctx, factory.Coordination().V1().Leases(), pods, nodes,
		factory.Apps().V1().DaemonSets(), cl, c.monitor, startupGrace, gracePeriod, 0.1, 0.01, 50, 0.55)
	if err != nil {
		c.t.Fatal(err)
	}
	eviction, err := tainteviction.New(ctx, cl, pods, nodes, "taint-eviction-controller")
	if err != nil {
		c.t.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	var wg sync.WaitGroup
	wg.Go(func() { lifecycle.Run(ctx) })
	wg.Go(func() { eviction.Run(ctx) })
	c.stop = func() {
		cancel()
		wg.Wait()
		factory.Shutdown()
		nodelifecycle.SkerryHold = nil
	}
	// Nothing that a test does shall fall on the same instant as a pass: which
	// of the two comes first would be chance.
	time.Sleep(1300 * time.Millisecond)
}

func (c *cluster) restart(held bool) {
	c.stop()
	c.start(held)
}

func (c *cluster) receiveEvent(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var e v1.Event
	if err := json.Unmarshal(body, &e); err == nil && e.InvolvedObject.Kind == "Node" {
		c.mu.Lock()
		c.events = append(c.events, e.InvolvedObject.Name+"/"+e.Reason)
		c.mu.Unlock()
	}
	return &http.Response{
		StatusCode: http.StatusCreated,
		Header:     http.Header{"Content-Type": {"application/json"}},
		Body:       io.NopCloser(bytes.NewReader(body)),
	}, nil
}

// countEvents counts the events of one reason on one node.
func (c *cluster) countEvents(node, reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, e := range c.events {
		if e == node+"/"+reason {
			n++
		}
	}
	return n
}

// node adds a Ready node with one Ready pod named after it. No site: a cloud
// node. All nodes are in one zone, the worst case for its accounting.
func (c *cluster) node(name, site string) {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: types.UID("uid-1-" + name), CreationTimestamp: metav1.Now(),
		Labels: map[string]string{v1.LabelTopologyZone: "zone"},
	}}
	if site != "" {
		n.Labels[api.SiteLabel] = site
	}
	n.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	_, err := c.api.CoreV1().Nodes().Create(c.t.Context(), n, metav1.CreateOptions{})
	c.must(err)
	now := metav1.NowMicro()
	_, err = c.api.CoordinationV1().Leases(v1.NamespaceNodeLease).Create(c.t.Context(), &coordv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: v1.NamespaceNodeLease},
		Spec:       coordv1.LeaseSpec{RenewTime: &now},
	}, metav1.CreateOptions{})
	c.must(err)
	c.pod(name, name)
}

// pod adds a Ready pod on a node, with the tolerations that admission gives.
func (c *cluster) pod(name, node string) {
	tolerations := []v1.Toleration{}
	for _, key := range []string{v1.TaintNodeNotReady, v1.TaintNodeUnreachable} {
		tolerations = append(tolerations, v1.Toleration{Key: key, Operator: v1.TolerationOpExists,
			Effect: v1.TaintEffectNoExecute, TolerationSeconds: new(int64(300))})
	}
	_, err := c.api.CoreV1().Pods("default").Create(c.t.Context(), &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("pod-" + name)},
		Spec:       v1.PodSpec{NodeName: node, Tolerations: tolerations},
		Status: v1.PodStatus{Phase: v1.PodRunning,
			Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}},
	}, metav1.CreateOptions{})
	c.must(err)
}

// pass lets time go by while these nodes send heartbeats.
func (c *cluster) pass(d time.Duration, alive ...string) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, name := range append([]string{"cloud"}, alive...) {
			c.beat(name)
		}
		time.Sleep(min(heartbeatPeriod, time.Until(end)))
	}
	synctest.Wait()
}

// beat renews a node's lease and, if the cloud thinks ill of it, its status, as
// a kubelet does.
func (c *cluster) beat(name string) {
	leases := c.api.CoordinationV1().Leases(v1.NamespaceNodeLease)
	lease, err := leases.Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	now := metav1.NowMicro()
	lease.Spec.RenewTime = &now
	_, err = leases.Update(c.t.Context(), lease, metav1.UpdateOptions{})
	c.must(err)
	if c.condition(name, v1.NodeReady) == v1.ConditionUnknown {
		c.setCondition(name, v1.NodeReady, v1.ConditionTrue)
	}
}

// change edits a Node.
func (c *cluster) change(name string, edit func(n *v1.Node)) {
	nodes := c.api.CoreV1().Nodes()
	n, err := nodes.Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	edit(n)
	_, err = nodes.Update(c.t.Context(), n, metav1.UpdateOptions{})
	c.must(err)
	synctest.Wait()
}

func (c *cluster) setCondition(name string, kind v1.NodeConditionType, status v1.ConditionStatus) {
	c.change(name, func(n *v1.Node) {
		n.Status.Conditions = slices.DeleteFunc(n.Status.Conditions, func(x v1.NodeCondition) bool { return x.Type == kind })
		n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: kind, Status: status, Reason: "ByHand",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	})
}

func (c *cluster) condition(name string, kind v1.NodeConditionType) v1.ConditionStatus {
	n, err := c.api.CoreV1().Nodes().Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	for _, x := range n.Status.Conditions {
		if x.Type == kind {
			return x.Status
		}
	}
	return ""
}

// look says in one line what the cloud did to a node and to the pod of that name.
func (c *cluster) look(name string) string {
	n, err := c.api.CoreV1().Nodes().Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	var taints []string
	for _, t := range n.Spec.Taints {
		taints = append(taints, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(taints)
	return fmt.Sprintf("Ready=%s taints=%v pod=%s", c.condition(name, v1.NodeReady), taints, c.lookPod(name))
}

func (c *cluster) lookPod(name string) string {
	pods, err := c.api.CoreV1().Pods("default").List(c.t.Context(), metav1.ListOptions{})
	c.must(err)
	for _, p := range pods.Items {
		if p.Name != name {
			continue
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == v1.PodReady && cond.Status == v1.ConditionTrue {
				return "ready"
			}
		}
		return "notready"
	}
	return "evicted"
}

// What look says in the states that the tests are about.
const (
	healthy    = "Ready=True taints=[] pod=ready"
	heldState  = "Ready=Unknown taints=[unreachable:NoSchedule] pod=ready"
	evicting   = "Ready=Unknown taints=[unreachable:NoExecute unreachable:NoSchedule] pod=notready"
	evicted    = "Ready=Unknown taints=[unreachable:NoExecute unreachable:NoSchedule] pod=evicted"
	notTainted = "Ready=Unknown taints=[unreachable:NoSchedule] pod=notready"
)

func (c *cluster) expect(name, want string) {
	c.t.Helper()
	if got := c.look(name); got != want {
		c.t.Errorf("node %s: %s, want %s", name, got, want)
	}
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// describe writes a request down, without what two runs cannot have in common.
func describe(a clienttesting.Action) string {
	what := fmt.Sprintf("%s %s/%s", a.GetVerb(), a.GetResource().Resource, a.GetSubresource())
	switch a := a.(type) {
	case clienttesting.PatchAction:
		return fmt.Sprintf("%s %s %s", what, a.GetName(), a.GetPatch())
	case clienttesting.UpdateAction:
		body, err := json.Marshal(a.GetObject())
		if err != nil {
			panic(err) // typed objects of the API always marshal
		}
		return fmt.Sprintf("%s %s", what, body)
	case clienttesting.GetAction: // and deletions, which look the same
		return fmt.Sprintf("%s %s", what, a.GetName())
	}
	return what
}
