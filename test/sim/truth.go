package sim

import (
	"time"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/test/sim/schedule"
)

// Bounds of what must hold; see the package comment.
const (
	maxLoss   = 0.5
	patience  = 12 * time.Second
	relapse   = 30 * time.Second
	detection = 30 * time.Second
	settling  = 120 * time.Second
	healing   = 60 * time.Second
	// In a site in which not all probe all, what one missed reaches it by rumour.
	healingLarge, large = 180 * time.Second, 16
	freshLease          = 14 * time.Second
	// What the API server held so long before a verdict the verdict has to know,
	// however late the watches are.
	known       = listFor + 100*time.Millisecond
	undisturbed = 60 * time.Second
)

// truth is what is so, whoever knows it.
type truth struct {
	// reaches is since when one machine reaches another; -1: it does not.
	reaches map[[2]string]time.Duration
	// connected is since when the cloud hears a machine; -1: it does not.
	connected map[string]time.Duration
	// still is when a fault last came or went.
	still time.Duration
	// busy is until when something other than a dead machine was wrong.
	busy   time.Duration
	healed time.Duration
}

// healingOf is how long it may take until all is right after the last fault.
func healingOf(s schedule.Schedule) time.Duration {
	for _, site := range s.Sites {
		if len(site.Nodes) > large {
			return healingLarge
		}
	}
	return healing
}

func (t *truth) init(w *World) {
	t.reaches, t.connected, t.healed = map[[2]string]time.Duration{}, map[string]time.Duration{}, -1
	for _, a := range w.nodes {
		t.connected[a.name] = -1
	}
}

// changed looks at everything after a fault came or went.
func (t *truth) changed(w *World) {
	since := func(now bool, was time.Duration) time.Duration {
		switch {
		case !now:
			return -1
		case was >= 0:
			return was
		}
		return w.now
	}
	t.still = w.now
	other := false
	for _, f := range w.active {
		other = other || f.Kind != schedule.PowerOff && f.Kind != schedule.Freeze && f.Kind != schedule.NodeAdded
	}
	for _, n := range w.nodes {
		heard := n.kubeletRuns() && n.agent != nil && w.state.api && w.state.up[n.name] <= maxLoss && w.state.down[n.name] <= maxLoss && w.state.delay[n.name] < time.Second
		t.connected[n.name] = since(heard, t.connected[n.name])
		if !n.joined {
			continue
		}
		switch gone := !n.runs(); {
		case gone && n.dead < 0:
			n.dead, n.measured = w.now, false
			n.clean = !other && w.now-t.busy > undisturbed
			if o := w.api.nodes[n.name]; o != nil {
				n.deadFor = string(o.UID)
			}
		case !gone:
			n.dead = -1
		}
		// A machine that runs without its agent counts as one whose kubelet is down.
		down := w.state.kubelet[n.name] || w.state.runtime[n.name] || w.state.agent[n.name] || w.state.observer[n.name]
		switch {
		case down && (n.kubeletDown < 0 || n.kubeletUp >= 0 && w.now-n.kubeletUp > time.Minute):
			n.kubeletDown, n.kubeletUp = w.now, -1
		case down:
			n.kubeletUp = -1 // a short break is none: who was down, is down again
		case !down && n.kubeletDown >= 0 && n.kubeletUp < 0:
			n.kubeletUp = w.now
		}
	}
	// A machine that comes back is a disturbance too.
	if other {
		t.busy = w.now
	}
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b {
				continue
			}
			key := [2]string{a.name, b.name}
			live := a.agentRuns() && b.agentRuns() && a.agent.observes && b.agent.observes
			was, ok := t.reaches[key]
			if !ok {
				was = -1
			}
			if now := live && w.loss(a, b) <= maxLoss && w.loss(b, a) <= maxLoss; now || ok {
				t.reaches[key] = since(now, was)
			}
		}
	}
	if other {
		t.busy = w.now
		for _, n := range w.nodes {
			n.clean = false
		}
	}
}

// witness finds an observer of a node's site that was connected and reached it
// for so long.
func (w *World) witness(about *nodeObject, long time.Duration) string {
	for _, n := range w.nodes {
		o := w.api.nodes[n.name]
		if n.name == about.Name || o == nil || o.Site != about.Site {
			continue
		}
		reaches, ok := w.truth.reaches[[2]string{n.name, about.Name}]
		connected := w.truth.connected[n.name]
		if !ok || reaches < 0 || connected < 0 || w.now-reaches < long || w.now-connected < long || w.now-o.created < long || w.now-about.created < long {
			continue
		}
		if n.view.site != about.Site || w.byName[about.Name].view.site != about.Site {
			continue // it has not heard of the move
		}
		return n.name
	}
	return ""
}

