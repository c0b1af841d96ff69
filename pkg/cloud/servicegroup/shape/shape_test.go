package shape

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

const key = "skerry.dev/site"

const template = `
replicas: 2
selector: {matchLabels: {app: web}}
template:
  metadata: {labels: {app: web}}
  spec:
    nodeSelector: {disk: ssd}
    containers:
    - {name: web, image: "web:v1", env: [{name: A, value: "1"}], resources: {limits: {memory: 9223372036854775807}}}
    - {name: log, image: "log:v1"}
`

func raw(t testing.TB, text string) runtime.RawExtension {
	t.Helper()
	json, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return runtime.RawExtension{Raw: json}
}

func patch(t testing.TB, name, text string, sites ...string) gridv1.Override {
	return gridv1.Override{Name: name, SiteSelection: gridv1.SiteSelection{Sites: sites}, Patch: raw(t, text)}
}

var owner = Owner{Namespace: "ns", Name: "web", Reference: metav1.OwnerReference{APIVersion: "apps.skerry.dev/v1alpha1", Kind: "DeploymentGrid", Name: "web", UID: "u"}}

func must(t testing.TB, kind Kind, grid Grid) *Shape {
	t.Helper()
	s, errs := New(kind, grid)
	if errs != nil {
		t.Fatal(errs.ToAggregate())
	}
	return s
}

func at(object map[string]any, path ...string) any {
	var value any = object
	for _, name := range path {
		m, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = m[name]
	}
	return value
}

func TestApply(t *testing.T) {
	s := must(t, Deployment, Grid{Key: key, Template: raw(t, template), Metadata: &gridv1.ChildMetadata{Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"note": "b"}}})
	v, errs := s.In("east", labels.Set{key: "east"})
	if errs != nil {
		t.Fatal(errs)
	}
	got := v.Apply(owner, "east")
	own := map[string]any{"skerry.dev/grid": "web", "skerry.dev/grid-site": "east"}
	with := func(more map[string]any) map[string]any {
		all := maps.Clone(own)
		maps.Copy(all, more)
		return all
	}
	for _, c := range []struct {
		path []string
		want any
	}{
		{[]string{"kind"}, "Deployment"},
		{[]string{"metadata", "name"}, "web-east"},
		{[]string{"metadata", "labels"}, with(map[string]any{"team": "a"})},
		{[]string{"metadata", "annotations", "note"}, "b"},
		{[]string{"spec", "selector", "matchLabels"}, with(map[string]any{"app": "web"})},
		{[]string{"spec", "template", "metadata", "labels"}, with(map[string]any{"app": "web"})},
		{[]string{"spec", "template", "spec", "nodeSelector"}, map[string]any{"disk": "ssd", key: "east"}},
		{[]string{"spec", "replicas"}, int64(2)},
		{[]string{"status"}, nil},
	} {
		if value := at(got, c.path...); !reflect.DeepEqual(value, c.want) {
			t.Errorf("%s is %v, want %v", strings.Join(c.path, "."), value, c.want)
		}
	}
	limit := at(got, "spec", "template", "spec", "containers").([]any)[0].(map[string]any)["resources"].(map[string]any)["limits"].(map[string]any)["memory"]
	if limit != int64(9223372036854775807) {
		t.Errorf("a large number became %v", limit)
	}
}

// No site's configuration shares anything with another's, or with the template.
func TestNothingIsShared(t *testing.T) {
	s := must(t, Deployment, Grid{Key: key, Template: raw(t, template), Overrides: []gridv1.Override{patch(t, "a", `{template: {spec: {nodeSelector: {x: z}}}}`, "west")}})
	var texts []string
	var objects []map[string]any
	for _, site := range []string{"east", "south", "west"} {
		v, _ := s.In(site, labels.Set{key: site})
		objects = append(objects, v.Apply(owner, site))
		text, _ := json.Marshal(objects[len(objects)-1])
		texts = append(texts, string(text))
	}
	for _, o := range objects {
		scribble(o)
	}
	for i, site := range []string{"east", "south", "west"} {
		v, _ := s.In(site, labels.Set{key: site})
		if text, _ := json.Marshal(v.Apply(owner, site)); string(text) != texts[i] {
			t.Errorf("%s changed with another's:\n%s\n%s", site, text, texts[i])
		}
		if !strings.Contains(texts[i], `"skerry.dev/site":"`+site+`"`) {
			t.Errorf("%s is for other nodes: %s", site, texts[i])
		}
	}
}

