package convert

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// From the older system's own documentation of templates for canaries.
const canary = `
apiVersion: superedge.io/v1
kind: DeploymentGrid
metadata:
  name: deploymentgrid-demo
  namespace: default
  uid: 1234
  labels: {superedge.io/grid-selector: x, mine: "yes"}
spec:
  defaultTemplateName: test1
  gridUniqKey: zone
  template:
    replicas: 1
    selector: {matchLabels: {appGrid: echo}}
    template:
      metadata: {labels: {appGrid: echo}, creationTimestamp: null}
      spec: {containers: [{name: echo, image: "echo:2.2", ports: [{containerPort: 8080, protocol: TCP}]}]}
  templatePool:
    test1:
      replicas: 2
      selector: {matchLabels: {appGrid: echo}}
      template:
        metadata: {labels: {appGrid: echo}}
        spec: {containers: [{name: echo, image: "echo:2.2", ports: [{containerPort: 8080, protocol: TCP}], env: [{name: A, value: "1"}]}]}
    test2:
      replicas: 3
      selector: {matchLabels: {appGrid: echo}}
      template:
        metadata: {labels: {appGrid: echo}}
        spec: {nodeSelector: {zone: zone1, disk: ssd}, containers: [{name: echo, image: "echo:2.3", ports: [{containerPort: 8080, protocol: TCP}]}]}
    test3:
      selector: {matchLabels: {appGrid: echo}}
      template: {metadata: {labels: {appGrid: echo}}, spec: {containers: [{name: echo, image: "echo:2.4"}]}}
  templates: {zone1: test1, zone2: test2, zone3: default}
  autoDeleteUnusedTemplate: true
status: {states: {zone1: {replicas: 2}}}
`

func convertYAML(t *testing.T, text string, o Options) (map[string]any, []string) {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	made, problems, err := Convert(asJSON, o)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, p := range problems {
		texts = append(texts, p.String())
	}
	return made, texts
}

// specs are what each site of a grid gets.
func specs(t *testing.T, made map[string]any, sites ...string) map[string]map[string]any {
	t.Helper()
	text, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	var grid gridv1.DeploymentGrid
	if err := json.Unmarshal(text, &grid); err != nil {
		t.Fatal(err)
	}
	s, errs := shape.New(shape.Deployment, shape.Grid{Key: grid.Spec.GridKey, Template: grid.Spec.Template, Overrides: grid.Spec.Overrides})
	if errs != nil {
		t.Fatal(errs.ToAggregate())
	}
	all := map[string]map[string]any{}
	for _, site := range sites {
		v, errs := s.In(site, labels.Set{grid.Spec.GridKey: site})
		if errs != nil {
			t.Fatal(errs.ToAggregate())
		}
		all[site] = v.Apply(shape.Owner{Name: "x"}, site)["spec"].(map[string]any)
	}
	return all
}

func TestDeploymentGrid(t *testing.T) {
	made, problems := convertYAML(t, canary, Options{})
	want := []string{
		"spec.templatePool[test2].template.spec.nodeSelector[zone]: note: the grid sets it",
		"spec.templatePool[test3]: note: no site uses it; it is left out",
		"spec.autoDeleteUnusedTemplate: note: overrides that are not used do no harm",
	}
	if !reflect.DeepEqual(problems, want) {
		t.Errorf("problems:\n%s", strings.Join(problems, "\n"))
	}
	if meta := made["metadata"]; !reflect.DeepEqual(meta, map[string]any{"name": "deploymentgrid-demo", "namespace": "default", "labels": map[string]any{"mine": "yes"}}) {
		t.Errorf("metadata: %v", meta)
	}
	for site, want := range map[string]struct {
		replicas   int64
		image      string
		env, disks int
	}{
		"zone1": {2, "echo:2.2", 1, 0}, "zone2": {3, "echo:2.3", 0, 1}, "zone3": {1, "echo:2.2", 0, 0}, "zone4": {2, "echo:2.2", 1, 0},
	} {
		spec := specs(t, made, site)[site]
		pod := spec["template"].(map[string]any)["spec"].(map[string]any)
		container := pod["containers"].([]any)[0].(map[string]any)
		env, _ := container["env"].([]any)
		selector := pod["nodeSelector"].(map[string]any)
		if spec["replicas"] != want.replicas || container["image"] != want.image || len(env) != want.env || len(selector) != 1+want.disks || selector["zone"] != site {
			t.Errorf("%s: %v", site, spec)
		}
	}
}