// calledDead checks a verdict at the moment it is written.
func (w *World) calledDead(o *nodeObject) {
	n := w.byName[o.Name]
	w.stats.Deaths++
	if n.dead >= 0 {
		w.stats.Deserved++
	}
	if w.measures(n, o) {
		w.stats.ToDead = append(w.stats.ToDead, w.now-n.dead)
	}
	policy := w.siteSpec(o.Site)
	switch o.Alive.Reason {
	case sitev1.ReasonKubeletDown:
		if n.kubeletDown < 0 || n.kubeletUp >= 0 && w.now-n.kubeletUp > time.Minute {
			w.fail("%s is called dead for its kubelet, which runs", o.Name)
		}
		if n.kubeletDown >= 0 && w.now-n.kubeletDown < policy.KubeletGrace {
			w.fail("%s is called dead for its kubelet, %s after it went down; its site grants %s", o.Name, w.now-n.kubeletDown, policy.KubeletGrace)
		}
		return
	case sitev1.ReasonHoldTimeout:
		if l := w.api.leases[o.Name]; l != nil && w.now-l.at < policy.HoldTimeout-time.Second {
			w.fail("%s is called dead for holdTimeout (%s), %s after its last heartbeat", o.Name, policy.HoldTimeout, w.now-l.at)
		}
	case sitev1.ReasonUnreachable:
		w.checkEvidence(o, policy.Witnesses)
	}
	w.checkKnown(o)
	if by := w.witness(o, patience); by != "" {
		w.fail("%s is called dead (%s), and %s is connected and reaches it", o.Name, o.Alive.Reason, by)
	}
}

// checkKnown: nothing that the API server holds contradicts the verdict.
func (w *World) checkKnown(o *nodeObject) {
	if l := w.api.leases[o.Name]; l != nil && w.now-l.at < freshLease {
		w.fail("%s is called dead (%s) %s after a heartbeat", o.Name, o.Alive.Reason, w.now-l.at)
	}
	for _, n := range w.nodes {
		other := w.api.nodes[n.name]
		s := w.evidence[[2]string{n.name, o.Name}]
		if other == nil || n.name == o.Name || other.Site != o.Site || s.state != sitev1.NeighbourReachable || s.until >= 0 {
			continue
		}
		// It counts while its writer is in contact, and both were of the site.
		if w.now-s.since > known && w.now-w.reported[n.name] < 10*time.Second && w.now-other.created > patience && w.now-o.created > patience {
			w.fail("%s is called dead (%s), and %s says since %s that it reaches it", o.Name, o.Alive.Reason, n.name, w.now-s.since)
		}
	}
}

// checkEvidence: as many nodes as it takes were in contact lately, and said so.
func (w *World) checkEvidence(o *nodeObject, witnesses int) {
	const lately = 30 * time.Second
	count := 0
	for _, n := range w.nodes {
		other := w.api.nodes[n.name]
		s, ok := w.evidence[[2]string{n.name, o.Name}]
		contact, heard := w.contact[n.name]
		left, was := w.left[[2]string{n.name, o.Site}]
		member := other != nil && other.Site == o.Site || was && w.now-left < 50*time.Millisecond+w.state.lag+w.state.cacheLag
		if !member || !ok || !heard || w.now-contact > lately+w.state.lag+w.state.cacheLag {
			continue
		}
		stands := s.state == sitev1.NeighbourUnreachable && s.until < 0
		if stands || s.against > 0 && w.now-s.against < known {
			count++
		}
	}
	if count < witnesses {
		w.fail("%s is called dead as unreachable on the word of %d nodes in contact; its site asks for %d", o.Name, count, witnesses)
	}
}

// tainted checks a taint at the moment it is set.
func (w *World) tainted(n *node) {
	o := w.api.nodes[n.name]
	if o == nil {
		return
	}
	// What has just been renewed kube-controller-manager cannot know yet.
	if l := w.api.leases[n.name]; l != nil && w.now-l.at < freshLease && w.now-l.at > 50*time.Millisecond+2*w.state.lag {
		w.fail("%s is tainted %s after a heartbeat", n.name, w.now-l.at)
	}
	if w.measures(n, o) {
		n.measured = true
		w.stats.ToTaint = append(w.stats.ToTaint, w.now-n.dead)
	}
	if by := w.witness(o, patience+kcmPeriod+5*time.Second); by != "" && o.Alive.Reason != sitev1.ReasonKubeletDown {
		w.fail("%s is tainted, and %s is connected and reaches it", n.name, by)
	}
}

func (w *World) siteSpec(name string) schedule.SiteSpec {
	for _, s := range w.Schedule.Sites {
		if s.Name == name {
			return s
		}
	}
	return schedule.SiteSpec{}
}

// check looks each second at what must hold all the time.
func (w *World) check() {
	w.after(time.Second, w.check)
	for _, n := range w.nodes {
		o := w.api.nodes[n.name]
		if o == nil {
			continue
		}
		if o.Alive.Dead() && o.Alive.Reason != sitev1.ReasonKubeletDown && w.now-o.since > relapse {
			if by := w.witness(o, relapse+w.controlDelay()); by != "" && w.truth.still < w.now-relapse {
				w.fail("%s is called dead (%s) since %s, and %s is connected and reaches it", n.name, o.Alive.Reason, o.since, by)
			}
		}
		w.checkMissed(n, o)
	}
	if w.now > w.Schedule.Heal && w.truth.healed < 0 {
		switch bad := w.unhealed(); {
		case bad == "":
			w.truth.healed = w.now
			w.stats.Healed = w.now - w.Schedule.Heal
		case w.now > w.Schedule.Heal+healingOf(w.Schedule):
			w.fail("%s after all faults ended: %s", w.now-w.Schedule.Heal, bad)
		}
	}
}

