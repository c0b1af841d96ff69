package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

func example() []Image {
	config := v1.Config{Entrypoint: []string{"/run"}, User: "65535:65535"}
	shared := []byte("shared layer")
	return []Image{
		{Name: "registry.example/set/one:1.2", Architecture: "arm64", Config: config, Layers: [][]byte{shared, []byte("own layer")}},
		{Name: "registry.example/set/one:1.1", Architecture: "arm64", Config: config, Layers: [][]byte{shared}},
	}
}

func TestArchive(t *testing.T) {
	files := unpack(t, mustWrite(t, example()...))

	if got, want := string(files["oci-layout"]), `{"imageLayoutVersion":"1.0.0"}`; got != want {
		t.Errorf("oci-layout is %s, want %s", got, want)
	}
	for name, data := range files {
		if digest, isBlob := strings.CutPrefix(name, "blobs/sha256/"); isBlob {
			if sum := sha256.Sum256(data); digest != hex.EncodeToString(sum[:]) {
				t.Errorf("blob %s has other contents than its name says", name)
			}
		}
	}
	// Two layers, two configurations, two manifests, oci-layout and index.json.
	if len(files) != 8 {
		t.Errorf("the archive has %d files, want 8: a shared layer is stored once", len(files))
	}

	var index v1.IndexManifest
	decode(t, files["index.json"], &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("the index has %d manifests, want 2", len(index.Manifests))
	}
	for i, want := range example() {
		d := index.Manifests[i]
		if got := d.Annotations["io.containerd.image.name"]; got != want.Name {
			t.Errorf("image %d is named %q, want %q", i, got, want.Name)
		}
		if got, tag := d.Annotations["org.opencontainers.image.ref.name"], strings.Split(want.Name, ":")[1]; got != tag {
			t.Errorf("image %d has reference %q, want %q", i, got, tag)
		}
		if d.Platform.String() != "linux/arm64" {
			t.Errorf("image %d is for %s, want linux/arm64", i, d.Platform)
		}
		checkImage(t, files, d, want)
	}
	if index.Manifests[0].Digest == index.Manifests[1].Digest {
		t.Error("two images have one digest")
	}
}

// checkImage follows the digests from the manifest down.
func checkImage(t *testing.T, files map[string][]byte, d v1.Descriptor, want Image) {
	t.Helper()
	raw := files["blobs/sha256/"+d.Digest.Hex]
	if int64(len(raw)) != d.Size {
		t.Errorf("%s: manifest of %d bytes is said to have %d", want.Name, len(raw), d.Size)
	}
	var manifest v1.Manifest
	decode(t, raw, &manifest)
	var config v1.ConfigFile
	decode(t, files["blobs/sha256/"+manifest.Config.Digest.Hex], &config)
	if config.Architecture != want.Architecture || config.OS != "linux" || config.Config.User != want.Config.User {
		t.Errorf("%s: configuration is %+v, want that of %+v", want.Name, config, want)
	}
	if len(manifest.Layers) != len(want.Layers) || len(config.RootFS.DiffIDs) != len(want.Layers) {
		t.Fatalf("%s: %d layers and %d diff IDs, want %d of each", want.Name, len(manifest.Layers), len(config.RootFS.DiffIDs), len(want.Layers))
	}
	for i, layer := range manifest.Layers {
		if !strings.HasSuffix(string(layer.MediaType), ".tar+zstd") {
			t.Errorf("%s: layer %d is of type %s, want zstd", want.Name, i, layer.MediaType)
		}
		if data := decompress(t, files["blobs/sha256/"+layer.Digest.Hex]); !bytes.Equal(data, want.Layers[i]) {
			t.Errorf("%s: layer %d holds %q, want %q", want.Name, i, data, want.Layers[i])
		}
		if sum := sha256.Sum256(want.Layers[i]); config.RootFS.DiffIDs[i].Hex != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: the diff ID of layer %d is not the digest of its contents", want.Name, i)
		}
	}
}

func TestSameBytes(t *testing.T) {
	if !bytes.Equal(mustWrite(t, example()...), mustWrite(t, example()...)) {
		t.Error("two archives of the same images have different bytes")
	}
}

func TestSameContentsOtherTag(t *testing.T) {
	a := example()[0]
	b := a
	b.Name = "registry.example/set/one:9"
	var index v1.IndexManifest
	decode(t, unpack(t, mustWrite(t, a, b))["index.json"], &index)
	if index.Manifests[0].Digest == index.Manifests[1].Digest {
		t.Error("images that differ in their tag have one digest: containerd would mix up their names")
	}
}

func TestNameMustBeFull(t *testing.T) {
	for _, name := range []string{"", "pause:3", "registry.example/pause", "registry.example/pause:v1+2"} {
		err := Write(io.Discard, Image{Name: name, Architecture: "amd64"})
		if err == nil || !strings.Contains(err.Error(), "full one, with a tag") {
			t.Errorf("name %q: error is %v, want one that says what a name must be", name, err)
		}
	}
}

func mustWrite(t *testing.T, images ...Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, images...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = data
		}
	}
}

func decompress(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("decoding %q: %v", data, err)
	}
}
