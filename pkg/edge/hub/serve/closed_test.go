package serve_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"skerry.dev/skerry/pkg/edge/hub/closed"
	"skerry.dev/skerry/pkg/edge/hub/serve"
	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/topology"
)

func siteNode(name, site string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if site != "" {
		n.Labels = map[string]string{"skerry.dev/site": site}
	}
	return n
}

func headless(name string, annotations map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: annotations}, Spec: corev1.ServiceSpec{ClusterIP: "None"}}
}

// endpointsOn makes a slice with an endpoint for each word: node=hostname.
func endpointsOn(service, words string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service, corev1.IsHeadlessService: ""}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for i, word := range strings.Fields(words) {
		node, host, _ := strings.Cut(word, "=")
		e := discoveryv1.Endpoint{Addresses: []string{"10.0.0." + string(rune('1'+i))}, Hostname: &host}
		if node != "-" {
			e.NodeName = &node
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// sliceInformer runs an informer over all slices.
func sliceInformer(t *testing.T, config *rest.Config, watchList bool) cache.Store {
	t.Helper()
	client := typed(t, config)
	list := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.DiscoveryV1().EndpointSlices("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.DiscoveryV1().EndpointSlices("").Watch(ctx, o)
		},
	}
	var source cache.ListerWatcher = list
	if !watchList {
		source = withoutWatchList{list}
	}
	objects, reflector := cache.NewNamespaceKeyedIndexerAndReflector(source, &discoveryv1.EndpointSlice{}, 0)
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); reflector.RunWithContext(running) }()
	t.Cleanup(func() { cancel(); <-done })
	return objects
}

