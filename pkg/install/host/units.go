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
	AgentUnit      = "skerry-agent"
)

// Units of a node in the order in which they start. AgentUnit is there on nodes
// with a hub only.
var Units = []string{ContainerdUnit, AgentUnit, KubeletUnit}

// AgentSocketVariable tells our kubelet where it can ask whether the cloud is
// there; without it, it is upstream's.
const AgentSocketVariable = "SKERRY_AGENT_SOCKET"

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

// NewAgentUnit is the unit of skerry-agent.
func NewAgentUnit(config string) (supervisor.Unit, error) {
	program, err := find(AgentUnit)
	if err != nil {
		return supervisor.Unit{}, err
	}
	return supervisor.Unit{
		Name:        AgentUnit,
		Description: "skerry-agent, through which this node goes on without its cloud",
		Command:     []string{program, "--config=" + config},
		Environment: []string{searchPath},
	}, nil
}

// KubeletFiles are the files that kubeadm writes for a kubelet.
type KubeletFiles struct {
	// BootstrapKubeconfig is what the kubelet gets its certificate with; "" if
	// it has one that does not run out.
	BootstrapKubeconfig          string
	Kubeconfig, Config, FlagsEnv string
	// AgentSocket is the socket of skerry-agent; "" on a node without it.
	AgentSocket string
}

// NewKubeletUnit is the unit of the kubelet, with the same arguments as
// kubeadm's drop-in for systemd.
func NewKubeletUnit(files KubeletFiles) (supervisor.Unit, error) {
	program, err := find("kubelet")
	if err != nil {
		return supervisor.Unit{}, err
	}
	unit := supervisor.Unit{
		Name:            KubeletUnit,
		Description:     "kubelet, the Kubernetes node agent of Skerry",
		Command:         []string{program},
		Environment:     []string{searchPath},
		EnvironmentFile: files.FlagsEnv,
		After:           []string{ContainerdUnit},
	}
	if files.BootstrapKubeconfig != "" {
		unit.Command = append(unit.Command, "--bootstrap-kubeconfig="+files.BootstrapKubeconfig)
	}
	unit.Command = append(unit.Command, "--kubeconfig="+files.Kubeconfig, "--config="+files.Config, "$KUBELET_KUBEADM_ARGS", "$KUBELET_EXTRA_ARGS")
	if files.AgentSocket != "" {
		unit.Environment = append(unit.Environment, AgentSocketVariable+"="+files.AgentSocket)
		unit.After = append(unit.After, AgentUnit)
	}
	return unit, nil
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
