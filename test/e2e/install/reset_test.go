//go:build e2e

package install

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/test/sandbox"
)

// reset runs `skerry reset` as a script does.
func reset(n *sandbox.Node) error {
	_, err := n.Try("skerry", "reset", "--force")
	return err
}

func resetUndoesJoin(c *cluster) {
	c.Deployment("web", "west", 1)
	east, west := c.Node("east-1"), c.Node("west-1")
	if during := look(c.t, west).diff(c.fresh["west-1"]); len(during) < 100 {
		c.t.Fatalf("the check sees only %v on a node: it would see nothing left behind either", during)
	}
	uid, oldWest := c.node("east-1").UID, c.node("west-1").UID

	_, err := west.Try("sh", "-c", "echo n | skerry reset")
	c.mustBeRefused("a reset that nobody confirmed", err)
	c.status(west)

	c.Step("skerry reset on %s and %s", east.Name(), west.Name())
	c.together(reset, east, west)
	c.mustBeAsBefore("reset", east)
	c.mustBeAsBefore("reset", west)
	_, err = west.Try("skerry", "status")
	c.mustBeRefused("status without a node", err, "exit status 1", "not a node")
	c.must(reset(west))
	c.mustBeAsBefore("a second reset", west)

	for _, phase := range []string{"host", "images"} {
		c.must(c.tryJoin(west, strings.Replace(c.join["west"], "skerry join", "skerry join phase "+phase, 1)))
	}
	c.must(reset(west))
	c.mustBeAsBefore("reset of half a join", west)

	refusedJoins(c, west)

	c.Step("the Node is deleted, and west-1 joins again")
	c.Kubectl("delete", "node", "west-1")
	c.must(c.tryJoin(west, c.join["west"], "--site", "west"))
	c.waitForNodes("west-1")
	if c.node("west-1").UID == oldWest {
		c.t.Error("the Node that was deleted is there again")
	}

	c.WaitReady(readyTimeout, corev1.ConditionUnknown, "east-1")
	c.Step("the Node of east-1 is there still, and it joins the same site again")
	c.must(c.tryJoin(east, c.join["east"]))
	c.waitForNodes("east-1")
	wants(c.t, "the UID of a Node that was not deleted", c.node("east-1").UID, uid)
	sitesOfTokens(c)
}

// refusedJoins gives commands that must fail, soon and clearly, and change
// nothing on the machine, which is no node.
func refusedJoins(c *cluster, n *sandbox.Node) {
	const patience = 30 * time.Second
	good := c.join["west"]
	token := tokenIn(good)
	id, secret, _ := strings.Cut(token, ".")
	// How long a join looks for its token in the cluster is the user's to say.
	impatient := n.ReadFile(box.JoinFile) + "timeouts: {discovery: 5s}\n"
	n.Shell("cat > /tmp/impatient.yaml <<'END'\n" + impatient + "END")
	for _, refused := range []struct {
		what, command string
		says          []string
	}{
		{"a join of another site than the token's", good + " --site east", []string{"--site east", "site west", "skerry token create --site east"}},
		{"a join of a site with a token that has none", c.token() + " --site west", []string{"--site west", "no site"}},
		{"a join with the token of another site, under a name of this one", c.join["east"], []string{"west-1", "site west", "kubectl delete node west-1"}},
		{"a join under the name of a node that is Ready", c.token() + " --node-name cloud-1", []string{"cloud-1 exists and is Ready", "--node-name"}},
		{"a join with a token that is not there", strings.Replace(good, token, "abcdef."+secret, 1), []string{"abcdef", "skerry token create"}},
		{"a join with a wrong secret", strings.Replace(good, token, id+".0123456789abcdef", 1), []string{"skerry token create"}},
		{"a join of a cluster with another CA", good[:len(good)-8] + "00000000", []string{"CA", "are pinned"}},
	} {
		began := time.Now()
		_, err := n.Try("sh", "-c", refused.command+" --config /tmp/impatient.yaml")
		c.mustBeRefused(refused.what, err, refused.says...)
		if took := time.Since(began); took > patience {
			c.t.Errorf("%s: refused only after %s", refused.what, took)
		}
	}
	n.Shell("rm -f /tmp/impatient.yaml")
	c.mustBeAsBefore("joins that were refused", n)
}

func resetUndoesInit(c *cluster) {
	cloud := c.ControlPlane()
	c.Step("skerry reset on %s", cloud.Name())
	c.must(reset(cloud))
	c.mustBeAsBefore("reset", cloud)
	c.must(reset(cloud))
	c.mustBeAsBefore("a second reset", cloud)
}
