//go:build e2e

package offline

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"skerry.dev/skerry/test/sandbox"
)

const registryPort = 5000

// serveRegistry runs a registry in the cloud, so that a cut link takes it away,
// and tells a node's containerd about it. It has two images: open:v1 for
// everyone, private:v1 for who knows the password.
func serveRegistry(t *testing.T, box *sandbox.Sandbox, password string, nodes ...string) string {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	// Pushed over loopback, served in the cloud.
	local := httptest.NewServer(handler)
	defer local.Close()
	image := imageOf(t, box.TestImage("busybox"))
	for _, repository := range []string{"open", "private"} {
		reference, err := name.ParseReference(strings.TrimPrefix(local.URL, "http://") + "/" + repository + ":v1")
		if err != nil {
			t.Fatal(err)
		}
		index, err := image.ImageIndex()
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		one, err := image.Image(manifest.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		// One of its own: the kubelet remembers by the image's ID which
		// credentials it was pulled with, whatever its name.
		config, err := one.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config.Config.Labels = map[string]string{"repository": repository}
		if one, err = mutate.Config(one, config.Config); err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(reference, one, remote.WithContext(t.Context())); err != nil {
			t.Fatalf("pushing %s: %v", repository, err)
		}
	}
	var listener net.Listener
	cloud := box.ControlPlane()
	address := fmt.Sprintf("%s:%d", cloud.Address(), registryPort)
	err := cloud.Config().InNetwork(func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/private/") {
			if user, given, _ := r.BasicAuth(); user != "reader" || given != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
		}
		handler.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	for _, node := range nodes {
		n := box.Node(node)
		dir := "/etc/containerd/certs.d/" + address
		n.Shell("mkdir -p " + dir)
		n.Exec("sh", "-c", `printf %s "$1" >"$2"`, "sh",
			fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", address), dir+"/hosts.toml")
	}
	return address
}

// imageOf unpacks an OCI archive.
func imageOf(t *testing.T, archive string) layout.Path {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(header.Name), 0o755); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := root.WriteFile(header.Name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
