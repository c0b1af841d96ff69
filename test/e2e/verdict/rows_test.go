//go:build e2e

package verdict

import (
	"fmt"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
	"skerry.dev/skerry/test/sandbox"
)

// now causes a fault that happens at once.
func now(do func(c *cluster)) func(c *cluster) time.Time {
	return func(c *cluster) time.Time {
		began := time.Now()
		do(c)
		return began
	}
}

func powerOff(number int) func(*cluster) time.Time {
	return now(func(c *cluster) { c.node(number).PowerOff() })
}

func powerOn(number int) func(*cluster) { return func(c *cluster) { c.powerOn(number) } }

func healSite(c *cluster) { c.here().Heal() }

func loss(percent weaklink.Percent) func(*cluster) time.Time {
	return now(func(c *cluster) { c.here().Link(weaklink.Settings{Loss: percent}) })
}

// long is how long rows with a link that is bad, but not gone, are watched.
const long = 2 * time.Minute

// rows are those that go on side by side, by site.
var rows = map[string][]row{"one": rowsOfOne, "two": rowsOfTwo, "three": rowsOfThree, "five": rowsOfFive}

var rowsOfOne = []row{
	{name: "cut", fault: now(func(c *cluster) { c.here().Cut() }), heal: healSite, says: map[int]string{1: "Unknown/NoWitness"}},
	{name: "power-off", fault: powerOff(1), heal: powerOn(1), says: map[int]string{1: "Unknown/NoWitness"}},
	{name: "loss-30-percent", fault: loss(30), heal: healSite, watch: long},
	{name: "loss-50-percent", fault: loss(50), heal: healSite, watch: long},
	{name: "flapping", fault: now(func(c *cluster) { c.here().Flap(40*time.Second, long) }), heal: healSite, watch: long},
}

var rowsOfTwo = []row{
	{name: "power-off", fault: powerOff(1), heal: powerOn(1), dead: []int{1}, says: map[int]string{1: "False/NeighboursCannotReachIt"}},
	{name: "one-node-cut-from-the-cloud", fault: now(func(c *cluster) { c.node(1).CutFromCloud() }),
		heal: func(c *cluster) { c.node(1).HealFromCloud() }, says: map[int]string{1: "True/NeighboursReachIt"}},
	{name: "site-cut", fault: now(func(c *cluster) { c.here().Cut() }), heal: healSite, says: map[int]string{1: "Unknown/SiteSilent", 2: "Unknown/SiteSilent"}},
	{name: "power-off-with-the-other-cut", fault: now(func(c *cluster) { c.node(2).CutFromCloud(); c.node(1).PowerOff() }),
		heal: func(c *cluster) { c.node(2).HealFromCloud(); c.powerOn(1) }, says: map[int]string{1: "Unknown/SiteSilent"}},
	{name: "one-way-up-lost", fault: now(func(c *cluster) { c.here().CutUp() }), heal: healSite},
	{name: "one-way-down-lost", fault: now(func(c *cluster) { c.here().CutDown() }), heal: healSite},
	// Its machine says that nobody is there: that is no dead machine.
	{name: "agent-stopped", fault: now(func(c *cluster) { c.node(1).StopUnit(sandbox.AgentUnit) }),
		heal: func(c *cluster) { c.node(1).StartUnit(sandbox.AgentUnit) }, says: map[int]string{1: "Unknown/KubeletDown"}},
	{name: "observer-off-and-cut-from-the-cloud", fault: func(c *cluster) time.Time {
		c.observer(1, false)
		began := time.Now()
		c.node(1).CutFromCloud()
		return began
	}, heal: func(c *cluster) {
		c.node(1).HealFromCloud()
		c.node(1).WaitAgent(time.Minute, true)
		c.observer(1, true)
	}, says: map[int]string{1: "Unknown/KubeletDown"}},
	{name: "observer-off-on-all-and-power-off", fault: func(c *cluster) time.Time {
		c.observer(1, false)
		c.observer(2, false)
		began := time.Now()
		c.node(1).PowerOff()
		return began
	}, heal: func(c *cluster) {
		c.powerOn(1)
		c.node(1).WaitAgent(time.Minute, true)
		c.observer(1, true)
		c.observer(2, true)
	}, says: map[int]string{1: "Unknown/NoAnswer"}},
}

