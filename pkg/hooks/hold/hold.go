// Package hold is the body of the nodelifecycle patch: it decides which nodes
// keep their pods although their heartbeat is lost, and tells people about it.
//
// A node of a site is held from the moment its heartbeat is lost until there is
// evidence that it is dead. The package must know nothing of where the evidence
// comes from: it reads one label and one condition of the Node.
package hold

import (
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
)

// Reasons of the events on the Node.
const (
	EventHeld      = "NodeHeld"
	EventHoldEnded = "NodeHoldEnded"
	// EventContradicted warns of a verdict that will strike later: the node's
	// heartbeat is not lost and yet its condition has called it dead for so long
	// that nobody seems to mind.
	EventContradicted = "NodeDeathContradicted"
)

const (
	// deadGrace is how long a node that was found dead may be silent before Ready
	// turns Unknown. Kubelets renew their leases every 10 s and passes come every
	// 5 s, so in the third pass after the last heartbeat: 15 s, less what two
	// passes may drift. The verdict is made by somebody else's clock and may be
	// old; silence that this controller sees itself is not.
	deadGrace = 14 * time.Second
	// contradictedAfter is how long a verdict may be behind the heartbeat.
	contradictedAfter = time.Minute
)

// Hold implements nodelifecycle.Hold.
type Hold struct {
	metrics *holdMetrics

	mu sync.Mutex
	// nodes has the nodes of sites and no other: at most one entry for each
	// Node that exists.
	nodes map[string]nodeState
}

var _ nodelifecycle.Hold = &Hold{}

// nodeState is what has to be remembered about a node between two passes.
type nodeState struct {
	uid  types.UID
	held bool
	// The rest describes the hold.
	site   string
	reason Reason
	since  time.Time
	// contradicted: since when the condition says dead although the heartbeat is
	// not lost. warned: that was told.
	contradicted time.Time
	warned       bool
}

// New returns a Hold that holds no node yet.
func New() *Hold {
	h := &Hold{nodes: map[string]nodeState{}}
	h.metrics = newHoldMetrics(h)
	return h
}

// Held says whether the node would be held if its heartbeat were lost.
func (h *Hold) Held(node *v1.Node) bool { return Decide(node).Held }

// Observe takes note of a node's Ready status. The node is held while Ready is
// Unknown: the node controller has lost its heartbeat, or never had one. False
// is the kubelet's own word, and a heartbeat.
//
// released says that what upstream does once, when a node turns unreachable,
// has to be done now: the node was held until now, or it is seen for the first
// time and may have been held by the process before this one.
func (h *Hold) Observe(recorder record.EventRecorder, node *v1.Node, ready v1.ConditionStatus) (held, released bool) {
	d := Decide(node)
	lost := ready == v1.ConditionUnknown
	held = lost && d.Held

	h.mu.Lock()
	defer h.mu.Unlock()
	was, known := h.nodes[node.Name]
	if known && was.uid != node.UID {
		h.forget(node.Name)
		was, known = nodeState{}, false
	}
	if d.Reason == NoSite && !known {
		return false, false
	}

	now := nodeState{uid: node.UID, held: held, site: d.Site, reason: d.Reason, since: was.since}
	switch {
	case held && !was.held:
		now.since = lostSince(node)
		h.metrics.transition(d.Site, toHeld)
		event(recorder, node, v1.EventTypeWarning, EventHeld, heldMessage(node, d))
	case !held && was.held:
		end, message := ended(d, ready)
		h.metrics.transition(was.site, end)
		event(recorder, node, v1.EventTypeNormal, EventHoldEnded, fmt.Sprintf(
			"Hold ended after %s: %s", time.Since(was.since).Round(time.Second), message))
	}
	if d.Reason == Dead && ready == v1.ConditionTrue {
		now.contradicted, now.warned = was.contradicted, was.warned
		if now.contradicted.IsZero() {
			now.contradicted = time.Now()
		}
		if !now.warned && time.Since(now.contradicted) >= contradictedAfter {
			now.warned = true
			event(recorder, node, v1.EventTypeWarning, EventContradicted, fmt.Sprintf(
				"Heartbeat is not lost, but for %s %s. While that condition stays, pods are evicted as soon as a heartbeat is late",
				time.Since(now.contradicted).Round(time.Second), d.Detail))
		}
	}

	if d.Reason == NoSite {
		delete(h.nodes, node.Name)
	} else {
		h.nodes[node.Name] = now
	}
	return held, lost && !held && (was.held || !known)
}

// GracePeriod is how long the node may be silent before its heartbeat is lost: a
// node that was found dead need not wait for what upstream gives the living. A
// heartbeat that this controller sees counts for it as ever, so that an old
// verdict cannot harm a node that is back.
func (h *Hold) GracePeriod(node *v1.Node, grace time.Duration) time.Duration {
	if Decide(node).Reason == Dead {
		return min(grace, deadGrace)
	}
	return grace
}

// Forget drops what is known about a node that was deleted.
func (h *Hold) Forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(name)
}

func (h *Hold) forget(name string) {
	if was := h.nodes[name]; was.held {
		h.metrics.transition(was.site, toDeleted)
	}
	delete(h.nodes, name)
}

// ended says in one word and in half a sentence why a hold ended.
func ended(d Decision, ready v1.ConditionStatus) (transition, string) {
	switch {
	case ready != v1.ConditionUnknown:
		return toHeartbeat, fmt.Sprintf("the heartbeat is back (Ready=%s)", ready)
	case d.Reason == Dead:
		return toDead, d.Detail + ". Its pods are marked NotReady and evicted as upstream does"
	default:
		return toNoSite, d.Detail + " any more. Its pods are marked NotReady and evicted as upstream does"
	}
}

func heldMessage(node *v1.Node, d Decision) string {
	what := "Heartbeat lost"
	if c := readyCondition(node); c != nil && c.Reason == "NodeStatusNeverUpdated" {
		what = "No heartbeat was ever seen"
	}
	return fmt.Sprintf("%s; node of site %q is held: %s. Its pods keep running as far as the cloud knows", what, d.Site, d.Detail)
}

// lostSince is when the node controller gave the node up, also if that was
// before a restart.
func lostSince(node *v1.Node) time.Time {
	if c := readyCondition(node); c != nil && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	return time.Now()
}

func readyCondition(node *v1.Node) *v1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == v1.NodeReady {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

func event(recorder record.EventRecorder, node *v1.Node, kind, reason, message string) {
	recorder.Event(&v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}, kind, reason, message)
}
