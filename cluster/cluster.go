// Package cluster holds what Skerry installs into a cluster: today the
// admission policies and roles of sites. It is data with the names that code
// has to know; it must not know how or when it is applied.
package cluster

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"path"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Names of the admission policies.
const (
	// BootstrapPolicy limits what Nodes a bootstrap token may create.
	BootstrapPolicy = "skerry.dev-bootstrap-node"
	// NodePolicy keeps nodes from changing what the cloud says about them.
	NodePolicy = "skerry.dev-node"
)

//go:embed policies/*.yaml
var policies embed.FS

// Policies returns the objects of the folder policies in the order in which
// they are to be applied: what forbids comes before what allows.
func Policies() ([]*unstructured.Unstructured, error) {
	const dir = "policies"
	files, err := policies.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the policies: %w", err)
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		data, err := policies.ReadFile(path.Join(dir, file.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading policy %s: %w", file.Name(), err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var object unstructured.Unstructured
			err := decoder.Decode(&object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("decoding policy %s: %w", file.Name(), err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, &object)
			}
		}
	}
	return objects, nil
}
