//go:build e2e

package hold

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
	"skerry.dev/skerry/test/sandbox"
)

// timings replace upstream's defaults, which would make a row take six minutes.
type timings struct {
	lease      int           // seconds; nodes renew it four times in that time
	grace      time.Duration // a heartbeat that late is lost
	toleration int           // seconds from the NoExecute taint to the eviction
}

var (
	short = timings{lease: 8, grace: 8 * time.Second, toleration: 2}
	// nervous takes a few lost packets in a row for a lost heartbeat.
	nervous = timings{lease: 4, grace: 3 * time.Second, toleration: 0}
)

// evictedWithin is how long upstream takes at most from the fault to the first
// eviction with the short timings, and how long a held node is watched after
// its heartbeat was found lost.
const evictedWithin = 30 * time.Second

const controllerManager = "kube-controller-manager"

// description is that of a sandbox with these timings.
func (v timings) description() string {
	return fmt.Sprintf(`
kubelet: {nodeLeaseDurationSeconds: %[3]d}
controlPlane:
  extraArgs:
    kube-apiserver:
      default-unreachable-toleration-seconds: "%[1]d"
      default-not-ready-toleration-seconds: "%[1]d"
    kube-controller-manager:
      node-monitor-grace-period: %[2]s
      node-monitor-period: 1s
      leader-elect-lease-duration: 6s
      leader-elect-renew-deadline: 4s
      leader-elect-retry-period: 1s
`, v.toleration, v.grace, v.lease)
}

// A row is one fault.
type row struct {
	name  string
	sites []string // where applications run
	nodes []string // what the fault hits
	fault func(c *cluster)
	// alwaysEvicts: Skerry must evict as upstream does.
	alwaysEvicts bool
	// flickers: the heartbeat is not lost for good, so there is no moment at
	// which Ready is Unknown for sure.
	flickers bool
	// within replaces evictedWithin.
	within time.Duration
	heal   func(c *cluster)
}

var (
	west     = []string{"west-1", "west-2"}
	healWest = func(c *cluster) { c.Site("west").Heal() }
)

var rows = []row{
	{
		name: "one-node-cut", sites: []string{"west"}, nodes: west[:1],
		fault: func(c *cluster) { c.Node("west-1").CutFromCloud() },
		heal:  func(c *cluster) { c.Node("west-1").HealFromCloud() },
	},
	{
		name: "site-cut", sites: []string{"west"}, nodes: west,
		fault: func(c *cluster) { c.Site("west").Cut() },
		heal:  healWest,
	},
	{
		name: "all-sites-cut", sites: []string{"east", "west"}, nodes: []string{"east-1", "east-2", "west-1", "west-2"},
		fault: func(c *cluster) { c.Site("east").Cut(); c.Site("west").Cut() },
		heal:  func(c *cluster) { c.Site("east").Heal(); c.Site("west").Heal() },
	},
	{
		name: "flapping", sites: []string{"west"}, nodes: west,
		fault:    func(c *cluster) { c.Site("west").Flap(40*time.Second, 5*time.Minute) },
		flickers: true, within: time.Second,
		heal: func(*cluster) {},
	},
	{
		name: "controller-manager-restarted", sites: []string{"west"}, nodes: west,
		fault: func(c *cluster) {
			c.Site("west").Cut()
			c.WaitReady(time.Minute, corev1.ConditionUnknown, west...)
			leader := c.Leader(controllerManager)
			c.ControlPlane().Kill(controllerManager)
			c.Eventually(2*time.Minute, "another "+controllerManager+" leads", func() error {
				if now := c.Leader(controllerManager); now == leader || now == "" {
					return fmt.Errorf("it is %q", now)
				}
				return nil
			})
		},
		heal: healWest,
	},
	{
		name: "apiserver-restarted", sites: []string{"west"}, nodes: west,
		fault: func(c *cluster) {
			c.Site("west").Cut()
			c.WaitReady(time.Minute, corev1.ConditionUnknown, west...)
			c.ControlPlane().Kill("kube-apiserver")
			c.Eventually(2*time.Minute, "the API server answers again", func() error {
				_, err := c.Kube().Discovery().ServerVersion()
				return err
			})
		},
		heal: healWest,
	},
	{
		// The neighbour says that it is dead.
		name: "powered-off", sites: []string{"west"}, nodes: west[:1],
		fault:        func(c *cluster) { c.Node("west-1").PowerOff() },
		alwaysEvicts: true, within: time.Minute,
		heal: func(c *cluster) { c.Node("west-1").PowerOn() },
	},
	{
		// Nobody is left to say so: the site may as well be cut off.
		name: "site-powered-off", sites: []string{"west"}, nodes: west,
		fault: func(c *cluster) { powerOff(c, west) },
		heal:  func(c *cluster) { powerOn(c, west) },
	},
	{
		name: "site-powered-off-and-one-declared-dead", sites: []string{"west"}, nodes: west[:1],
		fault: func(c *cluster) {
			powerOff(c, west)
			c.WaitReady(time.Minute, corev1.ConditionUnknown, west...)
			c.declare("west-1", corev1.ConditionFalse)
		},
		alwaysEvicts: true, within: 15 * time.Second, // toleration, two passes, and the apps' own way to go
		heal: func(c *cluster) {
			c.declare("west-1", corev1.ConditionUnknown)
			powerOn(c, west)
		},
	},
	{
		name: "no-site-label", sites: []string{"west"}, nodes: west[:1],
		fault: func(c *cluster) {
			c.Kubectl("label", "node", "west-1", api.SiteLabel+"-")
			c.Node("west-1").CutFromCloud()
		},
		alwaysEvicts: true,
		heal: func(c *cluster) {
			c.Kubectl("label", "node", "west-1", api.SiteLabel+"=west")
			c.Node("west-1").HealFromCloud()
		},
	},
}

