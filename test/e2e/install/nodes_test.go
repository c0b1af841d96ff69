//go:build e2e

package install

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/supervisor"
	"skerry.dev/skerry/test/sandbox"
)

func sitesOfTokens(c *cluster) {
	server := strings.TrimPrefix(strings.TrimSpace(c.ControlPlane().Exec("kubelet", "--version")), "Kubernetes ")
	if !strings.Contains(server, "+skerry.") {
		c.t.Errorf("the kubelet's version is %q, want one of Skerry", server)
	}
	version, err := c.Kube().Discovery().ServerVersion()
	c.must(err)
	wants(c.t, "the API server's version", version.GitVersion, server)
	runtime := "containerd://" + strings.TrimPrefix(strings.Fields(c.ControlPlane().Exec("containerd", "--version"))[2], "v")
	for name, site := range map[string]string{"cloud-1": "", "east-1": "east", "west-1": "west"} {
		n := c.node(name)
		ready, err := c.NodeReady(name)
		c.must(err)
		wants(c.t, "Ready of "+name, ready, corev1.ConditionTrue)
		wants(c.t, "the site of "+name, n.Labels[api.SiteLabel], site)
		wants(c.t, "the zone of "+name, n.Labels[corev1.LabelTopologyZone], site)
		wants(c.t, "the kubelet of "+name, n.Status.NodeInfo.KubeletVersion, server)
		wants(c.t, "the runtime of "+name, strings.Replace(n.Status.NodeInfo.ContainerRuntimeVersion, "://v", "://", 1), runtime)
	}
}

// status is what scripts read from `skerry status -o json`.
type status struct {
	Node struct {
		Name, Role, Site, From string
	}
	Versions []struct {
		Program, Version string
		Patches          []string
	}
	Units []struct {
		Name     string
		Active   bool
		PID      int
		Restarts int
	}
	Runtime struct {
		Version string
		Images  []string
	}
	APIServer struct {
		Address     string
		Reachable   bool
		LastReached time.Time
	}
	Certificates []struct {
		Path    string
		Expires time.Time
	}
	Conditions []corev1.NodeCondition
	Problems   []string
}

// status runs `skerry status`, which must find nothing wrong.
func (c *cluster) status(n *sandbox.Node) status {
	c.t.Helper()
	var found status
	c.must(json.Unmarshal([]byte(n.Exec("skerry", "status", "-o", "json")), &found))
	return found
}

func statusTells(c *cluster) {
	for _, want := range []struct{ name, role, site, place, units string }{
		{"cloud-1", "control-plane", "", "none (cloud)", "containerd kubelet"},
		{"east-1", "worker", "east", "east", "containerd skerry-agent kubelet"},
		{"west-1", "worker", "west", "west", "containerd skerry-agent kubelet"},
	} {
		n := c.Node(want.name)
		found := c.status(n)
		wants(c.t, "the name", found.Node.Name, want.name)
		wants(c.t, "the role of "+want.name, found.Node.Role, want.role)
		wants(c.t, "the site of "+want.name, found.Node.Site, want.site)
		wants(c.t, "who says so", found.Node.From, "cluster")
		wants(c.t, "the API server", found.APIServer.Address, "https://"+c.ControlPlane().Address()+":6443")
		wants(c.t, "the API server answers", found.APIServer.Reachable, true)
		wants(c.t, "problems", strings.Join(found.Problems, "\n"), "")
		var running []string
		for _, unit := range found.Units {
			if unit.Active && unit.PID > 1 {
				running = append(running, unit.Name)
			}
		}
		wants(c.t, "running units", strings.Join(running, " "), want.units)
		if len(found.Versions) != 2 || len(found.Conditions) == 0 || len(found.Certificates) == 0 || found.Certificates[0].Expires.Before(time.Now()) ||
			len(found.Runtime.Images) == 0 || time.Since(found.APIServer.LastReached) > time.Minute {
			c.t.Errorf("status of %s lacks something: %+v", want.name, found)
		}
		text := n.Exec("skerry", "status")
		if line := fmt.Sprintf("%s, %s, site %s (cluster)", want.name, want.role, want.place); !strings.Contains(text, line) {
			c.t.Errorf("`skerry status` on %s does not say %q:\n%s", want.name, line, text)
		}
	}
	// A unit that is down is what the exit code is for.
	west := c.Node("west-1")
	id, _ := west.Config().Process()
	units := supervisor.NewClient(fmt.Sprintf("/proc/%d/root%s", id.PID, supervisor.DefaultSocket))
	c.must(units.Stop(c.Context(), "kubelet"))
	_, err := west.Try("skerry", "status")
	c.must(units.Start(c.Context(), "kubelet"))
	c.mustBeRefused("a good exit code with the kubelet down", err, "exit status 1", "DOWN")

	ofCloud := tokenIn(c.token())
	rows := c.tokens()
	wants(c.t, "the site of a token of east", rows[tokenIn(c.join["east"])], "east")
	wants(c.t, "the site of a token of west", rows[tokenIn(c.join["west"])], "west")
	wants(c.t, "the site of a token without one", rows[ofCloud], "<cloud>")
	c.ControlPlane().Exec("skerry", "token", "delete", ofCloud)
	wants(c.t, "the row of a token that was deleted", c.tokens()[ofCloud], "")
}

// tokens reads the column SITE of `skerry token list`, by token.
func (c *cluster) tokens() map[string]string {
	c.t.Helper()
	rows := map[string]string{}
	for line := range strings.Lines(c.ControlPlane().Exec("skerry", "token", "list")) {
		words := strings.Fields(line)
		if len(words) < 2 {
			c.t.Fatalf("a row of `skerry token list` is %q", line)
		}
		rows[words[0]] = words[1]
	}
	wants(c.t, "the head of the second column", rows["TOKEN"], "SITE")
	return rows
}
