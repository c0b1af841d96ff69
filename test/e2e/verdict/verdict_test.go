//go:build e2e

package verdict

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"skerry.dev/api"
	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/test/sandbox"
)

const description = `
sites:
- {name: one, nodes: 1}
- {name: two, nodes: 2}
- {name: three, nodes: 3}
- {name: five, nodes: 5}
`

// detection is how long a machine that lost its power may go without the taint
// that evicts, in a connected site.
const detection = 30 * time.Second

// held is how long nodes are watched that must be held: upstream would have
// tainted them after 55 s.
const held = 75 * time.Second

// A row is one fault in one site.
type row struct {
	name string
	// fault causes it and returns the moment from which time counts.
	fault func(c *cluster) time.Time
	// dead are the machines that must be tainted, by number, and within how
	// long (default: detection); notBefore is the earliest moment that is right.
	dead      []int
	within    time.Duration
	notBefore time.Duration
	// watch is how long all others must be left alone (default: held; a row with
	// dead ones ends 10 s after the last of them is found).
	watch time.Duration
	// says is what the condition skerry.dev/Alive must say at the end of the row,
	// by machine: "Unknown/NoWitness".
	says map[int]string
	// check looks at what else must be so, before the fault is healed.
	check func(c *cluster)
	heal  func(c *cluster)
	// mayFall: machines whose verdict is right either way, as long as it heals.
	mayFall []int
}

// counted is a line of the table.
type counted struct {
	site, row string
	taint     []time.Duration
	bound     time.Duration
	dead      int
	falseOnes int
	missed    int
	failed    bool
}

type table struct {
	mu    sync.Mutex
	lines []counted
}

func (t *table) add(l counted) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, l)
}

func (t *table) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var text strings.Builder
	fmt.Fprintf(&text, "%-6s %-44s %-22s %-8s %-7s %s\n", "site", "row", "time to taint", "bound", "false", "missed")
	for _, l := range t.lines {
		times, bound := "-", "-"
		if l.dead > 0 {
			var words []string
			for _, d := range l.taint {
				words = append(words, fmt.Sprintf("%.1fs", d.Seconds()))
			}
			times, bound = strings.Join(words, " "), l.bound.String()
		}
		failed := ""
		if l.failed {
			failed = "  FAILED"
		}
		fmt.Fprintf(&text, "%-6s %-44s %-22s %-8s %-7d %d%s\n", l.site, l.row, times, bound, l.falseOnes, l.missed, failed)
	}
	return text.String()
}

// TestVerdict runs all rows with Skerry's own parts.
func TestVerdict(t *testing.T) {
	s := sandbox.New(t, description)
	results := &table{}
	t.Cleanup(func() { t.Logf("counted per row, default timings:\n%s", results) })
	// An existing sandbox (SKERRY_SANDBOX) may have fewer sites.
	for _, site := range s.Sites() {
		name := site.Name()
		s.Kubectl("wait", "--for=condition=Ready", "node", "-l", api.SiteLabel+"="+name, "--timeout=180s")
		s.Deployment("web-"+name, name, len(site.Nodes()))
	}
	c := &cluster{Sandbox: s, t: t}
	c.settled(3*time.Minute, allNodes(s)...)
	t.Run("rows", func(t *testing.T) {
		// Not t.Parallel, which runs as many as there are processors: all that a
		// row does is wait.
		var sites sync.WaitGroup
		for _, site := range s.Sites() {
			sites.Go(func() {
				t.Run(site.Name(), func(t *testing.T) {
					for _, r := range rows[site.Name()] {
						t.Run(r.name, func(t *testing.T) { r.run(&cluster{s.For(t), t, site.Name()}, results) })
					}
				})
			})
		}
		sites.Wait()
	})
	t.Run("controllers", func(t *testing.T) {
		for _, r := range controllerRows {
			t.Run(r.name, func(t *testing.T) { r.run(&cluster{s.For(t), t, "three"}, results) })
		}
	})
	t.Run("upstream", func(t *testing.T) {
		c := &cluster{s.In(t), t, "three"}
		c.UsePristine("kube-controller-manager")
		r := upstreamRow
		t.Run(r.name, func(t *testing.T) { r.run(&cluster{s.For(t), t, "three"}, results) })
	})
}

