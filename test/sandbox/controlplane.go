package sandbox

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var imageLine = regexp.MustCompile(`(?m)^(\s*image: ).*$`)

// UsePristine runs upstream's own build of a control-plane component instead
// of Skerry's until the test ends, as a control.
func (s *Sandbox) UsePristine(component string) {
	s.t.Helper()
	archive := s.TestImage(component + "-pristine")
	image, err := imageIn(archive)
	s.must(err)
	s.Step("running the pristine %s (%s)", component, image)
	n := s.ControlPlane()
	s.must(s.box.Load(s.t.Context(), archive, n.Name()))
	manifest := filepath.Join(n.Config().Disk(), "etc/kubernetes/manifests", component+".yaml")
	ours, err := os.ReadFile(manifest)
	s.must(err)
	s.replaceManifest(manifest, imageLine.ReplaceAll(ours, []byte("${1}"+image)))
	s.waitForImage(component, image)
	s.t.Cleanup(func() { s.replaceManifest(manifest, ours) })
}

// replaceManifest writes a static pod's file whole: kubelet must not read half
// of it, nor take a second file in the folder for another pod.
func (s *Sandbox) replaceManifest(file string, data []byte) {
	s.t.Helper()
	tmp := filepath.Join(filepath.Dir(filepath.Dir(file)), filepath.Base(file)+".new")
	s.must(errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, file)))
}

// waitForImage waits until the component's static pod runs the image.
func (s *Sandbox) waitForImage(component, image string) {
	s.t.Helper()
	name := component + "-" + s.ControlPlane().Name()
	s.Eventually(3*time.Minute, component+" runs "+image, func() error {
		p, err := s.Kube().CoreV1().Pods(metav1.NamespaceSystem).Get(s.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := p.Spec.Containers[0].Image; got != image {
			return fmt.Errorf("pod %s is to run %s", name, got)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not ready", name)
	})
}

// imageIn reads the name of the image in an OCI archive.
func imageIn(archive string) (string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for files := tar.NewReader(f); ; {
		h, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("%s holds no index.json: %w", archive, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"manifests"`
		}
		if err := json.NewDecoder(io.LimitReader(files, 1<<20)).Decode(&index); err != nil {
			return "", fmt.Errorf("reading the index of %s: %w", archive, err)
		}
		for _, m := range index.Manifests {
			if name := m.Annotations["io.containerd.image.name"]; name != "" {
				return name, nil
			}
		}
		return "", fmt.Errorf("no image in %s has a name", archive)
	}
}
