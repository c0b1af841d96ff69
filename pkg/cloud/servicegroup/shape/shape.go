// Package shape makes the children of grids: from a template, the overrides that
// match a site, and the site, what is to be applied there. It is pure: it must
// know neither the cluster nor the time, and what it is given may be anything
// that a user can write.
package shape

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/gridname"
	"skerry.dev/skerry/pkg/topology"
)

// Kind is a kind of children.
type Kind struct {
	schema.GroupVersionKind
	Resource string
	// newSpec returns a pointer to the struct that templates are read into.
	newSpec func() any
	// pods says whether the template has a pod template.
	pods bool
}

// The kinds of children.
var (
	Deployment  = Kind{appsv1.SchemeGroupVersion.WithKind("Deployment"), "deployments", func() any { return new(appsv1.DeploymentSpec) }, true}
	StatefulSet = Kind{appsv1.SchemeGroupVersion.WithKind("StatefulSet"), "statefulsets", func() any { return new(appsv1.StatefulSetSpec) }, true}
	Service     = Kind{corev1.SchemeGroupVersion.WithKind("Service"), "services", func() any { return new(corev1.ServiceSpec) }, false}
)

// Grid is what a Shape is made from.
type Grid struct {
	Key       string // the label of nodes
	Template  runtime.RawExtension
	Overrides []gridv1.Override
	Metadata  *gridv1.ChildMetadata
	// Annotations are added as Metadata's are, and are the grid's own.
	Annotations map[string]string
}

// Shape knows what the children of one grid are to be. It is not safe for
// concurrent use.
type Shape struct {
	kind      Kind
	grid      Grid
	template  map[string]any
	overrides []override
	variants  map[string]*Variant
}

type override struct {
	sites    map[string]bool
	selector labels.Selector
	patch    map[string]any
	path     *field.Path
}

// Variant is the template with some overrides: equal in all sites that have the
// same ones.
type Variant struct {
	// Hash is of all that a child depends on beside the grid's and the site's
	// name.
	Hash string
	// Override is the index of the first of its overrides, -1 with none.
	Override int
	// Replicas says whether replicas are the grid's to set.
	Replicas bool

	kind Kind
	grid Grid
	spec map[string]any
}

// Limits of what is read. Merging two lists takes time with the product of their
// lengths: with these, the worst that a user can write takes a few seconds.
const (
	maxTemplate = 256 << 10 // bytes
	maxPatches  = 256 << 10 // bytes of all overrides together
	maxItems    = 512       // of a list, where there are overrides
)

