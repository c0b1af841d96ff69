//go:build e2e

package install

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/test/sandbox"
)

// The heartbeat of a machine that was reset is given up early.
const description = `
sites:
- {name: east, nodes: 1}
- {name: west, nodes: 1}
controlPlane:
  extraArgs:
    kube-controller-manager: {node-monitor-grace-period: 20s, node-monitor-period: 1s}
`

const readyTimeout = 2 * time.Minute

func TestInstall(t *testing.T) {
	c := form(t)
	// In this order: the last one leaves no cluster.
	for _, one := range []struct {
		name string
		test func(*cluster)
	}{
		{"nodes have the site of their token", sitesOfTokens},
		{"status and token list tell how it is", statusTells},
		{"a node cannot change what the cloud says of it", nodeCannotChange},
		{"a token makes nodes of its site only", tokenMakesItsSite},
		{"phases run by name", phasesByName},
		{"a reboot brings all back", rebootBringsBack},
		{"reset undoes join, and join works again", resetUndoesJoin},
		{"reset undoes init", resetUndoesInit},
	} {
		t.Run(one.name, func(t *testing.T) { one.test(c.in(t)) })
	}
}

// cluster is what the commands of a user have made of three machines: a control
// plane on cloud-1, and the nodes east-1 and west-1.
type cluster struct {
	*sandbox.Sandbox
	t *testing.T
	// fresh is each machine before the first command.
	fresh map[string]picture
	// join is the command that `skerry token create` printed for each site.
	join map[string]string
}

// in is the cluster for a case.
func (c *cluster) in(t *testing.T) *cluster {
	copied := *c
	copied.Sandbox, copied.t = c.In(t), t
	return &copied
}

// form gives the commands of docs/install.md.
func form(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{sandbox.NewMachines(t, description), t, map[string]picture{}, map[string]string{}}
	c.must(c.Box().WriteConfigFiles())
	for _, n := range c.Nodes() {
		c.fresh[n.Name()] = look(t, n)
	}
	c.Step("skerry init on %s", c.ControlPlane().Name())
	c.ControlPlane().Exec("skerry", "init", "--config", box.InitFile)
	c.must(c.Box().Adopt())
	for _, site := range c.Sites() {
		c.join[site.Name()] = c.token("--site", site.Name())
	}
	c.Step("skerry join on the others")
	c.together(func(n *sandbox.Node) error { return c.tryJoin(n, c.join[siteOf(n)]) }, c.Node("east-1"), c.Node("west-1"))
	c.waitForNodes("cloud-1", "east-1", "west-1")
	return c
}

// siteOf is the site of a machine of an edge site, as its name says.
func siteOf(n *sandbox.Node) string { return strings.TrimSuffix(n.Name(), "-1") }

// token makes a token and returns the command to join with it.
func (c *cluster) token(args ...string) string {
	c.t.Helper()
	command := c.ControlPlane().Exec(append([]string{"skerry", "token", "create", "--print-join-command"}, args...)...)
	command = strings.TrimSpace(command)
	if !strings.HasPrefix(command, "skerry join ") || strings.Contains(command, "\n") {
		c.t.Fatalf("`skerry token create` printed %q, want one line that joins a machine", command)
	}
	return command
}

// tryJoin runs a join command, with more arguments, in a machine.
func (c *cluster) tryJoin(n *sandbox.Node, command string, args ...string) error {
	args = append(args, "--config", box.JoinFile)
	_, err := n.Try("sh", "-c", command+" "+strings.Join(args, " "))
	return err
}

// together does something on several machines at once; the test fails if it
// fails on one.
func (c *cluster) together(do func(*sandbox.Node) error, nodes ...*sandbox.Node) {
	c.t.Helper()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = do(n) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Errorf("%s: %v", nodes[i].Name(), err)
		}
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// waitForNodes waits until Nodes are Ready, take pods, and their pods are routed.
func (c *cluster) waitForNodes(names ...string) {
	c.t.Helper()
	c.WaitReady(readyTimeout, corev1.ConditionTrue, names...)
	c.Eventually(readyTimeout, "no taint says that they are not", func() error {
		for _, name := range names {
			for _, taint := range c.node(name).Spec.Taints {
				if taint.Key != "node-role.kubernetes.io/control-plane" {
					return fmt.Errorf("node %s has taint %s", name, taint.ToString())
				}
			}
		}
		return nil
	})
	c.must(c.Box().RoutePods(c.Context()))
}

// node reads a Node.
func (c *cluster) node(name string) *corev1.Node {
	c.t.Helper()
	n, err := c.Kube().CoreV1().Nodes().Get(c.Context(), name, metav1.GetOptions{})
	c.must(err)
	return n
}

// patch changes a Node as the administrator.
func (c *cluster) patch(name, patch string, subresources ...string) error {
	_, err := c.patched(name, patch, subresources...)
	return err
}

// patched is a Node as an administrator's patch left it, whatever follows.
func (c *cluster) patched(name, patch string, subresources ...string) (*corev1.Node, error) {
	return c.Kube().CoreV1().Nodes().Patch(c.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
}

// mustBeRefused fails the test unless the error is there and says all of this.
func (c *cluster) mustBeRefused(what string, err error, says ...string) {
	c.t.Helper()
	if err == nil {
		c.t.Errorf("%s: it worked, and must be refused", what)
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			c.t.Errorf("%s: refused without saying %q: %v", what, text, err)
		}
	}
}

// mustBeAsBefore fails the test if a machine is not what it was before the
// first command.
func (c *cluster) mustBeAsBefore(after string, n *sandbox.Node) {
	c.t.Helper()
	if left := look(c.t, n).diff(c.fresh[n.Name()]); len(left) > 0 {
		c.t.Errorf("%s is not as it was, after %s:\n  %s", n.Name(), after, strings.Join(left, "\n  "))
	}
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// wants compares what was found with what was wanted.
func wants[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %#v, want %#v", what, got, want)
	}
}
