package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// decode reads YAML strictly. Unlike the errors of the parsers below it, its
// own name the field as the user wrote it, with its place.
func decode(data []byte, into any) error {
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var tree any
	if err := json.Unmarshal(asJSON, &tree); err != nil {
		return err
	}
	if err := check(tree, reflect.TypeOf(into).Elem(), ""); err != nil {
		return err
	}
	return json.Unmarshal(asJSON, into)
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// check walks what was written beside the type that it should be.
func check(tree any, t reflect.Type, path string) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	wrong := func(want string) error {
		return fmt.Errorf("%s: %s expected", orTop(path), want)
	}
	switch {
	case tree == nil, reflect.PointerTo(t).Implements(unmarshaler):
		return leaf(tree, t, path)
	case t.Kind() == reflect.Struct:
		m, ok := tree.(map[string]any)
		if !ok {
			return wrong("a mapping")
		}
		fields := fieldsOf(t)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			ft, ok := fields[key]
			if !ok {
				return fmt.Errorf("%s: no such field; there are %s", join(path, key), strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
			}
			if err := check(m[key], ft, join(path, key)); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Slice:
		list, ok := tree.([]any)
		if !ok {
			return wrong("a list")
		}
		for i, item := range list {
			if err := check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Map:
		m, ok := tree.(map[string]any)
		if !ok {
			return wrong("a mapping")
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if err := check(m[key], t.Elem(), join(path, key)); err != nil {
				return err
			}
		}
		return nil
	}
	return leaf(tree, t, path)
}

// leaf tries one value.
func leaf(tree any, t reflect.Type, path string) error {
	data, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, reflect.New(t).Interface())
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		return fmt.Errorf("%s: %s is not of type %s", orTop(path), data, t.Kind())
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", orTop(path), data, err)
	}
	return nil
}

// fieldsOf maps the names of a struct's fields to their types, those of
// embedded structs among them.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			maps.Copy(fields, fieldsOf(f.Type))
			continue
		}
		fields[name] = f.Type
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func orTop(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}
