package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
)

// Paths of containerd on a node.
const (
	ContainerdConfig   = "/etc/containerd/config.toml"
	ContainerdDropIns  = "/etc/containerd/conf.d"
	ContainerdSocket   = "/run/containerd/containerd.sock"
	ContainerdRoot     = "/var/lib/containerd"
	ContainerdStateDir = "/run/containerd"
)

// marker is the first line of every file of ours that a user may have one of
// his own instead of.
const marker = "# Written by skerry; the next `skerry init` or `skerry join` writes it again."

// ContainerdOptions are the settings of containerd that depend on the cluster
// and the machine.
type ContainerdOptions struct {
	// PauseImage is the image of every pod's sandbox.
	PauseImage string
	// SystemdCgroup makes containers cgroups of systemd.
	SystemdCgroup bool
	// CNIBinDir and CNIConfDir are where the CRI plugin finds the pod network.
	CNIBinDir, CNIConfDir string
}

var containerdTemplate = template.Must(template.New("config.toml").Funcs(template.FuncMap{"quote": quoteTOML}).Parse(marker + `
# Settings of your own go into a file in ` + ContainerdDropIns + `.
version = 3
root = "` + ContainerdRoot + `"
state = "` + ContainerdStateDir + `"
imports = ["` + ContainerdDropIns + `/*.toml"]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  # An image that a power cut tore could not be pulled again without the cloud.
  image_pull_with_sync_fs = true

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = {{quote .PauseImage}}

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [{{quote .CNIBinDir}}]
  conf_dir = {{quote .CNIConfDir}}

[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = {{.SystemdCgroup}}
`))

// quoteTOML writes a TOML basic string. Go's quoting differs from it only for
// control characters and invalid UTF-8, which no path or image name has.
func quoteTOML(value string) string { return strconv.Quote(value) }

// RenderContainerdConfig returns the content of containerd's config.toml.
func RenderContainerdConfig(options ContainerdOptions) ([]byte, error) {
	var out bytes.Buffer
	if err := containerdTemplate.Execute(&out, options); err != nil {
		return nil, fmt.Errorf("rendering containerd's configuration: %w", err)
	}
	return out.Bytes(), nil
}

// WriteContainerdConfig writes containerd's configuration, and reports whether
// that changed it. It never replaces a file that somebody else wrote.
func WriteContainerdConfig(path string, options ContainerdOptions) (changed bool, err error) {
	data, err := RenderContainerdConfig(options)
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(path)
	switch {
	case err == nil && !ours(old):
		return false, ForeignConfigError(path)
	case err == nil && bytes.Equal(old, data):
		return false, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("reading containerd's configuration: %w", err)
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Join(filepath.Dir(path), "conf.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, fmt.Errorf("making the folder of containerd's configuration: %w", err)
		}
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return false, fmt.Errorf("writing containerd's configuration: %w", err)
	}
	return true, nil
}

// ForeignConfigError says what to do about a containerd configuration that we
// did not write.
func ForeignConfigError(path string) error {
	return fmt.Errorf("%s exists and was not written by skerry: move it away (settings you need can go into a file in %s), or keep your containerd and leave it to you with `--skip-phases host`", path, ContainerdDropIns)
}

// IsOurs reports whether the file exists and is one that skerry wrote.
func IsOurs(path string) bool {
	data, err := os.ReadFile(path)
	return err == nil && ours(data)
}

// ours reports whether we wrote the content: its first line says so.
func ours(content []byte) bool {
	return bytes.HasPrefix(content, []byte(marker))
}
