package serve_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"skerry.dev/skerry/pkg/edge/store"
)

var ctx = context.Background()

func typed(t testing.TB, c *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func pod(name, node string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func configMap(namespace, name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
}

func service(name, cluster string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: cluster}}
}

func unavailable(t testing.TB, what string, err error) {
	t.Helper()
	if !apierrors.IsServiceUnavailable(err) {
		t.Errorf("%s: %v, want 503", what, err)
	}
}

// A GET that the cloud answered, with an object or with a 404, is answered while
// it is away; nothing else is, and never with a 404.
func TestGetIsKept(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "one", map[string]string{"a": "1"}))
	c.put("configmaps", configMap("default", "never-asked", nil))
	h := newHub(t, c)
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		maps := typed(t, config).CoreV1().ConfigMaps("default")
		if m, err := maps.Get(ctx, "one", metav1.GetOptions{}); err != nil || m.Data["a"] != "1" {
			t.Fatalf("online: %v, %v", m, err)
		}
		if _, err := maps.Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatalf("online: %v, want 404", err)
		}
	}
	h.cut()
	for name, config := range map[string]*rest.Config{"json": h.asNode(), "protobuf": protobufOf(h.asNode())} {
		t.Run(name, func(t *testing.T) {
			maps := typed(t, config).CoreV1().ConfigMaps("default")
			if m, err := maps.Get(ctx, "one", metav1.GetOptions{}); err != nil || m.Data["a"] != "1" || m.ResourceVersion == "" || m.UID == "" {
				t.Errorf("kept: %v, %v", m, err)
			}
			if _, err := maps.Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `configmaps "none" not found`) {
				t.Errorf("known to be absent: %v, want 404", err)
			}
			_, err := maps.Get(ctx, "never-asked", metav1.GetOptions{})
			unavailable(t, "never asked", err)
			if err != nil && !strings.Contains(err.Error(), "since") {
				t.Errorf("the error does not say since when: %v", err)
			}
			_, err = maps.List(ctx, metav1.ListOptions{})
			unavailable(t, "a list that was never asked", err)
		})
	}
	resp := h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/configmaps/one", nil)
	if resp.Header.Get("Skerry-Source") != "store" || resp.Header.Get("Skerry-Age") == "" {
		t.Errorf("headers %v do not tell the source", resp.Header)
	}
	// client-go tries ten times over if it is told when: the kubelet would hang.
	if resp := h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/configmaps/never-asked", nil); resp.Header.Get("Retry-After") != "" {
		t.Error("503 with Retry-After")
	}
}

