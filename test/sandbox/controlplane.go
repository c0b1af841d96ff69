package sandbox

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var imageLine = regexp.MustCompile(`(?m)^(\s*image: )(.*)$`)

// UsePristine runs upstream's own build of a control-plane component instead
// of Skerry's until the test ends, as a control.
func (s *Sandbox) UsePristine(component string) {
	s.t.Helper()
	archive := s.TestImage(component + "-pristine")
	image, err := imageIn(archive)
	s.must(err)
	n := s.ControlPlane()
	s.must(s.box.Load(s.t.Context(), archive, n.Name()))
	manifest := filepath.Join(n.Config().Disk(), "etc/kubernetes/manifests", component+".yaml")
	ours, err := os.ReadFile(manifest)
	s.must(err)
	leader := s.Leader(component)
	s.replaceManifest(manifest, imageLine.ReplaceAll(ours, []byte("${1}"+image)))
	s.waitForImage(s.t.Context(), component, image, leader)
	s.t.Cleanup(func() {
		ctx := context.Background()
		leader, err := s.leader(ctx, component)
		s.replaceManifest(manifest, ours)
		if err == nil && !s.t.Failed() {
			s.waitForImage(ctx, component, string(imageLine.FindSubmatch(ours)[2]), leader)
		}
	})
}

// waitForImage waits until the component's static pod runs the image and, if
// it is a component that elects a leader, leads: before that, nothing that a
// test sees is its doing.
func (s *Sandbox) waitForImage(ctx context.Context, component, image, leader string) {
	s.t.Helper()
	name := component + "-" + s.ControlPlane().Name()
	s.Eventually(3*time.Minute, component+" runs "+image, func() error {
		p, err := s.Kube().CoreV1().Pods(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := p.Spec.Containers[0].Image; got != image {
			return fmt.Errorf("pod %s is to run %s", name, got)
		}
		if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			return fmt.Errorf("pod %s is not ready", name)
		}
		now, err := s.leader(ctx, component)
		if err == nil && leader != "" && (now == leader || now == "") {
			return fmt.Errorf("it does not lead yet (%q does)", now)
		}
		return err
	})
}

// Leader tells who leads a component, "" for one that elects none. It changes
// when the component's process does.
func (s *Sandbox) Leader(component string) string {
	s.t.Helper()
	leader, err := s.leader(s.t.Context(), component)
	s.must(err)
	return leader
}

func (s *Sandbox) leader(ctx context.Context, component string) (string, error) {
	lease, err := s.Kube().CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, component, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for the leader of %s: %w", component, err)
	}
	if lease.Spec.HolderIdentity == nil {
		return "", nil
	}
	return *lease.Spec.HolderIdentity, nil
}

// replaceManifest writes a static pod's file whole: kubelet must not read half
// of it, nor take a second file in the folder for another pod.
func (s *Sandbox) replaceManifest(file string, data []byte) {
	s.t.Helper()
	tmp := filepath.Join(filepath.Dir(filepath.Dir(file)), filepath.Base(file)+".new")
	s.must(errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, file)))
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
