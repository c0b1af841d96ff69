//go:build e2e

package install

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"skerry.dev/skerry/test/sandbox"
)

// attempts are changes of a Node that are the cloud's to make: as they are
// made, and as they are taken back. The verdict is guarded by a policy of its
// own as well, against all who may write a node's status; the API server names
// one of the two.
var attempts = []struct {
	name, subresource, patch, undo string
	verdict                        bool
}{
	{"its site", "", `{"metadata":{"labels":{"skerry.dev/site":"west"}}}`, `{"metadata":{"labels":{"skerry.dev/site":"east"}}}`, false},
	{"its having a site", "", `{"metadata":{"labels":{"skerry.dev/site":null}}}`, `{"metadata":{"labels":{"skerry.dev/site":"east"}}}`, false},
	{"its site through its status", "status", `{"metadata":{"labels":{"skerry.dev/site":"west"}}}`, `{"metadata":{"labels":{"skerry.dev/site":"east"}}}`, false},
	{"its zone", "", `{"metadata":{"labels":{"topology.kubernetes.io/zone":"west"}}}`, `{"metadata":{"labels":{"topology.kubernetes.io/zone":"east"}}}`, false},
	{"a label of Skerry", "", `{"metadata":{"labels":{"skerry.dev/mine":"1"}}}`, `{"metadata":{"labels":{"skerry.dev/mine":null}}}`, false},
	{"an annotation of Skerry", "", `{"metadata":{"annotations":{"skerry.dev/mine":"1"}}}`, `{"metadata":{"annotations":{"skerry.dev/mine":null}}}`, false},
	{"the verdict on it", "status", `{"status":{"conditions":[{"type":"skerry.dev/Alive","status":"Unknown","reason":"ISaySo","message":"by the test"}]}}`,
		`{"status":{"conditions":[{"type":"skerry.dev/Alive","$patch":"delete"}]}}`, true},
}

func nodeCannotChange(c *cluster) {
	east := c.Node("east-1")
	defer forget(east)
	asNode := func(node, subresource, patch string) error { return tryAsNode(c, east, node, subresource, patch) }
	// What a kubelet may do it can: the refusals below are not for want of rights.
	c.must(asNode("east-1", "", `{"metadata":{"labels":{"example.com/mine":"1"}}}`))
	c.must(asNode("east-1", "status", `{"metadata":{"labels":{"example.com/mine":null}},"status":{"conditions":[{"type":"example.com/Fine","status":"True"}]}}`))
	c.must(asNode("east-1", "status", `{"status":{"conditions":[{"type":"example.com/Fine","$patch":"delete"}]}}`))
	for _, a := range attempts {
		before := claims(c.node("east-1"))
		says := []string{"skerry.dev-node", "a node "}
		if a.verdict {
			says = []string{"ValidatingAdmissionPolicy 'skerry.dev-", "conditions of skerry.dev"}
		}
		c.mustBeRefused("the node changes "+a.name, asNode("east-1", a.subresource, a.patch), says...)
		if now := claims(c.node("east-1")); !reflect.DeepEqual(now, before) {
			c.t.Errorf("the node changed %s: %v, before %v", a.name, now, before)
		}
		// An administrator can.
		var subresources []string
		if a.subresource != "" {
			subresources = []string{a.subresource}
		}
		patched, err := c.patched("east-1", a.patch, subresources...)
		c.must(err)
		if now := claims(patched); reflect.DeepEqual(now, before) {
			c.t.Errorf("the administrator could not change %s: %v", a.name, now)
		}
		c.must(c.patch("east-1", a.undo, subresources...))
	}
	c.mustBeRefused("the node changes another", asNode("west-1", "", `{"metadata":{"labels":{"example.com/mine":"1"}}}`), "Forbidden")
}

// tryAsNode changes a Node with the kubelet's certificate. A kubelet may write
// its status but not read it alone, as `kubectl patch --subresource` would.
func tryAsNode(c *cluster, n *sandbox.Node, node, subresource, patch string) error {
	const kubectl = "kubectl --kubeconfig /etc/kubernetes/kubelet.conf "
	if subresource == "" {
		_, err := n.Try("sh", "-c", kubectl+"patch node "+node+" --patch '"+patch+"'")
		return err
	}
	now := n.Shell(kubectl + "get node " + node + " -o json")
	wanted, err := strategicpatch.StrategicMergePatch([]byte(now), []byte(patch), corev1.Node{})
	c.must(err)
	n.Shell("cat > /tmp/wanted.json <<'END'\n" + string(wanted) + "\nEND")
	_, err = n.Try("sh", "-c", kubectl+"replace --raw /api/v1/nodes/"+node+"/"+subresource+" -f /tmp/wanted.json; status=$?; rm /tmp/wanted.json; exit $status")
	return err
}

