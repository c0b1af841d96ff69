package serve_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/edge/hub/serve"
)

// A client that starts while the link swallows everything gets its informers
// from the store in time, although the state still says online.
func TestWatchListOverADeadLink(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 5 {
		c.put("services", service(fmt.Sprintf("s%d", i), "10.96.1.1"))
	}
	h := newHub(t, c)
	first := informed(t, h.asNode(), true)
	eventually(t, 5*time.Second, "the view is live", func() bool { return len(first.List()) == 5 })
	h.line.hole()
	started := time.Now()
	second := informed(t, h.asNode(), true)
	eventually(t, 4*time.Second, "a new client has all", func() bool { return len(second.List()) == 5 })
	if took := time.Since(started); took > 3*time.Second {
		t.Errorf("it took %s with a deadline of 1 s", took)
	}
	h.line.cut()
	h.line.heal()
}

// A list that was shown as the newest is never older than what the cloud had.
func TestWatchListIsFresh(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("services", service("s0", "10.96.1.1"))
	h := newHub(t, c)
	first := informed(t, h.asNode(), true)
	eventually(t, 5*time.Second, "the view is live", func() bool { return len(first.List()) == 1 })
	yes := true
	for i := range 20 {
		name := fmt.Sprintf("n%d", i)
		c.put("services", service(name, "10.96.1.1"))
		w, err := typed(t, h.asNode()).CoreV1().Services("").Watch(ctx, metav1.ListOptions{
			SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for e := range w.ResultChan() {
			s, ok := e.Object.(*corev1.Service)
			if !ok {
				t.Fatalf("%v", e)
			}
			if s.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
				break
			}
			names = append(names, s.Name)
		}
		w.Stop()
		if !slices.Contains(names, name) {
			t.Fatalf("%s was there before the watch began, and is not in its beginning: %v", name, names)
		}
	}
}

// A kept client's quota bounds what is kept of it, and costs it nothing else.
func TestQuota(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 20 {
		c.put("configmaps", configMap("default", fmt.Sprintf("m%02d", i), nil))
	}
	const account = "kube-system:kube-proxy"
	c.allow(account, "", "", "configmaps", []string{"get", "list", "watch"})
	c.put("pods", func() *corev1.Pod { p := pod("proxy", nodeName, nil); p.Namespace = "kube-system"; return p }())
	h := newHub(t, c, func(o *serve.Options) {
		o.Keep = func(user, group, resource string) (int, int64, bool) {
			return 10, 1 << 20, user == "system:serviceaccount:"+account
		}
	})
	if _, err := typed(t, h.asNode()).CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1", ResourceVersion: "0"}); err != nil {
		t.Fatal(err)
	}
	h.waitRBAC()
	client := typed(t, h.as(c.token(account, "proxy", "pods-kube-system-proxy", time.Now().Add(time.Hour)))).CoreV1().ConfigMaps("")
	if l, err := client.List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 20 {
		t.Fatal(l, err)
	}
	if l, err := client.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m01"}); err != nil || len(l.Items) != 1 {
		t.Fatal(l, err)
	}
	eventually(t, 5*time.Second, "the short list is kept", func() bool {
		views, err := h.store.Views("", "configmaps")
		return err == nil && len(views) > 0
	})
	h.cut()
	_, err := client.List(ctx, metav1.ListOptions{})
	unavailable(t, "a list over the quota", err)
	if l, err := client.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m01"}); err != nil || len(l.Items) != 1 {
		t.Errorf("a list within the quota: %v, %v", l, err)
	}
}

// Lists are kept whatever encoding they came in.
func TestKeptListEncodings(t *testing.T) {
	t.Parallel()
	for name, accept := range map[string]string{"json": "application/json", "protobuf": "application/vnd.kubernetes.protobuf"} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t)
			for i := range 300 {
				c.put("secrets", secret("default", fmt.Sprintf("s%03d", i), strings.Repeat("x", 400)))
			}
			h := newHub(t, c)
			resp := h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/secrets", http.Header{"Accept": {accept}})
			online := body(t, resp)
			if resp.StatusCode != 200 || len(online) < 300*400 {
				t.Fatal(resp.Status, len(online))
			}
			eventually(t, 5*time.Second, "the list is kept", func() bool {
				views, err := h.store.Views("", "secrets")
				return err == nil && len(views) == 1 && views[0].Complete && views[0].Kind == "Secret"
			})
			h.cut()
			for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
				if l, err := typed(t, config).CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 300 || len(l.Items[7].Data["k"]) != 400 {
					t.Errorf("%d items, %v", len(l.Items), err)
				}
			}
		})
	}
}

