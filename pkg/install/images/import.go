package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

const (
	// namespace is where the CRI plugin keeps its images.
	namespace = "k8s.io"
	// snapshotter is the one that our containerd configuration names.
	snapshotter = "overlayfs"
	// parallel imports: more do not help a disk, fewer leave a core idle.
	parallel = 2
	// importTimeout bounds the import of one archive.
	importTimeout = 5 * time.Minute

	pinnedLabel = "io.cri-containerd.pinned"
)

// Store is the containerd of this machine.
type Store struct {
	client *containerd.Client
}

// Open connects to containerd, which has to answer within the timeout; socket is
// a path or a unix:// address.
func Open(socket string, timeout time.Duration) (*Store, error) {
	client, err := containerd.New(strings.TrimPrefix(socket, "unix://"),
		containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(timeout))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd at %s: %w", socket, err)
	}
	return &Store{client: client}, nil
}

// Close ends the connection.
func (s *Store) Close() { s.client.Close() }

// Version returns containerd's version.
func (s *Store) Version(ctx context.Context) (string, error) {
	version, err := s.client.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("asking containerd for its version: %w", err)
	}
	return version.Version, nil
}

// List returns the names of the images in the store, sorted, without the
// digests and ids under which the CRI plugin lists each image again.
func (s *Store) List(ctx context.Context) ([]string, error) {
	all, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the images in containerd: %w", err)
	}
	var names []string
	for _, image := range all {
		if !strings.Contains(image.Name, "@") && !strings.HasPrefix(image.Name, "sha256:") {
			names = append(names, image.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Import imports archives, a few at a time, and calls report after each with
// the time it took (0: everything in it was there already).
func (s *Store) Import(ctx context.Context, archives []Archive, report func(Archive, time.Duration)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, archive := range archives {
		group.Go(func() error {
			start := time.Now()
			present, err := s.has(ctx, archive)
			if err != nil {
				return err
			}
			if present {
				report(archive, 0)
				return nil
			}
			if err := s.importOne(ctx, archive); err != nil {
				return fmt.Errorf("importing image archive %s: %w", archive.Path, err)
			}
			report(archive, time.Since(start))
			return nil
		})
	}
	return group.Wait()
}

// has reports whether the store holds all images of the archive, the very ones.
func (s *Store) has(ctx context.Context, archive Archive) (bool, error) {
	for _, image := range archive.Images {
		stored, err := s.client.ImageService().Get(ctx, image.Name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("looking up image %s in containerd: %w", image.Name, err)
		}
		if stored.Target.Digest != image.Digest {
			return false, nil
		}
	}
	return true, nil
}

func (s *Store) importOne(ctx context.Context, archive Archive) error {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	file, err := os.Open(archive.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	// Pinned: the kubelet's garbage collection must not remove what no registry
	// may be there to give back.
	imported, err := s.client.Import(ctx, file, containerd.WithImageLabels(map[string]string{pinnedLabel: "pinned"}))
	if err != nil {
		return err
	}
	for _, image := range imported {
		if err := containerd.NewImage(s.client, image).Unpack(ctx, snapshotter); err != nil {
			return fmt.Errorf("unpacking %s of %s: %w", image.Name, filepath.Base(archive.Path), err)
		}
	}
	return nil
}