func scribble(value any) {
	switch v := value.(type) {
	case map[string]any:
		for key, member := range v {
			scribble(member)
			delete(v, key)
		}
		v["scribble"] = true
	case []any:
		for i := range v {
			scribble(v[i])
			v[i] = "scribble"
		}
	}
}

func TestOverrides(t *testing.T) {
	grid := Grid{Key: key, Template: raw(t, template), Overrides: []gridv1.Override{
		patch(t, "image", `{template: {spec: {containers: [{name: web, image: "web:v2"}]}}}`, "west", "south"),
		{Name: "env", SiteSelection: gridv1.SiteSelection{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"size": "big"}}}, Patch: raw(t, `{replicas: 9, template: {spec: {containers: [{name: web, env: [{name: B, value: "2"}]}, {name: log, $patch: delete}]}}}`)},
		patch(t, "none", `{replicas: null}`, "north"),
	}}
	s := must(t, Deployment, grid)
	hashes := map[string][]string{}
	for site, c := range map[string]struct {
		labels   labels.Set
		image    string
		env      int
		count    int
		replicas any
	}{
		"east":  {labels.Set{}, "web:v1", 1, 2, int64(2)},
		"west":  {labels.Set{}, "web:v2", 1, 2, int64(2)},
		"south": {labels.Set{"size": "big"}, "web:v2", 2, 1, int64(9)},
		"big":   {labels.Set{"size": "big"}, "web:v1", 2, 1, int64(9)},
		"north": {labels.Set{}, "web:v1", 1, 2, nil},
		"other": {labels.Set{}, "web:v1", 1, 2, int64(2)},
	} {
		v, errs := s.In(site, c.labels)
		if errs != nil {
			t.Fatal(errs)
		}
		hashes[v.Hash] = append(hashes[v.Hash], site)
		got := v.Apply(owner, site)
		containers := at(got, "spec", "template", "spec", "containers").([]any)
		var web map[string]any
		for _, container := range containers {
			if m := container.(map[string]any); m["name"] == "web" {
				web = m
			}
		}
		if web["image"] != c.image || len(web["env"].([]any)) != c.env || len(containers) != c.count || at(got, "spec", "replicas") != c.replicas || v.Replicas != (c.replicas != nil) {
			t.Errorf("%s: %v", site, got["spec"])
		}
	}
	if len(hashes) != 5 {
		t.Errorf("east and other share a hash, and nobody else does: %v", hashes)
	}
	// The same grid read again has the same hashes, so a restart changes nothing.
	again := must(t, Deployment, grid)
	for hash, sites := range hashes {
		for _, site := range sites {
			set := labels.Set{}
			if site == "south" || site == "big" {
				set["size"] = "big"
			}
			if v, _ := again.In(site, set); v.Hash != hash {
				t.Errorf("%s has hash %s, then %s", site, hash, v.Hash)
			}
		}
	}
}

