// Package images imports the OCI archives that a release brings along into
// containerd, so that a node needs no registry to start.
//
// It knows archives and containerd. It must not know what the images are for;
// callers say which ones a machine needs.
package images

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DefaultDir is where the release's packages put archives.
const DefaultDir = "/var/lib/skerry/images"

// maxIndex bounds index.json of an archive; real ones have a few hundred bytes.
const maxIndex = 4 << 20

// maxEntries bounds the files of an archive that are looked at.
const maxEntries = 100_000

// nameAnnotation is where containerd writes and reads full image names.
const nameAnnotation = "io.containerd.image.name"

// Image is one image of an archive.
type Image struct {
	Name   string
	Digest digest.Digest
}

// Archive is one OCI archive (a tar of an OCI image layout).
type Archive struct {
	Path   string
	Images []Image
}

// Names returns the names of the archive's images.
func (a Archive) Names() []string {
	names := make([]string, len(a.Images))
	for i, image := range a.Images {
		names[i] = image.Name
	}
	return names
}

// ReadDir reads what the archives (*.tar) of a folder hold, sorted by file name.
// A missing folder has no archives.
func ReadDir(dir string) ([]Archive, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the folder of image archives: %w", err)
	}
	var archives []Archive
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".tar" {
			continue
		}
		archive, err := readFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

func readFile(path string) (Archive, error) {
	file, err := os.Open(path)
	if err != nil {
		return Archive{}, fmt.Errorf("reading image archive: %w", err)
	}
	defer file.Close()
	found, err := ReadIndex(file)
	if err != nil {
		return Archive{}, fmt.Errorf("image archive %s: %w; it is damaged or not an OCI archive: replace it, or move it away", path, err)
	}
	return Archive{Path: path, Images: found}, nil
}

// ReadIndex returns the named images of an OCI archive. It reads the index only
// (and skips over layers without reading them if reader can seek).
func ReadIndex(reader io.Reader) ([]Image, error) {
	files := tar.NewReader(reader)
	for range maxEntries {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("no index.json in it")
		}
		if err != nil {
			return nil, fmt.Errorf("reading the tar: %w", err)
		}
		if path.Clean(header.Name) != ocispec.ImageIndexFile || header.Typeflag != tar.TypeReg {
			continue
		}
		if header.Size > maxIndex {
			return nil, fmt.Errorf("index.json has %d bytes, more than %d", header.Size, maxIndex)
		}
		data, err := io.ReadAll(io.LimitReader(files, maxIndex))
		if err != nil {
			return nil, fmt.Errorf("reading index.json: %w", err)
		}
		return parseIndex(data)
	}
	return nil, fmt.Errorf("no index.json among the first %d files", maxEntries)
}

func parseIndex(data []byte) ([]Image, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("parsing index.json: %w", err)
	}
	var found []Image
	for _, manifest := range index.Manifests {
		name := manifest.Annotations[nameAnnotation]
		if name == "" {
			name = manifest.Annotations[ocispec.AnnotationRefName]
		}
		if name == "" {
			continue
		}
		if err := manifest.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("index.json: digest of %s: %w", name, err)
		}
		found = append(found, Image{Name: name, Digest: manifest.Digest})
	}
	if len(found) == 0 {
		return nil, errors.New("index.json names no image")
	}
	return found, nil
}

// Component returns the last part of an image's repository, without registry,
// tag and digest: "etcd" of "registry.example:5000/a/etcd:3.5".
func Component(name string) string {
	name, _, _ = strings.Cut(name, "@")
	name = name[strings.LastIndex(name, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	return name
}

// Select returns the archives that a machine needs: all of them, without those
// that hold nothing but components of the skip list.
func Select(archives []Archive, skip []string) []Archive {
	var selected []Archive
	for _, archive := range archives {
		needed := slices.ContainsFunc(archive.Images, func(image Image) bool {
			return !slices.Contains(skip, Component(image.Name))
		})
		if needed {
			selected = append(selected, archive)
		}
	}
	return selected
}

// Missing returns the names that none of the archives holds.
func Missing(names []string, archives []Archive) []string {
	var missing []string
	for _, name := range names {
		held := slices.ContainsFunc(archives, func(archive Archive) bool {
			return slices.Contains(archive.Names(), name)
		})
		if !held {
			missing = append(missing, name)
		}
	}
	return missing
}
