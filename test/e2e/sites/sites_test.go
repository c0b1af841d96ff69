//go:build e2e

package sites

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
)

const (
	alive = "True Heartbeat"
	dead  = "False NeighboursCannotReachIt"
	// decided is how long a death takes at most: 15 s for the heartbeat, 5 s for
	// the answers, and writing them.
	decided = 24 * time.Second
)

var well v1alpha1.SelfReport

// TestSites runs all cases in one control plane, each in a site of its own, most
// of them side by side; then the managers are killed.
func TestSites(t *testing.T) {
	c := newCloud(t)
	managers := []*manager{c.manager("manager-1"), c.manager("manager-2")}
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range managers {
				t.Logf("%s:\n%s", m.Name, m.Tail(40))
			}
		}
	})
	t.Run("cases", func(t *testing.T) {
		for name, test := range map[string]func(t *testing.T, c *cloud){
			"types": testTypes, "attacks": testAttacks, "dead": testDead, "clocks": testClocks, "others": testOthers, "expiry": testExpiry,
			"failover": testFailover, "by-hand": testByHand, "kubelet": testKubelet, "moves": testMoves, "silent": testSilent,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, c)
			})
		}
	})
	t.Run("steady", func(t *testing.T) { testSteady(t, c, managers) })
	t.Run("leader", func(t *testing.T) { testLeader(t, c, managers) })
}

func (c *cloud) joinAll(t *testing.T, site string, n int) []*machine {
	t.Helper()
	var all []*machine
	for i := range n {
		all = append(all, c.join(t, site, fmt.Sprintf("%s-%d", site, i+1)))
		time.Sleep(300 * time.Millisecond) // nor do kubelets beat in step
	}
	for _, m := range all {
		m.becomes(t, time.Minute, alive)
	}
	return all
}

func testDead(t *testing.T, c *cloud) {
	m := c.joinAll(t, "dead", 3)
	site := c.site(t, "dead", counts(3, 3, 0, 0, 0))
	if site.Annotations["site.skerry.dev/made-by"] == "" || *site.Spec.Witnesses != 1 {
		t.Errorf("the Site that was made: %+v", site)
	}
	m[0].powerOff()
	off := time.Now()
	time.Sleep(5 * time.Second)
	for _, x := range m[1:] {
		x.says(t, well, "dead-1=Unreachable")
	}
	m[0].becomes(t, time.Minute, dead)
	took := time.Since(off)
	t.Logf("dead %s after its last possible heartbeat", took.Round(time.Second))
	if took > decided {
		t.Errorf("that is longer than %s", decided)
	}
	if got := m[0].verdict(t); !strings.Contains(got.Message, "2 of 2 connected neighbours cannot reach it; heartbeat lost") || got.LastTransitionTime.IsZero() {
		t.Errorf("%+v", got)
	}
	site = c.site(t, "dead", counts(3, 2, 0, 1, 0))
	if d := site.Status.Doubts; len(d) != 1 || d[0].Node != "dead-1" || d[0].UID != m[0].uid || d[0].Unreachable != 2 {
		t.Errorf("doubts %+v", d)
	}
	for _, object := range []string{"Node", "Site"} {
		eventually(t, 10*time.Second, "event on the "+object, func() error {
			var events corev1.EventList
			if err := c.admin.List(t.Context(), &events, client.InNamespace("default")); err != nil {
				return err
			}
			if !slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
				return e.InvolvedObject.Kind == object && e.Reason == "NodeDead" && strings.HasPrefix(e.InvolvedObject.Name, "dead") &&
					strings.Contains(e.Message, "cannot reach it") && e.InvolvedObject.UID != ""
			}) {
				return fmt.Errorf("not among %d", len(events.Items))
			}
			return nil
		})
	}
	out, err := exec.Command("kubectl", "--kubeconfig", c.Kubeconfig(), "get", "site", "dead").CombinedOutput()
	if line := strings.Join(strings.Fields(string(out)), " "); err != nil || !strings.HasPrefix(line, "NAME NODES CONNECTED HELD DEAD UNKNOWN AGE dead 3 2 0 1 0 ") {
		t.Errorf("kubectl get site: %s (%v)", out, err)
	}
	m[0].powerOn(t)
	m[0].becomes(t, 5*time.Second, alive)
	for _, x := range m[1:] {
		x.unsay()
		if err := x.as.Delete(t.Context(), &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: x.name}}); err != nil {
			t.Error(err)
		}
	}
	site = c.site(t, "dead", counts(3, 3, 0, 0, 0))
	if len(site.Status.Doubts) > 0 {
		t.Errorf("doubts %+v", site.Status.Doubts)
	}
}

