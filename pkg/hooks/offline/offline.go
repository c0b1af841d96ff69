// Package offline is the body of the kubelet's patches: what a node does
// differently while the cloud is away.
//
//   - An image that is on the node is enough for a container with
//     imagePullPolicy Always.
//   - A pull that fails, or is interrupted, leaves the images that were on the
//     node before it as usable as they were.
//   - A pod that was running here is not rejected for what the node only
//     believes while it restarts.
//
// The second holds online too: a registry can be away alone. The package must
// know nothing of how the agent finds out whether the cloud answers: it asks for
// one bit.
package offline

import (
	"context"
	"fmt"
	"path/filepath"

	"k8s.io/kubernetes/pkg/kubelet/allocation"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/images"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"
)

const (
	// SocketVariable is the environment variable with the path of the agent's
	// socket. Without it the kubelet is upstream's.
	SocketVariable = "SKERRY_AGENT_SOCKET"
	// StateVariable names the folder in which the kubelet notes down which
	// images were there before a pull; default DefaultState.
	StateVariable = "SKERRY_KUBELET_STATE"
	DefaultState  = "/var/lib/skerry/kubelet"
)

// Install sets the hooks as the environment asks for; it must be called before
// the kubelet runs. With no SocketVariable it sets none. An error says what is
// wrong with a variable.
func Install(getenv func(string) string) error {
	socket := getenv(SocketVariable)
	if socket == "" {
		return nil
	}
	state := getenv(StateVariable)
	if state == "" {
		state = DefaultState
	}
	for name, path := range map[string]string{SocketVariable: socket, StateVariable: state} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("environment variable %s is %q: give the whole path, beginning with /", name, path)
		}
	}
	link := newLink(socket)
	notes := filepath.Join(state, "present-before-pull")
	images.SkerryPullPolicy = pullPolicy(link.offline)
	allocation.SkerryTolerate = tolerate(link.offline)
	pullmanager.SkerryRecords = func(ctx context.Context, r pullmanager.PullRecordsAccessor, service kubecontainer.ImageService) pullmanager.PullRecordsAccessor {
		return newRecords(ctx, r, service, notes)
	}
	registerMetrics()
	return nil
}