var rowsOfThree = []row{
	{name: "power-off", fault: powerOff(1), heal: powerOn(1), dead: []int{1}, says: map[int]string{1: "False/NeighboursCannotReachIt"}},
	{name: "frozen", fault: now(func(c *cluster) { c.node(2).Freeze() }), heal: func(c *cluster) { c.node(2).Thaw() }, dead: []int{2}},
	{name: "cut-from-the-cloud-only", fault: now(func(c *cluster) { c.node(3).CutFromCloud() }),
		heal: func(c *cluster) { c.node(3).HealFromCloud() }, says: map[int]string{3: "True/NeighboursReachIt"}},
	{name: "cut-from-its-site-only", fault: now(func(c *cluster) { c.node(3).CutFromNeighbours() }),
		heal: func(c *cluster) { c.node(3).HealToNeighbours() }, says: map[int]string{3: "True/Heartbeat"}},
	{name: "cut-from-both", fault: now(func(c *cluster) { c.node(3).CutFromCloud(); c.node(3).CutFromNeighbours() }),
		heal: func(c *cluster) { c.node(3).HealToNeighbours(); c.node(3).HealFromCloud() }, dead: []int{3}},
	{name: "cut-from-the-cloud-and-one-neighbour", fault: now(func(c *cluster) {
		c.node(3).CutFromCloud()
		c.here().CutBetween(c.name(3), c.name(1))
	}), heal: func(c *cluster) { c.here().HealInside(); c.node(3).HealFromCloud() }, says: map[int]string{3: "True/NeighboursReachIt"}},
	{name: "cut-from-the-cloud-in-a-lossy-site", fault: now(func(c *cluster) {
		c.here().Inside(weaklink.Settings{Loss: 30})
		c.node(3).CutFromCloud()
	}), watch: long, heal: func(c *cluster) { c.here().HealInside(); c.node(3).HealFromCloud() }},
	{name: "kubelet-killed", fault: func(c *cluster) time.Time {
		c.Kubectl("patch", "site", c.site, "--type=merge", "-p", `{"spec":{"kubeletGrace":"1m"}}`)
		began := time.Now()
		c.node(1).StopUnit(sandbox.KubeletUnit)
		return began
	}, dead: []int{1}, notBefore: time.Minute, within: 2 * time.Minute, says: map[int]string{1: "False/KubeletDown"},
		heal: func(c *cluster) {
			c.node(1).StartUnit(sandbox.KubeletUnit)
			c.Kubectl("patch", "site", c.site, "--type=merge", "-p", `{"spec":{"kubeletGrace":"5m"}}`)
		}},
	{name: "containerd-killed", fault: now(func(c *cluster) { c.node(2).StopUnit(sandbox.ContainerdUnit) }), mayFall: []int{2},
		// The kubelet says itself that it is not ready: what follows is upstream's.
		says: map[int]string{2: "True/Heartbeat"}, check: func(c *cluster) {
			out := c.Kubectl("get", "nodereport", c.name(2), "-o", "jsonpath={.spec.self.runtime}")
			if out != "Down" {
				c.t.Errorf("the report of %s says that its runtime is %q, want Down", c.name(2), out)
			}
		}, heal: func(c *cluster) { c.node(2).StartUnit(sandbox.ContainerdUnit) }},
	{name: "observer-off-on-one-and-power-off", fault: func(c *cluster) time.Time {
		c.observer(2, false)
		began := time.Now()
		c.node(1).PowerOff()
		return began
	}, dead: []int{1}, heal: func(c *cluster) { c.powerOn(1); c.observer(2, true) }},
}

