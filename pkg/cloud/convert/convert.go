// Package convert makes grids of the objects of superedge.io/v1, an older system
// with the same purpose. It is pure: it must know no cluster and no files, and
// what it is given may be anything.
//
// What the older objects say in whole templates per site becomes one template and
// an override for each other template, as a strategic merge patch. Nothing is left
// out silently.
package convert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// Group of the older objects.
const Group = "superedge.io"

// Problem is something about a field that people should know.
type Problem struct {
	Field   string
	Message string
	// Lost says that what the field says is not in the result. Otherwise it is
	// said in another way.
	Lost bool
}

func (p Problem) String() string {
	word := "note"
	if p.Lost {
		word = "not converted"
	}
	return fmt.Sprintf("%s: %s: %s", p.Field, word, p.Message)
}

// Options of a conversion.
type Options struct {
	// GridKey is the label of nodes in place of the one that the objects name.
	GridKey string
}

// older is an object of the older system. What is not here is told of.
type older struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		GridUniqKey              string                    `json:"gridUniqKey"`
		Template                 map[string]any            `json:"template"`
		TemplatePool             map[string]map[string]any `json:"templatePool"`
		Templates                map[string]string         `json:"templates"`
		DefaultTemplateName      string                    `json:"defaultTemplateName"`
		AutoDeleteUnusedTemplate bool                      `json:"autoDeleteUnusedTemplate"`
	} `json:"spec"`
	Status map[string]any `json:"status"`
}

// kinds with the struct that their templates are read into.
var kinds = map[string]func() any{
	"DeploymentGrid":  func() any { return new(appsv1.DeploymentSpec) },
	"StatefulSetGrid": func() any { return new(appsv1.StatefulSetSpec) },
	"ServiceGrid":     func() any { return new(corev1.ServiceSpec) },
}

// Convert converts one object, given as JSON. Objects of other groups are
// returned as they are. With an error there is no result.
func Convert(text []byte, o Options) (map[string]any, []Problem, error) {
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &object); err != nil {
		return nil, nil, fmt.Errorf("reading an object: %w", err)
	}
	if object == nil {
		return nil, nil, fmt.Errorf("reading an object: it is null")
	}
	version, _ := object["apiVersion"].(string)
	if group, _, _ := strings.Cut(version, "/"); group != Group {
		return object, nil, nil
	}
	var from older
	unknown, err := kjson.UnmarshalStrict(text, &from)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a %s %s: %w", Group, object["kind"], err)
	}
	newSpec := kinds[from.Kind]
	if newSpec == nil {
		return nil, []Problem{{Field: "kind", Message: fmt.Sprintf("there is nothing like a %s", from.Kind), Lost: true}}, nil
	}
	c := &conversion{from: from, newSpec: newSpec}
	for _, err := range unknown {
		c.lost(strings.Trim(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "unknown field "), "duplicate field "), `"`), "%v", err)
	}
	c.metadata()
	c.key(o)
	c.templates()
	spec := map[string]any{"gridKey": c.gridKey, "template": c.template}
	if len(c.overrides) > 0 {
		spec["overrides"] = c.overrides
	}
	return map[string]any{"apiVersion": gridv1.GroupVersion.String(), "kind": from.Kind, "metadata": c.meta, "spec": spec}, c.problems, nil
}

type conversion struct {
	from      older
	newSpec   func() any
	meta      map[string]any
	gridKey   string
	template  map[string]any
	overrides []any
	problems  []Problem
}

func (c *conversion) lost(field, message string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Message: fmt.Sprintf(message, args...), Lost: true})
}

func (c *conversion) note(field, message string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Message: fmt.Sprintf(message, args...)})
}

// metadata keeps what a user wrote.
func (c *conversion) metadata() {
	c.meta = map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(c.from.Metadata)) {
		value := c.from.Metadata[key]
		switch key {
		case "name", "namespace":
			text, _ := value.(string)
			c.meta[key] = text
		case "labels", "annotations":
			from, _ := value.(map[string]any)
			kept := map[string]any{}
			for _, name := range slices.Sorted(maps.Keys(from)) {
				switch prefix, _, _ := strings.Cut(name, "/"); {
				case name == "superedge.io/fed", name == "superedge.io/dis", prefix == "clusters.clusternet.io":
					c.lost("metadata."+key+"["+name+"]", "grids of one cluster are not copied to others")
				case prefix == Group, name == corev1.LastAppliedConfigAnnotation:
					// Its own notes.
				default:
					kept[name] = from[name]
				}
			}
			if len(kept) > 0 {
				c.meta[key] = kept
			}
		case "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink":
			// The API server's.
		default:
			c.lost("metadata."+key, "it is left out")
		}
	}
	name, _ := c.meta["name"].(string)
	if c.from.Kind == "ServiceGrid" && name != "" {
		name += "-svc"
		c.meta["name"] = name
		c.note("metadata.name", "it is %s now, so that the Service has the name that it had", name)
	}
	if bad := validation.IsDNS1035Label(name); len(bad) > 0 {
		c.lost("metadata.name", "%q: %s", name, bad[0])
	} else if c.from.Kind != "ServiceGrid" && (len(name) > 52 || strings.Contains(name, "--")) {
		c.lost("metadata.name", "%q: at most 52 characters, and no -- in it", name)
	}
}

func (c *conversion) key(o Options) {
	c.gridKey = cmp.Or(o.GridKey, c.from.Spec.GridUniqKey)
	if bad := validation.IsQualifiedName(c.gridKey); len(bad) > 0 {
		c.lost("spec.gridUniqKey", "%q: %s", c.gridKey, bad[0])
	}
	if c.from.Spec.GridUniqKey != "" && c.gridKey != c.from.Spec.GridUniqKey {
		c.note("spec.gridUniqKey", "it is %s now; nodes need that label", c.gridKey)
	}
}

