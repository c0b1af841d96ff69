package site

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// late is a controller whose watches stand still: what it knows is a site in which
// the first nodes are dead by the word of the last one. What is in the API server
// the tests change behind its back.
type late struct {
	t      *testing.T
	now    time.Time
	brain  *brain
	api    client.WithWatch
	writer *nodeWriter
	reads  map[string]int // past the watches, by type
	fail   string         // the type whose reads fail
}

func newLate(t *testing.T, nodes, dead int) *late {
	l := &late{t: t, now: noon, reads: map[string]int{}}
	l.brain = &brain{now: func() time.Time { return l.now }, tracker: verdict.New(), tainted: map[string]bool{}, wroteNode: map[string]string{}, wroteSite: map[string]string{}}
	builder := fake.NewClientBuilder().WithScheme(Scheme()).WithStatusSubresource(&corev1.Node{}, &v1alpha1.Site{})
	site := &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "west", Generation: 1}}
	builder.WithObjects(site)
	for i := range nodes {
		builder.WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name(i), UID: types.UID(name(i)), Labels: map[string]string{api.SiteLabel: "west"}}}, lease(name(i), noon))
	}
	// The cache is what the API server held at first.
	cached := builder.Build()
	witness := report(nodes-1, noon.Add(16*time.Second), v1alpha1.NeighbourUnreachable, dead)
	builder = fake.NewClientBuilder().WithScheme(Scheme()).WithStatusSubresource(&corev1.Node{}, &v1alpha1.Site{}).WithObjects(site, witness)
	for i := range nodes {
		node := &corev1.Node{}
		l.must(cached.Get(t.Context(), client.ObjectKey{Name: name(i)}, node))
		builder.WithObjects(node, lease(name(i), noon))
	}
	l.api = builder.Build()
	for i := range nodes {
		node := &corev1.Node{}
		l.must(cached.Get(t.Context(), client.ObjectKey{Name: name(i)}, node))
		l.brain.setNode(node)
		l.brain.tracker.SetLease(l.now, name(i), noon, false)
	}
	l.brain.setSite(site)
	l.evaluate()
	// 16 s later the last node is heard, and nobody else.
	for range 16 {
		l.now = l.now.Add(time.Second)
		l.brain.tracker.SetLease(l.now, name(nodes-1), l.now, false)
		l.evaluate()
	}
	l.brain.setReport(witness, false)
	l.evaluate()
	count := func(kind string) error {
		l.reads[kind]++
		if l.fail == kind {
			return errors.New("the API server is away")
		}
		return nil
	}
	live := interceptor.NewClient(l.api, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
			if err := count(fmt.Sprintf("%T", o)); err != nil {
				return err
			}
			return c.Get(ctx, key, o, options...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if err := count(fmt.Sprintf("%T", list)); err != nil {
				return err
			}
			return c.List(ctx, list, options...)
		},
	})
	metrics, err := newMetrics(l.brain, prometheus.NewRegistry())
	l.must(err)
	l.writer = &nodeWriter{brain: l.brain, client: l.api, live: live, confirm: newConfirmer(l.brain, cached, live), events: record.NewFakeRecorder(10 * nodes), metrics: metrics}
	return l
}

func name(i int) string { return fmt.Sprintf("node-%04d", i) }

func lease(node string, at time.Time) *coordinationv1.Lease {
	renewed := metav1.NewMicroTime(at)
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}, Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
}

// report is what one node says about the first ones.
func report(by int, at time.Time, state v1alpha1.NeighbourState, about int) *v1alpha1.NodeReport {
	r := &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: name(by)}, Spec: v1alpha1.NodeReportSpec{RenewTime: metav1.NewMicroTime(at)}}
	for i := range about {
		r.Spec.Neighbours = append(r.Spec.Neighbours, v1alpha1.NeighbourReport{Node: name(i), UID: types.UID(name(i)), State: state})
	}
	return r
}

func (l *late) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *late) evaluate() {
	l.brain.do(func(t *verdict.Tracker, now time.Time) {
		for _, name := range t.Due(now) {
			t.Evaluate(now, name)
		}
	})
}

