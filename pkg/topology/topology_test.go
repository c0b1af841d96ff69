package topology

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// labels is a Node that knows the labels of all nodes.
type labels struct {
	self  string
	nodes map[string]map[string]string
}

func (l labels) Shares(key, node string) bool {
	own, ok := l.nodes[l.self][key]
	value, has := l.nodes[node][key]
	return ok && has && value == own
}

var cluster = map[string]map[string]string{
	"w1":    {"skerry.dev/site": "west", "zone": "1", "kubernetes.io/hostname": "w1"},
	"w2":    {"skerry.dev/site": "west", "zone": "2", "kubernetes.io/hostname": "w2"},
	"e1":    {"skerry.dev/site": "east", "zone": "1", "kubernetes.io/hostname": "e1"},
	"empty": {"skerry.dev/site": ""},
	"cloud": {"zone": "1"},
}

func TestParse(t *testing.T) {
	for _, row := range []struct {
		value string
		keys  []string
		err   string
	}{
		{`["skerry.dev/site"]`, []string{"skerry.dev/site"}, ""},
		{" [ \"zone\" ,\n\"a\" ] ", []string{"a", "zone"}, ""},
		{`["a","a"]`, []string{"a"}, ""},
		{`["\u0061"]`, []string{"a"}, ""},
		{`[]`, nil, ""},
		{``, nil, "not a JSON list"},
		{`skerry.dev/site`, nil, "not a JSON list"},
		{`"skerry.dev/site"`, nil, "not a JSON list"},
		{`null`, nil, "not a JSON list"},
		{`{}`, nil, "not a JSON list"},
		{`["a"`, nil, "not a JSON list"},
		{`["a"]]`, nil, "not a JSON list"},
		{`["a"] ["b"]`, nil, "not a JSON list"},
		{`[1]`, nil, "not a JSON list"},
		{`[["a"]]`, nil, "not a JSON list"},
		{`[null]`, nil, "not a node label key"},
		{`[""]`, nil, "not a node label key"},
		{`["*"]`, nil, "not a node label key"},
		{`["skerry.dev/site","*"]`, nil, "not a node label key"},
		{`["a=b"]`, nil, "not a node label key"},
		{`["a,b"]`, nil, "not a node label key"},
		{"[\"a\xff\"]", nil, "not a node label key"},
		{`["` + strings.Repeat("a", 64) + `"]`, nil, "not a node label key"},
		{`["a","b","c","d","e","f","g","h","i"]`, nil, "9 keys are more than 8"},
		{`["a"` + strings.Repeat(" ", MaxBytes) + `]`, nil, "bytes are more than"},
		{strings.Repeat("[", MaxBytes), nil, "not a JSON list"},
	} {
		keys, err := Parse(row.value)
		switch {
		case row.err == "" && err != nil, row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)):
			t.Errorf("Parse(%.40q): error %v, want %q", row.value, err, row.err)
		case !slices.Equal(keys, row.keys):
			t.Errorf("Parse(%.40q) = %q, want %q", row.value, keys, row.keys)
		}
	}
}

func TestFilter(t *testing.T) {
	on := func(names ...string) (out []discoveryv1.Endpoint) {
		for i, name := range names {
			e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", i)}}
			if name != "-" {
				e.NodeName = &name
			}
			out = append(out, e)
		}
		return out
	}
	everywhere := on("w1", "w2", "e1", "empty", "cloud", "gone", "-", "")
	for _, row := range []struct {
		annotation string
		self       string
		want       string // nodes
	}{
		{"none", "w1", "w1 w2 e1 empty cloud gone - _"},
		{`[]`, "w1", "w1 w2 e1 empty cloud gone - _"},
		{`["skerry.dev/site"]`, "w1", "w1 w2 - _"},
		{`["skerry.dev/site"]`, "e1", "e1 - _"},
		{`["skerry.dev/site"]`, "empty", "empty - _"},
		// No value, nothing to share, not even on the node itself.
		{`["skerry.dev/site"]`, "cloud", "- _"},
		{`["skerry.dev/site"]`, "gone", "- _"},
		{`["zone"]`, "w1", "w1 e1 cloud - _"},
		{`["skerry.dev/site","zone"]`, "w1", "w1 - _"},
		{`["kubernetes.io/hostname"]`, "w2", "w2 - _"},
		{`["no-such-label"]`, "w1", "- _"},
		{`skerry.dev/site`, "w1", "- _"},
	} {
		annotations := map[string]string{Annotation: row.annotation}
		if row.annotation == "none" {
			annotations = nil
		}
		before := slices.Clone(everywhere)
		kept, all := RuleOf(annotations).Filter(labels{row.self, cluster}, everywhere)
		var names []string
		for _, e := range kept {
			switch {
			case e.NodeName == nil:
				names = append(names, "-")
			case *e.NodeName == "":
				names = append(names, "_")
			default:
				names = append(names, *e.NodeName)
			}
		}
		if got := strings.Join(names, " "); got != row.want {
			t.Errorf("%s from %s: %s, want %s", row.annotation, row.self, got, row.want)
		}
		if all != (len(kept) == len(everywhere)) {
			t.Errorf("%s from %s: all = %v with %d of %d kept", row.annotation, row.self, all, len(kept), len(everywhere))
		}
		for i := range before {
			if before[i].Addresses[0] != everywhere[i].Addresses[0] {
				t.Fatalf("%s from %s: changed what it was given", row.annotation, row.self)
			}
		}
	}
}