// defaultTemplate is the name that the older system has for spec.template.
const defaultTemplate = "default"

func (c *conversion) templates() {
	spec := c.from.Spec
	get := func(name, field string) map[string]any {
		if name == defaultTemplate || name == "" {
			if spec.Template == nil {
				c.lost(field, "it names spec.template, which is not there")
				return nil
			}
			return c.clean("spec.template", spec.Template)
		}
		template, ok := spec.TemplatePool[name]
		if !ok {
			c.lost(field, "there is no spec.templatePool[%s]", name)
			return nil
		}
		return c.clean("spec.templatePool["+name+"]", template)
	}
	base := cmp.Or(spec.DefaultTemplateName, defaultTemplate)
	field := "spec.defaultTemplateName"
	if base == defaultTemplate {
		field = "spec.template"
	}
	if c.template = get(base, field); c.template == nil {
		c.template = map[string]any{}
	}
	sites := map[string][]any{}
	for _, site := range slices.Sorted(maps.Keys(spec.Templates)) {
		name := cmp.Or(spec.Templates[site], defaultTemplate)
		if bad := validation.IsValidLabelValue(site); len(bad) > 0 || site == "" {
			c.lost("spec.templates["+site+"]", "it is no value that a node's label can have")
			continue
		}
		if name != base {
			sites[name] = append(sites[name], site)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		field := "spec.templates[" + sites[name][0].(string) + "]"
		if other := get(name, field); other != nil {
			c.override(name, field, sites[name], other)
		}
	}
	c.unused(base, sites)
	if spec.AutoDeleteUnusedTemplate {
		c.note("spec.autoDeleteUnusedTemplate", "overrides that are not used do no harm")
	}
}

// override says what differs in some sites.
func (c *conversion) override(name, field string, sites []any, other map[string]any) {
	patch, err := difference(c.template, other, c.newSpec)
	if err != nil {
		c.lost(field, "template %s cannot be said as a change of the default one: %v", name, err)
		return
	}
	if len(patch) == 0 {
		return
	}
	if len(name) > 63 || len(sites) > 1000 {
		c.lost(field, "template %s has more than 63 characters or 1000 sites", name)
		return
	}
	c.overrides = append(c.overrides, map[string]any{"name": name, "sites": sites, "patch": patch})
	if len(c.overrides) == 65 {
		c.lost("spec.templatePool", "a grid has at most 64 overrides")
	}
}

func (c *conversion) unused(base string, sites map[string][]any) {
	if base != defaultTemplate && sites[defaultTemplate] == nil && c.from.Spec.Template != nil {
		c.note("spec.template", "no site uses it; it is left out")
	}
	for _, name := range slices.Sorted(maps.Keys(c.from.Spec.TemplatePool)) {
		if name != base && sites[name] == nil {
			c.note("spec.templatePool["+name+"]", "no site uses it; it is left out")
		}
	}
}

// clean checks a template, and takes out what the grid sets now.
func (c *conversion) clean(field string, template map[string]any) map[string]any {
	template = runtime.DeepCopyJSON(template)
	text, err := json.Marshal(template)
	if err != nil {
		c.lost(field, "%v", err)
		return nil
	}
	unknown, err := kjson.UnmarshalStrict(text, c.newSpec())
	if err != nil {
		c.lost(field, "%v", err)
		return nil
	}
	for _, err := range unknown {
		c.lost(field, "%v", err)
	}
	withoutNulls(template)
	pod, _ := template["template"].(map[string]any)
	spec, _ := pod["spec"].(map[string]any)
	if selector, _ := spec["nodeSelector"].(map[string]any); selector[c.gridKey] != nil {
		delete(selector, c.gridKey)
		c.note(field+".template.spec.nodeSelector["+c.gridKey+"]", "the grid sets it")
	}
	meta, _ := pod["metadata"].(map[string]any)
	selector, _ := template["selector"].(map[string]any)
	for _, labels := range []any{meta["labels"], selector["matchLabels"]} {
		if m, ok := labels.(map[string]any); ok {
			for name := range m {
				if prefix, _, _ := strings.Cut(name, "/"); prefix == Group {
					delete(m, name)
				}
			}
		}
	}
	return template
}

// difference is the strategic merge patch that makes one template of another.
func difference(from, to map[string]any, newSpec func() any) (patch map[string]any, err error) {
	// The library takes structure for granted that a user's object need not have.
	defer func() {
		if r := recover(); r != nil {
			patch, err = nil, fmt.Errorf("%v", r)
		}
	}()
	patch, err = strategicpatch.CreateTwoWayMergeMapPatch(runtime.DeepCopyJSON(from), runtime.DeepCopyJSON(to), newSpec())
	if err != nil {
		return nil, err
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(runtime.DeepCopyJSON(from), runtime.DeepCopyJSON(patch), newSpec())
	if err != nil {
		return nil, err
	}
	got, want := newSpec(), newSpec()
	if err := typed(merged, got); err != nil {
		return nil, err
	}
	if err := typed(to, want); err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(got, want) {
		return nil, fmt.Errorf("a strategic merge patch cannot express it (the order of a list, or two items of one name)")
	}
	return patch, nil
}

func typed(object map[string]any, into any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func withoutNulls(value any) {
	switch v := value.(type) {
	case map[string]any:
		for key, member := range v {
			if member == nil {
				delete(v, key)
				continue
			}
			withoutNulls(member)
		}
	case []any:
		for _, item := range v {
			withoutNulls(item)
		}
	}
}
