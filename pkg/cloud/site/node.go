package site

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// Reasons of the events on Nodes, and on the Sites that they are of.
const (
	EventDead         = "NodeDead"
	EventAlive        = "NodeAlive"
	EventUnknown      = "NodeUnknown"
	EventOutOfService = "NodeOutOfService"
	EventInService    = "NodeInService"
)

// nodeWriter writes what there is to write about one Node.
type nodeWriter struct {
	brain   *brain
	client  client.Client
	live    client.Reader
	confirm *confirmer
	events  record.EventRecorder
	metrics *metrics
}

// Reconcile writes a Node's condition if it is not what it is to be, then sees to
// its taint.
func (w *nodeWriter) Reconcile(ctx context.Context, name string) (reconcile.Result, error) {
	var change verdict.Change
	var write, failover, tainted bool
	w.brain.do(func(t *verdict.Tracker, _ time.Time) {
		change, write = t.Desired(name)
		failover, tainted = t.Failover(name), w.brain.tainted[name]
	})
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if write {
		var version string
		if change.To.Dead() {
			dead := false
			var err error
			if change, version, dead, err = w.confirm.dead(ctx, change); err != nil {
				return reconcile.Result{}, client.IgnoreNotFound(err)
			}
			if !dead {
				w.metrics.refuted.Inc()
				return reconcile.Result{RequeueAfter: readFor}, nil
			}
		}
		if err := w.publish(ctx, change, version); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
		w.brain.do(func(t *verdict.Tracker, _ time.Time) { failover = t.Failover(name) })
	}
	if failover != tainted {
		return reconcile.Result{}, client.IgnoreNotFound(w.taint(ctx, name, failover))
	}
	return reconcile.Result{}, nil
}

// publish writes the condition, and tells of it. With a version it is for that
// version of the Node only.
func (w *nodeWriter) publish(ctx context.Context, c verdict.Change, version string) error {
	patch, err := conditionPatch(c, version, metav1.NewTime(w.brain.now()))
	if err != nil {
		return err
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.Node}}
	if err := w.client.Status().Patch(ctx, node, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		if apierrors.IsInvalid(err) || apierrors.IsConflict(err) {
			// It changed, or is another Node of that name: what it is like the watch
			// will tell.
			return fmt.Errorf("writing the verdict on node %s, which may be another by now: %w", c.Node, err)
		}
		return fmt.Errorf("writing the verdict on node %s: %w", c.Node, err)
	}
	w.brain.do(func(t *verdict.Tracker, now time.Time) {
		t.SetNode(now, factsOf(node))
		w.brain.wroteNode[c.Node] = node.ResourceVersion
	})
	w.metrics.published(c)
	w.tell(ctx, c)
	return nil
}

// conditionPatch is the patch of the one condition. The Node's uid is in it, so
// that it cannot hit the next Node of the same name.
func conditionPatch(c verdict.Change, version string, now metav1.Time) ([]byte, error) {
	condition := map[string]any{"type": api.AliveCondition}
	if c.To.Status == "" {
		condition["$patch"] = "delete"
	} else {
		condition["status"], condition["reason"], condition["message"] = c.To.Status, c.To.Reason, c.To.Message
		condition["lastHeartbeatTime"] = now
		if c.Was.Status != c.To.Status {
			condition["lastTransitionTime"] = now
		}
	}
	metadata := map[string]any{"uid": c.UID}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": metadata,
		"status":   map[string]any{"conditions": []any{condition}},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the verdict on node %s: %w", c.Node, err)
	}
	return patch, nil
}

// tell makes the events of a change. That a node is alive which nobody has said
// anything about before is no news, and neither is a verdict that goes with the
// node's site.
func (w *nodeWriter) tell(ctx context.Context, c verdict.Change) {
	if c.To.Status == "" || c.Was.Status == c.To.Status || c.Was.Status == "" && c.To.Status == corev1.ConditionTrue {
		return
	}
	kind, reason, now := corev1.EventTypeWarning, EventUnknown, "Nobody can tell whether the node lives"
	switch c.To.Status {
	case corev1.ConditionTrue:
		kind, reason, now = corev1.EventTypeNormal, EventAlive, "The node is alive"
	case corev1.ConditionFalse:
		reason, now = EventDead, "The node is dead"
	}
	if c.To.Reason == v1alpha1.ReasonKubeletDown && c.To.Status == corev1.ConditionUnknown {
		now = "The node's kubelet or container runtime is down"
	}
	w.events.Eventf(nodeReference(c), kind, reason, "%s: %s", now, c.To.Message)
	site := &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: c.Site}}
	if err := w.client.Get(ctx, client.ObjectKeyFromObject(site), site); err == nil {
		w.events.Eventf(objectReference(site, "Site"), kind, reason, "Node %s: %s", c.Node, c.To.Message)
	}
}

// taint puts the taint that upstream calls out-of-service on a Node, or takes it
// off. One that somebody else put there is left alone.
func (w *nodeWriter) taint(ctx context.Context, name string, want bool) error {
	node := &corev1.Node{}
	if err := w.live.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return fmt.Errorf("reading node %s to taint it: %w", name, err)
	}
	// The Node as it is now has to say that it is dead: what the watch told may
	// be behind.
	want = want && condition(node).Dead()
	patch, err := taintPatch(node, want)
	if err != nil || patch == nil {
		return err
	}
	if err := w.client.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("setting taint %s on node %s to %v: %w", corev1.TaintNodeOutOfService, name, want, err)
	}
	w.brain.do(func(t *verdict.Tracker, now time.Time) {
		w.brain.wroteNode[name] = node.ResourceVersion
		t.SetNode(now, factsOf(node))
		if want {
			w.brain.tainted[name] = true
		} else {
			delete(w.brain.tainted, name)
		}
	})
	c := verdict.Change{Node: name, UID: node.UID}
	if want {
		w.events.Eventf(nodeReference(c), corev1.EventTypeWarning, EventOutOfService,
			"The node is dead and its site wants failover: taint %s=%s makes Kubernetes delete its pods by force and detach their volumes", corev1.TaintNodeOutOfService, outOfServiceValue)
	} else {
		w.events.Eventf(nodeReference(c), corev1.EventTypeNormal, EventInService, "Taint %s=%s is taken off", corev1.TaintNodeOutOfService, outOfServiceValue)
	}
	return nil
}

// taintPatch is the patch that puts our taint on a Node or takes it off; nil if
// there is nothing to do. It is good for this very version of the Node.
func taintPatch(node *corev1.Node, want bool) ([]byte, error) {
	is := func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeOutOfService && t.Value == outOfServiceValue && t.Effect == corev1.TaintEffectNoExecute
	}
	ours := node.Annotations[OutOfServiceAnnotation] != ""
	there := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeOutOfService && t.Effect == corev1.TaintEffectNoExecute
	})
	taints := slices.Clone(node.Spec.Taints)
	var annotation any
	switch {
	case want && !there:
		taints = append(taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: outOfServiceValue, Effect: corev1.TaintEffectNoExecute})
		annotation = outOfServiceValue
	case !want && ours:
		taints = slices.DeleteFunc(taints, is)
	default:
		return nil, nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion, "annotations": map[string]any{OutOfServiceAnnotation: annotation}},
		"spec":     map[string]any{"taints": taints},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the taints of node %s: %w", node.Name, err)
	}
	return patch, nil
}