// A consistent LIST passes through, is kept, and is answered offline with
// selectors, pages and resourceVersions.
func TestListSemanticsOffline(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 25 {
		c.put("pods", pod(fmt.Sprintf("p%02d", i), nodeName, map[string]string{"odd": strconv.FormatBool(i%2 == 1)}))
	}
	c.put("pods", pod("elsewhere", "n2", nil))
	h := newHub(t, c)
	mine := metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName}
	online, err := typed(t, protobufOf(h.asNode())).CoreV1().Pods("").List(ctx, mine)
	if err != nil || len(online.Items) != 25 {
		t.Fatalf("online: %d items, %v", len(online.Items), err)
	}
	eventually(t, 5*time.Second, "the list is kept", func() bool {
		views, err := h.store.Views("", "pods")
		return err == nil && len(views) == 1 && views[0].Complete
	})
	h.cut()
	for name, config := range map[string]*rest.Config{"json": h.asNode(), "protobuf": protobufOf(h.asNode()), "cbor": func() *rest.Config {
		c := h.asNode()
		c.AcceptContentTypes = "application/cbor,application/json"
		return c
	}()} {
		t.Run(name, func(t *testing.T) {
			client := typed(t, config).CoreV1().Pods("")
			list := func(change func(*metav1.ListOptions)) (*corev1.PodList, error) {
				o := mine
				change(&o)
				return client.List(ctx, o)
			}
			all, err := list(func(*metav1.ListOptions) {})
			if err != nil || len(all.Items) != 25 || all.ResourceVersion != online.ResourceVersion {
				t.Fatalf("offline: %d items at %q, %v; online it was 25 at %q", len(all.Items), all.ResourceVersion, err, online.ResourceVersion)
			}
			odd, err := list(func(o *metav1.ListOptions) { o.LabelSelector = "odd=true" })
			if err != nil || len(odd.Items) != 12 {
				t.Errorf("label selector: %d items, %v; want 12", len(odd.Items), err)
			}
			_, err = client.List(ctx, metav1.ListOptions{})
			unavailable(t, "more than was kept", err)

			var names []string
			token, pages := "", 0
			for {
				page, err := list(func(o *metav1.ListOptions) { o.Limit, o.Continue = 10, token })
				if err != nil {
					t.Fatalf("page %d: %v", pages, err)
				}
				for _, p := range page.Items {
					names = append(names, p.Name)
				}
				pages++
				if token = page.Continue; token == "" {
					break
				}
			}
			if len(names) != 25 || pages != 3 || !slices.IsSorted(names) {
				t.Errorf("%d names in %d pages: %v", len(names), pages, names)
			}
			page, err := list(func(o *metav1.ListOptions) { o.Limit = 10 })
			if err != nil {
				t.Fatal(err)
			}
			for what, bad := range map[string]metav1.ListOptions{
				"a token of another query": {FieldSelector: mine.FieldSelector, LabelSelector: "odd=true", Limit: 10, Continue: page.Continue},
				"a token of the cloud":     {FieldSelector: mine.FieldSelector, Limit: 10, Continue: "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"},
				"an old resourceVersion":   {FieldSelector: mine.FieldSelector, ResourceVersion: "1", ResourceVersionMatch: metav1.ResourceVersionMatchExact},
			} {
				if _, err := client.List(ctx, bad); !apierrors.IsResourceExpired(err) {
					t.Errorf("%s: %v, want 410", what, err)
				}
			}
			if _, err := list(func(o *metav1.ListOptions) { o.ResourceVersion = "999999" }); !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
				t.Errorf("a future resourceVersion: %v, want 504 with a cause", err)
			}
			for _, rv := range []string{"0", "1", all.ResourceVersion} {
				if got, err := list(func(o *metav1.ListOptions) { o.ResourceVersion = rv }); err != nil || len(got.Items) != 25 {
					t.Errorf("resourceVersion %s: %d items, %v", rv, len(got.Items), err)
				}
			}
			if got, err := list(func(o *metav1.ListOptions) {
				o.ResourceVersion, o.ResourceVersionMatch = all.ResourceVersion, metav1.ResourceVersionMatchExact
			}); err != nil || len(got.Items) != 25 {
				t.Errorf("the exact resourceVersion: %d items, %v", len(got.Items), err)
			}
		})
	}
	t.Run("table", func(t *testing.T) {
		resp := h.raw(h.asNode(), "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}})
		var table metav1.Table
		if err := json.Unmarshal([]byte(body(t, resp)), &table); err != nil || table.Kind != "Table" || len(table.Rows) != 25 {
			t.Errorf("%s with %d rows, %v", table.Kind, len(table.Rows), err)
		}
	})
	t.Run("metadata", func(t *testing.T) {
		client, err := metadata.NewForConfig(h.asNode())
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.Resource(corev1.SchemeGroupVersion.WithResource("pods")).List(ctx, mine)
		if err != nil || len(list.Items) != 25 || list.Items[0].Name != "p00" {
			t.Errorf("%v, %v", list, err)
		}
	})
	t.Run("a GET of a member", func(t *testing.T) {
		if _, err := typed(t, h.asNode()).CoreV1().Pods("default").Get(ctx, "p07", metav1.GetOptions{}); err != nil {
			t.Errorf("a pod that is in a list: %v", err)
		}
		_, err := typed(t, h.asNode()).CoreV1().Pods("default").Get(ctx, "unknown", metav1.GetOptions{})
		unavailable(t, "a pod that could be on another node", err)
	})
}

// An empty list is knowledge, too.
func TestEmptyListIsKept(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	h := newHub(t, c)
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		if _, err := typed(t, config).NodeV1().RuntimeClasses().List(ctx, metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 5*time.Second, "the list is kept", func() bool {
		views, err := h.store.Views("node.k8s.io", "runtimeclasses")
		return err == nil && len(views) == 1 && views[0].Complete
	})
	h.cut()
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		client := typed(t, config).NodeV1().RuntimeClasses()
		if list, err := client.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
			t.Errorf("%v, %v", list, err)
		}
		if _, err := client.Get(ctx, "gvisor", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("absence that a whole list proves: %v, want 404", err)
		}
		_, err := typed(t, config).StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{})
		unavailable(t, "a list that was never asked", err)
	}
}

