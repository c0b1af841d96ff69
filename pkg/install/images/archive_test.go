package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const someDigest = "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// archiveOf makes a tar with these files, in this order.
func archiveOf(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, file := range files {
		if err := writer.WriteHeader(&tar.Header{Name: file[0], Mode: 0o644, Size: int64(len(file[1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte(file[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func index(annotations ...string) string {
	var manifests []string
	for _, annotation := range annotations {
		manifests = append(manifests, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":1,"annotations":{%s}}`, someDigest, annotation))
	}
	return `{"schemaVersion":2,"manifests":[` + strings.Join(manifests, ",") + `]}`
}

func TestReadIndex(t *testing.T) {
	layer := [2]string{"blobs/sha256/abc", strings.Repeat("x", 100_000)}
	tests := []struct {
		name      string
		data      []byte
		want      []string
		wantError string
	}{
		{"containerd's annotation", archiveOf(t, layer, [2]string{"index.json", index(`"io.containerd.image.name":"r/a:1","org.opencontainers.image.ref.name":"1"`)}), []string{"r/a:1"}, ""},
		{"OCI's annotation", archiveOf(t, [2]string{"./index.json", index(`"org.opencontainers.image.ref.name":"r/a:1"`)}, layer), []string{"r/a:1"}, ""},
		{"two images", archiveOf(t, [2]string{"index.json", index(`"io.containerd.image.name":"r/a:1"`, `"io.containerd.image.name":"r/b:1"`)}), []string{"r/a:1", "r/b:1"}, ""},
		{"one without a name", archiveOf(t, [2]string{"index.json", index(`"a":"b"`, `"io.containerd.image.name":"r/b:1"`)}), []string{"r/b:1"}, ""},
		{"no names", archiveOf(t, [2]string{"index.json", index(`"a":"b"`)}), nil, "names no image"},
		{"no index", archiveOf(t, layer), nil, "no index.json"},
		{"an index elsewhere", archiveOf(t, [2]string{"a/index.json", index(`"io.containerd.image.name":"r/a:1"`)}), nil, "no index.json"},
		{"not JSON", archiveOf(t, [2]string{"index.json", "{"}), nil, "parsing index.json"},
		{"bad digest", archiveOf(t, [2]string{"index.json", strings.ReplaceAll(index(`"io.containerd.image.name":"r/a:1"`), someDigest, "sha256:12")}), nil, "digest of r/a:1"},
		{"too large", archiveOf(t, [2]string{"index.json", strings.Repeat(" ", maxIndex+1)}), nil, "more than"},
		{"cut short", archiveOf(t, layer)[:1000], nil, "reading the tar"},
		{"not a tar", bytes.Repeat([]byte("no"), 1000), nil, "reading the tar"},
		{"empty", nil, nil, "no index.json"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			found, err := ReadIndex(bytes.NewReader(test.data))
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Fatalf("got error %v, want one with %q", err, test.wantError)
			}
			if names := (Archive{Images: found}).Names(); err == nil && !reflect.DeepEqual(names, test.want) {
				t.Errorf("got %q, want %q", names, test.want)
			}
		})
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("b.tar", archiveOf(t, [2]string{"index.json", index(`"io.containerd.image.name":"r/b:1"`)}))
	write("a.tar", archiveOf(t, [2]string{"index.json", index(`"io.containerd.image.name":"r/a:1"`)}))
	write("README", []byte("not an archive"))
	archives, err := ReadDir(dir)
	if err != nil || len(archives) != 2 || archives[0].Images[0].Name != "r/a:1" || archives[1].Images[0].Name != "r/b:1" {
		t.Errorf("got %v, %v", archives, err)
	}
	write("c.tar", []byte("damaged"))
	if _, err := ReadDir(dir); err == nil || !strings.Contains(err.Error(), "c.tar") || !strings.Contains(err.Error(), "replace it") {
		t.Errorf("a damaged archive gave %v", err)
	}
	if archives, err := ReadDir(filepath.Join(dir, "none")); err != nil || archives != nil {
		t.Errorf("a missing folder gave %v, %v", archives, err)
	}
}

func TestComponent(t *testing.T) {
	for name, want := range map[string]string{
		"example:5000/a/etcd:3.5":          "etcd",
		"example/kube-apiserver:v1":        "kube-apiserver",
		"example/kube-proxy@" + someDigest: "kube-proxy",
		"example:5000/x/y:1@" + someDigest: "y",
		"pause":                            "pause",
		"":                                 "",
	} {
		if got := Component(name); got != want {
			t.Errorf("Component(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestSelectAndMissing(t *testing.T) {
	archive := func(path string, names ...string) Archive {
		a := Archive{Path: path}
		for _, name := range names {
			a.Images = append(a.Images, Image{Name: name})
		}
		return a
	}
	all := []Archive{
		archive("apiserver", "r/kube-apiserver:v1"),
		archive("etcd", "r/etcd:3"),
		archive("proxy", "r/kube-proxy:v1"),
		archive("both", "r/etcd:4", "r/pause:3"),
		archive("extra", "mine/agnhost:2"),
	}
	paths := func(archives []Archive) (names []string) {
		for _, a := range archives {
			names = append(names, a.Path)
		}
		return names
	}
	skip := []string{"kube-apiserver", "etcd"}
	if got, want := paths(Select(all, skip)), []string{"proxy", "both", "extra"}; !reflect.DeepEqual(got, want) {
		t.Errorf("worker imports %q, want %q", got, want)
	}
	if got := Select(all, nil); len(got) != len(all) {
		t.Errorf("control plane imports %q", paths(got))
	}
	if got, want := Missing([]string{"r/etcd:3", "r/etcd:9", "r/pause:3"}, all), []string{"r/etcd:9"}; !reflect.DeepEqual(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
}

func FuzzReadIndex(f *testing.F) {
	f.Add(archiveOf(f, [2]string{"index.json", index(`"io.containerd.image.name":"r/a:1"`)}))
	f.Add(archiveOf(f, [2]string{"index.json", "{}"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := ReadIndex(bytes.NewReader(data))
		if err == nil && len(found) == 0 {
			t.Error("neither images nor an error")
		}
		for _, image := range found {
			if image.Name == "" || image.Digest.Validate() != nil {
				t.Errorf("accepted %+v", image)
			}
		}
	})
}
