package closed

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// What is asked of the API: metadata of the nodes with one label, through
// kube-proxy's own client, also where the API server is below a path.
func TestFollowNodes(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	events := make(chan string)
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		mu.Lock()
		asked = append(asked, fmt.Sprintf("%s %s %s auth=%s", r.Method, r.URL.Path, q.Get("labelSelector"), r.Header.Get("Authorization")))
		mu.Unlock()
		if !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
			t.Errorf("Accept: %s", r.Header.Get("Accept"))
		}
		selector, err := labels.Parse(q.Get("labelSelector"))
		if err != nil || !selector.Matches(labels.Set{"skerry.dev/site": "west"}) || selector.Matches(labels.Set{"skerry.dev/site": "east"}) {
			t.Errorf("selector %q", q.Get("labelSelector"))
		}
		rw.Header().Set("Content-Type", "application/json")
		object := func(name string) any {
			return map[string]any{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
				"metadata": map[string]any{"name": name, "resourceVersion": "7"}}
		}
		encode := json.NewEncoder(rw)
		if q.Get("watch") == "" {
			_ = encode.Encode(map[string]any{"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
				"metadata": map[string]any{"resourceVersion": "5"}, "items": []any{object("w1"), object("w2")}})
			return
		}
		if q.Get("sendInitialEvents") == "true" { // an API server without watch lists
			rw.WriteHeader(http.StatusUnprocessableEntity)
			_ = encode.Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 422, Reason: metav1.StatusReasonInvalid})
			return
		}
		for {
			rw.(http.Flusher).Flush()
			select {
			case e := <-events:
				kind, name, _ := strings.Cut(e, " ")
				_ = encode.Encode(map[string]any{"type": kind, "object": object(name)})
			case <-r.Context().Done():
				return
			}
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client, err := clientset.NewForConfig(&rest.Config{
		Host: server.URL + "/below", BearerToken: "secret", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	proxier := newProxier()
	p := newProvider(ctx, self, proxier, followNodes(client))
	p.setLabels(map[string]string{"skerry.dev/site": "west"})
	p.OnServiceAdd(newService("web", bySite))
	p.OnServiceSynced()
	p.OnEndpointSlicesSynced() // waits for the list
	names := func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		var out []string
		for name := range p.peers["skerry.dev/site"].names {
			out = append(out, name)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	if got := names(); got != "w1 w2" {
		t.Errorf("listed %q", got)
	}
	for _, step := range []struct{ event, want string }{
		{"ADDED w3", "w1 w2 w3"}, {"MODIFIED w3", "w1 w2 w3"}, {"DELETED w2", "w1 w3"},
	} {
		events <- step.event
		deadline := time.Now().Add(5 * time.Second)
		for names() != step.want && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if got := names(); got != step.want {
			t.Errorf("after %s: %q, want %q", step.event, got, step.want)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, a := range asked {
		if a != "GET /below/api/v1/nodes skerry.dev/site=west auth=Bearer secret" {
			t.Errorf("asked: %s", a)
		}
	}
}
