// Package archive writes images as one OCI archive: an OCI image layout in a tar
// file, with each image under the name that containerd shall know it by. Equal
// images make equal bytes. It knows nothing of what the images hold.
package archive

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// annotationName is where containerd's importer finds an image's full name.
const annotationName = "io.containerd.image.name"

// An Image is what is run, under one name.
type Image struct {
	Name         string // full name with tag
	Architecture string
	Config       v1.Config
	Layers       [][]byte // tar archives
}

// Write writes the archive. A layer that several images share is stored once.
func Write(w io.Writer, images ...Image) error {
	blobs := map[string][]byte{}
	layers := compressor{}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, image := range images {
		d, err := add(blobs, layers, image)
		if err != nil {
			return fmt.Errorf("writing image %q: %w", image.Name, err)
		}
		index.Manifests = append(index.Manifests, *d)
	}
	indexJSON, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encoding the archive's index: %w", err)
	}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": indexJSON,
	}
	for digest, data := range blobs {
		files["blobs/sha256/"+digest] = data
	}
	return writeTar(w, files)
}

// add stores the image's blobs and returns what points to its manifest.
func add(blobs map[string][]byte, layers compressor, image Image) (*v1.Descriptor, error) {
	tag, err := name.NewTag(image.Name, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("the name must be a full one, with a tag: %w", err)
	}
	var compressed []*compressedLayer
	for _, data := range image.Layers {
		l, err := layers.compress(data)
		if err != nil {
			return nil, err
		}
		compressed = append(compressed, l)
		blobs[l.digest.Hex] = l.data
	}
	built, err := build(image, tag.TagStr(), compressed)
	if err != nil {
		return nil, err
	}
	manifest, err := built.Manifest()
	if err != nil {
		return nil, fmt.Errorf("making the manifest: %w", err)
	}
	if blobs[manifest.Config.Digest.Hex], err = built.RawConfigFile(); err != nil {
		return nil, fmt.Errorf("encoding the configuration: %w", err)
	}
	raw, err := built.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	digest, err := built.Digest()
	if err != nil {
		return nil, fmt.Errorf("hashing the manifest: %w", err)
	}
	blobs[digest.Hex] = raw
	return &v1.Descriptor{
		MediaType: types.OCIManifestSchema1,
		Digest:    digest,
		Size:      int64(len(raw)),
		Platform:  &v1.Platform{OS: "linux", Architecture: image.Architecture},
		Annotations: map[string]string{
			annotationName:                      image.Name,
			"org.opencontainers.image.ref.name": tag.TagStr(),
		},
	}, nil
}

// build makes the image's manifest and configuration. The version label gives
// images that differ in nothing but their tag identities of their own: containerd
// would report either name for a container of one of them.
func build(image Image, version string, layers []*compressedLayer) (v1.Image, error) {
	config := image.Config
	config.Labels = maps.Clone(config.Labels)
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	config.Labels["org.opencontainers.image.version"] = version

	built := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	built, err := mutate.ConfigFile(built, &v1.ConfigFile{
		OS:           "linux",
		Architecture: image.Architecture,
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		Config:       config,
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, fmt.Errorf("setting the configuration: %w", err)
	}
	for _, l := range layers {
		if built, err = mutate.AppendLayers(built, l); err != nil {
			return nil, fmt.Errorf("adding a layer: %w", err)
		}
	}
	return built, nil
}

func writeTar(w io.Writer, files map[string][]byte) error {
	t := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("writing archive entry %q: %w", dir, err)
		}
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(len(files[file])),
			ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("writing archive entry %q: %w", file, err)
		}
		if _, err := t.Write(files[file]); err != nil {
			return fmt.Errorf("writing archive entry %q: %w", file, err)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("ending the archive: %w", err)
	}
	return nil
}