// claims are labels and annotations under skerry.dev, the zone, and conditions as
// the attempts would set them: the verdict's own may come at any time.
func claims(n *corev1.Node) map[string]string {
	all := map[string]string{}
	for key, value := range n.Labels {
		if strings.HasPrefix(key, "skerry.dev/") || strings.HasSuffix(key, "/zone") {
			all["label "+key] = value
		}
	}
	for key, value := range n.Annotations {
		if strings.HasPrefix(key, "skerry.dev/") {
			all["annotation "+key] = value
		}
	}
	for _, condition := range n.Status.Conditions {
		if strings.HasPrefix(string(condition.Type), "skerry.dev/") && condition.Reason == "ISaySo" {
			all["condition "+string(condition.Type)] = string(condition.Status)
		}
	}
	return all
}

func tokenMakesItsSite(c *cluster) {
	west := c.Node("west-1")
	defer forget(west)
	ofWest, ofCloud := tokenIn(c.join["west"]), tokenIn(c.token())
	// kubectl with nothing but a token and the cluster's CA.
	with := func(token, line string) error {
		return tryToken(west, "https://"+c.ControlPlane().Address()+":6443", token, line)
	}
	create := func(name, labels string) string {
		node := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name, "labels": json.RawMessage(labels)}}
		text, err := json.Marshal(node)
		c.must(err)
		return fmt.Sprintf("create --validate=false -f - <<'END'\n%s\nEND", text)
	}
	const policy = "skerry.dev-bootstrap-node"
	for _, refused := range []struct{ what, token, line, says string }{
		{"a token makes a Node of another site", ofWest, create("intruder", `{"skerry.dev/site":"east"}`), policy},
		{"a token makes a Node of no site", ofWest, create("intruder", `{}`), policy},
		{"a token gives a Node another label of Skerry", ofWest, create("intruder", `{"skerry.dev/site":"west","skerry.dev/mine":"1"}`), policy},
		{"a token gives a Node a role", ofWest, create("intruder", `{"skerry.dev/site":"west","node-role.kubernetes.io/control-plane":""}`), policy},
		{"a token without a site makes a Node", ofCloud, create("intruder", `{}`), "cannot create resource"},
		{"a token changes a Node", ofWest, `label node west-1 example.com/mine=1`, "cannot patch resource"},
		{"a token deletes a Node", ofWest, `delete node west-1`, "cannot delete resource"},
		{"a token reads Secrets", ofWest, `get secrets -n kube-system`, "cannot list resource"},
	} {
		c.mustBeRefused(refused.what, with(refused.token, refused.line), "Forbidden", refused.says)
	}
	if _, err := c.Kube().CoreV1().Nodes().Get(c.Context(), "intruder", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		c.t.Errorf("there is a Node that must not be: %v", err)
	}
	c.must(with(ofWest, create("west-2", `{"skerry.dev/site":"west"}`)))
	wants(c.t, "the site of a Node that a token made", c.node("west-2").Labels["skerry.dev/site"], "west")
	// An administrator makes any Node.
	c.Kubectl("delete", "node", "west-2")
	c.Kubectl("label", "node", "west-1", "example.com/mine=1")
	c.Kubectl("label", "node", "west-1", "example.com/mine-")
}

// forget removes what kubectl keeps for its user.
func forget(n *sandbox.Node) { n.Shell("rm -rf /root/.kube") }

// tokenIn finds the token in a join command.
func tokenIn(command string) string {
	words := strings.Fields(command)
	for i, word := range words[:len(words)-1] {
		if word == "--token" {
			return words[i+1]
		}
	}
	return ""
}

func tryToken(n *sandbox.Node, server, token, line string) error {
	_, err := n.Try("sh", "-c", fmt.Sprintf("kubectl --kubeconfig /dev/null --server %s --certificate-authority /etc/kubernetes/pki/ca.crt --token %s %s", server, token, line))
	return err
}
