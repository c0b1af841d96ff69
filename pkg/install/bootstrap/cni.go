package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"

	"skerry.dev/skerry/pkg/install/cni"
)

// podCIDRTimeout bounds the wait for kube-controller-manager to give the node
// its addresses; on a weak link the first requests of a node are slow.
const podCIDRTimeout = 2 * time.Minute

// NewCNIPhase configures the pod network of this node.
func NewCNIPhase() workflow.Phase {
	return workflow.Phase{
		Name:         "cni",
		Short:        "Configure the pod network of this node",
		Long:         "Wait until the cluster has given this node its pod addresses, and write " + filepath.Join(cni.ConfDir, cni.FileName) + ". A network plugin of your own that has a configuration there is left alone.",
		InheritFlags: []string{options.CfgPath, options.KubeconfigPath, options.NodeName, options.DryRun},
		Run:          runCNI,
	}
}

func runCNI(c workflow.RunData) error {
	data, err := dataOf[NodeData]("cni", c)
	if err != nil {
		return err
	}
	if other, err := cni.Foreign(cni.ConfDir); err != nil {
		return err
	} else if other != "" {
		say(data, "cni", "%s configures the pod network: leaving it as it is", filepath.Join(cni.ConfDir, other))
		return nil
	}
	if data.DryRun() {
		say(data, "cni", "Would wait for this node's pod CIDR and write %s", filepath.Join(cni.ConfDir, cni.FileName))
		return nil
	}
	name, err := NodeName(data.Registration())
	if err != nil {
		return err
	}
	podCIDRs, err := waitForPodCIDRs(data, name)
	if err != nil {
		return err
	}
	if err := cni.Write(cni.ConfDir, podCIDRs); err != nil {
		return err
	}
	say(data, "cni", "Pods of this node get addresses of %s", strings.Join(podCIDRs, " and "))
	return nil
}

func waitForPodCIDRs(data NodeData, name string) ([]string, error) {
	client, err := data.NodeClient()
	if err != nil {
		return nil, fmt.Errorf("making a client to read Node %s: %w", name, err)
	}
	var podCIDRs []string
	last := errors.New("the Node has none")
	err = until(podCIDRTimeout, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			last = err
			return false, nil
		}
		podCIDRs = node.Spec.PodCIDRs
		return len(podCIDRs) > 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for the pod CIDR of Node %s: %w: %w; kube-controller-manager gives it (networking.podSubnet in ClusterConfiguration; are its addresses used up?); with a network plugin of your own use --skip-phases cni", name, err, last)
	}
	return podCIDRs, nil
}