func allNodes(s *sandbox.Sandbox) []string {
	var names []string
	for _, site := range s.Sites() {
		names = append(names, site.NodeNames()...)
	}
	return names
}

// cluster adds the words of this suite to those of all.
type cluster struct {
	*sandbox.Sandbox
	t    *testing.T
	site string
}

// node is a machine of the row's site, by number.
func (c *cluster) node(number int) *sandbox.Node {
	c.t.Helper()
	return c.Node(c.name(number))
}

func (c *cluster) name(number int) string { return fmt.Sprintf("%s-%d", c.site, number) }

func (c *cluster) here() *sandbox.Site { c.t.Helper(); return c.Site(c.site) }

// run causes the fault, counts, heals, and waits until all is right again.
func (r row) run(c *cluster, results *table) {
	line := counted{site: c.site, row: r.name, dead: len(r.dead), bound: r.within}
	if line.bound == 0 {
		line.bound = detection
	}
	nodes := c.here().NodeNames()
	records := map[string]*sandbox.Recorder{}
	for _, name := range nodes {
		records[name] = c.Record(name)
	}
	defer func() {
		line.failed = c.t.Failed()
		results.add(line)
		c.Collect()
		if r.heal != nil {
			r.heal(c)
		}
		c.settled(3*time.Minute, nodes...)
	}()
	began := r.fault(c)
	var dead []string
	for _, number := range r.dead {
		dead = append(dead, c.name(number))
	}
	if len(dead) > 0 {
		line.taint, line.missed = c.waitTainted(began, line.bound, r.notBefore, records, dead)
		c.Sleep(10*time.Second, "nobody else is touched")
	} else {
		watch := r.watch
		if watch == 0 {
			watch = held
		}
		c.Sleep(time.Until(began.Add(watch)), "nobody is touched")
	}
	for _, name := range nodes {
		if slices.Contains(dead, name) || slices.ContainsFunc(r.mayFall, func(n int) bool { return c.name(n) == name }) {
			continue
		}
		n := records[name].Counts()
		if harm := n.NoExecute + n.PodsDeleted + n.PodsNotReady + n.EndpointsRemoved; harm > 0 {
			line.falseOnes++
			c.t.Errorf("%s was not held: %s\n  %s", name, n, strings.Join(records[name].Log(), "\n  "))
		}
	}
	for number, want := range r.says {
		if got, message := c.alive(c.name(number)); got != want {
			c.t.Errorf("%s of %s is %s (%s), want %s", api.AliveCondition, c.name(number), got, message, want)
		} else {
			c.Step("%s: %s: %s", c.name(number), got, message)
		}
	}
	if r.check != nil {
		r.check(c)
	}
}

// waitTainted waits for the NoExecute taint of each, and returns how long it
// took, and how many did not get it in time.
func (c *cluster) waitTainted(began time.Time, bound, notBefore time.Duration, records map[string]*sandbox.Recorder, names []string) (took []time.Duration, missed int) {
	c.t.Helper()
	for _, name := range names {
		var at time.Time
		for end := began.Add(bound + 60*time.Second); at.IsZero() && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			at = records[name].Tainted(name)
		}
		if at.IsZero() {
			missed++
			got, message := c.alive(name)
			c.t.Errorf("%s is not tainted %s after the fault: %s is %s (%s)", name, bound+60*time.Second, api.AliveCondition, got, message)
			continue
		}
		d := at.Sub(began)
		took = append(took, d)
		got, message := c.alive(name)
		c.Step("%s is tainted %.1f s after the fault: %s: %s", name, d.Seconds(), got, message)
		switch {
		case d > bound:
			missed++
			c.t.Errorf("%s was tainted after %s, later than %s", name, d, bound)
		case d < notBefore:
			c.t.Errorf("%s was tainted after %s, earlier than %s", name, d, notBefore)
		}
	}
	return took, missed
}