// New reads a grid. The errors have the path of the field in the grid; with any,
// the grid cannot be carried out.
func New(kind Kind, grid Grid) (*Shape, field.ErrorList) {
	s := &Shape{kind: kind, grid: grid, variants: map[string]*Variant{}}
	path := field.NewPath("spec", "template")
	var errs field.ErrorList
	if s.template, errs = readObject(path, grid.Template.Raw); errs != nil {
		return nil, errs
	}
	if errs = check(kind, grid.Key, path, s.template); errs != nil {
		return nil, errs
	}
	if len(grid.Overrides) > 0 {
		if bad := tooManyItems(path, s.template); bad != nil {
			return nil, field.ErrorList{bad}
		}
	}
	left := maxPatches
	for i := range grid.Overrides {
		from := &grid.Overrides[i]
		path := field.NewPath("spec", "overrides").Index(i)
		selector, err := Selector(path.Child("selector"), from.Selector)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if left -= len(from.Patch.Raw); left < 0 {
			return nil, append(errs, field.TooLong(path.Child("patch"), "", maxPatches))
		}
		patch, bad := readObject(path.Child("patch"), from.Patch.Raw)
		if bad != nil {
			errs = append(errs, bad...)
			continue
		}
		if bad := tooManyItems(path.Child("patch"), patch); bad != nil {
			errs = append(errs, bad)
			continue
		}
		o := override{sites: map[string]bool{}, selector: selector, patch: patch, path: path.Child("patch")}
		for _, site := range from.Sites {
			o.sites[site] = true
		}
		merged, bad := merge(kind, s.template, o)
		if bad == nil {
			bad = check(kind, grid.Key, o.path, merged)
		}
		errs = append(errs, bad...)
		s.overrides = append(s.overrides, o)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return s, nil
}

// Selector is a label selector; none is one that matches nothing.
func Selector(path *field.Path, from *metav1.LabelSelector) (labels.Selector, *field.Error) {
	selector, err := metav1.LabelSelectorAsSelector(from)
	if err != nil {
		return nil, field.Invalid(path, "", err.Error())
	}
	return selector, nil
}

// In returns what the child in a site is made from. The labels are the site's,
// with that of the grid's key.
func (s *Shape) In(site string, siteLabels labels.Set) (*Variant, field.ErrorList) {
	var matching []int
	for i, o := range s.overrides {
		if o.sites[site] || o.selector.Matches(siteLabels) {
			matching = append(matching, i)
		}
	}
	id := fmt.Sprint(matching)
	if v := s.variants[id]; v != nil {
		return v, nil
	}
	return s.make(id, matching)
}

// Each returns the template alone, and with each override alone: one example of
// all that the grid says.
func (s *Shape) Each() ([]*Variant, field.ErrorList) {
	var all []*Variant
	for i := -1; i < len(s.overrides); i++ {
		matching := []int{}
		if i >= 0 {
			matching = append(matching, i)
		}
		v, errs := s.make(fmt.Sprint(matching), matching)
		if errs != nil {
			return nil, errs
		}
		all = append(all, v)
	}
	return all, nil
}

func (s *Shape) make(id string, matching []int) (*Variant, field.ErrorList) {
	spec, first := s.template, -1
	for _, i := range matching {
		if first < 0 {
			first = i
		}
		o := s.overrides[i]
		merged, errs := merge(s.kind, spec, o)
		if errs == nil {
			errs = check(s.kind, s.grid.Key, o.path, merged)
		}
		if errs != nil {
			return nil, errs
		}
		spec = merged
	}
	spec, _ = withoutNulls(runtime.DeepCopyJSONValue(spec)).(map[string]any)
	_, replicas := spec["replicas"]
	v := &Variant{Override: first, Replicas: replicas && s.kind.pods, kind: s.kind, grid: s.grid, spec: spec}
	hash, err := v.hash()
	if err != nil {
		return nil, field.ErrorList{field.InternalError(field.NewPath("spec", "template"), err)}
	}
	v.Hash = hash
	s.variants[id] = v
	return v, nil
}

func (v *Variant) hash() (string, error) {
	text, err := json.Marshal([]any{"v1", v.grid.Key, v.grid.Metadata, v.grid.Annotations, v.spec})
	if err != nil {
		return "", fmt.Errorf("encoding what a child is made from: %w", err)
	}
	sum := sha256.Sum256(text)
	return strings.ToLower(base32.HexEncoding.EncodeToString(sum[:10])), nil
}

// Owner is the grid that a child belongs to.
type Owner struct {
	Namespace, Name string
	Reference       metav1.OwnerReference
}

// Child is the name of the child in a site.
func (o Owner) Child(site string) string { return gridname.Child(o.Name, site) }

// Apply is the configuration that is applied for the child in a site, and
// nothing of it is shared with any other.
func (v *Variant) Apply(owner Owner, site string) map[string]any {
	own := map[string]any{gridv1.GridLabel: owner.Name, gridv1.SiteLabel: site}
	spec := runtime.DeepCopyJSON(v.spec)
	add(spec, own, "selector", "matchLabels")
	add(spec, own, "template", "metadata", "labels")
	add(spec, map[string]any{v.grid.Key: site}, "template", "spec", "nodeSelector")
	return v.object(owner, owner.Child(site), own, spec)
}

// ApplyService is the configuration that is applied for the Service of a grid.
func (v *Variant) ApplyService(owner Owner) map[string]any {
	return v.object(owner, owner.Name, map[string]any{gridv1.GridLabel: owner.Name}, runtime.DeepCopyJSON(v.spec))
}

func (v *Variant) object(owner Owner, name string, own, spec map[string]any) map[string]any {
	childLabels, annotations := maps.Clone(own), map[string]any{gridv1.HashAnnotation: v.Hash}
	if v.grid.Metadata != nil {
		for k, value := range v.grid.Metadata.Labels {
			childLabels[k] = value
		}
		for k, value := range v.grid.Metadata.Annotations {
			annotations[k] = value
		}
	}
	for k, value := range v.grid.Annotations {
		annotations[k] = value
	}
	maps.Copy(childLabels, own)
	return map[string]any{
		"apiVersion": v.kind.GroupVersion().String(),
		"kind":       v.kind.Kind,
		"metadata": map[string]any{
			"namespace": owner.Namespace, "name": name, "labels": childLabels, "annotations": annotations,
			"ownerReferences": []any{map[string]any{
				"apiVersion": owner.Reference.APIVersion, "kind": owner.Reference.Kind, "name": owner.Reference.Name, "uid": string(owner.Reference.UID),
				"controller": true, "blockOwnerDeletion": true,
			}},
		},
		"spec": spec,
	}
}

// Path is the path in the grid of a field of the child that is made of v.
func (v *Variant) Path(fieldOfChild string) string {
	base := "spec.template"
	if v.Override >= 0 {
		base = fmt.Sprintf("spec.overrides[%d].patch", v.Override)
	}
	rest, isSpec := strings.CutPrefix(strings.TrimPrefix(fieldOfChild, "."), "spec")
	if !isSpec {
		return base
	}
	return base + rest
}

// TopologyAnnotations are those of a closed Service.
func TopologyAnnotations(key string, statefulSetGrids []string) map[string]string {
	keys, _ := json.Marshal([]string{key})
	annotations := map[string]string{topology.Annotation: string(keys)}
	if len(statefulSetGrids) > 0 {
		names, _ := json.Marshal(slices.Sorted(slices.Values(statefulSetGrids)))
		annotations[gridv1.StatefulSetGridsAnnotation] = string(names)
	}
	return annotations
}

// add sets labels in the map at a path below an object, made where it is not
// there yet.
func add(object, what map[string]any, path ...string) {
	for _, name := range path {
		next, ok := object[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			object[name] = next
		}
		object = next
	}
	maps.Copy(object, what)
}

func readObject(path *field.Path, raw []byte) (map[string]any, field.ErrorList) {
	if len(raw) == 0 {
		return nil, field.ErrorList{field.Required(path, "")}
	}
	if len(raw) > maxTemplate {
		return nil, field.ErrorList{field.TooLong(path, "", maxTemplate)}
	}
	var object map[string]any
	if err := utiljson.Unmarshal(raw, &object); err != nil || object == nil {
		return nil, field.ErrorList{field.Invalid(path, "", "must be an object")}
	}
	return object, nil
}

// tooManyItems finds a list that is too long to be merged.
func tooManyItems(path *field.Path, value any) *field.Error {
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if bad := tooManyItems(path.Child(key), v[key]); bad != nil {
				return bad
			}
		}
	case []any:
		if len(v) > maxItems {
			return field.TooMany(path, len(v), maxItems)
		}
		for i := range v {
			if bad := tooManyItems(path.Index(i), v[i]); bad != nil {
				return bad
			}
		}
	}
	return nil
}

// withoutNulls removes members that are null: they say that something is not
// there.
func withoutNulls(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, member := range v {
			if member == nil {
				delete(v, key)
				continue
			}
			v[key] = withoutNulls(member)
		}
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	}
	return value
}
