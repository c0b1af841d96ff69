package wire

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

func newRequest(t testing.TB, method, target string) *http.Request {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Skip(err)
	}
	return &http.Request{Method: method, URL: u, Header: http.Header{}, Host: "h"}
}

// sameAsUpstream compares what is not refused with what the API server makes of
// the whole request, query included.
func sameAsUpstream(t *testing.T, r *http.Request, got *Request) {
	t.Helper()
	want, err := paths.NewRequestInfo(r)
	if err != nil {
		t.Errorf("%s %s: upstream refuses it: %v", r.Method, r.URL, err)
		return
	}
	type info struct {
		resource                                              bool
		verb, group, version, namespace, res, sub, name, path string
	}
	g := info{got.IsResource, got.Verb, got.Group, got.Version, got.Namespace, got.Resource, got.Subresource, got.Name, got.Path}
	w := info{want.IsResourceRequest, want.Verb, want.APIGroup, want.APIVersion, want.Namespace, want.Resource, want.Subresource, want.Name, want.Path}
	if g != w {
		t.Errorf("%s %s:\n got %+v\nwant %+v", r.Method, r.URL, g, w)
	}
}

var goodPaths = []string{
	"/", "/api", "/api/", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v2", "/.well-known/openid-configuration", "/version/",
	"/api/v1/pods", "/api/v1/pods/", "/api/v1/namespaces", "/api/v1/namespaces/a", "/api/v1/namespaces/a/status", "/api/v1/namespaces/a/finalize",
	"/api/v1/namespaces/a/pods", "/api/v1/namespaces/a/pods/b", "/api/v1/namespaces/a/pods/b/status", "/api/v1/namespaces/a/pods/b/exec",
	"/api/v1/nodes/n", "/api/v1/nodes/n/proxy/logs/x", "/api/v1/watch/pods", "/api/v1/watch/namespaces/a/pods", "/api/v1/watch/namespaces/a/pods/b",
	"/api/v1/proxy/namespaces/a/services/b/x/y", "/apis/apps/v1/deployments", "/apis/apps/v1/namespaces/a/deployments/d/scale",
	"/apis/example.org/v1/namespaces/a/widgets/w?resourceVersion=0", "/api/v1/namespaces/a/serviceaccounts/b/token",
	"/api/v1/pods?fieldSelector=metadata.name%3Db", "/api/v1/pods?fieldSelector=metadata.name%3Db,spec.nodeName%3Dn&watch=1",
	"/api/v1/pods?watch", "/api/v1/pods?watch=false", "/api/v1/pods?watch=False", "/api/v1/pods?watch=0", "/api/v1/pods?watch=x&watch=0",
	"/api/v1/pods?labelSelector=a%3Db,c+in+(d,e)&limit=5&unknown=1&pretty=x", "/api/v1/namespaces/a/services/b:http/proxy/c//d%2Fe",
	"/api/v1/pods?resourceVersion=7&resourceVersionMatch=Exact", "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
	"/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", "/api/v1/namespaces/a/configmaps/b?watch=true",
}

