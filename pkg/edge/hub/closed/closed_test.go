package closed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
	"skerry.dev/skerry/pkg/topology"
)

func known() *Services {
	s := New("w1", nil, slog.New(slog.DiscardHandler))
	s.labels = map[string]string{"skerry.dev/site": "west", "zone": "1"}
	s.services = map[name]service{}
	s.peers["skerry.dev/site"] = &peers{value: "west", names: map[string]bool{"w1": true, "w2": true}}
	s.peers["zone"] = &peers{value: "1", names: map[string]bool{"w1": true, "e1": true}}
	return s
}

// What a slice comes out as. Words are node=hostname.
func TestJudge(t *testing.T) {
	for _, row := range []struct {
		name, keys, grids string
		in, want          string
	}{
		{"open", ``, ``, "w1=a e1=b", "a b"},
		{"by site", `["skerry.dev/site"]`, ``, "w1=a w2=b e1=c -=d", "a b d"},
		{"by two", `["skerry.dev/site","zone"]`, ``, "w1=a w2=b e1=c -=d", "a d"},
		{"a label that this node lacks", `["rack"]`, ``, "w1=a -=d", "d"},
		{"unreadable", `site`, ``, "w1=a -=d", "d"},
		{"nobody", `["skerry.dev/site"]`, ``, "e1=c", ""},
		{"grid", `["skerry.dev/site"]`, `["web","db"]`, "w1=web-west-0 w2=db-west-11 e1=web-east-0 w1=web-west w1=other-0", "web-0 db-11 web-west other-0"},
		{"grid without a list", `["skerry.dev/site"]`, `web`, "w1=web-west-0", "web-west-0"},
		{"grid with two keys", `["skerry.dev/site","zone"]`, `["web"]`, "w1=web-west-0", "web-west-0"},
		{"too many grids", `["skerry.dev/site"]`, `["web"` + strings.Repeat(`,"x"`, maxGrids) + `]`, "w1=web-west-0", "web-west-0"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := known()
			annotations := map[string]string{"skerry.dev/statefulset-grids": row.grids}
			if row.keys != "" {
				annotations[topology.Annotation] = row.keys
			}
			if rule := topology.RuleOf(annotations); rule.Closed() {
				s.services[name{"shop", "web"}] = service{rule: rule, grids: grids(annotations)}
			}
			slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}}
			for word := range strings.FieldsSeq(row.in) {
				node, host, _ := strings.Cut(word, "=")
				e := discoveryv1.Endpoint{Hostname: &host}
				if node != "-" {
					e.NodeName = &node
				}
				slice.Endpoints = append(slice.Endpoints, e)
			}
			changed := s.Judge(slice)
			var got []string
			for _, e := range slice.Endpoints {
				got = append(got, *e.Hostname)
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
			var in []string
			for word := range strings.FieldsSeq(row.in) {
				_, host, _ := strings.Cut(word, "=")
				in = append(in, host)
			}
			if want := strings.Join(in, " ") != row.want; changed != want {
				t.Errorf("changed: %v, want %v", changed, want)
			}
		})
	}
}

// Nothing is judged before all is known: a slice would come out too long, or too
// short.
func TestAwait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, forget := range map[string]func(*Services){
		"Services":     func(s *Services) { s.services = nil },
		"labels":       func(s *Services) { s.labels = nil },
		"who shares":   func(s *Services) { s.peers["zone"].names = nil },
		"nothing else": nil,
	} {
		s := known()
		if forget != nil {
			forget(s)
		}
		_, _, err := s.Await(ctx)
		if want := forget != nil; errors.Is(err, errUnknown) != want {
			t.Errorf("without %s: %v", what, err)
		}
	}
}

// Readers are told apart, and forgotten when they are too many.
func TestReaders(t *testing.T) {
	s := known()
	if s.Current("a", 0) {
		t.Error("a reader that never listed is current")
	}
	s.Listed("a", 1)
	if !s.Current("a", 1) || s.Current("a", 2) || s.Current("b", 1) {
		t.Error("who has listed is mixed up")
	}
	for i := range 10 * maxReaders {
		s.Listed(fmt.Sprint(i), 1)
	}
	if len(s.readers) > maxReaders {
		t.Errorf("%d readers are remembered", len(s.readers))
	}
}

func TestReadService(t *testing.T) {
	for _, row := range []struct {
		json   string
		ok     bool
		failed bool
	}{
		{`{"kind":"Service","apiVersion":"v1","metadata":{"name":"a","annotations":{"skerry.dev/topology-keys":"[\"zone\"]"}}}`, true, false},
		{`{"kind":"Service","apiVersion":"v1","metadata":{"name":"a","annotations":{"skerry.dev/topology-keys":"[]"}}}`, false, false},
		{`{"kind":"Service","apiVersion":"v1","metadata":{"name":"a","annotations":{"skerry.dev/topology-keys":"?"}}}`, true, false},
		{`{"kind":"Service","apiVersion":"v1","metadata":{"name":"a","labels":{"x":"skerry.dev/topology-keys"}}}`, false, false},
		{`{"kind":"Service","apiVersion":"v1","metadata":{"name":"a"}}`, false, false},
		{`{"skerry.dev/topology-keys`, false, true},
	} {
		_, ok, err := readService(store.Object{Key: store.Key{Version: "v1", Resource: "services", Name: "a"}, Format: store.FormatJSON, Data: []byte(row.json)})
		if ok != row.ok || (err != nil) != row.failed {
			t.Errorf("%s: ok %v, error %v", row.json, ok, err)
		}
	}
}
