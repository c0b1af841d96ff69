package serve_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/edge/hub/serve"
)

// gauge reads one metric without labels.
func gauge(t testing.TB, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// A client that opens answers and takes nothing of them is given up, over HTTP/2,
// too, where its connection is well: what the hub holds for it is bounded in time.
func TestStalledClients(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	for i := range 300 {
		c.put("configmaps", configMap("default", fmt.Sprintf("m%03d", i), map[string]string{"text": strings.Repeat("x", 4000)}))
	}
	h := newHub(t, c, func(o *serve.Options) { o.WriteStall = 300 * time.Millisecond })
	reader := typed(t, h.asNode())
	// The view is live.
	if _, err := reader.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/api/v1/namespaces/default/configmaps",
		"/api/v1/namespaces/default/configmaps?resourceVersion=0",
		"/api/v1/namespaces/default/configmaps?watch=true&resourceVersion=0",
		"/api/v1/namespaces/default/configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
	} {
		t.Run(path, func(t *testing.T) {
			config := h.asNode()
			tlsConfig, err := rest.TLSConfigFor(config)
			if err != nil {
				t.Fatal(err)
			}
			transport := &http.Transport{
				TLSClientConfig: tlsConfig, Protocols: new(http.Protocols), DisableCompression: true,
				HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10}, ReadBufferSize: 4 << 10,
			}
			transport.Protocols.SetHTTP2(true)
			defer transport.CloseIdleConnections()
			waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(waiting, http.MethodGet, "https://"+h.addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			busy := func() float64 {
				return gauge(t, h.registry, "skerry_hub_requests_in_flight") + gauge(t, h.registry, "skerry_hub_streams_in_flight")
			}
			eventually(t, 10*time.Second, "the hub gives the client up", func() bool { return busy() == 0 })
			// What is left comes to an end that cannot be taken for the end.
			buffer, n := make([]byte, 64<<10), 0
			for err == nil {
				n, err = resp.Body.Read(buffer)
			}
			if err.Error() == "EOF" {
				t.Errorf("an answer that was given up ended (after %d more bytes) as if it were whole", n)
			}
		})
	}
	// An idle watch is none that stalls.
	changes, err := reader.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m000", ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	<-changes.ResultChan()
	time.Sleep(time.Second)
	c.put("configmaps", configMap("default", "m000", map[string]string{"text": "new"}))
	select {
	case e, ok := <-changes.ResultChan():
		if !ok {
			t.Error("an idle watch was ended")
		}
		_ = e
	case <-time.After(10 * time.Second):
		t.Error("an idle watch got no event")
	}
}

// A long list that is rewritten comes whole, whatever the client's encoding; one
// that cannot be read is an error, and never the store's older answer.
func TestLongRewrittenLists(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	yes, port := true, int32(6443)
	add := func(namespace, name, service string) {
		c.put("endpointslices", &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}, Annotations: map[string]string{"text": strings.Repeat(name, 100)}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		})
	}
	add("default", "kubernetes", "kubernetes")
	for i := range 250 {
		add("shop", fmt.Sprintf("web-%03d", i), "web")
	}
	h := newHub(t, c)
	list := func(config *rest.Config) (*discoveryv1.EndpointSliceList, error) {
		return typed(t, config).DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	}
	plain := h.asNode()
	plain.DisableCompression = true
	for name, config := range map[string]*rest.Config{"JSON": h.asNode(), "protobuf": protobufOf(h.asNode()), "without compression": plain} {
		got, err := list(config)
		if err != nil || len(got.Items) != 251 || got.ResourceVersion == "" {
			t.Fatalf("%s: %d, %v", name, len(got.Items), err)
		}
		if s := got.Items[0]; s.Name != "kubernetes" || s.Endpoints[0].Addresses[0] != "169.254.20.10" {
			t.Errorf("%s: the API server's slice is %v", name, s)
		}
		if s := got.Items[250]; s.Name != "web-249" || s.Endpoints[0].Addresses[0] != "10.0.0.1" || s.Annotations["text"] != strings.Repeat("web-249", 100) {
			t.Errorf("%s: another slice is %v", name, s)
		}
	}
	// A table is none of the hub's business, and must be readable for a client
	// that did not ask for compression.
	partial := h.raw(plain, http.MethodGet, "/apis/discovery.k8s.io/v1/endpointslices", http.Header{"Accept": {"application/json"}})
	if encoding := partial.Header.Get("Content-Encoding"); encoding != "" || !strings.Contains(body(t, partial), "web-249") {
		t.Errorf("a client that asked for no compression got %q", encoding)
	}
	eventually(t, 5*time.Second, "the list is kept", func() bool {
		all, err := h.store.Views("discovery.k8s.io", "endpointslices")
		return err == nil && len(all) > 0 && all[0].Complete
	})
	for name, spoil := range map[string]func(string, []byte) []byte{
		"an item that is none": func(path string, b []byte) []byte {
			return []byte(strings.Replace(string(b), `"name":"web-200"`, `"name":""`, 1))
		},
		"another kind": func(path string, b []byte) []byte {
			return []byte(strings.Replace(string(b), `"EndpointSliceList"`, `"Else"`, 1))
		},
	} {
		c.set(func() {
			c.spoil = func(path string, b []byte) []byte {
				if !strings.HasSuffix(path, "/endpointslices") {
					return b
				}
				return spoil(path, b)
			}
		})
		json := h.asNode()
		json.ContentType = "application/json"
		got, err := list(json)
		if err == nil {
			t.Errorf("%s: answered with %d items", name, len(got.Items))
		} else if !apierrors.IsInternalError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.set(func() { c.spoil = nil })
	if got, err := list(h.asNode()); err != nil || len(got.Items) != 251 {
		t.Errorf("afterwards: %v", err)
	}
}

// A kept client that may not ask the API server what it may do is not told no, and
// not shown what is shared: the cloud answers each of its requests.
func TestMayNotAsk(t *testing.T) {
	t.Parallel()
	const account = "kube-system:kube-proxy"
	c := newCloud(t)
	c.allow(account, "", "", "configmaps", []string{"get", "list", "watch"})
	c.put("configmaps", configMap("default", "m", nil))
	c.set(func() { c.mute = true })
	h := newHub(t, c)
	h.waitRBAC()
	config := h.as(c.token(account, "", "", time.Now().Add(time.Hour)))
	const path = "/api/v1/namespaces/default/configmaps"
	for _, query := range []string{"?resourceVersion=0", "?watch=true&resourceVersion=0&timeoutSeconds=1"} {
		resp := h.raw(config, http.MethodGet, path+query, nil)
		if text := body(t, resp); resp.StatusCode != http.StatusOK || resp.Header.Get(serve.HeaderSource) != "" || !strings.Contains(text, `"name":"m"`) {
			t.Errorf("%s: %s from %q: %s", query, resp.Status, resp.Header.Get(serve.HeaderSource), text)
		}
	}
	all, err := h.store.Views("", "configmaps")
	if err != nil || len(all) != 0 {
		t.Errorf("kept without a permission: %v, %v", all, err)
	}
	// Who is told no is refused here.
	c.set(func() { c.mute = false })
	denied := h.as(c.token("kube-system:kube-proxy", "", "", time.Now().Add(2*time.Hour)))
	if resp := h.raw(denied, http.MethodGet, "/api/v1/namespaces/default/secrets?resourceVersion=0", nil); resp.StatusCode != http.StatusForbidden {
		t.Errorf("what RBAC does not allow: %s", resp.Status)
	}
}
