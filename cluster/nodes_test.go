package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBootstrapToken(t *testing.T) {
	policies := load(t)
	east := []string{"system:bootstrappers", "system:authenticated", "system:bootstrappers:kubeadm:default-node-token",
		"system:bootstrappers:skerry:site", "system:bootstrappers:skerry:site:east"}
	cloud := []string{"system:bootstrappers", "system:authenticated", "system:bootstrappers:kubeadm:default-node-token"}
	inEast := func(change ...func(*corev1.Node)) *corev1.Node {
		return node(append([]func(*corev1.Node){label("skerry.dev/site", "east"), label("topology.kubernetes.io/zone", "east")}, change...)...)
	}
	tests := []struct {
		name    string
		request request
		want    string
	}{
		{"its own site", request{groups: east, object: inEast()}, ""},
		{"two sites, the second", request{groups: append(east, "system:bootstrappers:skerry:site:west"), object: node(label("skerry.dev/site", "west"))}, ""},
		{"labels of the user", request{groups: east, object: inEast(label("example.com/rack", "4"), label("plain", "x"), label("node.kubernetes.io/instance-type", "small"), label("kubernetes.io/hostname", "east-1"))}, ""},
		{"taints of the user", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: "NoSchedule"}} })}, ""},
		{"another zone than the site", request{groups: east, object: inEast(label("topology.kubernetes.io/zone", "hall-2"))}, ""},
		{"another site", request{groups: east, object: node(label("skerry.dev/site", "west"))}, "one of [east]"},
		{"a site that begins like its own", request{groups: east, object: node(label("skerry.dev/site", "eas"))}, "own site only"},
		{"an empty site", request{groups: east, object: node(label("skerry.dev/site", ""))}, "own site only"},
		{"no site", request{groups: east, object: node(label("a", "b"))}, "own site only"},
		{"no labels at all", request{groups: east, object: node()}, "own site only"},
		{"token without a site, Node with one", request{groups: cloud, object: inEast()}, "own site only"},
		{"token without a site, Node without one", request{groups: cloud, object: node()}, "own site only"},
		{"the group of all sites names none", request{groups: append(cloud, "system:bootstrappers:skerry:site"), object: inEast()}, "own site only"},
		{"only a site's group", request{groups: []string{"system:bootstrappers:skerry:site:west"}, object: inEast()}, "own site only"},
		{"another label of ours", request{groups: east, object: inEast(label("skerry.dev/observer", "x"))}, "no other label of skerry.dev"},
		{"a label of our subdomain", request{groups: east, object: inEast(label("grid.skerry.dev/key", "x"))}, "no other label of skerry.dev"},
		{"control-plane role", request{groups: east, object: inEast(label("node-role.kubernetes.io/control-plane", ""))}, "kubelet may set"},
		{"node-restriction", request{groups: east, object: inEast(label("node-restriction.kubernetes.io/secure", "1"))}, "kubelet may set"},
		{"prefixed node-restriction", request{groups: east, object: inEast(label("a.node-restriction.kubernetes.io/secure", "1"))}, "kubelet may set"},
		{"k8s.io", request{groups: east, object: inEast(label("x.k8s.io/y", "1"))}, "kubelet may set"},
		{"kubelet.kubernetes.io", request{groups: east, object: inEast(label("kubelet.kubernetes.io/y", "1"))}, ""},
		{"annotation", request{groups: east, object: inEast(annotation("a", "b"))}, "no annotations"},
		{"finalizer", request{groups: east, object: inEast(func(n *corev1.Node) { n.Finalizers = []string{"a/b"} })}, "no annotations"},
		{"owner", request{groups: east, object: inEast(func(n *corev1.Node) { n.OwnerReferences = []metav1.OwnerReference{{Name: "a"}} })}, "no annotations"},
		{"pod CIDR", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.PodCIDR = "10.0.0.0/8" })}, "but taints"},
		{"pod CIDRs", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.0.0.0/8"} })}, "but taints"},
		{"provider", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.ProviderID = "x://1" })}, "but taints"},
		{"unschedulable", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.Unschedulable = true })}, "but taints"},
		//nolint:staticcheck // deprecated, but a token must not be able to set it
		{"config source", request{groups: east, object: inEast(func(n *corev1.Node) { n.Spec.ConfigSource = &corev1.NodeConfigSource{} })}, "but taints"},
		{"condition", request{groups: east, object: inEast(condition("Ready", "True"))}, "status"},
		{"our condition", request{groups: east, object: inEast(condition("skerry.dev/Alive", "False"))}, "status"},
		{"address", request{groups: east, object: inEast(func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}}
		})}, "status"},
		{"capacity", request{groups: east, object: inEast(func(n *corev1.Node) {
			n.Status.Capacity = corev1.ResourceList{"cpu": resource.MustParse("4")}
		})}, "status"},
		{"kubelet's port", request{groups: east, object: inEast(func(n *corev1.Node) { n.Status.DaemonEndpoints.KubeletEndpoint.Port = 443 })}, "status"},
		{"upper-case name", request{groups: east, object: inEast(func(n *corev1.Node) { n.Name = "East-1" })}, "DNS name"},
		{"generated name", request{groups: east, object: inEast(func(n *corev1.Node) { n.Name, n.GenerateName = "", "east-" })}, "DNS name"},
		{"longest name", request{groups: east, object: inEast(func(n *corev1.Node) { n.Name = "a23456789012345678901234567890123456789012345678901234567890.63" })}, ""},
		{"too long a name", request{groups: east, object: inEast(func(n *corev1.Node) { n.Name = "a23456789012345678901234567890123456789012345678901234567890.644" })}, "DNS name"},
		{"update", request{groups: east, object: inEast(), old: node()}, "not change or delete"},
		{"update of the status", request{groups: east, object: inEast(), old: inEast(), subresource: "status"}, "not change or delete"},
		{"administrator, any site", request{groups: []string{"system:masters", "system:authenticated"}, object: node(label("skerry.dev/site", "west"))}, ""},
		{"no groups at all", request{object: node(label("skerry.dev/site", "west"))}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { check(t, policies, test.request, test.want) })
	}
}