// The clocks of nodes may be an hour off, each in its own direction.
func testClocks(t *testing.T, c *cloud) {
	var m []*machine
	for i, skew := range []time.Duration{-time.Hour, time.Hour, 0} {
		m = append(m, c.join(t, "clocks", fmt.Sprintf("clocks-%d", i+1)))
		m[i].set(func() { m[i].skew = skew })
	}
	for _, x := range m {
		x.becomes(t, time.Minute, alive)
	}
	m[0].stays(t, 30*time.Second, alive)
	m[2].powerOff()
	off := time.Now()
	m[0].says(t, well, "clocks-3=Unreachable")
	m[1].says(t, well, "clocks-3=Unreachable")
	m[2].becomes(t, time.Minute, dead)
	if took := time.Since(off); took > decided {
		t.Errorf("dead after %s", took)
	}
	// Its clock stands still, as it were: it comes back with an older time.
	m[2].set(func() { m[2].skew = -2 * time.Hour })
	m[2].powerOn(t)
	m[2].becomes(t, 5*time.Second, alive)
	m[2].stays(t, 15*time.Second, alive)
}

// A node's word about a node of another site is ignored, whatever it says.
func testOthers(t *testing.T, c *cloud) {
	one := c.joinAll(t, "others", 1)[0]
	stranger := c.joinAll(t, "stranger", 2)
	cloudNode := c.join(t, "", "no-site-1")
	one.powerOff()
	stranger[0].says(t, well, one.name+"=Unreachable")
	stranger[1].says(t, well, one.name+"=Unreachable")
	cloudNode.says(t, well, one.name+"=Unreachable")
	one.becomes(t, time.Minute, "Unknown NoWitness")
	one.stays(t, 25*time.Second, "Unknown NoWitness")
	if got := cloudNode.verdict(t); got.Status != "" {
		t.Errorf("a cloud node has a verdict: %+v", got)
	}
	if err := c.admin.Get(t.Context(), client.ObjectKey{Name: "no-site-1"}, &v1alpha1.NodeReport{}); err != nil {
		t.Error(err)
	}
}