// alive is the condition that a Node has in the API server.
func (l *late) alive(node int) string {
	l.t.Helper()
	o := &corev1.Node{}
	l.must(l.api.Get(l.t.Context(), client.ObjectKey{Name: name(node)}, o))
	c := condition(o)
	return strings.TrimSpace(fmt.Sprintf("%s %s", c.Status, c.Reason))
}

func (l *late) reconcile(node int) error {
	l.t.Helper()
	_, err := l.writer.Reconcile(l.t.Context(), name(node))
	return err
}

const unreachable = "False NeighboursCannotReachIt"

// What the watches do not know yet, and the API server does, is enough for life.
func TestDeathIsConfirmed(t *testing.T) {
	for _, row := range []struct {
		name    string
		change  func(l *late)
		want    string
		wantErr string
	}{
		{"nothing", func(*late) {}, unreachable, ""},
		{"it is heard again", func(l *late) {
			l.must(l.api.Update(t.Context(), fresh(l, lease(name(0), noon.Add(20*time.Second)))))
		}, "", ""},
		{"its clock is an hour behind, and it is heard again", func(l *late) {
			l.must(l.api.Update(t.Context(), fresh(l, lease(name(0), noon.Add(-time.Hour)))))
		}, "", ""},
		{"the neighbour takes it back", func(l *late) {
			l.must(l.api.Delete(t.Context(), report(2, noon, "", 0)))
		}, "", ""},
		{"the neighbour reaches it", func(l *late) {
			l.must(l.api.Update(t.Context(), fresh(l, report(2, noon.Add(17*time.Second), v1alpha1.NeighbourReachable, 1))))
		}, "", ""},
		{"another neighbour reaches it", func(l *late) {
			l.must(l.api.Create(t.Context(), report(1, noon.Add(17*time.Second), v1alpha1.NeighbourReachable, 1)))
		}, "", ""},
		{"it speaks itself", func(l *late) {
			l.must(l.api.Create(t.Context(), report(0, noon.Add(17*time.Second), "", 0)))
		}, "", ""},
		{"the site asks for more witnesses", func(l *late) {
			two := int32(2)
			l.must(l.api.Update(t.Context(), fresh(l, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "west"}, Spec: v1alpha1.SiteSpec{Witnesses: &two}})))
		}, "", ""},
		{"the Site is gone", func(l *late) {
			l.must(l.api.Delete(t.Context(), &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "west"}}))
		}, unreachable, ""},
		{"its lease is gone", func(l *late) { l.must(l.api.Delete(t.Context(), lease(name(0), noon))) }, unreachable, ""},
		{"it is of another site", func(l *late) {
			node := &corev1.Node{}
			l.must(l.api.Get(t.Context(), client.ObjectKey{Name: name(0)}, node))
			node.Labels[api.SiteLabel] = "east"
			l.must(l.api.Update(t.Context(), node))
		}, "", "conflict"},
		{"somebody says that it lives", func(l *late) {
			node := &corev1.Node{}
			l.must(l.api.Get(t.Context(), client.ObjectKey{Name: name(0)}, node))
			node.Status.Conditions = []corev1.NodeCondition{{Type: api.AliveCondition, Status: corev1.ConditionTrue, Reason: "Byhand"}}
			l.must(l.api.Status().Update(t.Context(), node))
		}, "True Byhand", "conflict"},
		{"the lease cannot be read", func(l *late) { l.fail = "*v1.Lease" }, "", "reading the lease of node node-0000"},
		{"the reports cannot be read", func(l *late) { l.fail = "*v1alpha1.NodeReportList" }, "", "listing the reports"},
		{"the Site cannot be read", func(l *late) { l.fail = "*v1alpha1.Site" }, "", "reading site west"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLate(t, 3, 1)
			row.change(l)
			err := l.reconcile(0)
			got := l.alive(0)
			if row.wantErr == "conflict" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), "modified")) ||
				row.wantErr != "conflict" && (err == nil) != (row.wantErr == "") || err != nil && row.wantErr != "conflict" && !strings.Contains(err.Error(), row.wantErr) {
				t.Errorf("%v, want an error with %q", err, row.wantErr)
			}
			if got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
			if l.fail == "" {
				return
			}
			// It is tried again, and the API server is there.
			l.fail = ""
			if err := l.reconcile(0); err != nil || l.alive(0) != unreachable {
				t.Errorf("again: %q (%v)", l.alive(0), err)
			}
		})
	}
}

