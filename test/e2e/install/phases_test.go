//go:build e2e

package install

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	box "skerry.dev/skerry/pkg/sandbox"
)

func phasesByName(c *cluster) {
	cloud, east := c.ControlPlane(), c.Node("east-1")
	for command, phases := range map[string]string{
		"init":  "host images preflight certs kubeconfig etcd control-plane kubelet-start wait-control-plane upload-config upload-certs mark-control-plane bootstrap-token kubelet-finalize addon cni policies hub show-join-command",
		"join":  "host images preflight site agent kubelet-start kubelet-wait-bootstrap cni",
		"reset": "preflight remove-etcd-member kubelet pods agent cleanup-node network containerd record",
	} {
		help := cloud.Exec("skerry", command, "phase", "--help")
		for phase := range strings.FieldsSeq(phases) {
			if !strings.Contains(help, "\n  "+phase+" ") {
				c.t.Errorf("`skerry %s phase --help` does not list %s:\n%s", command, phase, help)
			}
		}
	}

	// The pod network of both kinds of machine.
	const file = "/etc/cni/net.d/10-skerry.conflist"
	for name, command := range map[string]string{"cloud-1": "init", "east-1": "join"} {
		n := c.Node(name)
		before := n.Shell("cat " + file + " && rm " + file)
		n.Exec("skerry", command, "phase", "cni")
		wants(c.t, file+" of "+name+", written again", n.ReadFile(file), before)
	}

	// A policy that somebody deleted.
	defer forget(east)
	const mine = "skerry.dev/mine"
	c.Kubectl("delete", "validatingadmissionpolicybinding", "skerry.dev-node")
	try := func() error {
		_, err := east.Try("kubectl", "--kubeconfig", "/etc/kubernetes/kubelet.conf", "label", "node", "east-1", "--overwrite", mine+"=1")
		return err
	}
	c.Eventually(30*time.Second, "without the policy the node can label itself", try)
	c.Kubectl("label", "node", "east-1", mine+"-")
	out := cloud.Exec("skerry", "init", "phase", "policies")
	if !strings.Contains(out, "enforced") {
		c.t.Errorf("`skerry init phase policies` does not say that it is enforced: %q", out)
	}
	c.mustBeRefused("with the policy the node labels itself", try(), "skerry.dev-node")

	// Nothing is imported twice.
	if out := cloud.Exec("skerry", "init", "phase", "images", "--config", box.InitFile); !strings.Contains(out, " 0 of ") {
		c.t.Errorf("images were imported again: %q", out)
	}
	// A phase of kubeadm's that somebody needs again.
	c.Kubectl("delete", "daemonset", "kube-proxy", "--namespace", metav1.NamespaceSystem)
	cloud.Exec("skerry", "init", "phase", "addon", "kube-proxy", "--config", box.InitFile)
	c.Eventually(time.Minute, "kube-proxy runs on all machines again", func() error {
		d, err := c.Kube().AppsV1().DaemonSets(metav1.NamespaceSystem).Get(c.Context(), "kube-proxy", metav1.GetOptions{})
		if err == nil && int(d.Status.NumberReady) != len(c.Nodes()) {
			err = fmt.Errorf("%d of %d are ready", d.Status.NumberReady, len(c.Nodes()))
		}
		return err
	})
	c.WaitReady(readyTimeout, corev1.ConditionTrue, "cloud-1", "east-1", "west-1")
}