var rowsOfFive = []row{
	{name: "power-off", fault: powerOff(5), heal: powerOn(5), dead: []int{5}, says: map[int]string{5: "False/NeighboursCannotReachIt"}},
	{name: "two-powered-off", fault: now(func(c *cluster) { c.node(1).PowerOff(); c.node(2).PowerOff() }),
		// kube-controller-manager evicts one node of a zone in 10 s.
		within: detection + 10*time.Second, dead: []int{1, 2}, heal: func(c *cluster) { c.powerOn(1); c.powerOn(2) }},
	{name: "split-2-3-all-connected", fault: now(func(c *cluster) { c.here().Split(c.name(1), c.name(2)) }), heal: func(c *cluster) { c.here().HealInside() }},
	{name: "split-2-3-the-two-cut-off", fault: now(func(c *cluster) {
		c.here().Split(c.name(1), c.name(2))
		c.node(1).CutFromCloud()
		c.node(2).CutFromCloud()
	}), within: detection + 10*time.Second, dead: []int{1, 2}, heal: func(c *cluster) {
		c.here().HealInside()
		c.node(1).HealFromCloud()
		c.node(2).HealFromCloud()
	}},
	{name: "site-cut-and-split-2-3", fault: now(func(c *cluster) { c.here().Cut(); c.here().Split(c.name(1), c.name(2)) }),
		heal: func(c *cluster) { c.here().HealInside(); c.here().Heal() }, says: map[int]string{1: "Unknown/SiteSilent", 5: "Unknown/SiteSilent"}},
	{name: "loss-30-percent", fault: loss(30), heal: healSite, watch: long},
	{name: "loss-50-percent-and-one-cut-off", fault: now(func(c *cluster) {
		c.here().Link(weaklink.Settings{Loss: 50})
		c.node(4).CutFromCloud()
	}), heal: func(c *cluster) { c.here().Heal(); c.node(4).HealFromCloud() }, watch: long},
	{name: "flapping-with-one-cut-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(3).CutFromCloud()
		c.here().Flap(30*time.Second, long)
		return began
	}, heal: func(c *cluster) { c.here().Heal(); c.node(3).HealFromCloud() }, watch: long},
	{name: "flapping-inside-with-one-cut-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(3).CutFromCloud()
		for end := began.Add(long); time.Now().Before(end); {
			c.node(3).CutFromNeighbours()
			c.Sleep(5*time.Second, "it is alone")
			c.node(3).HealToNeighbours()
			c.Sleep(5*time.Second, "it is not")
		}
		return began
	}, heal: func(c *cluster) { c.node(3).HealToNeighbours(); c.node(3).HealFromCloud() }, watch: long},
	{name: "agents-restart-with-one-cut-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(3).CutFromCloud()
		c.Sleep(14*time.Second, "its heartbeat is lost")
		for _, n := range c.here().Nodes() {
			n.KillAgent()
		}
		return began
	}, heal: func(c *cluster) { c.node(3).HealFromCloud() }},
	{name: "back-as-the-verdict-falls", fault: func(c *cluster) time.Time {
		began := time.Now()
		for _, after := range []time.Duration{9, 12, 15, 18, 21} {
			c.node(1).Freeze()
			c.Sleep(after*time.Second, "it is not there")
			c.node(1).Thaw()
			c.Sleep(20*time.Second, "it is back")
		}
		return began
	}, mayFall: []int{1}, watch: time.Second, check: func(c *cluster) { c.settled(time.Minute, c.name(1)) }},
}

// restart kills a controller and waits until another one leads.
func (c *cluster) restart(name string) {
	c.t.Helper()
	leader := c.Leader(name)
	c.ControlPlane().Kill(name)
	c.Eventually(2*time.Minute, "another "+name+" leads", func() error {
		if now := c.Leader(name); now == leader || now == "" {
			return fmt.Errorf("it is %q", now)
		}
		return nil
	})
}

const (
	ours  = "skerry-controller-manager"
	theKC = "kube-controller-manager"
)

// In mid-decision: while the question stands, and while the grace period runs.
var controllerRows = []row{
	{name: ours + "-restarted-and-power-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(1).PowerOff()
		// A heartbeat is lost 5 to 15 s after the power.
		c.Sleep(3*time.Second, "its neighbours find out")
		c.restart(ours)
		return began
	}, dead: []int{1}, within: 2 * time.Minute, heal: powerOn(1)},
	{name: theKC + "-restarted-and-power-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(1).PowerOff()
		c.Sleep(15*time.Second, "the decision falls")
		c.restart(theKC)
		return began
	}, dead: []int{1}, within: 2 * time.Minute, heal: powerOn(1)},
	{name: "both-restarted-with-one-cut-off", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.node(2).CutFromCloud()
		c.Sleep(16*time.Second, "its neighbours are being asked")
		c.restart(ours)
		c.restart(theKC)
		return began
	}, watch: 2 * time.Minute, heal: func(c *cluster) { c.node(2).HealFromCloud() }, says: map[int]string{2: "True/NeighboursReachIt"}},
	{name: "both-restarted-with-the-site-cut", fault: func(c *cluster) time.Time {
		began := time.Now()
		c.here().Cut()
		c.Sleep(16*time.Second, "its heartbeats are lost")
		c.restart(ours)
		c.restart(theKC)
		return began
	}, watch: 2 * time.Minute, heal: healSite},
}

// upstreamRow is the first row of all with upstream's own kube-controller-manager,
// as the control.
var upstreamRow = row{
	name: "upstream-power-off", fault: powerOff(1), heal: powerOn(1), dead: []int{1}, notBefore: detection, within: 90 * time.Second,
	check: func(c *cluster) {
		if out := c.Kubectl("-n", "kube-system", "get", "pod", theKC+"-"+c.ControlPlane().Name(), "-o", "jsonpath={.spec.containers[0].image}"); strings.Contains(out, "skerry") {
			c.t.Errorf("this was not upstream's: %s", out)
		}
	},
}