// alive is status, reason and message of the verdict about a node.
func (c *cluster) alive(name string) (what, message string) {
	c.t.Helper()
	n, err := c.Kube().CoreV1().Nodes().Get(c.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error(), ""
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == api.AliveCondition {
			return string(condition.Status) + "/" + condition.Reason, condition.Message
		}
	}
	return "none", ""
}

// powerOn waits until the API knows that the node's pods have been started again:
// until then it has them as they were before the power went, and a pod that
// starts is not ready for a moment.
func (c *cluster) powerOn(number int) {
	c.t.Helper()
	on := time.Now().Truncate(time.Second) // as timestamps of the API are
	c.node(number).PowerOn()
	c.Eventually(2*time.Minute, "the pods of "+c.name(number)+" have been started again", func() error {
		pods, err := c.Kube().CoreV1().Pods(metav1.NamespaceAll).List(c.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + c.name(number)})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			for _, s := range p.Status.ContainerStatuses {
				if s.State.Running == nil || s.State.Running.StartedAt.Time.Before(on) || !s.Ready {
					return fmt.Errorf("pod %s: container %s: %+v, ready %t", p.Name, s.Name, s.State, s.Ready)
				}
			}
		}
		return nil
	})
}

// settled waits until nothing is left of any fault: nodes Ready, verdicts True by
// heartbeat, no taints, no questions, no reports, and every web pod ready.
func (c *cluster) settled(timeout time.Duration, names ...string) {
	c.t.Helper()
	c.Eventually(timeout, "all is well on "+strings.Join(names, ", "), func() error {
		for _, name := range names {
			n, err := c.Kube().CoreV1().Nodes().Get(c.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s: %s", name, n.Spec.Taints[0].ToString())
			}
			if ready, err := c.NodeReady(name); err != nil {
				return err
			} else if ready != corev1.ConditionTrue {
				return fmt.Errorf("%s: Ready is %s", name, ready)
			}
			if got, message := c.alive(name); got != "True/Heartbeat" {
				return fmt.Errorf("%s: %s is %s (%s)", name, api.AliveCondition, got, message)
			}
			if out, err := c.TryKubectl("get", "nodereport", name, "--ignore-not-found", "-o", "yaml"); err != nil {
				return err
			} else if out != "" {
				return fmt.Errorf("%s has a report: %s", name, out)
			}
			pods, err := c.Kube().CoreV1().Pods(metav1.NamespaceDefault).List(c.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
			if err != nil {
				return err
			}
			for _, p := range pods.Items {
				if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
					return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
				}) {
					return fmt.Errorf("pod %s on %s is not ready", p.Name, name)
				}
			}
		}
		site, _, _ := strings.Cut(names[0], "-")
		if out, err := c.TryKubectl("get", "site", site, "-o", "jsonpath={.status.doubts}{.status.dead}{.status.held}"); err != nil {
			return err
		} else if out != "00" {
			return fmt.Errorf("site %s: %s", site, out)
		}
		return nil
	})
}

// observer switches the observer of a machine off or on, by configuration.
func (c *cluster) observer(number int, on bool) {
	c.t.Helper()
	n := c.node(number)
	c.Step("observer of %s: %v", n.Name(), on)
	file := filepath.Join(n.Config().Disk(), agentapi.ConfigFile)
	config := map[string]any{}
	if err := yaml.Unmarshal([]byte(n.ReadFile(agentapi.ConfigFile)), &config); err != nil {
		c.t.Fatal(err)
	}
	listen, _ := config["listen"].(map[string]any)
	if listen == nil {
		listen = map[string]any{}
	}
	listen["observer"] = agentv1.None
	if on {
		delete(listen, "observer")
	}
	config["listen"] = listen
	data, err := yaml.Marshal(config)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	n.RestartAgent()
	n.WaitAgent(time.Minute, true)
}