// A report that nobody renews does not count, and is deleted in the end.
func testExpiry(t *testing.T, c *cloud) {
	m := c.joinAll(t, "expiry", 2)
	m[1].says(t, well, "expiry-1=Unreachable")
	m[1].unsay() // its observer is gone, the object stays
	time.Sleep(26 * time.Second)
	m[0].powerOff()
	m[0].becomes(t, time.Minute, "Unknown NoAnswer")
	m[0].stays(t, 10*time.Second, "Unknown NoAnswer")
	m[1].powerOff()
	if err := c.admin.Delete(t.Context(), m[1].node(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "the end of the report of a node that is gone", func() error {
		err := c.admin.Get(t.Context(), client.ObjectKey{Name: m[1].name}, &v1alpha1.NodeReport{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there (%w)", err)
	})
	m[0].becomes(t, 20*time.Second, "Unknown NoWitness")
}

func outOfService(node *corev1.Node) string {
	var all []string
	for _, taint := range node.Spec.Taints {
		if taint.Key == corev1.TaintNodeOutOfService {
			all = append(all, taint.ToString())
		}
	}
	return strings.Join(all, " ")
}

func testFailover(t *testing.T, c *cloud) {
	ours := "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
	on := v1alpha1.FailoverOn
	if err := c.admin.Create(t.Context(), &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "failover"}, Spec: v1alpha1.SiteSpec{Failover: on}}); err != nil {
		t.Fatal(err)
	}
	m := c.joinAll(t, "failover", 4)
	is := func(x *machine, want string) func() error {
		return func() error {
			if got := outOfService(x.node(t)); got != want {
				return fmt.Errorf("it has %q", got)
			}
			return nil
		}
	}
	other := corev1.Taint{Key: "example.com/other", Effect: corev1.TaintEffectNoSchedule}
	foreign := corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	for x, taint := range map[*machine]corev1.Taint{m[0]: other, m[1]: foreign} {
		node := x.node(t)
		node.Spec.Taints = append(node.Spec.Taints, taint)
		if err := c.admin.Update(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	// 1 and 2 die; the kubelet of 3 is down.
	m[0].powerOff()
	m[1].powerOff()
	m[3].says(t, well, "failover-1=Unreachable", "failover-2=Unreachable")
	m[0].becomes(t, time.Minute, dead)
	eventually(t, 5*time.Second, "the taint", is(m[0], ours))
	m[1].becomes(t, time.Minute, dead)
	if got := m[1].node(t); outOfService(got) != ours || got.Annotations["skerry.dev/out-of-service"] != "" {
		t.Errorf("a taint that was there is taken for ours: %v", got.Annotations)
	}
	if got := m[0].node(t).Spec.Taints; !slices.ContainsFunc(got, func(t corev1.Taint) bool { return t.Key == other.Key }) {
		t.Errorf("another's taint is gone: %v", got)
	}
	for _, x := range m[:2] {
		x.powerOn(t)
		x.becomes(t, 5*time.Second, alive)
	}
	eventually(t, 5*time.Second, "the end of the taint", is(m[0], ""))
	if got := m[0].node(t); got.Annotations["skerry.dev/out-of-service"] != "" ||
		!slices.ContainsFunc(got.Spec.Taints, func(t corev1.Taint) bool { return t.Key == other.Key }) {
		t.Errorf("left: %v, %v", got.Annotations, got.Spec.Taints)
	}
	time.Sleep(2 * time.Second)
	if err := is(m[1], ours)(); err != nil {
		t.Errorf("a taint that was not ours was taken off: %v", err)
	}
	// Switched off while a node is dead.
	m[2].powerOff()
	m[3].says(t, well, "failover-3=Unreachable")
	m[2].becomes(t, time.Minute, dead)
	eventually(t, 5*time.Second, "the taint", is(m[2], ours))
	site := c.site(t, "failover", func(*v1alpha1.Site) error { return nil })
	if err := c.admin.Patch(t.Context(), site, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"failover":"Off"}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the end of the taint", is(m[2], ""))
	m[2].stays(t, 2*time.Second, dead)
}

func testByHand(t *testing.T, c *cloud) {
	m := c.joinAll(t, "by-hand", 2)
	m[0].powerOff()
	m[1].says(t, well, "by-hand-1=Reachable")
	m[0].becomes(t, time.Minute, "True NeighboursReachIt")
	say := func(status string) {
		t.Helper()
		// As docs/hold.md tells it.
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"skerry.dev/Alive","status":%q,"reason":"ByHand","message":"powered off by Jo, ticket 4711"}]}}`, status)
		if err := c.admin.Status().Patch(t.Context(), m[0].node(t), client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	say("False")
	m[0].stays(t, 20*time.Second, "False ByHand")
	c.site(t, "by-hand", counts(2, 1, 0, 1, 0))
	// Taken back by deletion: the controller says again what it knows.
	if err := c.admin.Status().Patch(t.Context(), m[0].node(t), client.RawPatch(types.StrategicMergePatchType, []byte(`{"status":{"conditions":[{"type":"skerry.dev/Alive","$patch":"delete"}]}}`))); err != nil {
		t.Fatal(err)
	}
	m[0].becomes(t, 5*time.Second, "True NeighboursReachIt")
	say("False")
	m[0].stays(t, 3*time.Second, "False ByHand")
	m[0].powerOn(t)
	m[0].becomes(t, 5*time.Second, alive)
}

func testKubelet(t *testing.T, c *cloud) {
	minute := metav1.Duration{Duration: time.Minute}
	if err := c.admin.Create(t.Context(), &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "kubelet"}, Spec: v1alpha1.SiteSpec{KubeletGrace: &minute, Failover: v1alpha1.FailoverOn}}); err != nil {
		t.Fatal(err)
	}
	m := c.joinAll(t, "kubelet", 2)
	m[0].set(func() { m[0].beats = false })
	m[0].says(t, v1alpha1.SelfReport{Kubelet: v1alpha1.ComponentDown, DownSeconds: 99999})
	start := time.Now()
	m[1].says(t, well, "kubelet-1=KubeletDown")
	m[0].becomes(t, time.Minute, "Unknown KubeletDown")
	m[0].becomes(t, 2*time.Minute, "False KubeletDown")
	if took := time.Since(start); took < time.Minute {
		t.Errorf("dead after %s, before its grace", took)
	}
	time.Sleep(2 * time.Second)
	if got := outOfService(m[0].node(t)); got != "" {
		t.Errorf("failed over by force although its containers may run: %s", got)
	}
	m[0].powerOn(t)
	m[0].becomes(t, 5*time.Second, alive)
}

func testMoves(t *testing.T, c *cloud) {
	m := c.joinAll(t, "moves", 2)
	label := func(x *machine, value string) {
		t.Helper()
		patch := fmt.Sprintf(`{"metadata":{"labels":{"skerry.dev/site":%s}}}`, value)
		if err := c.admin.Patch(t.Context(), x.node(t), client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	label(m[0], "null")
	m[0].becomes(t, 10*time.Second, "")
	label(m[0], `"moved"`)
	m[0].becomes(t, 30*time.Second, alive)
	c.site(t, "moved", counts(1, 1, 0, 0, 0))
	c.site(t, "moves", counts(1, 1, 0, 0, 0))

	// A Node that is made anew has nothing of the old one.
	m[0].powerOff()
	m[0].becomes(t, time.Minute, "Unknown NoWitness")
	if err := c.admin.Delete(t.Context(), m[0].node(t)); err != nil {
		t.Fatal(err)
	}
	c.site(t, "moved", counts(0, 0, 0, 0, 0))
	m[0].site = "moves"
	m[0].makeNode(t)
	m[0].powerOn(t)
	m[0].becomes(t, 20*time.Second, alive)
	c.site(t, "moves", counts(2, 2, 0, 0, 0))
	// A Site that somebody deletes is made again.
	if err := c.admin.Delete(t.Context(), &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "moves"}}); err != nil {
		t.Fatal(err)
	}
	c.site(t, "moves", counts(2, 2, 0, 0, 0))
}

func testSilent(t *testing.T, c *cloud) {
	m := c.joinAll(t, "silent", 3)
	for _, x := range m {
		x.powerOff()
	}
	for _, x := range m {
		x.becomes(t, time.Minute, "Unknown SiteSilent")
	}
	connected := func(want metav1.ConditionStatus) func(s *v1alpha1.Site) error {
		return func(s *v1alpha1.Site) error {
			if len(s.Status.Conditions) != 1 || s.Status.Conditions[0].Status != want {
				return fmt.Errorf("conditions %+v", s.Status.Conditions)
			}
			return nil
		}
	}
	c.site(t, "silent", connected(metav1.ConditionFalse))
	c.site(t, "silent", counts(3, 0, 3, 0, 3))
	// The first that is back cannot yet reach the others.
	m[0].powerOn(t)
	m[0].says(t, well, "silent-2=Unreachable", "silent-3=Unreachable")
	time.Sleep(8 * time.Second)
	for _, x := range m[1:] {
		x.powerOn(t)
	}
	for _, x := range m {
		x.becomes(t, 20*time.Second, alive)
	}
	c.site(t, "silent", connected(metav1.ConditionTrue))
	var events corev1.EventList
	if err := c.admin.List(t.Context(), &events, client.InNamespace("default"), client.MatchingFields{"involvedObject.kind": "Node"}); err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if strings.HasPrefix(e.InvolvedObject.Name, "silent-") && e.Reason == "NodeDead" {
			t.Errorf("%s was dead for a while: %s", e.InvolvedObject.Name, e.Message)
		}
	}
}

// versions are the resourceVersions of what the controllers write.
func versions(t *testing.T, c *cloud) map[string]string {
	t.Helper()
	all := map[string]string{}
	var nodes corev1.NodeList
	var sites v1alpha1.SiteList
	for _, list := range []client.ObjectList{&nodes, &sites} {
		if err := c.admin.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes.Items {
		all["node "+n.Name] = n.ResourceVersion
	}
	for _, s := range sites.Items {
		all["site "+s.Name] = s.ResourceVersion
	}
	return all
}

func differences(before, after map[string]string) []string {
	var out []string
	for name, version := range after {
		if before[name] != version {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// testSteady: while nothing happens, nothing is written. The machines of the
// cases before are silent by now.
func testSteady(t *testing.T, c *cloud, managers []*manager) {
	c.joinAll(t, "steady", 3)
	time.Sleep(45 * time.Second)
	before, changes := versions(t, c), managers[0].metric("skerry_verdict_changes_total")+managers[1].metric("skerry_verdict_changes_total")
	time.Sleep(time.Minute)
	if got := differences(before, versions(t, c)); len(got) > 0 {
		t.Errorf("written in a minute in which nothing happened: %v", got)
	}
	if now := managers[0].metric("skerry_verdict_changes_total") + managers[1].metric("skerry_verdict_changes_total"); now != changes {
		t.Errorf("%v verdicts written", now-changes)
	}
	t.Logf("0 writes in a minute on %d objects", len(before))
}

func leader(managers []*manager) (*manager, error) {
	var found *manager
	for _, m := range managers {
		if m.Alive() && m.metric("skerry_verdict_leader") == 1 {
			if found != nil {
				return nil, fmt.Errorf("two lead")
			}
			found = m
		}
	}
	if found == nil {
		return nil, fmt.Errorf("nobody leads")
	}
	return found, nil
}

// testLeader: the leader dies in the middle of decisions, then both do.
func testLeader(t *testing.T, c *cloud, managers []*manager) {
	m := c.joinAll(t, "leader", 4)
	m[0].powerOff()
	for _, x := range m[1:] {
		x.says(t, well, "leader-1=Unreachable")
	}
	time.Sleep(12 * time.Second)
	first, err := leader(managers)
	if err != nil {
		t.Fatal(err)
	}
	check(t, first.End(syscall.SIGKILL))
	killed := time.Now()
	// The other watched all along: it decides as soon as it leads.
	m[0].becomes(t, 2*time.Minute, dead)
	t.Logf("decided %s after the leader was killed", time.Since(killed).Round(time.Second))
	if took := time.Since(killed); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	check(t, first.Start())
	m[1].becomes(t, 10*time.Second, alive)
	m[1].powerOn(t) // one more heartbeat, so that nothing is decided before the managers end
	m[1].powerOff()
	for _, x := range m[2:] {
		x.says(t, well, "leader-1=Unreachable", "leader-2=Unreachable")
	}
	time.Sleep(10 * time.Second)
	before := versions(t, c)
	for _, x := range managers {
		check(t, x.End(syscall.SIGTERM))
	}
	time.Sleep(20 * time.Second)
	for _, x := range managers {
		check(t, x.Start())
	}
	start := time.Now()
	// What was decided stays; what was not is decided anew, by what is seen from
	// now on.
	m[1].becomes(t, 2*time.Minute, dead)
	if took := time.Since(start); took < 15*time.Second {
		t.Errorf("dead %s after the start of a process that had seen nothing", took)
	}
	t.Logf("decided %s after both were started again", time.Since(start).Round(time.Second))
	m[0].stays(t, 5*time.Second, dead)
	for _, x := range m[2:] {
		x.stays(t, time.Second, alive)
	}
	for _, name := range differences(before, versions(t, c)) {
		if name != "node leader-2" && name != "site leader" {
			t.Errorf("the restart wrote %s", name)
		}
	}
	if n := m[0].node(t); n.Labels[api.SiteLabel] != "leader" {
		t.Errorf("labels %v", n.Labels)
	}
}
