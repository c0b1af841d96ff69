package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Dist is a built Skerry: programs, plugins and images.
type Dist struct {
	Dir    string   `json:"dir"`
	Images []string `json:"images"` // archives that every machine finds
}

func (d Dist) programs() string { return filepath.Join(d.Dir, "bin") }
func (d Dist) plugins() string  { return filepath.Join(d.Dir, "cni") }

// Places are the folders that commands work with.
type Places struct {
	Root string // of all sandboxes
	Dist string // of the built Skerry
}

// Environment variables that say where things are.
const (
	RootVariable = "SKERRY_SANDBOX_ROOT"
	DistVariable = "SKERRY_DIST"
)

// FindPlaces fills in what is empty: from the environment, then from the
// checkout around the working directory, then from where the program is.
func FindPlaces(p Places) (Places, error) {
	if p.Root == "" {
		p.Root = os.Getenv(RootVariable)
	}
	if p.Dist == "" {
		p.Dist = os.Getenv(DistVariable)
	}
	output, err := outputDir()
	if (p.Root == "" || p.Dist == "") && err != nil {
		return p, err
	}
	if p.Root == "" {
		p.Root = filepath.Join(output, "sandbox")
	}
	if p.Dist == "" {
		p.Dist = filepath.Join(output, runtime.GOARCH)
	}
	for _, dir := range []*string{&p.Root, &p.Dist} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return p, err
		}
	}
	return p, nil
}

// outputDir finds the _output folder of a checkout.
func outputDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.Contains(data, []byte("module skerry.dev/skerry\n")) {
			return filepath.Join(dir, "_output"), nil
		}
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	// _output/<arch>/bin/skerry
	if output := filepath.Dir(filepath.Dir(filepath.Dir(self))); filepath.Base(output) == "_output" {
		return output, nil
	}
	return "", fmt.Errorf("not inside a checkout of Skerry: say where sandboxes are with --root (or %s) and where Skerry is built with --dist (or %s)", RootVariable, DistVariable)
}

// needed lists the programs a cluster is made with.
var needed = []string{"skerry", "skerry-agent", "kubelet", "kubectl", "containerd", "containerd-shim-runc-v2", "runc", "ctr"}

// openDist checks that Skerry is built. Machines without Kubernetes need
// nothing of it but the folders.
func openDist(dir string, cluster bool) (Dist, error) {
	d := Dist{Dir: dir}
	var missing []string
	want := []string{"bin", "cni"}
	if cluster {
		for _, name := range needed {
			want = append(want, filepath.Join("bin", name))
		}
	}
	for _, name := range want {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			missing = append(missing, name)
		}
	}
	images, err := filepath.Glob(filepath.Join(dir, "images", "*.tar"))
	if err != nil {
		return d, err
	}
	target := "build"
	if len(images) == 0 {
		missing, target = append(missing, "images"), "images" // which builds too
	}
	if len(missing) > 0 && cluster {
		return d, fmt.Errorf("Skerry is not built in %s (missing: %s); run `make %s` first", dir, strings.Join(missing, ", "), target)
	}
	for _, name := range []string{"bin", "cni"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return d, err
		}
	}
	d.Images = images
	return d, nil
}