// controlDelay is how long controllers that start may take longer.
func (w *World) controlDelay() time.Duration { return 2 * (w.state.lag + w.state.cacheLag) }

// measures says whether this is a machine that died with nothing else wrong, and
// has witnesses: its time counts.
func (w *World) measures(n *node, o *nodeObject) bool {
	return n.clean && !n.measured && w.died(n, o) && w.othersWell(n) &&
		w.witnesses(n, o, n.dead-undisturbed) >= max(1, w.siteSpec(o.Site).Witnesses)
}

// died says whether a machine is dead, and was a node for a while before.
func (w *World) died(n *node, o *nodeObject) bool {
	return n.dead >= schedule.WarmUp && n.deadFor == string(o.UID) && o.created <= n.dead-30*time.Second
}

// witnesses counts the observers of a node's site that are connected since then.
func (w *World) witnesses(n *node, o *nodeObject, since time.Duration) int {
	count := 0
	for _, other := range w.nodes {
		oo := w.api.nodes[other.name]
		if other == n || oo == nil || oo.Site != o.Site || !other.agentRuns() || !other.agent.observes || other.view.site != o.Site {
			continue
		}
		if connected := w.truth.connected[other.name]; connected >= 0 && connected <= since {
			count++
		}
	}
	return count
}

// checkMissed: a machine that is dead is found to be.
func (w *World) checkMissed(n *node, o *nodeObject) {
	if n.dead < 0 || !w.died(n, o) || w.state.controller || w.state.kcm || !w.state.api || w.state.lag+w.state.cacheLag > 0 {
		return
	}
	dead, enough := w.now-n.dead, max(1, w.siteSpec(o.Site).Witnesses)
	if _, tainted := w.taints[n.name]; dead > detection && !tainted && w.measures(n, o) {
		w.fail("%s is dead for %s and not tainted (Alive=%s %s)", n.name, dead, o.Alive.Status, o.Alive.Reason)
	}
	if dead > settling && w.now-w.truth.still > settling && !o.Alive.Dead() && w.witnesses(n, o, w.now-settling) >= enough {
		w.fail("%s is dead for %s and not called so (Alive=%s %s)", n.name, dead, o.Alive.Status, o.Alive.Reason)
	}
}

// othersWell says whether nobody else of the site died or came back lately:
// what those said before they died is contact for a while.
func (w *World) othersWell(n *node) bool {
	for _, other := range w.nodes {
		if other == n || other.lan != n.lan {
			continue
		}
		if other.dead >= 0 && w.now-other.dead < undisturbed+detection {
			return false
		}
		if other.dead < 0 && w.truth.connected[other.name] > n.dead-undisturbed {
			return false
		}
	}
	return true
}

// unhealed says what is still wrong; empty: nothing.
func (w *World) unhealed() string {
	for _, n := range w.nodes {
		o := w.api.nodes[n.name]
		if o == nil {
			if n.joined {
				return n.name + " has no Node"
			}
			continue
		}
		if o.Alive.Status != "True" || o.Alive.Reason != sitev1.ReasonHeartbeat {
			return n.name + ": Alive=" + string(o.Alive.Status) + " " + o.Alive.Reason
		}
		// One that nobody renews counts no longer; the controller removes it in time.
		if w.api.reports[n.name] != nil && w.now-w.reported[n.name] < verdict.ReportFor {
			return "report of " + n.name + ": " + describe(w.api.reports[n.name].Spec)
		}
		if n.agent == nil {
			return "no agent on " + n.name
		}
		for _, m := range n.agent.detector.Members() {
			if m.State != detect.Alive {
				return n.name + " knows " + m.Name + " as " + m.State.String()
			}
			if m.Health != (detect.Health{}) {
				return n.name + " knows " + m.Name + " as unhealthy"
			}
		}
	}
	for _, s := range w.Schedule.Sites {
		o := w.api.sites[s.Name]
		if len(o.Status.Doubts) > 0 || o.Status.Dead+o.Status.Held+o.Status.Unknown > 0 || o.Status.Connected != o.Status.Nodes {
			return "site " + s.Name + " asks " + questions(o.Status.Doubts)
		}
	}
	if t := w.sortedTaints(); len(t) > 0 {
		return "taint on " + t[0]
	}
	return ""
}

// checkQuiet: nobody writes after everything is right.
func (w *World) checkQuiet(from time.Duration) {
	for _, write := range w.writes {
		if write.at > from {
			w.fail("in steady state, at %s: somebody writes %s", write.at, write.what)
			return
		}
	}
	if bad := w.unhealed(); bad != "" {
		w.fail("right again, and then not: %s", bad)
	}
}
