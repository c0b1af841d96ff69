//go:build e2e

package closed

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/topology"
	"skerry.dev/skerry/test/sandbox"
)

const description = `
sites: [{name: west, nodes: 2}, {name: east, nodes: 1}]
`

// converged is how long a change of a label may take to be true on every node.
const converged = 2 * time.Second

// TestClosed runs its rows in both of kube-proxy's modes. They build on each
// other.
func TestClosed(t *testing.T) {
	whole := sandbox.New(t, description)
	whole.Load("agnhost")
	whole.Apply(fmt.Sprintf(workload, sandbox.Agnhost()))
	s := &subject{Sandbox: whole, t: t}
	s.waitWorkload(map[string]int{"west": 2, "east": 1, "cloud": 1})
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			s := &subject{Sandbox: whole.For(t), t: t}
			s.setMode(mode)
			row := func(name string, do func(s *subject)) {
				t.Run(name, func(t *testing.T) { do(&subject{Sandbox: whole.For(t), t: t}) })
			}
			row("Open", (*subject).open)
			row("Closed", (*subject).closed)
			row("NodesMove", (*subject).nodesMove)
			row("LastEndpointGone", (*subject).lastEndpointGone)
			row("OfflineReboot", (*subject).offlineReboot)
		})
	}
	t.Run("DNS", func(t *testing.T) { (&subject{Sandbox: whole.For(t), t: t}).dns() })
}

// open is the control: without the annotation every node has every endpoint,
// and clients are answered from elsewhere. It goes on to the moment in which the
// Services are closed.
func (s *subject) open() {
	s.annotate("")
	for _, n := range s.Nodes() {
		s.Eventually(30*time.Second, n.Name()+" has the endpoints of all sites", func() error {
			return s.hasTargets(n, "web-west", "web-east", "web-cloud")
		})
	}
	// From the cloud, which reaches both sites: a connection that a site's router
	// had refused would be in the node's connection table for two minutes, and
	// the kernel may send another one from the same port the same way.
	seen := s.ask(s.ControlPlane(), "tcp", s.service("web"), 60)
	if seen.foreign == 0 || seen.failed != 0 {
		s.t.Fatalf("an open Service: of 60 requests from the cloud, %s", seen)
	}
	s.Step("open: of 60 requests from the cloud, %s", seen)
	start := time.Now()
	s.annotate(`["` + api.SiteLabel + `"]`)
	s.settled(start, map[string][]string{
		"west-1": {"web-west"}, "west-2": {"web-west"}, "east-1": {"web-east"}, "cloud-1": {},
	})
}

// closed asks in all ways there are.
func (s *subject) closed() {
	const many, some = 2000, 500
	for _, n := range s.siteNodes() {
		s.onlyOwn(n, many, s.ask(n, "tcp", s.service("web"), many))
		s.onlyOwn(n, some, s.ask(n, "udp", s.service("web"), some))
		s.onlyOwn(n, some, s.ask(n, "tcp", s.nodePort(n, "web"), some))
		sticky := s.ask(n, "tcp", s.service("sticky"), some)
		s.onlyOwn(n, some, sticky)
		if len(sticky.pods) != 1 {
			s.t.Errorf("%s: session affinity, and %d pods answered: %v", n.Name(), len(sticky.pods), sticky.pods)
		}
		local := s.ask(n, "tcp", s.service("local"), some)
		s.onlyOwn(n, some, local)
		if len(local.pods) != 1 {
			s.t.Errorf("%s: internalTrafficPolicy Local, and %d pods answered: %v", n.Name(), len(local.pods), local.pods)
		}
	}
	// The cloud's node is at no site: it shares it with nobody, itself included.
	s.refused(s.ControlPlane(), s.service("web"))
}