// withoutWatchList makes a reflector list first, and watch then.
type withoutWatchList struct{ *cache.ListWatch }

func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }

// informed runs an informer over services and returns what it has.
func informed(t *testing.T, config *rest.Config, watchList bool) cache.Store {
	t.Helper()
	client := typed(t, config)
	list := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.CoreV1().Services("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.CoreV1().Services("").Watch(ctx, o)
		},
	}
	var source cache.ListerWatcher = list
	if !watchList {
		source = withoutWatchList{list}
	}
	objects, reflector := cache.NewNamespaceKeyedIndexerAndReflector(source, &corev1.Service{}, 0)
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); reflector.RunWithContext(running) }()
	t.Cleanup(func() { cancel(); <-done })
	return objects
}

// Informers of real clients follow the cloud through the hub, stay through an
// outage, and catch up. Equal watches cost one upstream.
func TestInformers(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 10 {
		c.put("services", service(fmt.Sprintf("s%d", i), "10.96.1.1"))
	}
	const account = "kube-system:kube-proxy"
	c.allow(account, "", "", "services", []string{"get", "list", "watch"})
	h := newHub(t, c)
	h.waitRBAC() // and the keys: a token that nobody can verify passes through
	token := c.token(account, "", "", time.Now().Add(time.Hour))
	stores := map[string]cache.Store{
		"node, WatchList":          informed(t, h.asNode(), true),
		"node, list and watch":     informed(t, h.asNode(), false),
		"node, protobuf":           informed(t, protobufOf(h.asNode()), true),
		"kube-proxy, WatchList":    informed(t, h.as(token), true),
		"kube-proxy, list, proto.": informed(t, protobufOf(h.as(token)), false),
	}
	has := func(count int, changed string) {
		t.Helper()
		for name, s := range stores {
			eventually(t, 10*time.Second, fmt.Sprintf("%s has %d services, one changed to %q", name, count, changed), func() bool {
				if len(s.List()) != count {
					return false
				}
				one, ok, _ := s.GetByKey("default/s3")
				return ok && one.(*corev1.Service).Spec.ClusterIP == changed
			})
		}
	}
	has(10, "10.96.1.1")
	c.put("services", service("s3", "10.96.1.2"))
	c.put("services", service("s10", "10.96.1.1"))
	c.remove("services", "default", "s0")
	has(10, "10.96.1.2")
	watches := 0
	for _, s := range c.seenAt("/api/v1/services") {
		if strings.Contains(s.query, "watch=") {
			watches++
		}
	}
	if watches != 1 {
		t.Errorf("%d watches upstream for five clients, want 1", watches)
	}
	h.cut()
	c.put("services", service("s3", "10.96.1.3"))
	c.remove("services", "default", "s1")
	late := informed(t, h.asNode(), true) // a client that starts offline
	eventually(t, 5*time.Second, "a client that starts offline has all", func() bool { return len(late.List()) == 10 })
	has(10, "10.96.1.2")
	stores["late"] = late
	h.heal()
	has(9, "10.96.1.3")
}