func TestErrorsHaveThePathInTheGrid(t *testing.T) {
	for name, c := range map[string]struct {
		template  string
		overrides []gridv1.Override
		want      string
	}{
		"empty":            {``, nil, "spec.template"},
		"list":             {`[1]`, nil, "spec.template"},
		"unknown":          {`{replica: 1}`, nil, "spec.template.replica"},
		"deep":             {`{template: {spec: {containers: [{name: a}, {name: b, imag: x}]}}}`, nil, "spec.template.template.spec.containers[1].imag"},
		"type":             {`{replicas: "2"}`, nil, "spec.template.replicas"},
		"node selector":    {`{template: {spec: {nodeSelector: {skerry.dev/site: a}}}}`, nil, "spec.template.template.spec.nodeSelector[skerry.dev/site]"},
		"label":            {`{template: {metadata: {labels: {skerry.dev/grid-site: a}}}}`, nil, "spec.template.template.metadata.labels[skerry.dev/grid-site]"},
		"selector":         {`{selector: {matchLabels: {skerry.dev/grid: a}}}`, nil, "spec.template.selector.matchLabels[skerry.dev/grid]"},
		"override unknown": {`{}`, []gridv1.Override{patch(t, "a", `{}`), patch(t, "b", `{replica: 1}`)}, "spec.overrides[1].patch.replica"},
		"override type":    {`{template: {spec: {}}}`, []gridv1.Override{patch(t, "a", `{template: 7}`)}, "spec.overrides[0].patch.template"},
		"override key":     {template, []gridv1.Override{patch(t, "a", `{template: {spec: {containers: [{image: x}]}}}`)}, "spec.overrides[0].patch"},
		"override node":    {template, []gridv1.Override{patch(t, "a", `{template: {spec: {nodeSelector: {skerry.dev/site: a}}}}`)}, "spec.overrides[0].patch.template.spec.nodeSelector[skerry.dev/site]"},
	} {
		grid := Grid{Key: key, Overrides: c.overrides}
		if c.template != "" {
			grid.Template = raw(t, c.template)
		}
		_, errs := New(Deployment, grid)
		if len(errs) == 0 || errs[0].Field != c.want {
			t.Errorf("%s: %v, want one at %s", name, errs, c.want)
		}
	}
}

// Merging takes time with the product of lengths, so lengths are bounded.
func TestWorstOverridesAreQuick(t *testing.T) {
	env := func(prefix string, count int) string {
		var items []string
		for i := range count {
			items = append(items, fmt.Sprintf("{\"name\":\"%s%d\"}", prefix, i))
		}
		return `{"template":{"spec":{"containers":[{"name":"c","image":"i","env":[` + strings.Join(items, ",") + `]}]}}}`
	}
	began := time.Now()
	grid := Grid{Key: key, Template: runtime.RawExtension{Raw: []byte(env("a", maxItems))}}
	for i := 0; i < 64 && (i+1)*len(env("b", maxItems)) < maxPatches; i++ {
		grid.Overrides = append(grid.Overrides, gridv1.Override{Name: fmt.Sprint(i), Patch: runtime.RawExtension{Raw: []byte(env("b", maxItems))}})
	}
	must(t, Deployment, grid)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("%d overrides took %s", len(grid.Overrides), took)
	} else {
		t.Logf("%d overrides took %s", len(grid.Overrides), took)
	}
	for _, c := range []struct {
		template, patch int
		want            string
	}{{maxItems + 1, 1, "spec.template.template.spec.containers[0].env"}, {1, maxItems + 1, "spec.overrides[0].patch.template.spec.containers[0].env"}} {
		_, errs := New(Deployment, Grid{Key: key, Template: runtime.RawExtension{Raw: []byte(env("a", c.template))}, Overrides: []gridv1.Override{{Name: "a", Patch: runtime.RawExtension{Raw: []byte(env("b", c.patch))}}}})
		if len(errs) != 1 || errs[0].Field != c.want || errs[0].Type != field.ErrorTypeTooMany {
			t.Errorf("%v, want one at %s", errs, c.want)
		}
	}
}

func TestPath(t *testing.T) {
	for _, c := range []struct {
		override    int
		field, want string
	}{
		{-1, "spec.template.spec.containers[0].image", "spec.template.template.spec.containers[0].image"},
		{2, "spec.replicas", "spec.overrides[2].patch.replicas"},
		{-1, ".spec.replicas", "spec.template.replicas"},
		{-1, "metadata.name", "spec.template"},
	} {
		if got := (&Variant{Override: c.override}).Path(c.field); got != c.want {
			t.Errorf("Path(%q) = %q, want %q", c.field, got, c.want)
		}
	}
}