func TestNode(t *testing.T) {
	policies := load(t)
	kubelet := []string{"system:nodes", "system:authenticated"}
	controller := []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
	const manager = "system:serviceaccount:kube-system:skerry-controller-manager"
	site := func(change ...func(*corev1.Node)) *corev1.Node {
		return node(append([]func(*corev1.Node){label("skerry.dev/site", "east"), label("topology.kubernetes.io/zone", "east")}, change...)...)
	}
	alive := condition("skerry.dev/Alive", "True")
	dead := condition("skerry.dev/Alive", "False")
	other := condition("skerry.dev/Other", "True")
	ready := condition("Ready", "True")
	tests := []struct {
		name    string
		request request
		want    string
	}{
		{"registers itself in the cloud", request{groups: kubelet, object: node(label("kubernetes.io/os", "linux"), ready)}, ""},
		{"registers itself without any label", request{groups: kubelet, object: node()}, ""},
		{"registers itself in a zone", request{groups: kubelet, object: node(label("topology.kubernetes.io/zone", "a"))}, ""},
		{"registers itself in a site", request{groups: kubelet, object: site()}, "labels of skerry.dev"},
		{"registers itself as alive", request{groups: kubelet, object: node(alive)}, "conditions of skerry.dev"},
		{"registers itself with an annotation", request{groups: kubelet, object: node(annotation("skerry.dev/hold", "no"))}, "annotations of skerry.dev"},
		{"adds a site", request{groups: kubelet, object: site(), old: node()}, "labels of skerry.dev"},
		{"changes its site", request{groups: kubelet, object: site(label("skerry.dev/site", "west")), old: site()}, "labels of skerry.dev"},
		{"removes its site", request{groups: kubelet, object: node(label("topology.kubernetes.io/zone", "east")), old: site()}, "labels of skerry.dev"},
		{"removes all labels", request{groups: kubelet, object: node(), old: site()}, "labels of skerry.dev"},
		{"changes its site through its status", request{groups: kubelet, object: site(label("skerry.dev/site", "west")), old: site(), subresource: "status"}, "labels of skerry.dev"},
		{"adds a label of a subdomain", request{groups: kubelet, object: site(label("grid.skerry.dev/a", "b")), old: site()}, "labels of skerry.dev"},
		{"adds a label of its own", request{groups: kubelet, object: site(label("example.com/a", "b")), old: site()}, ""},
		{"a name that only looks like ours", request{groups: kubelet, object: site(label("notskerry.dev/a", "b")), old: site()}, ""},
		{"changes its zone", request{groups: kubelet, object: site(label("topology.kubernetes.io/zone", "west")), old: site()}, "zone"},
		{"removes its zone", request{groups: kubelet, object: node(label("skerry.dev/site", "east")), old: site()}, "zone"},
		{"adds a zone", request{groups: kubelet, object: site(), old: node(label("skerry.dev/site", "east"))}, "zone"},
		{"changes its zone in the cloud", request{groups: kubelet, object: node(label("topology.kubernetes.io/zone", "b")), old: node(label("topology.kubernetes.io/zone", "a"))}, ""},
		{"adds an annotation of ours", request{groups: kubelet, object: site(annotation("skerry.dev/a", "b")), old: site()}, "annotations of skerry.dev"},
		{"removes an annotation of ours", request{groups: kubelet, object: site(), old: site(annotation("skerry.dev/a", "b"))}, "annotations of skerry.dev"},
		{"adds an annotation", request{groups: kubelet, object: site(annotation("volumes.kubernetes.io/a", "b")), old: site()}, ""},
		{"heartbeat", request{groups: kubelet, object: site(ready, alive), old: site(alive), subresource: "status"}, ""},
		{"heartbeat in another order", request{groups: kubelet, object: site(other, ready, alive), old: site(alive, other), subresource: "status"}, ""},
		{"says that it is alive", request{groups: kubelet, object: site(alive), old: site(dead), subresource: "status"}, "conditions of skerry.dev"},
		{"removes the verdict", request{groups: kubelet, object: site(), old: site(dead), subresource: "status"}, "conditions of skerry.dev"},
		{"doubles one verdict to hide another", request{groups: kubelet, object: site(other, other), old: site(dead, other), subresource: "status"}, "conditions of skerry.dev"},
		{"changes the verdict through the Node", request{groups: kubelet, object: site(alive), old: site(dead)}, "conditions of skerry.dev"},
		{"controller changes everything", request{user: manager, groups: controller, object: node(label("skerry.dev/site", "west"), alive), old: site(dead)}, ""},
		{"administrator moves it", request{groups: []string{"system:masters"}, object: site(label("skerry.dev/site", "west")), old: site()}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { check(t, policies, test.request, test.want) })
	}
}