// The hub's process can end and start again without the cloud.
func TestRestartOffline(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("pods", pod("p1", nodeName, nil))
	c.put("configmaps", configMap("default", "one", nil))
	h := newHub(t, c)
	client := typed(t, h.asNode())
	if _, err := client.CoreV1().ConfigMaps("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	mine := metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName, ResourceVersion: "0"}
	first, err := client.CoreV1().Pods("").List(ctx, mine)
	if err != nil || len(first.Items) != 1 {
		t.Fatal(first, err)
	}
	h.cut()
	h.restart()
	client = typed(t, h.asNode())
	if _, err := client.CoreV1().ConfigMaps("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	again, err := client.CoreV1().Pods("").List(ctx, mine)
	if err != nil || len(again.Items) != 1 {
		t.Fatalf("%v, %v", again, err)
	}
	if before, after := number(t, first.ResourceVersion), number(t, again.ResourceVersion); after < before {
		t.Errorf("resourceVersion went back from %d to %d", before, after)
	}
}

func number(t testing.TB, rv string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// While the state still says online, a read over a dead link is answered from
// the store in time, and what the store lacks is not made up.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "one", nil))
	h := newHub(t, c)
	client := typed(t, h.asNode())
	if _, err := client.CoreV1().ConfigMaps("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	h.line.hole()
	started := time.Now()
	if _, err := client.CoreV1().ConfigMaps("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Errorf("after %s: %v", time.Since(started), err)
	}
	if took := time.Since(started); took > 2*time.Second {
		t.Errorf("it took %s with a deadline of 1 s", took)
	}
	h.waitOnline(false)
	h.line.cut()
	h.line.heal()
	h.waitOnline(true)
}

// Slow is not down: an answer that the store cannot give is waited for.
func TestSlowCloud(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "one", nil))
	h := newHub(t, c)
	c.set(func() { c.pause = 1500 * time.Millisecond })
	if _, err := typed(t, h.asNode()).CoreV1().ConfigMaps("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Errorf("a slow answer: %v", err)
	}
	c.set(func() { c.pause = 0 })
}

// A load balancer without a backend is no API server.
func TestGatewayErrors(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "one", nil))
	h := newHub(t, c)
	get := func(name string) *http.Response {
		return h.raw(h.asNode(), "GET", "/api/v1/namespaces/default/configmaps/"+name, nil)
	}
	if resp := get("one"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	for _, code := range []int{502, 503, 504} {
		c.set(func() { c.broken = code })
		if resp := get("one"); resp.StatusCode != 200 || resp.Header.Get("Skerry-Source") != "store" {
			t.Errorf("behind a %d: %s from %q", code, resp.Status, resp.Header.Get("Skerry-Source"))
		}
		if resp := get("other"); resp.StatusCode != code && resp.StatusCode != 503 {
			t.Errorf("what is not kept, behind a %d: %s", code, resp.Status)
		}
	}
	c.set(func() { c.broken = 500 })
	if resp := get("one"); resp.StatusCode != 500 {
		t.Errorf("an answer of the API server: %s, want its own 500", resp.Status)
	}
	c.set(func() { c.broken = 0 })
}

// The kubelet's writes are taken offline and reach the cloud afterwards; all
// others are refused in a way that makes clients try again.
func TestWritesOffline(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("pods", pod("p1", nodeName, nil))
	c.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	h := newHub(t, c)
	client := typed(t, protobufOf(h.asNode()))
	pods := client.CoreV1().Pods("default")
	if _, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName, ResourceVersion: "0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	h.cut()
	changes, err := client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	if e := <-changes.ResultChan(); e.Type != watch.Added {
		t.Fatalf("the watch begins with %v", e)
	}
	patched, err := pods.Patch(ctx, "p1", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status")
	if err != nil || patched.Status.Phase != corev1.PodSucceeded {
		t.Fatalf("PATCH pods/status: %v, %v", patched, err)
	}
	select {
	case e := <-changes.ResultChan():
		if e.Type != watch.Modified || e.Object.(*corev1.Pod).Status.Phase != corev1.PodSucceeded {
			t.Errorf("local watchers see %v", e)
		}
	case <-time.After(3 * time.Second):
		t.Error("local watchers see nothing")
	}
	if got, err := pods.Get(ctx, "p1", metav1.GetOptions{}); err != nil || got.Status.Phase != corev1.PodSucceeded {
		t.Errorf("reading it back: %v, %v", got, err)
	}
	_, err = pods.Patch(ctx, "p1", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Failed"}}`), metav1.PatchOptions{DryRun: []string{"All"}}, "status")
	unavailable(t, "a dry run", err)
	if _, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("registering: %v, want 409 AlreadyExists", err)
	}
	unavailable(t, "deleting a pod", pods.Delete(ctx, "p1", metav1.DeleteOptions{}))
	_, err = client.CoreV1().ConfigMaps("default").Create(ctx, configMap("default", "x", nil), metav1.CreateOptions{})
	unavailable(t, "creating a ConfigMap", err)
	_, err = client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{}, metav1.CreateOptions{})
	unavailable(t, "a TokenReview", err)
	h.heal()
	eventually(t, 10*time.Second, "the cloud knows the pod's phase", func() bool {
		phase, _, _ := unstructured.NestedString(c.get("pods", "default", "p1").Object, "status", "phase")
		return phase == "Succeeded"
	})
}

