package sim

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/report"
)

// api is what the API server holds.
type api struct {
	nodes   map[string]*nodeObject
	leases  map[string]*leaseObject
	reports map[string]*sitev1.NodeReport
	sites   map[string]*sitev1.Site
	version int64
	uids    int
}

type nodeObject struct {
	verdict.Node
	version int64
	since   time.Duration // when Alive became what it is
	created time.Duration
}

type leaseObject struct {
	renewed time.Time
	at      time.Duration
	version int64
}

// said is what a node last wrote about another, and when: the truth about
// evidence.
type said struct {
	state   sitev1.NeighbourState
	since   time.Duration // when it was said first
	until   time.Duration // when it was taken back; -1: it stands
	against time.Duration // when it last stood that the other is unreachable
}

func (w *World) wrote(what string) {
	w.writes = append(w.writes, write{w.now, what})
}

type write struct {
	at   time.Duration
	what string
}

// register makes a Node.
func (w *World) register(name, site string) {
	w.api.uids++
	w.api.version++
	o := &nodeObject{Node: verdict.Node{Name: name, UID: types.UID(fmt.Sprintf("uid-%d", w.api.uids)), Site: site, InSite: true}, version: w.api.version, since: w.now, created: w.now}
	w.api.nodes[name] = o
	w.note("Node %s (%s) in site %s", name, o.UID, site)
	w.watched("nodes", func(c watcher) { c.node(name, o.version, &o.Node) })
	w.newsFor(site)
}

// unregister removes a Node, and its lease.
func (w *World) unregister(name string) {
	o := w.api.nodes[name]
	if o == nil {
		return
	}
	delete(w.api.nodes, name)
	w.left[[2]string{name, o.Site}] = w.now
	w.api.version++
	version := w.api.version
	w.note("Node %s is deleted", name)
	w.watched("nodes", func(c watcher) { c.node(name, version, nil) })
	if w.api.leases[name] != nil {
		delete(w.api.leases, name)
		w.watched("leases", func(c watcher) { c.lease(name, version, nil) })
	}
	w.newsFor(o.Site)
}

// relabel moves a Node to another site.
func (w *World) relabel(name, site string) {
	o := w.api.nodes[name]
	if o == nil || o.Site == site {
		return
	}
	old := o.Site
	n := *o
	n.Site = site
	w.api.version++
	n.version, n.created = w.api.version, w.now
	w.left[[2]string{name, old}] = w.now
	w.api.nodes[name] = &n
	w.note("Node %s is labelled %s", name, site)
	w.watched("nodes", func(c watcher) { c.node(name, n.version, &n.Node) })
	w.newsFor(old)
	w.newsFor(site)
	w.byName[name].fetch()
}

// renewLease is the kubelet's write.
func (w *World) renewLease(name string, renewed time.Time) bool {
	w.api.version++
	l := &leaseObject{renewed, w.now, w.api.version}
	w.api.leases[name] = l
	w.contact[name] = w.now
	w.watched("leases", func(c watcher) { c.lease(name, l.version, &l.renewed) })
	return true
}

// writeReport is the observer's write.
func (w *World) writeReport(name string, action report.Action) bool {
	old := w.api.reports[name]
	if action.Kind == report.Delete && old == nil {
		return true
	}
	w.api.version++
	version := w.api.version
	w.wrote("NodeReport " + name)
	w.contact[name], w.reported[name] = w.now, w.now
	neighbours := map[string]sitev1.NeighbourState{}
	if action.Kind == report.Put {
		r := &sitev1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: action.Spec}
		w.api.reports[name] = r
		w.watched("reports", func(c watcher) { c.report(name, version, r) })
		for _, n := range action.Spec.Neighbours {
			neighbours[n.Node] = n.State
		}
	} else {
		w.note("report of %s is deleted", name)
		delete(w.api.reports, name)
		w.watched("reports", func(c watcher) { c.report(name, version, nil) })
	}
	for about, state := range neighbours {
		old := w.evidence[[2]string{name, about}]
		now := said{state: state, since: w.now, until: -1, against: old.against}
		if old.state == state && old.until < 0 {
			now.since = old.since
		}
		if state == sitev1.NeighbourUnreachable || old.state == sitev1.NeighbourUnreachable && old.until < 0 {
			now.against = w.now
		}
		w.evidence[[2]string{name, about}] = now
	}
	for key, s := range w.evidence {
		if key[0] == name && s.until < 0 && neighbours[key[1]] == "" {
			s.until = w.now
			if s.state == sitev1.NeighbourUnreachable {
				s.against = w.now
			}
			w.evidence[key] = s
		}
	}
	return true
}

