package shape

import (
	"encoding/json"
	"fmt"
	"regexp"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// merge returns the template with one more override. Neither is changed.
func merge(kind Kind, template map[string]any, o override) (merged map[string]any, errs field.ErrorList) {
	// The library takes structure for granted that a user's patch need not have.
	defer func() {
		if r := recover(); r != nil {
			merged, errs = nil, field.ErrorList{field.Invalid(o.path, "", fmt.Sprintf("is not a strategic merge patch: %v", r))}
		}
	}()
	// It also writes into what it is given.
	merged, err := strategicpatch.StrategicMergeMapPatch(runtime.DeepCopyJSON(template), runtime.DeepCopyJSON(o.patch), kind.newSpec())
	if err != nil {
		return nil, field.ErrorList{field.Invalid(o.path, "", err.Error())}
	}
	return merged, nil
}

// unknownField is how the strict decoder names a field that is not there, and
// wrongType how it names one whose value is of another type.
var (
	unknownField = regexp.MustCompile(`^(unknown|duplicate) field "([^"]*)"$`)
	wrongType    = regexp.MustCompile(`^json: cannot unmarshal (.*) into Go (?:struct field [A-Za-z0-9]*\.([^ ]*) of type|value of type) (.*)$`)
)

// check says what is wrong with a spec that stands, or would come about, at path.
func check(kind Kind, gridKey string, path *field.Path, spec map[string]any) field.ErrorList {
	text, err := json.Marshal(spec)
	if err != nil {
		return field.ErrorList{field.Invalid(path, "", err.Error())}
	}
	typed := kind.newSpec()
	unknown, err := kjson.UnmarshalStrict(text, typed)
	if err != nil {
		if m := wrongType.FindStringSubmatch(err.Error()); m != nil {
			return field.ErrorList{field.Invalid(below(path, m[2]), m[1], "must be of type "+m[3])}
		}
		return field.ErrorList{field.Invalid(path, "", err.Error())}
	}
	var errs field.ErrorList
	for _, err := range unknown {
		if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
			errs = append(errs, field.Invalid(below(path, m[2]), "", m[1]+" field"))
		} else {
			errs = append(errs, field.Invalid(path, "", err.Error()))
		}
	}
	if kind.pods {
		errs = append(errs, reserved(path, spec, gridKey, "the grid sets it", "template", "spec", "nodeSelector")...)
		for _, label := range []string{gridv1.GridLabel, gridv1.SiteLabel} {
			errs = append(errs, reserved(path, spec, label, "the grid sets it", "template", "metadata", "labels")...)
			errs = append(errs, reserved(path, spec, label, "the grid sets it", "selector", "matchLabels")...)
		}
	}
	return errs
}

// below is a path in the words of a decoder, below another.
func below(path *field.Path, name string) *field.Path {
	if name == "" {
		return path
	}
	return field.NewPath(path.String() + "." + name)
}

func reserved(path *field.Path, object map[string]any, key, why string, at ...string) field.ErrorList {
	for _, name := range at {
		path = path.Child(name)
		next, ok := object[name].(map[string]any)
		if !ok {
			return nil
		}
		object = next
	}
	if _, there := object[key]; there {
		return field.ErrorList{field.Forbidden(path.Key(key), why)}
	}
	return nil
}