// lossRow has timings of its own: with the short ones upstream does not mind
// this loss. It evicts now and then, so it is given time to.
var lossRow = row{
	name: "loss-30-percent", sites: []string{"west"}, nodes: west,
	fault:    func(c *cluster) { c.Site("west").Link(weaklink.Settings{Loss: 30}) },
	flickers: true, within: 5 * time.Minute,
	heal: healWest,
}

func TestHold(t *testing.T) {
	runRows(t, short, []variant{
		{"skerry", nil, rows},
		{"pristine", []string{controllerManager}, rows},
		// Ours is a drop-in: it does its work beside upstream's own builds.
		{"drop-in", []string{"kube-apiserver", "kube-scheduler"}, rows[:1]},
	})
}

func TestLoss(t *testing.T) {
	runRows(t, nervous, []variant{
		{"skerry", nil, []row{lossRow}},
		{"pristine", []string{controllerManager}, []row{lossRow}},
	})
}

// A variant is a cluster with some of upstream's own builds.
type variant struct {
	name     string
	pristine []string // components that are upstream's
	rows     []row
}

// runRows runs the rows of each variant, one after the other in one sandbox.
func runRows(t *testing.T, v timings, variants []variant) {
	s := sandbox.New(t, v.description())
	var table strings.Builder
	t.Cleanup(func() { t.Logf("counted per row:\n%s", table.String()) })
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			c := &cluster{s.In(t), t}
			c.waitForOurs()
			for _, component := range v.pristine {
				c.UsePristine(component)
			}
			for _, r := range v.rows {
				t.Run(r.name, func(t *testing.T) {
					evicts := r.alwaysEvicts || slices.Contains(v.pristine, controllerManager)
					counted := r.run(&cluster{s.In(t), t}, evicts)
					fmt.Fprintf(&table, "%-10s %-32s %-7s %s\n", v.name, r.name, map[bool]string{true: "evicts", false: "holds"}[evicts], counted)
				})
			}
		})
	}
}

// TestDefaultTimings is the row of a whole site cut with upstream's default
// timings, ours and the control side by side in two sandboxes.
func TestDefaultTimings(t *testing.T) {
	for _, variant := range []string{"skerry", "pristine"} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			c := &cluster{sandbox.New(t, ""), t}
			if variant == "pristine" {
				c.UsePristine(controllerManager)
			}
			i := slices.IndexFunc(rows, func(r row) bool { return r.name == "site-cut" })
			r := rows[i]
			// 50 s of grace, 300 s of toleration, and what it takes to notice.
			r.within = 400 * time.Second
			r.run(c, variant == "pristine")
		})
	}
}

