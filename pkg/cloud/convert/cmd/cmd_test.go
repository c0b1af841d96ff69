package cmd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const two = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: List
items:
- apiVersion: superedge.io/v1
  kind: ServiceGrid
  metadata: {name: web, namespace: shop}
  spec: {gridUniqKey: zone, template: {ports: [{port: 80}]}}
---
`

func TestRun(t *testing.T) {
	var out, notes bytes.Buffer
	if err := (options{files: []string{"-"}}).run(strings.NewReader(two), &out, &notes); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kind: Namespace", "apiVersion: apps.skerry.dev/v1alpha1", "name: web-svc", "gridKey: zone"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if !strings.Contains(notes.String(), "-: ServiceGrid shop/web: metadata.name: note:") {
		t.Errorf("notes: %s", &notes)
	}
}

func TestPartial(t *testing.T) {
	dir := t.TempDir()
	text := strings.Replace(two, "gridUniqKey: zone", "gridUniqKey: zone, colour: red", 1)
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, notes bytes.Buffer
	if err := (options{files: []string{dir}}).run(nil, &out, &notes); !errors.Is(err, errPartial) || out.Len() != 0 {
		t.Errorf("%v, wrote %q", err, &out)
	}
	if !strings.Contains(notes.String(), "spec.colour: not converted") {
		t.Errorf("notes: %s", &notes)
	}
	if err := (options{files: []string{dir}, partial: true}).run(nil, &out, &notes); err != nil || !strings.Contains(out.String(), "web-svc") {
		t.Errorf("%v, wrote %q", err, &out)
	}
}

func TestBadFiles(t *testing.T) {
	for _, text := range []string{"a: [", "[1, 2]", "apiVersion: superedge.io/v1\nkind: ServiceGrid\nspec: 7"} {
		var out, notes bytes.Buffer
		if err := (options{files: []string{"-"}, partial: true}).run(strings.NewReader(text), &out, &notes); err == nil {
			t.Errorf("%q: no error, wrote %q", text, &out)
		}
	}
}