// The last token that the cloud gave is given again offline, to the kubelet only.
func TestTokenRequests(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	const account = "default:app"
	c.allow(account, "default", "", "serviceaccounts/token", []string{"create"})
	h := newHub(t, c)
	h.keepApp()
	ask := func(config *rest.Config, audience string) (*authenticationv1.TokenRequest, error) {
		seconds := int64(3607)
		return typed(t, config).CoreV1().ServiceAccounts("default").CreateToken(ctx, "app", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds},
		}, metav1.CreateOptions{})
	}
	given, err := ask(h.asNode(), "a")
	if err != nil || given.Status.Token == "" {
		t.Fatalf("online: %v, %v", given, err)
	}
	own := h.asApp()
	if _, err := ask(own, "a"); err != nil {
		t.Fatalf("online, by itself: %v", err)
	}
	h.cut()
	for _, config := range []*rest.Config{h.asNode(), protobufOf(h.asNode())} {
		again, err := ask(config, "a")
		if err != nil || again.Status.Token != given.Status.Token {
			t.Fatalf("offline: %v, %v", again, err)
		}
		if left := time.Until(again.Status.ExpirationTimestamp.Time); left < 9*time.Minute {
			t.Errorf("it is said to expire in %s", left)
		}
	}
	_, err = ask(h.asNode(), "b")
	unavailable(t, "another audience", err)
	_, err = ask(own, "a")
	unavailable(t, "a pod that makes tokens", err)
	// And a link that swallows everything is an outage, too.
	h.heal()
	h.line.hole()
	if again, err := ask(h.asNode(), "a"); err != nil || again.Status.Token != given.Status.Token {
		t.Errorf("over a dead link: %v, %v", again, err)
	}
	h.line.cut()
	h.line.heal()
}

// Discovery, OpenAPI and the version are answered offline as they were online.
func TestDocuments(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	h := newHub(t, c)
	client, err := discovery.NewDiscoveryClientForConfig(h.asNode())
	if err != nil {
		t.Fatal(err)
	}
	client.UseLegacyDiscovery = true
	if _, err := client.ServerResourcesForGroupVersion("example.com/v1"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ServerResourcesForGroupVersion("absent.example.com/v1"); !apierrors.IsNotFound(err) {
		t.Fatalf("online: %v, want 404", err)
	}
	openapi := http.Header{"Accept": {"application/com.github.proto-openapi.spec.v2@v1.0+protobuf"}}
	online := body(t, h.raw(h.asNode(), "GET", "/openapi/v2", openapi))
	eventually(t, 5*time.Second, "the hub fetches the version itself", func() bool { return len(c.seenAt("/version")) > 0 })
	time.Sleep(50 * time.Millisecond)
	h.cut()
	h.restart()
	client, _ = discovery.NewDiscoveryClientForConfig(h.asNode())
	client.UseLegacyDiscovery = true
	if list, err := client.ServerResourcesForGroupVersion("example.com/v1"); err != nil || len(list.APIResources) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if v, err := client.ServerVersion(); err != nil || v.GitVersion != "v1.37.2" {
		t.Errorf("%v, %v", v, err)
	}
	if groups, err := client.ServerGroups(); err != nil || len(groups.Groups) < 4 {
		t.Errorf("%v, %v", groups, err)
	}
	if _, err := client.ServerResourcesForGroupVersion("absent.example.com/v1"); !apierrors.IsNotFound(err) {
		t.Errorf("what the cloud said does not exist: %v, want 404", err)
	}
	_, err = client.ServerResourcesForGroupVersion("unasked.example.com/v1")
	unavailable(t, "what nobody asked", err)
	resp := h.raw(h.asNode(), "GET", "/openapi/v2", openapi)
	if text := body(t, resp); text != online || resp.Header.Get("Skerry-Source") != "store" {
		t.Errorf("OpenAPI: %s %q, online it was %q", resp.Status, text, online)
	}
	same := openapi.Clone()
	same.Set("If-None-Match", resp.Header.Get("ETag"))
	if resp := h.raw(h.asNode(), "GET", "/openapi/v2", same); resp.StatusCode != http.StatusNotModified {
		t.Errorf("with its own ETag: %s, want 304", resp.Status)
	}
	if resp := h.raw(h.asNode(), "GET", "/readyz", nil); resp.StatusCode != 200 {
		t.Errorf("/readyz: %s", resp.Status)
	}
}

// Custom resources have no protobuf and are served as JSON.
func TestCustomResources(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	widget := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"namespace": "default", "name": "w"}, "spec": map[string]any{"size": int64(3)}}}
	c.put("widgets", widget)
	h := newHub(t, c)
	client, err := dynamic.NewForConfig(h.asNode())
	if err != nil {
		t.Fatal(err)
	}
	widgets := client.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"})
	if list, err := widgets.List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err != nil || len(list.Items) != 1 {
		t.Fatalf("online: %v, %v", list, err)
	}
	h.cut()
	list, err := widgets.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("offline: %v, %v", list, err)
	}
	if size, _, _ := unstructured.NestedInt64(list.Items[0].Object, "spec", "size"); size != 3 {
		t.Errorf("size is %d", size)
	}
}

