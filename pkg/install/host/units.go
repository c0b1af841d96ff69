package host

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"skerry.dev/skerry/pkg/supervisor"
)

// Names of the units of a node.
const (
	ContainerdUnit = "containerd"
	KubeletUnit    = "kubelet"
)

// Units of a node in the order in which they start.
var Units = []string{ContainerdUnit, KubeletUnit}

// searchPath is what units find programs in; containerd starts its shim and
// runc by name. Ours come first.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// NewContainerdUnit is the unit of containerd.
func NewContainerdUnit() (supervisor.Unit, error) {
	program, err := find("containerd")
	if err != nil {
		return supervisor.Unit{}, err
	}
	return supervisor.Unit{
		Name:        ContainerdUnit,
		Description: "containerd, the container runtime of Skerry",
		Command:     []string{program, "--config", ContainerdConfig},
		Environment: []string{searchPath},
	}, nil
}

// KubeletFiles are the files that kubeadm writes for a kubelet.
type KubeletFiles struct {
	BootstrapKubeconfig, Kubeconfig, Config, FlagsEnv string
}

// NewKubeletUnit is the unit of the kubelet, with the same arguments as
// kubeadm's drop-in for systemd.
func NewKubeletUnit(files KubeletFiles) (supervisor.Unit, error) {
	program, err := find("kubelet")
	if err != nil {
		return supervisor.Unit{}, err
	}
	return supervisor.Unit{
		Name:        KubeletUnit,
		Description: "kubelet, the Kubernetes node agent of Skerry",
		Command: []string{
			program,
			"--bootstrap-kubeconfig=" + files.BootstrapKubeconfig,
			"--kubeconfig=" + files.Kubeconfig,
			"--config=" + files.Config,
			"$KUBELET_KUBEADM_ARGS",
			"$KUBELET_EXTRA_ARGS",
		},
		Environment:     []string{searchPath},
		EnvironmentFile: files.FlagsEnv,
		After:           []string{ContainerdUnit},
	}, nil
}

func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is not in PATH: install Skerry's binaries into /usr/local/bin: %w", program, err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", program, err)
	}
	return absolute, nil
}
