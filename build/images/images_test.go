package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	kubeadmimages "k8s.io/kubernetes/cmd/kubeadm/app/images"
)

func testSources(t *testing.T) sources {
	t.Helper()
	return sources{out: t.TempDir(), arch: "arm64", kubernetes: "v1.37.2+skerry.0", upstream: "v1.37.2", source: t.TempDir()}
}

// A node never pulls: whatever kubeadm and Skerry want for a cluster must be made.
func TestEveryImageThatKubeadmWants(t *testing.T) {
	s := testSources(t)
	wanted := kubeadmimages.GetControlPlaneImages(&kubeadm.ClusterConfiguration{
		KubernetesVersion: s.kubernetes,
		ImageRepository:   v1beta4.DefaultImageRepository,
		Etcd:              kubeadm.Etcd{Local: &kubeadm.LocalEtcd{}},
	})
	wanted = append(wanted, "skerry.dev/skerry-controller-manager:v1.37.2_skerry.0")
	var made []string
	for _, r := range productRecipes(s) {
		made = append(made, r.names...)
	}
	slices.Sort(wanted)
	slices.Sort(made)
	if !slices.Equal(made, wanted) {
		t.Errorf("images made: %q\nkubeadm wants: %q", made, wanted)
	}
	if !slices.ContainsFunc(made, func(name string) bool { return strings.HasSuffix(name, "/kube-apiserver:v1.37.2_skerry.0") }) {
		t.Errorf("no kube-apiserver with the product's tag among %q", made)
	}
}

func TestNamesAndFilesAreUnique(t *testing.T) {
	s := testSources(t)
	for _, component := range []string{"kube-apiserver", "kube-controller-manager"} {
		write(t, filepath.Join(s.out, "pristine", component), "binary")
	}
	files, names := map[string]bool{}, map[string]bool{}
	for _, r := range append(productRecipes(s), testRecipes(s)...) {
		if files[r.file] {
			t.Errorf("two images go into %s", r.file)
		}
		files[r.file] = true
		for _, name := range r.names {
			if names[name] {
				t.Errorf("two images are called %s", name)
			}
			names[name] = true
		}
	}
	if !files["test/kube-controller-manager-pristine.tar"] {
		t.Error("the unpatched kube-controller-manager is there, and gets no image")
	}
	if files["test/kube-scheduler-pristine.tar"] {
		t.Error("an image is to be made of an unpatched kube-scheduler that is not there")
	}
}

func TestUpToDate(t *testing.T) {
	s := testSources(t)
	input := filepath.Join(s.out, "bin", "program")
	write(t, input, "one")
	m, err := newMaker(s)
	if err != nil {
		t.Fatal(err)
	}
	r := recipe{
		file:   "test/program.tar",
		names:  []string{"registry.example/program:1"},
		config: v1.Config{Entrypoint: []string{"/program"}},
		fill:   func(c *contents) error { return c.place("bin/program", "/program", 0o755) },
	}
	if m.upToDate(r) {
		t.Fatal("an image that was never made is up to date")
	}
	build := func() {
		t.Helper()
		if _, err := m.build(r); err != nil {
			t.Fatal(err)
		}
		if !m.upToDate(r) {
			t.Fatal("an image that was just made is not up to date")
		}
	}
	build()
	for what, change := range map[string]func(){
		"an input has changed":     func() { write(t, input, "two") },
		"the archive is gone":      func() { remove(t, m.archive(r)) },
		"an input is gone":         func() { remove(t, input) },
		"the stamp is damaged":     func() { write(t, m.stamp(r), "{") },
		"the name has changed":     func() { r.names = []string{"registry.example/program:2"} },
		"the program has changed":  func() { m.program = "another" },
		"the architecture changed": func() { m.arch = "amd64" },
	} {
		write(t, input, "one")
		build()
		change()
		if m.upToDate(r) {
			t.Errorf("the image is up to date, although %s", what)
		}
	}
}

func TestMissingInputFails(t *testing.T) {
	s := testSources(t)
	m, err := newMaker(s)
	if err != nil {
		t.Fatal(err)
	}
	r := productRecipes(s)[0]
	if err := m.step(r); err == nil || !strings.Contains(err.Error(), r.file) || !strings.Contains(err.Error(), "parts/pause") {
		t.Errorf("error is %v, want one that names the image and the missing part", err)
	}
	if _, err := os.Stat(m.archive(r)); err == nil {
		t.Error("an archive was left behind")
	}
}

func TestAppletsOf(t *testing.T) {
	var names []string
	for range 100 {
		names = append(names, "applet")
	}
	block := strings.Join(append([]string{"[", "[["}, names...), "\x00")
	got, err := appletsOf([]byte("code\x00" + block + "\x00\x00more"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, "\x00") != block {
		t.Errorf("applets are %q", got)
	}
	for what, data := range map[string]string{
		"no block": "code", "a short block": "\x00[\x00[[\x00ls\x00\x00", "an endless block": "\x00" + block,
	} {
		if _, err := appletsOf([]byte(data)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
