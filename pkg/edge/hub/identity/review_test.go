package identity

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bearing sends requests to a server with the caller's token.
type bearing struct {
	host  string
	token string
}

func (b bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", b.host
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func TestOnline(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var review authorizationv1.SelfSubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || r.URL.Path != reviewPath || r.Method != http.MethodPost {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		switch r.Header.Get("Authorization") {
		case "Bearer till", "Bearer clerk":
		case "Bearer mute":
			http.Error(w, "selfsubjectaccessreviews is forbidden", http.StatusForbidden)
			return
		case "Bearer broken":
			http.Error(w, "etcd", http.StatusInternalServerError)
			return
		default:
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if at := review.Spec.ResourceAttributes; at != nil {
			review.Status.Allowed = *at == authorizationv1.ResourceAttributes{Namespace: "shop", Verb: "get", Group: "apps", Version: "v1", Resource: "deployments", Subresource: "status", Name: "a"} &&
				r.Header.Get("Authorization") == "Bearer till"
		} else {
			review.Status.Allowed = *review.Spec.NonResourceAttributes == authorizationv1.NonResourceAttributes{Path: "/version", Verb: "get"}
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(review)
	}))
	defer server.Close()
	host := must(url.Parse(server.URL)).Host
	now := time.Now()
	down := false
	a := NewAuthorizer(AuthorizerOptions{
		Now: func() time.Time { return now },
		Transport: func(c Caller) http.RoundTripper {
			if down {
				return failing{}
			}
			return bearing{host, c.Token}
		},
	})
	till, clerk := Caller{Token: "till"}, Caller{Token: "clerk"}
	get := Attributes{Verb: "get", Group: "apps", Version: "v1", Resource: "deployments", Subresource: "status", Namespace: "shop", Name: "a"}
	other := get
	other.Name = "b"
	mayNotAsk := func(err error) bool {
		return errors.Is(err, errMayNotAsk) && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err)
	}
	for _, step := range []struct {
		name   string
		caller Caller
		at     Attributes
		later  time.Duration
		down   bool
		check  func(error) bool
		asks   int32
	}{
		{"yes", till, get, 0, false, isNil, 1},
		{"yes again", till, get, time.Minute, false, isNil, 0},
		{"yes, without the API server", till, get, 30 * time.Second, true, isNil, 0},
		{"another name", till, other, 0, false, apierrors.IsForbidden, 1},
		{"no again", till, other, 5 * time.Second, false, apierrors.IsForbidden, 0},
		{"no, after a while", till, other, 6 * time.Second, false, apierrors.IsForbidden, 1},
		{"another token", clerk, get, 0, false, apierrors.IsForbidden, 1},
		{"yes has run out", till, get, time.Minute, false, isNil, 1},
		{"a path", till, Attributes{Verb: "get", Path: "/version"}, 0, false, isNil, 1},
		{"another path", till, Attributes{Verb: "get", Path: "/metrics"}, 0, false, apierrors.IsForbidden, 1},
		{"a bad token", Caller{Token: "bad"}, get, 0, false, apierrors.IsUnauthorized, 1},
		{"a bad token is not remembered", Caller{Token: "bad"}, get, 0, false, apierrors.IsUnauthorized, 1},
		{"one that may not ask", Caller{Token: "mute"}, get, 0, false, mayNotAsk, 1},
		{"one that may not ask, again", Caller{Token: "mute"}, get, 0, false, mayNotAsk, 0},
		{"one that may not ask, later", Caller{Token: "mute"}, get, 11 * time.Second, false, mayNotAsk, 1},
		{"an ill API server", Caller{Token: "broken"}, get, 0, false, apierrors.IsServiceUnavailable, 1},
		{"no API server", Caller{Token: "new"}, get, 0, true, func(err error) bool { return errors.Is(err, errDown) }, 0},
		{"no token", Caller{}, get, 0, false, apierrors.IsForbidden, 0},
		{"the node", Caller{Node: true, Verified: true}, get, 0, false, isNil, 0},
	} {
		now, down = now.Add(step.later), step.down
		before := asked.Load()
		if err := a.Online(t.Context(), step.caller, step.at); !step.check(err) {
			t.Errorf("%s: %v", step.name, err)
		}
		if n := asked.Load() - before; n != step.asks {
			t.Errorf("%s: asked %d times, want %d", step.name, n, step.asks)
		}
	}
}

func TestOnlineSelectors(t *testing.T) {
	var got *authorizationv1.ResourceAttributes
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review authorizationv1.SelfSubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		got = review.Spec.ResourceAttributes
		// An authorizer that lets a caller see a part only.
		f := got.FieldSelector
		review.Status.Allowed = f != nil && len(f.Requirements) == 1 && f.Requirements[0].Key == "spec.nodeName" && f.Requirements[0].Values[0] == "west-1"
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(review)
	}))
	defer server.Close()
	a := NewAuthorizer(AuthorizerOptions{Transport: func(c Caller) http.RoundTripper {
		return bearing{must(url.Parse(server.URL)).Host, c.Token}
	}})
	for _, c := range []struct {
		label, field string
		allowed      bool
		labels       []metav1.LabelSelectorRequirement
		fields       []metav1.FieldSelectorRequirement
	}{
		{"", "", false, nil, nil},
		{"", "spec.nodeName=west-1", true, nil, []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: "In", Values: []string{"west-1"}}}},
		{"", "spec.nodeName=west-2", false, nil, []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: "In", Values: []string{"west-2"}}}},
		{"a=b,!c,d", "x!=y", false,
			[]metav1.LabelSelectorRequirement{{Key: "a", Operator: "In", Values: []string{"b"}}, {Key: "c", Operator: "DoesNotExist"}, {Key: "d", Operator: "Exists"}},
			[]metav1.FieldSelectorRequirement{{Key: "x", Operator: "NotIn", Values: []string{"y"}}}},
		{"e notin (f),g>1", "", false, []metav1.LabelSelectorRequirement{{Key: "e", Operator: "NotIn", Values: []string{"f"}}}, nil},
	} {
		got = nil
		err := a.Online(t.Context(), Caller{Token: "till"}, Attributes{
			Verb: "watch", Version: "v1", Resource: "pods", LabelSelector: c.label, FieldSelector: c.field,
		})
		if (err == nil) != c.allowed || (err != nil && !apierrors.IsForbidden(err)) {
			t.Errorf("%q %q: %v", c.label, c.field, err)
		}
		if got == nil {
			t.Fatalf("%q %q: the answer to another question was taken", c.label, c.field)
		}
		var labels []metav1.LabelSelectorRequirement
		var fields []metav1.FieldSelectorRequirement
		if got.LabelSelector != nil {
			labels = got.LabelSelector.Requirements
		}
		if got.FieldSelector != nil {
			fields = got.FieldSelector.Requirements
		}
		if !reflect.DeepEqual(labels, c.labels) || !reflect.DeepEqual(fields, c.fields) {
			t.Errorf("%q %q: asked with %v and %v", c.label, c.field, labels, fields)
		}
	}
}

func isNil(err error) bool { return err == nil }

var errDown = errors.New("down")

type failing struct{}

func (failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errDown }