func TestEqual(t *testing.T) {
	rule := func(value string) Rule { return RuleOf(map[string]string{Annotation: value}) }
	for _, row := range []struct {
		a, b Rule
		want bool
	}{
		{rule(`["a","b"]`), rule(`["b","a"]`), true},
		{rule(`["a"]`), rule(`["b"]`), false},
		{rule(`[]`), Rule{}, true},
		{rule(`x`), Rule{}, false},
		{rule(`x`), rule(`y`), true},
	} {
		if got := row.a.Equal(row.b); got != row.want {
			t.Errorf("%v equals %v: %v", row.a, row.b, got)
		}
	}
}

// A rule keeps exactly the endpoints on nodes that share every value, and those
// without a node, whatever cluster, Service and labels there are.
func TestProperty(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 5))
		keys := []string{"a", "b", "c"}
		nodes := map[string]map[string]string{}
		var names []string
		for i := range 1 + r.IntN(12) {
			name := fmt.Sprint("n", i)
			names = append(names, name)
			nodes[name] = map[string]string{}
			for _, key := range keys {
				if r.IntN(4) != 0 {
					nodes[name][key] = fmt.Sprint(r.IntN(3))
				}
			}
		}
		names = append(names, "gone", "")
		var endpoints []discoveryv1.Endpoint
		for i := range r.IntN(40) {
			e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprint(i)}}
			if r.IntN(8) != 0 {
				e.NodeName = &names[r.IntN(len(names))]
			}
			endpoints = append(endpoints, e)
		}
		asked := keys[:r.IntN(len(keys)+1)]
		value, err := json.Marshal(append([]string{}, asked...))
		if err != nil {
			t.Fatal(err)
		}
		self := names[r.IntN(len(names)-1)]

		var want []string
		for _, e := range endpoints {
			use := true
			if e.NodeName != nil && *e.NodeName != "" {
				for _, key := range asked {
					mine, has := nodes[self][key]
					its, had := nodes[*e.NodeName][key]
					use = use && has && had && mine == its
				}
			}
			if use {
				want = append(want, e.Addresses[0])
			}
		}
		kept, _ := RuleOf(map[string]string{Annotation: string(value)}).Filter(labels{self, nodes}, endpoints)
		var got []string
		for _, e := range kept {
			got = append(got, e.Addresses[0])
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: %s from %s %v: kept %v, want %v", seed, value, self, nodes[self], got, want)
		}
	}
}

// Whatever an annotation holds: it is read within bounds, or the Service is
// closed to every endpoint on a node.
func FuzzAnnotation(f *testing.F) {
	for _, seed := range []string{`["skerry.dev/site"]`, `[]`, `null`, `["*"]`, `[["a"]]`, "[\"\xff\"]", `["a","b","a"]`} {
		f.Add(seed)
	}
	node := "w1"
	endpoint := &discoveryv1.Endpoint{NodeName: &node}
	f.Fuzz(func(t *testing.T, value string) {
		rule := RuleOf(map[string]string{Annotation: value})
		if rule.Unreadable != nil {
			if !rule.Closed() || len(rule.Keys) != 0 || rule.Keeps(labels{"w1", cluster}, endpoint) {
				t.Fatalf("unreadable and open: %q", value)
			}
			return
		}
		if len(rule.Keys) > MaxKeys || !slices.IsSorted(rule.Keys) {
			t.Fatalf("%q: keys %q", value, rule.Keys)
		}
		text, err := json.Marshal(append([]string{}, rule.Keys...))
		if err != nil {
			t.Fatal(err)
		}
		if again := RuleOf(map[string]string{Annotation: string(text)}); again.Unreadable != nil || !again.Equal(rule) {
			t.Fatalf("%q is read as %s, and that as %v", value, text, again)
		}
	})
}