func hostnames(objects cache.Store, service string) string {
	var out []string
	for _, o := range objects.List() {
		s := o.(*discoveryv1.EndpointSlice)
		if s.Labels[discoveryv1.LabelServiceName] != service {
			continue
		}
		for _, e := range s.Endpoints {
			out = append(out, *e.Hostname)
		}
		if len(s.Endpoints) == 0 {
			out = append(out, "nobody")
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// DNS sees of closed Services the endpoints of its own site, through whatever
// changes, without the cloud, and over a restart; nobody else notices.
func TestClosedServicesForDNS(t *testing.T) {
	t.Parallel()
	const dns, proxy = "kube-system:coredns", "kube-system:kube-proxy"
	c := newCloud(t)
	for name, site := range map[string]string{nodeName: "west", "w2": "west", "e1": "east"} {
		c.put("nodes", siteNode(name, site))
	}
	bySite := map[string]string{topology.Annotation: `["skerry.dev/site"]`}
	c.put("services", headless("db", bySite))
	c.put("services", headless("open", nil))
	c.put("services", headless("bad", map[string]string{topology.Annotation: "site"}))
	c.put("services", headless("web", map[string]string{topology.Annotation: `["skerry.dev/site"]`, "skerry.dev/statefulset-grids": `["web"]`}))
	on := nodeName + "=own w2=two e1=far -=none"
	for _, name := range []string{"db", "open", "bad"} {
		c.put("endpointslices", endpointsOn(name, on))
	}
	c.put("endpointslices", endpointsOn("web", nodeName+"=web-west-0 w2=web-west-1 e1=web-east-0"))
	for _, account := range []string{dns, proxy} {
		c.allow(account, "", "discovery.k8s.io", "endpointslices", []string{"get", "list", "watch"})
	}
	var known *closed.Services
	with := func(o *serve.Options) {
		known = closed.New(nodeName, o.Views.(*views.Views), slog.New(slog.DiscardHandler))
		o.Closed = known
		o.Keep = func(user, _, _ string) (int, int64, bool) {
			return 1000, 8 << 20, user == "system:serviceaccount:"+dns || user == "system:serviceaccount:"+proxy
		}
	}
	follow := func() (stop func()) {
		running, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); known.Run(running) }()
		return func() { cancel(); <-done }
	}
	running := pod("dns", nodeName, nil)
	running.Namespace = "kube-system"
	c.put("pods", running)
	h := newHub(t, c, with)
	stop := follow()
	defer func() { stop() }()
	h.waitRBAC()
	if _, err := typed(t, h.asNode()).CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1", ResourceVersion: "0"}); err != nil {
		t.Fatal(err)
	}
	// Each informer with a token of its own, as pods have.
	lifetime := time.Hour
	as := func(account string) *rest.Config {
		lifetime += time.Minute
		return h.as(c.token(account, "", "", time.Now().Add(lifetime)))
	}
	stores := map[string]cache.Store{
		"WatchList":        sliceInformer(t, as(dns), true),
		"list and watch":   sliceInformer(t, as(dns), false),
		"protobuf":         sliceInformer(t, protobufOf(as(dns)), true),
		"another, in vain": sliceInformer(t, as(proxy), true),
	}
	// This cloud tells a watch with a selector of an object that is gone, and not
	// of one that has changed its labels.
	move := func(node, site string) {
		c.remove("nodes", "", node)
		c.put("nodes", siteNode(node, site))
	}
	informed := func(when, service, hosts string) {
		t.Helper()
		for name, objects := range stores {
			hosts := hosts
			if name == "another, in vain" {
				hosts = "far none own two"
			}
			eventually(t, 20*time.Second, when+": "+name+" has of "+service+": "+hosts+", not "+hostnames(objects, service), func() bool { return hostnames(objects, service) == hosts })
		}
	}
	client := typed(t, as(dns))
	listed := func(when string, wanted map[string]string) {
		t.Helper()
		for _, revision := range []string{"", "0"} {
			for service, hosts := range wanted {
				var got string
				var err error
				defer func() {
					if t.Failed() {
						t.Logf("%s: %s has %q (%v)", when, service, got, err)
					}
				}()
				eventually(t, 5*time.Second, when+": "+service+" has "+hosts, func() bool {
					var all *discoveryv1.EndpointSliceList
					all, err = client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{ResourceVersion: revision})
					if err != nil {
						return false
					}
					objects := cache.NewStore(cache.MetaNamespaceKeyFunc)
					for i := range all.Items {
						_ = objects.Add(&all.Items[i])
					}
					got = hostnames(objects, service)
					return got == hosts
				})
			}
		}
	}
	informed("online", "db", "none own two")
	listed("online", map[string]string{"db": "none own two", "open": "far none own two", "bad": "none", "web": "web-0 web-1"})
	one, err := client.DiscoveryV1().EndpointSlices("shop").Get(ctx, "db-1", metav1.GetOptions{})
	if err != nil || len(one.Endpoints) != 3 {
		t.Errorf("a single slice: %v, %v", one.Endpoints, err)
	}

	time.Sleep(1100 * time.Millisecond) // a reflector takes a watch that ends at once for an error
	move("w2", "east")
	informed("w2 went east", "db", "none own")
	listed("w2 went east", map[string]string{"db": "none own", "open": "far none own two", "web": "web-0"})
	move(nodeName, "east")
	listed("this node went east", map[string]string{"db": "far none own two", "web": "web-0 web-west-0 web-west-1"})
	move(nodeName, "")
	listed("this node left", map[string]string{"db": "none", "web": "nobody"})
	move(nodeName, "west")
	c.put("services", headless("open", bySite))
	listed("open was closed", map[string]string{"open": "none own", "db": "none own"})
	c.put("services", headless("open", nil))
	listed("and opened", map[string]string{"open": "far none own two"})

	h.cut()
	stop()
	h.stop()
	h.start(with)
	stop = follow()
	// Offline a service account is one of a pod on this node.
	bound := h.as(c.token(dns, "dns", "pods-kube-system-dns", time.Now().Add(time.Hour)))
	client = typed(t, bound)
	listed("offline", map[string]string{"db": "none own", "open": "far none own two", "bad": "none"})
	stores = map[string]cache.Store{"after a restart": sliceInformer(t, bound, true)}
	informed("offline", "db", "none own")
}