func TestServiceGridKeepsTheServicesName(t *testing.T) {
	made, problems := convertYAML(t, `
apiVersion: superedge.io/v1
kind: ServiceGrid
metadata: {name: echo}
spec:
  gridUniqKey: zone
  template: {selector: {appGrid: echo}, ports: [{protocol: TCP, port: 80, targetPort: 8080}]}
`, Options{GridKey: "skerry.dev/site"})
	spec := made["spec"].(map[string]any)
	if made["apiVersion"] != "apps.skerry.dev/v1alpha1" || made["metadata"].(map[string]any)["name"] != "echo-svc" || spec["gridKey"] != "skerry.dev/site" || len(problems) != 2 {
		t.Errorf("%v\n%v", made, problems)
	}
}

func TestWhatCannotBeConverted(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"kind":          {`{apiVersion: superedge.io/v1, kind: NodeUnit}`, "kind: not converted"},
		"unknown":       {`{apiVersion: superedge.io/v1, kind: ServiceGrid, metadata: {name: a}, spec: {gridUniqKey: z, template: {}, colour: red}}`, "spec.colour: not converted"},
		"in a template": {`{apiVersion: superedge.io/v1, kind: ServiceGrid, metadata: {name: a}, spec: {gridUniqKey: z, template: {colour: red}}}`, `spec.template: not converted: unknown field "colour"`},
		"no template":   {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a}, spec: {gridUniqKey: z, defaultTemplateName: x}}`, "spec.defaultTemplateName: not converted: there is no spec.templatePool[x]"},
		"no such one":   {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a}, spec: {gridUniqKey: z, template: {}, templates: {b: q}}}`, "spec.templates[b]: not converted: there is no spec.templatePool[q]"},
		"no key":        {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a}, spec: {template: {}}}`, "spec.gridUniqKey: not converted"},
		"name":          {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a.b}, spec: {gridUniqKey: z, template: {}}}`, "metadata.name: not converted"},
		"federation":    {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a, labels: {superedge.io/fed: "yes"}}, spec: {gridUniqKey: z, template: {}}}`, "metadata.labels[superedge.io/fed]: not converted"},
		"order": {`{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a}, spec: {gridUniqKey: z, template: {template: {spec: {containers: [{name: a, env: [{name: A, value: x}, {name: A, value: z}]}]}}},
templatePool: {p: {template: {spec: {containers: [{name: a, env: [{name: A, value: z}, {name: A, value: x}]}]}}}}, templates: {b: p}}}`, "spec.templates[b]: not converted: template p cannot be said"},
	} {
		_, problems := convertYAML(t, c.text, Options{})
		if !strings.Contains(strings.Join(problems, "\n"), c.want) {
			t.Errorf("%s: %q, want %q", name, problems, c.want)
		}
	}
}

func TestOthersPassThrough(t *testing.T) {
	text := `{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"9007199254740993"},"n":9007199254740993}`
	made, problems, err := Convert([]byte(text), Options{})
	again, _ := json.Marshal(made)
	if err != nil || len(problems) != 0 || !strings.Contains(string(again), `"n":9007199254740993`) {
		t.Errorf("%s %v %v", again, problems, err)
	}
}

// Whatever is given: no panic, and what is not lost comes out as a grid that can
// be carried out, with the same specs as the older object has.
func FuzzConvert(f *testing.F) {
	for _, text := range []string{canary, `{apiVersion: superedge.io/v1, kind: DeploymentGrid, metadata: {name: a}, spec: {gridUniqKey: z, template: {template: {spec: {containers: [{name: a}, null]}}}, templatePool: {p: {template: {spec: {containers: [{name: b}]}}}}, templates: {b: p}}}`} {
		asJSON, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(asJSON)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		made, problems, err := Convert(text, Options{})
		if err != nil {
			return
		}
		for _, p := range problems {
			if p.Lost {
				return
			}
		}
		if made["apiVersion"] != gridv1.GroupVersion.String() || made["kind"] != "DeploymentGrid" {
			return
		}
		encoded, err := json.Marshal(made)
		if err != nil {
			t.Fatal(err)
		}
		var grid gridv1.DeploymentGrid
		if err := json.Unmarshal(encoded, &grid); err != nil {
			t.Fatalf("%v: %s", err, encoded)
		}
		var from older
		if err := json.Unmarshal(text, &from); err != nil {
			return // keys in another case, which the strict reader told apart
		}
		s, errs := shape.New(shape.Deployment, shape.Grid{Key: grid.Spec.GridKey, Template: grid.Spec.Template, Overrides: grid.Spec.Overrides})
		if errs != nil {
			t.Skip() // the older object was not carried out either
		}
		for site := range from.Spec.Templates {
			if _, errs := s.In(site, labels.Set{grid.Spec.GridKey: site}); errs != nil {
				t.Errorf("site %q: %v: %s", site, errs, encoded)
			}
		}
	})
}