// What is rewritten, for whom, and that the store and other clients have the
// original.
func TestRewrites(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.put("configmaps", configMap("default", "kube-root-ca.crt", map[string]string{"ca.crt": string(c.ca.pem)}))
	c.put("configmaps", configMap("kube-system", "kube-proxy", map[string]string{"kubeconfig.conf": "clusters:\n- cluster:\n    server: https://10.0.0.1:6443\n  name: default\n"}))
	c.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}, {Key: "user", Effect: corev1.TaintEffectNoExecute}}}})
	port, yes := int32(6443), true
	c.put("endpointslices", &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
	})
	c.put("endpointslices", &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}}},
	})
	const account = "default:app"
	c.allow(account, "default", "", "configmaps", []string{"get", "list"})
	c.allow(account, "", "discovery.k8s.io", "endpointslices", []string{"get", "list", "watch"})
	h := newHub(t, c)
	h.keepApp()
	app := h.asApp()
	if _, err := typed(t, h.asNode()).CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	slice := func(t *testing.T, s *discoveryv1.EndpointSlice) {
		t.Helper()
		if s.Name == "web" && s.Endpoints[0].Addresses[0] != "10.1.0.1" {
			t.Errorf("a slice that is not the API server's was changed: %v", s.Endpoints)
		}
		if s.Name == "kubernetes" && (s.Endpoints[0].Addresses[0] != "169.254.20.10" || *s.Ports[0].Port != 10270) {
			t.Errorf("the API server's slice leads to %v %v", s.Endpoints, s.Ports)
		}
	}
	check := func(t *testing.T) {
		for name, config := range map[string]*rest.Config{"json": h.asNode(), "protobuf": protobufOf(h.asNode())} {
			client := typed(t, config)
			root, err := client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			if err != nil || !strings.Contains(root.Data["ca.crt"], strings.TrimSpace(string(h.pki.CA()))) || !strings.Contains(root.Data["ca.crt"], string(c.ca.pem)) {
				t.Errorf("%s: kube-root-ca.crt: %v, %v", name, root, err)
			}
			proxy, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, "kube-proxy", metav1.GetOptions{})
			if err != nil || !strings.Contains(proxy.Data["kubeconfig.conf"], "\n    server: https://127.0.0.1:10270\n  name: default\n") {
				t.Errorf("%s: kube-proxy: %v, %v", name, proxy, err)
			}
			slices, err := client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
			if err != nil || len(slices.Items) != 2 {
				t.Fatalf("%s: %v, %v", name, slices, err)
			}
			for i := range slices.Items {
				slice(t, &slices.Items[i])
			}
			changes, err := typed(t, app).DiscoveryV1().EndpointSlices("").Watch(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				slice(t, (<-changes.ResultChan()).Object.(*discoveryv1.EndpointSlice))
			}
			changes.Stop()
		}
	}
	t.Run("online", check)
	root, err := typed(t, app).CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil || root.Data["ca.crt"] != string(c.ca.pem) {
		t.Errorf("a pod's own read of it: %v, %v", root, err)
	}
	node, err := typed(t, h.asNode()).CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil || len(node.Spec.Taints) != 2 {
		t.Errorf("online: %v, %v", node, err)
	}
	eventually(t, 5*time.Second, "the slices are kept", func() bool {
		views, err := h.store.Views("discovery.k8s.io", "endpointslices")
		return err == nil && slices.ContainsFunc(views, func(v store.View) bool { return v.Complete && v.Namespace == "" })
	})
	h.cut()
	t.Run("offline", check)
	node, err = typed(t, h.asNode()).CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil || len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != "user" {
		t.Errorf("offline: %v, %v", node, err)
	}
}
