package cluster

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/topology"
)

// closed is a Service with the annotation.
func closed(value string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{topology.Annotation: value}}}
}

func writeService(now, old *corev1.Service) write {
	w := write{kind: schema.GroupVersionKind{Version: "v1", Kind: "Service"}, resource: schema.GroupVersionResource{Version: "v1", Resource: "services"}, name: "web", object: now}
	if old != nil {
		w.old = runtime.Object(old)
	}
	return w
}

// The policy refuses what kube-proxy cannot read, and nothing else but escapes.
func TestTopologyKeys(t *testing.T) {
	policies := load(t)
	const list, key = "must be a JSON list", "node label keys: "
	for _, row := range []struct{ value, want string }{
		{`["skerry.dev/site"]`, ""},
		{" \t\r\n[ \"zone\" ,\n\"a\" ]\t ", ""},
		{`["a","a"]`, ""},
		{`[]`, ""},
		{"[ \n]", ""},
		{`["a","b","c","d","e","f","g","h"]`, ""},
		{`["a","b","c","d","e","f","g","h","i"]`, "at most 8 keys"},
		{`["a","a","a","a","a","a","a","a","a"]`, "at most 8 keys"},
		{`["A_b.C-9"]`, ""},
		{`["` + strings.Repeat("a", 63) + `"]`, ""},
		{`["` + strings.Repeat("a", 64) + `"]`, key},
		{`["` + strings.Repeat("a", 253) + "/" + strings.Repeat("b", 63) + `"]`, ""},
		{`["` + strings.Repeat("a", 254) + `/b"]`, key},
		{`["` + strings.Repeat("a.", 126) + `a/b"]`, ""},
		{`["a` + strings.Repeat(" ", topology.MaxBytes-5) + `"]`, key},
		{`["a"` + strings.Repeat(" ", topology.MaxBytes-5) + `]`, ""},
		{`["a"` + strings.Repeat(" ", topology.MaxBytes-4) + `]`, "at most 2048 characters"},
		{`["a"` + strings.Repeat(" ", 200<<10) + `]`, "at most 2048 characters"},
		{``, list},
		{`skerry.dev/site`, list},
		{`"skerry.dev/site"`, list},
		{`null`, list},
		{`{}`, list},
		{`["a"`, list},
		{`["a"]]`, list},
		{`["a"] ["b"]`, list},
		{`["a",]`, list},
		{`[,"a"]`, list},
		{`["a""b"]`, list},
		{`["a" "b"]`, list},
		{`['a']`, list},
		{`[a]`, list},
		{`[1]`, list},
		{`[["a"]]`, list},
		{`[null]`, list},
		{"\v[\"a\"]", list},
		{"\u00a0[\"a\"]", list},
		{"[\"a\"]\x00", list},
		{`[""]`, key + `"" is none`},
		{`["*"]`, key + `"*" is none`},
		{`["skerry.dev/site","*"]`, key + `"*" is none`},
		{`["a=b"]`, key + `"a=b" is none`},
		{`["a,b"]`, key + `"a,b" is none`},
		{`["a b"]`, key},
		{`["/a"]`, key},
		{`["a/"]`, key},
		{`["a/b/c"]`, key},
		{`["A/b"]`, key},
		{`["a..b/c"]`, key},
		{`["-a"]`, key},
		{`["a."]`, key},
		{`["é"]`, key},
		// A message with a line break is none: the fixed one is shown.
		{"[\"a\nb\"]", "must be a list of node label keys"},
	} {
		if _, err := topology.Parse(row.value); (err == nil) != (row.want == "") {
			t.Errorf("%.60q: kube-proxy says %v, the table %q", row.value, err, row.want)
		}
		messages := deniedWrite(t, policies, writeService(closed(row.value), nil))
		if row.want == "" && len(messages) != 0 || row.want != "" && (len(messages) != 1 || !strings.Contains(messages[0], row.want) || !strings.Contains(messages[0], topology.Annotation)) {
			t.Errorf("%.60q: denied with %q, want %q", row.value, messages, row.want)
		}
	}
	// The one difference.
	for _, escaped := range []string{`["\u0061"]`, `["skerry.dev\/site"]`} {
		if _, err := topology.Parse(escaped); err != nil {
			t.Errorf("%s: kube-proxy says %v", escaped, err)
		}
		if messages := deniedWrite(t, policies, writeService(closed(escaped), nil)); len(messages) != 1 || !strings.Contains(messages[0], "without escapes") {
			t.Errorf("%s: denied with %q", escaped, messages)
		}
	}
}

// Random damage to a good list: the policy and kube-proxy agree.
func TestTopologyKeysAgree(t *testing.T) {
	policies := load(t)
	policies = slices.DeleteFunc(policies, func(one loaded) bool { return one.policy.Name != "skerry.dev-topology-keys" })
	r := rand.New(rand.NewPCG(5, 24))
	const letters = "aZ0-_./,\"\"[] \t\r\n\v*é\x00{}:1"
	readable := 0
	const rounds = 5000
	for range rounds {
		value := []rune(`["skerry.dev/site", "a.b/C_9","zone"]`)
		for range r.IntN(4) {
			at := r.IntN(len(value))
			switch letter := []rune(letters)[r.IntN(len([]rune(letters)))]; r.IntN(3) {
			case 0:
				value[at] = letter
			case 1:
				value = slices.Insert(value, at, letter)
			default:
				value = slices.Delete(value, at, at+1)
			}
		}
		_, err := topology.Parse(string(value))
		if err == nil {
			readable++
		}
		if messages := deniedWrite(t, policies, writeService(closed(string(value)), nil)); (err == nil) != (len(messages) == 0) {
			t.Fatalf("%q: kube-proxy says %v, the policy %q", string(value), err, messages)
		}
	}
	if readable < rounds/10 || readable > rounds*9/10 {
		t.Errorf("of %d lists %d can be read: they are no test", rounds, readable)
	}
}

// Only who changes the annotation is asked.
func TestTopologyKeysWhenChanged(t *testing.T) {
	policies := load(t)
	bad, good, none := closed("site"), closed(`["skerry.dev/site"]`), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	other := closed("site")
	other.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	other.Annotations["a"] = "b"
	for _, row := range []struct {
		name     string
		now, old *corev1.Service
		denied   bool
	}{
		{"created without", none, nil, false},
		{"created", bad, nil, true},
		{"added", bad, none, true},
		{"changed", bad, good, true},
		{"changed to another bad one", closed("west"), bad, true},
		{"bad before, another change", other, bad, false},
		{"bad before, mended", good, bad, false},
		{"bad before, taken away", none, bad, false},
		{"deleted", nil, bad, false},
	} {
		w := writeService(row.now, row.old)
		if row.now == nil {
			w.object = nil
		}
		for _, w.subresource = range []string{"", "status"} {
			if messages := deniedWrite(t, policies, w); (len(messages) != 0) != row.denied {
				t.Errorf("%s %s: denied with %q", row.name, w.subresource, messages)
			}
		}
	}
}
