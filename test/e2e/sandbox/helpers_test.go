//go:build e2e

package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/process"
	"skerry.dev/skerry/pkg/sandbox/spec"
)

// createNamed makes machines without Kubernetes, under a name of its own.
func createNamed(t *testing.T, places box.Places, name string) *box.Sandbox {
	t.Helper()
	description, err := spec.Parse([]byte("name: " + name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(places.Root, name)); err == nil {
			if err := box.Delete(places.Root, name); err != nil {
				t.Error(err)
			}
		}
	})
	b, err := box.Create(t.Context(), description, box.Options{Places: places, Self: self(places), MachinesOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func self(places box.Places) string {
	if bin := os.Getenv("SKERRY_BIN"); bin != "" {
		return bin
	}
	return filepath.Join(places.Dist, "bin", "skerry")
}

// killNetwork ends the sandbox's network as a crash would.
func killNetwork(t *testing.T, b *box.Sandbox) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.Dir(), "fabric-pid.json"))
	if err != nil {
		t.Fatal(err)
	}
	var id process.ID
	if err := json.Unmarshal(data, &id); err != nil {
		t.Fatal(err)
	}
	if err := id.Kill(10*time.Second, nil); err != nil {
		t.Fatal(err)
	}
}
