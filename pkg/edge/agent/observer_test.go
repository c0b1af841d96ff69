package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/store"
)

// The requests of the reporter, as an HTTP server sees them. That an API server
// takes them is shown by the verdict suite.
func TestReports(t *testing.T) {
	var seen []string
	code := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen = append(seen, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.URL, r.Header.Get("Content-Type"), body)))
		if status := code[r.Method]; status != 0 {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"kind":"Status","message":"no, because"}`)
		}
	}))
	defer server.Close()
	r := &reports{node: "west-1", do: func(ctx context.Context, method, path string, query url.Values, contentType, _ string, body []byte) (*http.Response, error) {
		request, err := http.NewRequestWithContext(ctx, method, server.URL+path+"?"+query.Encode(), strings.NewReader(string(body)))
		if err != nil {
			return nil, err
		}
		request.Header.Set("Content-Type", contentType)
		return server.Client().Do(request)
	}}
	const path = "/apis/site.skerry.dev/v1alpha1/nodereports/west-1?"
	spec := sitev1.NodeReportSpec{
		RenewTime:  metav1.NewMicroTime(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)),
		Neighbours: []sitev1.NeighbourReport{{Node: "west-2", UID: "u", State: sitev1.NeighbourUnreachable, Seconds: 3}},
	}
	if err := r.Put(t.Context(), spec); err != nil {
		t.Error(err)
	}
	if err := r.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{
		"PATCH " + path + "fieldManager=skerry-agent&force=true application/apply-patch+yaml " +
			`{"apiVersion":"site.skerry.dev/v1alpha1","kind":"NodeReport","metadata":{"name":"west-1"},"spec":{"renewTime":"2026-01-02T03:04:05.000006Z","self":{},"neighbours":[{"node":"west-2","uid":"u","state":"Unreachable","seconds":3}]}}`,
		"GET " + path, "DELETE " + path,
	}
	if strings.Join(seen, "\n") != strings.Join(want, "\n") {
		t.Errorf("sent:\n%s\nwant:\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	// In steady state there is no report, and nothing is written.
	seen, code = nil, map[string]int{"GET": http.StatusNotFound}
	if err := r.Delete(t.Context()); err != nil || len(seen) != 1 {
		t.Errorf("%v, %v", seen, err)
	}
	code = map[string]int{"PATCH": http.StatusForbidden, "GET": http.StatusInternalServerError}
	if err := r.Put(t.Context(), spec); err == nil || err.Error() != "no, because" {
		t.Errorf("a report that was refused: %v", err)
	}
	if err := r.Delete(t.Context()); err == nil {
		t.Error("a report that could not be looked for was taken for removed")
	}
	server.Close()
	if r.Put(t.Context(), spec) == nil || r.Delete(t.Context()) == nil {
		t.Error("written to nobody")
	}
}

func TestReadNode(t *testing.T) {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "west-1", UID: "u", Labels: map[string]string{siteLabel: "west"}}}
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "west-1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
		{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"}, {Type: corev1.NodeInternalIP, Address: "no address"},
	}
	read := func() nodeFacts {
		data, err := node.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		facts, err := readNode(store.Object{Key: store.Key{Version: "v1", Resource: "nodes", Name: "west-1"}, Kind: "Node", Format: store.FormatProtobuf, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		return facts
	}
	facts := read()
	list := members(map[string]nodeFacts{"west-1": facts, "a": {}})
	if facts.site != "west" || len(list) != 2 || list[1].UID != "u" || list[1].Dead || fmt.Sprint(list[1].Addresses) != "[192.0.2.1 2001:db8::1]" {
		t.Errorf("%+v", list)
	}
	// Heartbeats make no difference, verdicts do.
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	if read() != facts {
		t.Error("a heartbeat changes something")
	}
	for status, dead := range map[corev1.ConditionStatus]bool{corev1.ConditionFalse: true, corev1.ConditionUnknown: false, corev1.ConditionTrue: false} {
		node.Status.Conditions = []corev1.NodeCondition{{Type: aliveCondition, Status: status}}
		if read().dead != dead {
			t.Errorf("condition %s", status)
		}
	}
	if _, err := readNode(store.Object{Key: store.Key{Version: "v1", Resource: "nodes"}, Kind: "Node", Format: store.FormatProtobuf, Data: []byte{1}}); err == nil {
		t.Error("a damaged node was read")
	}
}

func TestReadSite(t *testing.T) {
	read := func(text string) (siteFacts, error) {
		return readSite(store.Object{Key: store.Key{Group: "site.skerry.dev", Version: "v1alpha1", Resource: "sites", Name: "west"}, Kind: "Site", Format: store.FormatJSON, Data: []byte(text)})
	}
	one, err := read(`{"spec":{"witnesses":3},"status":{"nodes":3,"doubts":[{"node":"west-2","uid":"u","since":"2026-01-02T03:04:05Z","reachable":1,"unreachable":2}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	var doubts []sitev1.Doubt
	if err := json.Unmarshal([]byte(one.doubts), &doubts); err != nil || len(doubts) != 1 || doubts[0].Node != "west-2" || doubts[0].Unreachable != 2 || one.witnesses != "3" {
		t.Errorf("%+v, %v", one, err)
	}
	two, err := read(`{"status":{"nodes":4,"doubts":[{"node":"west-2","uid":"u","since":"2026-01-02T03:04:05Z","reachable":1,"unreachable":2}]},"spec":{"witnesses":3}}`)
	if err != nil || two != one {
		t.Error("what the observer does not care about makes a difference")
	}
	if empty, err := read(`{}`); err != nil || empty.witnesses != "1" || empty == one {
		t.Errorf("%+v, %v", empty, err)
	}
	if _, err := read(`{"status":{"doubts":7}}`); err == nil {
		t.Error("a damaged site was read")
	}
}

func TestFileCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	reads := 0
	cache := fileCache[string]{path: path, read: func(data []byte) (string, error) {
		reads++
		if len(data) == 0 {
			return "", io.ErrUnexpectedEOF
		}
		return string(data), nil
	}}
	if _, err := cache.get(); err == nil {
		t.Error("a file that is not there was read")
	}
	write := func(text string, at time.Time) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	write("one", now)
	for range 3 {
		if got, err := cache.get(); err != nil || got != "one" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if reads != 1 {
		t.Errorf("%d reads of a file that did not change", reads)
	}
	write("two", now.Add(time.Second))
	if got, err := cache.get(); err != nil || got != "two" {
		t.Errorf("%q, %v", got, err)
	}
	write("", now.Add(2*time.Second))
	if _, err := cache.get(); err == nil {
		t.Error("a file that is not good was taken")
	}
}

func TestObserverConfig(t *testing.T) {
	const head = "apiVersion: agent.skerry.dev/v1alpha1\nkind: AgentConfiguration\nnodeName: west-1\nservers: [https://192.0.2.1:6443]\n"
	for listen, ok := range map[string]bool{"": true, "none": true, "192.0.2.7:10274": true, "'[::]:99'": true, "10274": false, "192.0.2.7:0": false, "off": false} {
		config, err := ParseConfig([]byte(head + "listen: {observer: " + listen + "}\n"))
		if (err == nil) != ok {
			t.Errorf("listen.observer %q: %v", listen, err)
		}
		if listen == "" && config.Listen.Observer != "[::]:10274" {
			t.Errorf("by default %q", config.Listen.Observer)
		}
	}
}