// nodesMove changes a node's site, and back.
func (s *subject) nodesMove() {
	s.Step("west-2 goes to site east")
	start := time.Now()
	s.label("west-2", "east")
	s.settled(start, map[string][]string{
		"west-1": {"web-west/west-1"}, "west-2": {"web-west/west-2", "web-east"}, "east-1": {"web-west/west-2", "web-east"},
	})
	s.onlyFrom(s.Node("west-1"), "web-west/west-1", 500)
	s.Step("west-2 leaves all sites")
	start = time.Now()
	s.label("west-2", "")
	s.settled(start, map[string][]string{"west-1": {"web-west/west-1"}, "west-2": {}, "east-1": {"web-east"}})
	s.refused(s.Node("west-2"), s.service("web"))
	s.Step("west-2 is back in site west")
	start = time.Now()
	s.label("west-2", "west")
	s.settled(start, map[string][]string{"west-1": {"web-west"}, "west-2": {"web-west"}, "east-1": {"web-east"}})
}

// lastEndpointGone: refused, at once, and nobody else answers.
func (s *subject) lastEndpointGone() {
	s.scale("east", 0)
	n := s.Node("east-1")
	s.settled(time.Now(), map[string][]string{"east-1": {}})
	s.refused(n, s.service("web"))
	// From another machine: an attempt that a machine makes at its own address and
	// its own rules refuse stays in its connection table, unanswered, for two
	// minutes, with or without Skerry, and a later one from that port goes its way.
	// To other machines the kernel says that it refuses once a second.
	s.refusedWithin(s.ControlPlane(), s.nodePort(n, "web"), 5, 1500*time.Millisecond)
	if seen := s.ask(n, "udp", s.service("web"), 50); seen.own+seen.foreign != 0 {
		s.t.Errorf("UDP: %s", seen)
	}
	west := s.Node("west-1")
	s.onlyOwn(west, 200, s.ask(west, "tcp", s.service("web"), 200))
	s.scale("east", 1)
	s.Eventually(30*time.Second, "the site answers again", func() error { return s.hasTargets(n, "web-east") })
	s.onlyOwn(n, 200, s.ask(n, "tcp", s.service("web"), 200))
}

// offlineReboot: a node that starts without the cloud knows its site.
func (s *subject) offlineReboot() {
	s.Site("west").Cut()
	n := s.Node("west-1")
	s.Step("west-1 loses its power, and gets it back")
	n.Reboot()
	s.Eventually(4*time.Minute, "west-1 has its site's endpoints", func() error { return s.hasTargets(n, "web-west") })
	s.Eventually(2*time.Minute, "both pods of the site answer on west-1", func() error {
		if seen := s.ask(n, "tcp", s.service("web"), 20); seen.own != 20 || seen.foreign != 0 || len(seen.pods) != 2 {
			return fmt.Errorf("of 20 requests, %s", seen)
		}
		return nil
	})
	for _, n := range s.Site("west").Nodes() {
		s.onlyOwn(n, 1000, s.ask(n, "tcp", s.service("web"), 1000))
		s.onlyOwn(n, 200, s.ask(n, "udp", s.service("web"), 200))
	}
	s.Site("west").Heal()
	s.Eventually(2*time.Minute, "west-1 is Ready again", func() error {
		status, err := s.NodeReady("west-1")
		if err == nil && status != "True" {
			err = fmt.Errorf("Ready is %q", status)
		}
		return err
	})
	s.onlyOwn(n, 500, s.ask(n, "tcp", s.service("web"), 500))
}

// annotate closes or opens all Services of the suite.
func (s *subject) annotate(keys string) {
	s.t.Helper()
	value := "null"
	if keys != "" {
		value = fmt.Sprintf("%q", keys)
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, topology.Annotation, value)
	for _, name := range strings.Fields("sticky local web") {
		_, err := s.Kube().CoreV1().Services("default").Patch(s.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		s.must(err)
	}
}

// label gives a node another site, or none.
func (s *subject) label(node, site string) {
	s.t.Helper()
	value := "null"
	if site != "" {
		value = fmt.Sprintf("%q", site)
	}
	_, err := s.Kube().CoreV1().Nodes().Patch(s.Context(), node, types.MergePatchType,
		fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, api.SiteLabel, value), metav1.PatchOptions{})
	s.must(err)
}

func (s *subject) scale(site string, replicas int) {
	s.t.Helper()
	_, err := s.Kube().AppsV1().Deployments("default").Patch(s.Context(), "web-"+site, types.MergePatchType,
		fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
	s.must(err)
	s.waitWorkload(map[string]int{site: replicas})
}