// Who may write nodes/status may not therefore say who is dead.
func TestVerdict(t *testing.T) {
	policies := load(t)
	accounts := []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
	people := []string{"system:authenticated"}
	const manager = "system:serviceaccount:kube-system:skerry-controller-manager"
	alive, dead, ready := condition("skerry.dev/Alive", "True"), condition("skerry.dev/Alive", "False"), condition("Ready", "True")
	tests := []struct {
		name    string
		request request
		want    string
	}{
		{"skerry-controller-manager", request{user: manager, groups: accounts, object: node(ready, dead), old: node(ready, alive), subresource: "status"}, ""},
		{"skerry-controller-manager takes it away", request{user: manager, groups: accounts, object: node(ready), old: node(dead, ready), subresource: "status"}, ""},
		{"a namesake in another namespace", request{user: "system:serviceaccount:default:skerry-controller-manager", groups: accounts, object: node(dead), old: node(alive), subresource: "status"}, "may override"},
		{"the node controller writes what it does", request{user: "system:serviceaccount:kube-system:node-controller", groups: accounts, object: node(condition("Ready", "Unknown"), dead), old: node(ready, dead), subresource: "status"}, ""},
		{"the node controller says dead", request{user: "system:serviceaccount:kube-system:node-controller", groups: accounts, object: node(ready, dead), old: node(ready), subresource: "status"}, "may override"},
		{"conditions in another order", request{groups: people, object: node(condition("skerry.dev/Other", "True"), ready, dead), old: node(dead, condition("skerry.dev/Other", "True")), subresource: "status"}, ""},
		{"somebody says dead", request{groups: people, object: node(dead), old: node(alive), subresource: "status"}, "may override"},
		{"somebody says dead through the Node", request{groups: people, object: node(dead), old: node(alive)}, "may override"},
		{"somebody takes a verdict away", request{groups: people, object: node(ready), old: node(ready, dead), subresource: "status"}, "may override"},
		{"somebody makes a Node that is dead", request{groups: people, object: node(dead)}, "may override"},
		{"somebody makes a Node", request{groups: people, object: node(ready)}, ""},
		{"somebody who may override", request{groups: people, object: node(dead), old: node(alive), subresource: "status", may: true}, ""},
		{"a node that may override is a node", request{groups: []string{"system:nodes"}, object: node(alive), old: node(dead), subresource: "status", may: true}, "a node cannot"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { check(t, policies, test.request, test.want) })
	}
}

func TestSiteName(t *testing.T) {
	policies := load(t)
	for name, valid := range map[string]bool{"east": true, "e": true, "hall-2": true, "2nd": true, "a23456789012345678901234567890123456789012345678901234567890123": true,
		"": false, "East": false, "east_1": false, "east.1": false, "-east": false, "east-": false} {
		want := "must be a lower-case DNS label"
		if valid {
			want = ""
		}
		check(t, policies, request{object: node(label("skerry.dev/site", name)), old: node()}, want)
		check(t, policies, request{object: node(label("skerry.dev/site", name)), old: node(label("skerry.dev/site", "was"))}, want)
		check(t, policies, request{object: node(label("skerry.dev/site", name))}, want)
		// A Node that has such a name from before can still be written, and mended.
		check(t, policies, request{object: node(label("skerry.dev/site", name), label("a", "b")), old: node(label("skerry.dev/site", name))}, "")
		check(t, policies, request{object: node(), old: node(label("skerry.dev/site", name))}, "")
	}
}

// Nothing else than Nodes and what is ours is looked at: a mistake in a rule must
// not slow down or block the rest of the API. Of Services those whose annotation
// of ours changes.
func TestOnlyNodes(t *testing.T) {
	for _, one := range load(t) {
		spec := one.policy.Spec
		annotated := len(spec.MatchConditions) > 0 && strings.HasPrefix(spec.MatchConditions[0].Expression, "'skerry.dev/topology-keys' in object.?metadata.?annotations")
		for _, rule := range spec.MatchConstraints.ResourceRules {
			own := len(rule.APIGroups) == 1 && rule.APIGroups[0] == "site.skerry.dev"
			for _, name := range rule.Resources {
				kind, _, _ := strings.Cut(name, "/")
				if !own && kind != "nodes" && (kind != "services" || !annotated) {
					t.Errorf("policy %s matches %s", one.policy.Name, name)
				}
			}
		}
	}
}