func TestParseLikeUpstream(t *testing.T) {
	for _, target := range goodPaths {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
			r := newRequest(t, method, target)
			got, err := Parse(r)
			if err != nil {
				t.Errorf("%s %s: %v", method, target, err)
				continue
			}
			sameAsUpstream(t, r, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		target string
		code   int32
	}{
		{"/api/v1/../v1/pods", 400},
		{"/api/v1/pods/..", 400},
		{"/api/v1/pods/%2e%2e", 400},
		{"/api/v1/pods/%2E", 400},
		{"//api/v1/pods", 400},
		{"/api//v1/pods", 400},
		{"/api/v1/pods//", 400},
		{"/api/v1/namespaces//pods", 400},
		{"//", 400},
		{"/api/v1/namespaces/a%2Fb/pods", 400},
		{"/api/v1/namespaces/a/pods/b%2fstatus", 400},
		{"/api%2Fv1/pods", 400},
		{"/api/v1%2Fpods/x", 400},
		{"/healthz%2F..", 400},
		{"/healthz/%2e%2e/api", 400},
		{"/api/v1/pods/a%25b", 400},
		{"/api/v1/namespaces/%25/pods", 400},
		{"/api/v1/pods/a%00", 400},
		{"/api/v1/pods/a%0a", 400},
		{"/api/v1/namespaces/a/services/b/proxy/../c", 400},
		{"/api/v1/namespaces/a/services/b/proxy/%2e%2e%2fc", 400},
		{"/api/v1/pods/%ff", 400},
		{"/api/v1/pods?fieldSelector=metadata.name%3D%ff", 400},
		{"/api/v1/watch", 400},
		{"/api/v1/proxy", 400},
		{"/api/v1/pods?labelSelector=(", 400},
		{"/api/v1/pods?fieldSelector=a", 400},
		{"/api/v1/pods?limit=x", 400},
		{"/api/v1/pods?timeoutSeconds=-1", 400},
		{"/api/v1/pods?timeoutSeconds=99999999999999999999", 400},
		{"/api/v1/pods?resourceVersion=x", 422},
		{"/api/v1/pods?resourceVersion=-1", 422},
		{"/api/v1/pods?resourceVersion=%2B1", 422},
		{"/api/v1/pods?resourceVersion=18446744073709551616", 422},
		{"/api/v1/pods/p?resourceVersion=x", 422},
		{"/api/v1/pods?resourceVersionMatch=Exact", 422},
		{"/api/v1/pods?resourceVersion=0&resourceVersionMatch=Exact", 422},
		{"/api/v1/pods?resourceVersion=1&resourceVersionMatch=Sometimes", 422},
		{"/api/v1/pods?sendInitialEvents=true", 422},
		{"/api/v1/pods?watch=1&sendInitialEvents=true", 422},
		{"/api/v1/pods?watch=1&resourceVersion=1&resourceVersionMatch=NotOlderThan", 422},
		{"/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=Exact&resourceVersion=1", 422},
		{"/api/v1/pods?continue=x&resourceVersion=7", 400},
		{"/api/v1/pods?continue=x&resourceVersion=7&resourceVersionMatch=NotOlderThan", 422},
		{"/api/v1/watch/namespaces/a/pods/b?fieldSelector=metadata.name%3Dc", 400},
	} {
		_, err := Parse(newRequest(t, "GET", c.target))
		status, ok := err.(apierrors.APIStatus)
		if !ok {
			t.Errorf("%s: %v, want a status", c.target, err)
			continue
		}
		if got := status.Status(); got.Code != c.code || got.Status != metav1.StatusFailure {
			t.Errorf("%s: %d %s, want %d", c.target, got.Code, got.Message, c.code)
		}
	}
	if _, err := Parse(newRequest(t, "OPTIONS", "/api/v1/pods")); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("OPTIONS: %v", err)
	}
	if _, err := Parse(httptest.NewRequest("OPTIONS", "*", nil)); !apierrors.IsBadRequest(err) {
		t.Errorf("OPTIONS *: %v", err)
	}
}

func TestParseOptions(t *testing.T) {
	yes := true
	for _, c := range []struct {
		query string
		check func(o Options) bool
	}{
		{"", func(o Options) bool {
			return o.Label.Empty() && o.Field.Empty() && o.SendInitialEvents == nil && o.Timeout == 0
		}},
		{"watch=1", func(o Options) bool {
			return *o.SendInitialEvents == yes && o.ResourceVersionMatch == "NotOlderThan" && o.ResourceVersion == ""
		}},
		{"watch=1&resourceVersion=0", func(o Options) bool { return *o.SendInitialEvents == yes && o.ResourceVersion == "0" }},
		{"watch=1&resourceVersion=5&allowWatchBookmarks=true", func(o Options) bool {
			return o.SendInitialEvents == nil && o.ResourceVersion == "5" && o.AllowWatchBookmarks
		}},
		{"watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", func(o Options) bool { return !*o.SendInitialEvents }},
		{"timeoutSeconds=7", func(o Options) bool { return o.Timeout == 7*time.Second }},
		{"timeoutSeconds=9223372036854775807", func(o Options) bool { return o.Timeout > 1000*time.Hour }},
		{"limit=-4", func(o Options) bool { return o.Limit == 0 }},
		{"limit=4&limit=9&continue=t", func(o Options) bool { return o.Limit == 4 && o.Continue == "t" }},
		{"resourceVersion=0&continue=t", func(o Options) bool { return o.Continue == "t" }},
	} {
		req, err := Parse(newRequest(t, "GET", "/api/v1/pods?"+c.query))
		if err != nil {
			t.Errorf("%s: %v", c.query, err)
		} else if !c.check(req.Options) {
			t.Errorf("%s: %+v", c.query, req.Options)
		}
	}
}