func TestService(t *testing.T) {
	s := must(t, Service, Grid{Key: key, Template: raw(t, `{ports: [{port: 80}], selector: {app: web}}`), Annotations: TopologyAnnotations(key, []string{"b", "a"})})
	v, _ := s.In("", nil)
	got := v.ApplyService(owner)
	annotations := at(got, "metadata", "annotations").(map[string]any)
	if at(got, "metadata", "name") != "web" || annotations["skerry.dev/topology-keys"] != `["skerry.dev/site"]` || annotations["skerry.dev/statefulset-grids"] != `["a","b"]` {
		t.Errorf("%v", got)
	}
	if !reflect.DeepEqual(at(got, "spec", "selector"), map[string]any{"app": "web"}) {
		t.Errorf("the selector got more: %v", got["spec"])
	}
}

// Whatever a user writes: no panic; what is accepted gives a child of this site
// alone, the same each time, that reads as what it is.
func FuzzOverrides(f *testing.F) {
	for _, patch := range []string{
		`{}`, `{"replicas":null}`, `{"template":{"spec":{"containers":[{"name":"web","$patch":"delete"}]}}}`,
		`{"template":{"spec":{"$setElementOrder/containers":[{"name":"log"},{"name":"web"}],"containers":[{"name":"web","image":"x"}]}}}`,
		`{"template":{"spec":{"$patch":"replace","containers":[{"name":"x","image":"y"}]}}}`, `{"template":{"$retainKeys":["spec"],"spec":{}}}`,
		`{"$patch":"delete"}`, `{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}`, `{"template":{"spec":{"tolerations":[{"$patch":"replace"}]}}}`,
		`{"template":{"spec":{"containers":{"a":1}}}}`, `{"template":{"spec":{"$deleteFromPrimitiveList/containers":[1]}}}`, `{"template":{"spec":{"containers":[null]}}}`,
		`{"template":{"metadata":{"labels":null}},"selector":null}`, `[]`, `null`, `{"template":{"spec":{"volumes":[{"name":"a","$retainKeys":7}]}}}`,
	} {
		f.Add([]byte(patch), []byte(`{"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"a"}]}}}`))
		f.Add([]byte(`{}`), []byte(patch))
	}
	f.Fuzz(func(t *testing.T, patch, template []byte) {
		before := slices.Clone(template)
		for _, kind := range []Kind{Deployment, StatefulSet, Service} {
			grid := Grid{Key: key, Template: runtime.RawExtension{Raw: template}, Overrides: []gridv1.Override{
				{Name: "a", SiteSelection: gridv1.SiteSelection{Sites: []string{"east"}}, Patch: runtime.RawExtension{Raw: patch}},
				{Name: "b", SiteSelection: gridv1.SiteSelection{Sites: []string{"east", "west"}}, Patch: runtime.RawExtension{Raw: patch}},
			}}
			s, errs := New(kind, grid)
			if errs != nil {
				continue
			}
			for _, site := range []string{"east", "west", "south"} {
				v, errs := s.In(site, labels.Set{key: site})
				if errs != nil {
					continue
				}
				one, err := json.Marshal(v.Apply(owner, site))
				if err != nil {
					t.Fatal(err)
				}
				again, _ := New(kind, grid)
				w, _ := again.In(site, labels.Set{key: site})
				if two, _ := json.Marshal(w.Apply(owner, site)); string(one) != string(two) || v.Hash != w.Hash {
					t.Errorf("two readings differ:\n%s\n%s", one, two)
				}
				if got := at(v.Apply(owner, site), "spec", "template", "spec", "nodeSelector", key); kind.pods && got != site {
					t.Errorf("the pods of %s are for nodes of %v", site, got)
				}
			}
		}
		if string(before) != string(template) {
			t.Error("the user's template was changed")
		}
	})
}