// fresh gives an object the version that is stored.
func fresh[T client.Object](l *late, o T) T {
	l.t.Helper()
	stored := o.DeepCopyObject().(client.Object)
	l.must(l.api.Get(l.t.Context(), client.ObjectKeyFromObject(o), stored))
	o.SetResourceVersion(stored.GetResourceVersion())
	return o
}

// Many that die at once cost one read each, of their leases, and two more in
// each second. Other verdicts cost none.
func TestDeathsShareReads(t *testing.T) {
	const nodes, dead = 300, 256 // what one report may name
	l := newLate(t, nodes, dead)
	for i := range dead {
		l.must(l.reconcile(i))
		if got := l.alive(i); got != unreachable {
			t.Fatalf("%s is %s", name(i), got)
		}
		if i == dead/2 {
			l.now = l.now.Add(readFor)
		}
	}
	if l.reads["*v1.Lease"] != dead || l.reads["*v1alpha1.NodeReportList"] != 2 || l.reads["*v1alpha1.Site"] != 2 || len(l.reads) != 3 {
		t.Errorf("%v reads for %d verdicts in two seconds", l.reads, dead)
	}
	clear(l.reads)
	l.must(l.reconcile(nodes - 1))
	l.must(l.reconcile(0))
	if got := l.alive(nodes - 1); got != "True Heartbeat" || len(l.reads) > 0 {
		t.Errorf("%s, with %v", got, l.reads)
	}
}

// What a watch tells late of reports does not undo what was read past it, and what
// it tells early is not undone by a list that was on its way.
func TestListedReports(t *testing.T) {
	at := func(version string, state v1alpha1.NeighbourState) *v1alpha1.NodeReport {
		r := report(2, noon, state, 1)
		r.ResourceVersion, r.Spec.RenewTime = version, metav1.NewMicroTime(noon.Add(time.Duration(len(version)+len(state))*time.Second))
		return r
	}
	b := &brain{now: func() time.Time { return noon }, tracker: verdict.New()}
	there := func() bool { return len(b.tracker.Reporters()) > 0 }
	var during func()
	list := v1alpha1.NodeReportList{ListMeta: metav1.ListMeta{ResourceVersion: "100"}}
	live := interceptor.NewClient(fake.NewClientBuilder().WithScheme(Scheme()).Build(), interceptor.Funcs{
		List: func(_ context.Context, _ client.WithWatch, into client.ObjectList, _ ...client.ListOption) error {
			during()
			*into.(*v1alpha1.NodeReportList) = *list.DeepCopy()
			return nil
		}})
	c := newConfirmer(b, live, live)
	read := func(while func()) {
		t.Helper()
		during = while
		if err := c.reports(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	b.setReport(at("90", v1alpha1.NeighbourUnreachable), true)
	read(func() {})
	if there() {
		t.Fatal("a report that is gone is still known")
	}
	b.setReport(at("95", v1alpha1.NeighbourReachable), false)
	if there() {
		t.Error("a report that was gone is back, by what the watch tells late")
	}
	b.deleteReport(at("99", ""), false)
	b.setReport(at("101", v1alpha1.NeighbourReachable), false)
	if !there() {
		t.Error("a report that is new is not believed")
	}
	read(func() { b.setReport(at("102", v1alpha1.NeighbourUnreachable), false) })
	if !there() {
		t.Error("the watch was ahead of the list, and the list was believed")
	}
	list.ResourceVersion = "200"
	list.Items = []v1alpha1.NodeReport{*at("150", v1alpha1.NeighbourUnreachable)}
	read(func() { b.deleteReport(at("201", ""), false) })
	if there() {
		t.Error("a report that was deleted after the list is back")
	}
	list.ResourceVersion = "300"
	read(func() { b.deleteReport(at("180", ""), false) })
	if !there() {
		t.Error("a deletion before the list was believed after it")
	}
	b.deleteReport(at("150", ""), true)
	if there() {
		t.Error("a deletion that the watch missed is not believed")
	}
}