func TestQuery(t *testing.T) {
	parse := func(target string) store.Query {
		t.Helper()
		req, err := Parse(newRequest(t, "GET", target))
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		return req.Query()
	}
	for _, same := range [][]string{
		{"/api/v1/namespaces/a/pods/b", "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Db", "/api/v1/watch/namespaces/a/pods/b",
			"/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3D%3Db"},
		{"/api/v1/namespaces/a", "/api/v1/namespaces?fieldSelector=metadata.name%3Da"},
		{"/api/v1/pods?fieldSelector=a%3D1,b!%3D2", "/api/v1/pods?fieldSelector=b!%3D2,a%3D1,a%3D%3D1"},
		{"/api/v1/pods?labelSelector=a%3D1,b+in+(y,x)", "/api/v1/pods?labelSelector=b+in+(x,y),a+in+(1),a%3D%3D1"},
		{"/api/v1/pods?labelSelector=a!%3D1", "/api/v1/pods?labelSelector=a+notin+(1)"},
		{"/api/v1/pods", "/api/v1/pods?limit=3&labelSelector=", "/api/v1/pods?watch=1&resourceVersion=4"},
	} {
		for _, other := range same[1:] {
			if a, b := parse(same[0]), parse(other); a != b {
				t.Errorf("%s is %+v\n%s is %+v", same[0], a, other, b)
			}
		}
	}
	if a, b := parse("/api/v1/namespaces/a/pods"), parse("/api/v1/namespaces/b/pods"); a == b {
		t.Error("two namespaces are one query")
	}
	req, _ := Parse(newRequest(t, "GET", "/api/v1/namespaces/a/pods/b"))
	if want := (store.Key{Version: "v1", Resource: "pods", Namespace: "a", Name: "b"}); req.Key() != want {
		t.Errorf("key %+v", req.Key())
	}
	req, _ = Parse(newRequest(t, "PUT", "/api/v1/namespaces/a/status"))
	if want := (store.Key{Version: "v1", Resource: "namespaces", Name: "a"}); req.Key() != want {
		t.Errorf("key %+v", req.Key())
	}
}

// canonical checks that a query asked again is the same query.
func canonical(t *testing.T, req *Request) {
	t.Helper()
	q := req.Query()
	again := url.Values{"labelSelector": {q.LabelSelector}, "fieldSelector": {q.FieldSelector}}
	path := []string{"/api", q.Version}
	if q.Group != "" {
		path = []string{"/apis", q.Group, q.Version}
	}
	if q.Namespace != "" {
		path = append(path, "namespaces", q.Namespace)
	}
	target := strings.Join(append(path, q.Resource), "/")
	r := &http.Request{Method: "GET", URL: &url.URL{Path: target, RawQuery: again.Encode()}}
	second, err := Parse(r)
	if err != nil {
		t.Fatalf("%+v is not accepted again: %v", q, err)
	}
	if second.IsResource && second.Query() != q {
		t.Errorf("asked again it is another query:\n%+v\n%+v", q, second.Query())
	}
}

func FuzzParse(f *testing.F) {
	for _, target := range goodPaths {
		f.Add("GET", target)
	}
	for _, target := range []string{"/api/v1/pods?labelSelector=a+in+(b),!c,d>1", "/api/v1/pods?fieldSelector=a%3D%5C,b", "/%2F/../", "/api/v1/watch/proxy/x",
		"/api/v1/namespaces/status/finalize", "/apis/a/b/namespaces/c/d/e/f?watch&timeoutSeconds=1"} {
		f.Add("GET", target)
		f.Add("DELETE", target)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		r := newRequest(t, method, target)
		req, err := Parse(r)
		if err != nil {
			if _, ok := err.(apierrors.APIStatus); !ok {
				t.Errorf("%v is no status", err)
			}
			return
		}
		sameAsUpstream(t, r, req)
		switch req.Verb {
		case "get", "list", "watch":
			special := req.Resource == "watch" || req.Resource == "proxy" // one path deeper it is a verb
			if req.IsResource && req.Subresource == "" && !special {
				canonical(t, req)
			}
		}
	})
}