// run causes the fault, checks what follows, heals, and returns what was
// counted until then.
func (r row) run(c *cluster, evicts bool) sandbox.Counts {
	c.WaitReady(2*time.Minute, corev1.ConditionTrue, "east-1", "east-2", "west-1", "west-2")
	c.waitForTaints(r.nodes)
	for _, site := range r.sites {
		c.Deployment("web-"+site, site, 2)
	}
	record := c.Record(r.nodes...)
	r.fault(c)
	within := r.within
	if within == 0 {
		within = evictedWithin
	}
	if evicts {
		record.WaitEvicted(within)
		if n := record.Counts(); n.NoExecute == 0 {
			c.t.Errorf("pods were evicted without a NoExecute taint: %s", n)
		}
	} else {
		if !r.flickers {
			c.WaitReady(2*time.Minute, corev1.ConditionUnknown, r.nodes...)
		}
		c.Sleep(within, "upstream evicts within that time")
		record.MustBeHeld()
		if n := record.Counts(); !r.flickers && n.NoSchedule != len(r.nodes) {
			c.t.Errorf("%d NoSchedule taints on %d nodes: was the heartbeat lost at all?", n.NoSchedule, len(r.nodes))
		}
		c.mustSayHeld(r)
	}
	counted := record.Counts()
	r.heal(c)
	c.WaitReady(3*time.Minute, corev1.ConditionTrue, r.nodes...)
	c.waitForTaints(r.nodes)
	if !evicts && !strings.Contains(r.name, "powered-off") {
		// A machine that lost its power has pods that start again; no other has.
		record.MustBeHeld()
	}
	return counted
}

func powerOff(c *cluster, nodes []string) {
	for _, n := range nodes {
		c.Node(n).PowerOff()
	}
}

func powerOn(c *cluster, nodes []string) {
	for _, n := range nodes {
		c.Node(n).PowerOn()
	}
}

// cluster adds the words of this suite to those of all.
type cluster struct {
	*sandbox.Sandbox
	t *testing.T
}

// waitForOurs waits until Skerry's kube-controller-manager runs and an API
// server answers, after a case that ran others.
func (c *cluster) waitForOurs() {
	c.t.Helper()
	c.Eventually(3*time.Minute, "Skerry's "+controllerManager+" runs", func() error {
		pod, err := c.Kube().CoreV1().Pods(metav1.NamespaceSystem).Get(c.Context(), controllerManager+"-"+c.ControlPlane().Name(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		status := pod.Status.ContainerStatuses
		if len(status) != 1 || !status[0].Ready || !strings.Contains(status[0].Image, "skerry") {
			return fmt.Errorf("pod %s: %v", pod.Name, status)
		}
		return nil
	})
}

// declare says by hand whether a node is alive, as docs/hold.md tells operators.
func (c *cluster) declare(node string, alive corev1.ConditionStatus) {
	c.t.Helper()
	c.Step("setting %s=%s on %s", api.AliveCondition, alive, node)
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q,"reason":"ByHand","message":"said by the test"}]}}`, api.AliveCondition, alive)
	if _, err := c.Kube().CoreV1().Nodes().Patch(c.Context(), node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		c.t.Fatal(err)
	}
}

// waitForTaints waits until the nodes carry no taint.
func (c *cluster) waitForTaints(nodes []string) {
	c.t.Helper()
	c.Eventually(time.Minute, "no taint is left on "+strings.Join(nodes, ", "), func() error {
		for _, name := range nodes {
			n, err := c.Kube().CoreV1().Nodes().Get(c.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s: %s", name, n.Spec.Taints[0].ToString())
			}
		}
		return nil
	})
}

// mustSayHeld: an operator can see that the nodes are held, and why.
func (c *cluster) mustSayHeld(r row) {
	c.t.Helper()
	if r.flickers {
		return
	}
	for _, name := range r.nodes {
		events, err := c.Kube().CoreV1().Events(metav1.NamespaceDefault).List(c.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Node,reason=NodeHeld,involvedObject.name=" + name,
		})
		if err != nil {
			c.t.Fatal(err)
		}
		if len(events.Items) == 0 {
			c.t.Errorf("no event tells that %s is held", name)
		}
	}
}
