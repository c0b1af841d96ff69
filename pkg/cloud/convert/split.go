package convert

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"sigs.k8s.io/yaml"
)

// Split returns the objects of a YAML or JSON document, each as JSON: those of a
// List one by one, none of an empty document.
func Split(document []byte) ([][]byte, error) {
	text, err := yaml.YAMLToJSON(document)
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	if string(text) == "null" {
		return nil, nil
	}
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("reading an object: %w", err)
	}
	if !strings.HasSuffix(list.Kind, "List") || list.Items == nil {
		return [][]byte{text}, nil
	}
	var all [][]byte
	for _, item := range list.Items {
		all = append(all, item)
	}
	return all, nil
}

// Describe names an object for people.
func Describe(object []byte) string {
	var head struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(object, &head); err != nil {
		return "object"
	}
	name := head.Metadata.Name
	if head.Metadata.Namespace != "" {
		name = head.Metadata.Namespace + "/" + name
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, head.Kind+" "+name)
}
