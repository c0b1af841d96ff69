package verdict

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/api/site/v1alpha1"
)

// big is 100,000 nodes in 10,000 sites, one node of each tenth site lost: 1 %
// in doubt. Its neighbours report.
type big struct {
	*Tracker
	now time.Time
}

const (
	bigSites = 10_000
	perSite  = 10
)

func nodeName(site, node int) string { return fmt.Sprintf("site-%05d-%d", site, node) }

func newBig(tb testing.TB) *big {
	tb.Helper()
	b := &big{Tracker: New(), now: noon}
	for s := range bigSites {
		name := fmt.Sprintf("site-%05d", s)
		b.SetSite(b.now, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 1}})
		for n := range perSite {
			b.SetNode(b.now, Node{Name: nodeName(s, n), UID: types.UID("00000000-0000-0000-0000-" + nodeName(s, n)), Site: name, InSite: true})
			b.SetLease(b.now, nodeName(s, n), b.now, false)
		}
	}
	b.settle()
	// Everybody is heard for another 20 s, but the lost.
	for range 20 {
		b.now = b.now.Add(time.Second)
		b.everybody()
	}
	b.settle()
	for s := 0; s < bigSites; s += 10 {
		for n := 1; n < 4; n++ {
			b.SetReport(b.now, &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: nodeName(s, n)}, Spec: v1alpha1.NodeReportSpec{
				RenewTime:  metav1.NewMicroTime(b.now),
				Neighbours: []v1alpha1.NeighbourReport{{Node: nodeName(s, 0), UID: types.UID("00000000-0000-0000-0000-" + nodeName(s, 0)), State: v1alpha1.NeighbourUnreachable}}}}, false)
		}
	}
	b.settle()
	for range 6 { // the other neighbours' time to answer
		b.now = b.now.Add(time.Second)
		b.everybody()
	}
	b.settle()
	return b
}

// everybody who is not lost is heard.
func (b *big) everybody() {
	for s := range bigSites {
		for n := range perSite {
			if n > 0 || s%10 > 0 {
				b.SetLease(b.now, nodeName(s, n), b.now, false)
			}
		}
	}
}

// settle evaluates until nothing is left to write.
func (b *big) settle() (evaluated, written int) {
	for {
		due := b.Due(b.now)
		if len(due) == 0 {
			return evaluated, written
		}
		for _, name := range due {
			evaluated++
			r := b.Evaluate(b.now, name)
			if r.Changed {
				written++
				b.SetSite(b.now, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 1}, Status: r.Status})
			}
			for _, c := range r.Nodes {
				written++
				b.SetNode(b.now, Node{Name: c.Node, UID: c.UID, Site: name, InSite: true, Alive: c.To})
			}
		}
	}
}

func BenchmarkVerdict100kNodes(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	big := newBig(b)
	runtime.GC()
	runtime.ReadMemStats(&after)
	dead := 0
	for s := 0; s < bigSites; s += 10 {
		if v, _ := big.Verdict(nodeName(s, 0)); v.Dead() {
			dead++
		}
	}
	if dead != bigSites/10 {
		b.Fatalf("%d nodes are dead, want %d", dead, bigSites/10)
	}
	memory := float64(after.HeapAlloc - before.HeapAlloc)

	b.Run("full pass", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			big.Dirty()
			for _, name := range big.Due(big.now) {
				if r := big.Evaluate(big.now, name); r.Changed || len(r.Nodes) > 0 {
					b.Fatalf("something changed: %+v", r)
				}
			}
		}
		b.ReportMetric(memory/(1<<20), "MiB")
		b.ReportMetric(memory/(bigSites*perSite), "B/node")
	})
	b.Run("heartbeat", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			at := big.now.Add(time.Duration(i) * time.Nanosecond)
			big.SetLease(at, nodeName(i%bigSites, 1+i%(perSite-1)), at, false)
		}
	})
	b.Run("report in a site in doubt", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i += 10
			s := i % bigSites
			at := big.now.Add(time.Duration(i) * time.Nanosecond)
			big.SetReport(at, &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: nodeName(s, 1)}, Spec: v1alpha1.NodeReportSpec{
				RenewTime:  metav1.NewMicroTime(at),
				Neighbours: []v1alpha1.NeighbourReport{{Node: nodeName(s, 0), UID: types.UID("00000000-0000-0000-0000-" + nodeName(s, 0)), State: v1alpha1.NeighbourUnreachable}}}}, false)
			big.Evaluate(at, fmt.Sprintf("site-%05d", s))
		}
	})
	b.Run("death confirmed", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i += 10
			if _, dead := big.Confirm(big.now, nodeName(i%bigSites, 0), PolicyOf(nil)); !dead {
				b.Fatal("a dead node is not")
			}
		}
	})
	b.Run("nothing due", func(b *testing.B) {
		for b.Loop() {
			big.Due(big.now)
		}
	})
}

// The cost of one site does not grow with the others, and a site of a thousand
// nodes, all but one of them lost, is no trouble.
func BenchmarkVerdictLargeSite(b *testing.B) {
	t, now := New(), noon
	t.SetSite(now, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "big"}})
	all := &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: nodeName(0, 0)}}
	for n := range 1000 {
		t.SetNode(now, Node{Name: nodeName(0, n), UID: types.UID(nodeName(0, n)), Site: "big", InSite: true})
		t.SetLease(now, nodeName(0, n), now, false)
		if n > 0 && n < 257 {
			all.Spec.Neighbours = append(all.Spec.Neighbours, v1alpha1.NeighbourReport{Node: nodeName(0, n), UID: types.UID(nodeName(0, n)), State: v1alpha1.NeighbourReachable})
		}
	}
	for range 20 {
		now = now.Add(time.Second)
		t.SetLease(now, nodeName(0, 0), now, false)
	}
	t.SetReport(now, all, false)
	if r := t.Evaluate(now, "big"); r.Status.Held != 999 || len(r.Status.Doubts) != 999 {
		b.Fatalf("%+v", r.Status)
	}
	b.ReportAllocs()
	for b.Loop() {
		t.Evaluate(now, "big")
	}
}
