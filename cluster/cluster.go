// Package cluster holds what Skerry installs into a cluster: its types, the
// admission policies and roles of sites, and what the agents of nodes need. It is data
// with the names that code has to know; it must not know how or when it is
// applied.
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
	// NodeReportPolicy lets a node write its own report only.
	NodeReportPolicy = "skerry.dev-node-report"
	// SitePolicy keeps nodes from writing Sites.
	SitePolicy = "skerry.dev-site"
	// VerdictPolicy says who sets conditions of skerry.dev.
	VerdictPolicy = "skerry.dev-verdict"
	// SiteNamePolicy says what a site may be called.
	SiteNamePolicy = "skerry.dev-site-name"
)

// ApplyAnnotation says how an object is applied. With IfAbsent it is the user's
// as soon as it is there.
const (
	ApplyAnnotation = "skerry.dev/apply"
	IfAbsent        = "if-absent"
)

// ImagePlaceholder stands for the image of skerry-controller-manager, whose tag
// is the cluster's version.
const ImagePlaceholder = "IMAGE"

//go:embed crds/*.yaml policies/*.yaml hub/*.yaml
var folders embed.FS

// Policies returns the objects of the folder policies in the order in which
// they are to be applied: what forbids comes before what allows.
func Policies() ([]*unstructured.Unstructured, error) { return read("policies") }

// CRDs returns the CustomResourceDefinitions. They are to be Established before
// anything of their types is asked for.
func CRDs() ([]*unstructured.Unstructured, error) { return read("crds") }

// Hub returns the objects of the folder hub, in the order in which they are to be
// applied. Their image is ImagePlaceholder.
func Hub() ([]*unstructured.Unstructured, error) { return read("hub") }

func read(dir string) ([]*unstructured.Unstructured, error) {
	files, err := folders.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the objects of %s: %w", dir, err)
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		data, err := folders.ReadFile(path.Join(dir, file.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path.Join(dir, file.Name()), err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var object unstructured.Unstructured
			err := decoder.Decode(&object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("decoding %s: %w", path.Join(dir, file.Name()), err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, &object)
			}
		}
	}
	return objects, nil
}