// writeStatus is the controller's write of a Site.
func (w *World) writeStatus(site string, status sitev1.SiteStatus) (*sitev1.Site, int64) {
	old := w.api.sites[site]
	w.wrote("Site " + site)
	w.api.version++
	o := old.DeepCopy()
	o.Status = status
	w.api.sites[site] = o
	version := w.api.version
	w.note("Site %s: %d connected, %d held, %d dead, %d unknown; asks %s", site, status.Connected, status.Held, status.Dead, status.Unknown, questions(status.Doubts))
	w.watched("sites", func(c watcher) { c.site(site, version, o) })
	w.newsFor(site)
	return o, version
}

// writeCondition is the controller's write of a Node's condition.
func (w *World) writeCondition(c verdict.Change) bool {
	old := w.api.nodes[c.Node]
	if old == nil || old.UID != c.UID {
		return false
	}
	n := *old
	n.Alive = c.To
	w.wrote("Node " + c.Node)
	w.api.version++
	n.version, n.since = w.api.version, w.now
	w.api.nodes[c.Node] = &n
	w.note("Node %s: Alive=%s %s: %s", c.Node, c.To.Status, c.To.Reason, c.To.Message)
	w.watched("nodes", func(k watcher) { k.node(c.Node, n.version, &n.Node) })
	if old.Alive.Dead() != n.Alive.Dead() {
		w.newsFor(n.Site)
	}
	if n.Alive.Dead() && !old.Alive.Dead() {
		w.calledDead(&n)
	}
	return true
}

// newsFor tells the nodes of a site that there is something new for them.
func (w *World) newsFor(site string) {
	for _, n := range w.nodes {
		if o := w.api.nodes[n.name]; o != nil && o.Site == site && n.agent != nil {
			life := n.life
			w.after(time.Duration(w.net.Int64N(int64(30*time.Millisecond))), func() { n.local(life, n.fetch) })
		}
	}
}

// viewOf is what a node's hub gets to see now.
func (w *World) viewOf(name string) view {
	o := w.api.nodes[name]
	if o == nil {
		return view{known: true}
	}
	v := view{known: true, site: o.Site, dead: map[string]bool{}, witnesses: 1}
	for _, n := range w.nodes {
		if other := w.api.nodes[n.name]; other != nil && other.Site == o.Site {
			v.members = append(v.members, detect.Member{Name: n.name, UID: string(other.UID)})
			if other.Alive.Status == corev1.ConditionFalse {
				v.dead[n.name] = true
			}
		}
	}
	if s := w.api.sites[o.Site]; s != nil {
		v.doubts = s.Status.Doubts
		if s.Spec.Witnesses != nil {
			v.witnesses = int(*s.Spec.Witnesses)
		}
	}
	return v
}

func describe(spec sitev1.NodeReportSpec) string {
	var words []string
	if spec.Self != (sitev1.SelfReport{}) {
		words = append(words, fmt.Sprintf("self kubelet %s runtime %s", spec.Self.Kubelet, spec.Self.Runtime))
	}
	for _, n := range spec.Neighbours {
		words = append(words, fmt.Sprintf("%s %s", n.Node, n.State))
	}
	return strings.Join(words, ", ")
}

func questions(doubts []sitev1.Doubt) string {
	var words []string
	for _, d := range doubts {
		words = append(words, fmt.Sprintf("%s (%d reach, %d do not)", d.Node, d.Reachable, d.Unreachable))
	}
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, ", ")
}