// A list that breaks off is not kept, and does not look whole to the client.
func TestBrokenList(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 2000 {
		c.put("secrets", secret("default", fmt.Sprintf("s%04d", i), strings.Repeat("x", 4000)))
	}
	h := newHub(t, c)
	transport, err := rest.TransportFor(h.asNode())
	if err != nil {
		t.Fatal(err)
	}
	reading, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(reading, "GET", "https://"+h.addr+"/api/v1/namespaces/default/secrets", nil)
	req.Header.Set("Accept-Encoding", "identity") // else all of it is on this side before the cut
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 1000)
	n, err := resp.Body.Read(first)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", resp.Status, first[:n], err)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.line.cut()
	var rest int
	buffer := make([]byte, 64<<10)
	for err == nil {
		var n int
		n, err = resp.Body.Read(buffer)
		rest += n
	}
	if err.Error() == "EOF" {
		t.Errorf("a list that broke off after %d bytes ended as if it were whole", rest)
	}
	h.waitOnline(false)
	_, err = typed(t, h.asNode()).CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
	unavailable(t, "what broke off", err)
}

// What the metrics say, and that a client cannot make labels up.
func TestMetrics(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "one", nil))
	h := newHub(t, c)
	get := func(path string) { body(t, h.raw(h.asNode(), "GET", path, nil)) }
	get("/api/v1/namespaces/default/configmaps/one")
	h.cut()
	get("/api/v1/namespaces/default/configmaps/one")
	for i := range 5 {
		get(fmt.Sprintf("/apis/made-up-%d.example.com/v1/things%d", i, i))
	}
	h.raw(h.as("nonsense"), "GET", "/api/v1/pods", nil)
	families, err := h.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			if m.Counter != nil {
				got[f.GetName()+" "+strings.Join(labels, ",")] = m.Counter.GetValue()
			}
		}
	}
	for name, want := range map[string]float64{
		"skerry_hub_requests_total node,200,configmaps,cloud,get": 1,
		"skerry_hub_requests_total node,200,configmaps,store,get": 1,
		"skerry_hub_requests_total node,503,other,hub,list":       5,
		"skerry_hub_refused_total credential":                     1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v (have %v)", name, got[name], want, got)
		}
	}
}

// The kubelet's read before each heartbeat does not cross the link.
func TestOwnNodeFromTheView(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	h := newHub(t, c)
	client := typed(t, protobufOf(h.asNode())).CoreV1().Nodes()
	w, err := client.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + nodeName})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	<-w.ResultChan()
	for range 3 {
		if n, err := client.Get(ctx, nodeName, metav1.GetOptions{ResourceVersion: "0"}); err != nil || n.Name != nodeName {
			t.Fatal(n, err)
		}
	}
	if seen := c.seenAt("/api/v1/nodes/" + nodeName); len(seen) != 0 {
		t.Errorf("%d reads went upstream", len(seen))
	}
	if _, err := client.Get(ctx, nodeName, metav1.GetOptions{}); err != nil || len(c.seenAt("/api/v1/nodes/"+nodeName)) != 1 {
		t.Errorf("a consistent read did not go upstream, or failed: %v", err)
	}
	c.remove("nodes", "", nodeName)
	eventually(t, 3*time.Second, "the node is gone", func() bool {
		_, err := client.Get(ctx, nodeName, metav1.GetOptions{ResourceVersion: "0"})
		return apierrors.IsNotFound(err)
	})
}

// An object that was not there, and that the node then makes, is known offline.
func TestWrittenObjectsAreKept(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	h := newHub(t, c)
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		client := typed(t, config)
		leases, accounts := client.CoordinationV1().Leases("kube-node-lease"), client.CoreV1().ServiceAccounts("default")
		name := "of-" + strings.ReplaceAll(config.ContentType, "/", "-")
		if _, err := leases.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		if _, err := accounts.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		if _, err := leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		made, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Labels = map[string]string{"changed": "yes"}
		if _, err := accounts.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name + "-gone"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := accounts.Delete(ctx, name+"-gone", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	h.cut()
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		client := typed(t, config)
		name := "of-" + strings.ReplaceAll(config.ContentType, "/", "-")
		if _, err := client.CoordinationV1().Leases("kube-node-lease").Get(ctx, name, metav1.GetOptions{}); err != nil {
			t.Errorf("what was made: %v", err)
		}
		if got, err := client.CoreV1().ServiceAccounts("default").Get(ctx, name, metav1.GetOptions{}); err != nil || got.Labels["changed"] != "yes" {
			t.Errorf("what was changed: %v, %v", got, err)
		}
		if _, err := client.CoreV1().ServiceAccounts("default").Get(ctx, name+"-gone", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("what was deleted: %v, want 404", err)
		}
	}
}

// A client that lists what the store has, while nobody follows it and the link is
// dead, waits for one deadline and not for each on the way.
func TestListOverADeadLink(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("secrets", secret("default", "s", "v"))
	h := newHub(t, c)
	client := typed(t, h.asNode()).CoreV1().Secrets("default")
	if l, err := client.List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 1 {
		t.Fatal(l, err)
	}
	eventually(t, 5*time.Second, "the list is kept", func() bool {
		views, err := h.store.Views("", "secrets")
		return err == nil && len(views) == 1 && views[0].Complete
	})
	h.line.hole()
	started := time.Now()
	l, err := client.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil || len(l.Items) != 1 {
		t.Errorf("%v, %v", l, err)
	}
	// The view's own patience is 2 s here, and the deadline 1 s.
	if took := time.Since(started); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	h.line.cut()
	h.line.heal()
}
