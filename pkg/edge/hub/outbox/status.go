package outbox

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// opStatus is the operation of an entry with a difference of .status.
const opStatus = "status"

// notTheKubelets are the fields of a status that the API server, its admission
// or other controllers own.
var notTheKubelets = []string{
	"qosClass", "nominatedNodeName", "resourceClaimStatuses", "extendedResourceClaimStatus", "nodeAllocatableResourceClaimStatuses",
	"volumesAttached", "config",
}

func isStatus(r *wire.Request) bool {
	return r.Group == "" && r.Version == "v1" && r.Subresource == "status" && (r.Resource == "pods" || r.Resource == "nodes")
}

// writeStatus takes a status of a stored pod of this node, or of the node.
func (b *Outbox) writeStatus(ctx context.Context, req *wire.Request, contentType string, body []byte) (store.Object, error) {
	key := req.Key()
	key.Group, key.Version, key.Resource = "", "v1", req.Resource
	gr := schema.GroupResource{Resource: key.Resource}
	if key.Resource == "nodes" && key.Name != b.o.NodeName {
		return store.Object{}, apierrors.NewForbidden(gr, key.Name, fmt.Errorf("node %q cannot modify the status of node %q", b.o.NodeName, key.Name))
	}

	// Watchers are told in the order of resourceVersions, and outside of mu:
	// the views call Rebase with locks of their own.
	b.writing.Lock()
	defer b.writing.Unlock()
	changed, told, err := b.changeStatus(req, key, contentType, body)
	if err != nil || told == nil {
		return changed, err
	}
	if err := b.o.Publish(ctx, told, &changed); err != nil {
		// It is stored and queued: watchers learn of it when they list again.
		b.log.Warn("a local change was not told to watchers", "resource", key.Resource, "name", key.Name, "error", err)
	}
	return changed, nil
}

// changeStatus returns the changed object, and what it was before if watchers
// are to be told.
func (b *Outbox) changeStatus(req *wire.Request, key store.Key, contentType string, body []byte) (changed store.Object, told *store.Object, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	online := b.o.Online()
	if _, held := b.entries[entryKey{key, opStatus}]; online && !held {
		return store.Object{}, nil, ErrNotOffline
	}
	current, ok, err := b.o.Store.Get(key)
	if err != nil {
		return store.Object{}, nil, err
	}
	if !ok {
		return store.Object{}, nil, ErrNotOffline
	}
	// The store may lack what was written while the cloud was online.
	if current, err = b.overlay(current); err != nil {
		return store.Object{}, nil, err
	}
	old, err := wire.Typed(current)
	if err != nil {
		return store.Object{}, nil, fmt.Errorf("reading the stored object: %w", err)
	}
	proposed, err := b.proposed(req, old, contentType, body)
	if err != nil {
		return store.Object{}, nil, err
	}
	if err := b.mayChange(old, proposed, current, key); err != nil {
		return store.Object{}, nil, err
	}
	before, err := statusOf(old)
	if err != nil {
		return store.Object{}, nil, err
	}
	after, err := statusOf(proposed)
	if err != nil {
		return store.Object{}, nil, err
	}
	for _, name := range notTheKubelets {
		set(after, name, before[name])
	}
	d := diff(before, after)
	if d.empty() {
		return current, nil, nil
	}
	changed, err = withStatus(current, old, after)
	if err != nil {
		return store.Object{}, nil, err
	}
	if reason := notBelieved(before, after); reason != "" && !online {
		b.log.Info("a pod's failure is not kept: it may start after the next start of the node", "pod", key.Namespace+"/"+key.Name, "reason", reason)
		b.m.dropped.WithLabelValues(reason).Inc()
		return changed, nil, nil
	}
	if online {
		// The cloud gives out the resourceVersions now: only the queue changes.
		if err := b.enqueue(key, current, d, nil, store.Durable); err != nil {
			return store.Object{}, nil, err
		}
		select {
		case b.kick <- struct{}{}:
		default:
		}
		return changed, nil, nil
	}
	if key.Resource == "nodes" && heartbeatOnly(before, after) {
		batch := new(store.Batch)
		batch.Put(changed)
		return changed, nil, b.o.Store.Apply(batch, store.Lazy)
	}

	revision := b.o.Store.Revision() + 1
	if changed, err = wire.WithResourceVersion(changed, revision); err != nil {
		return store.Object{}, nil, err
	}
	batch := new(store.Batch)
	batch.Put(changed)
	batch.SetRevision(revision)
	if err := b.enqueue(key, current, d, batch, store.Durable); err != nil {
		return store.Object{}, nil, err
	}
	b.taken = revision
	return changed, &current, nil
}

// restate brings the stored objects up to what was written while the cloud was
// online, behind an unsent status: that changed the queue alone, and it may have
// been sent without coming back before the cloud went away again. From now on
// the node reads it from the store like everything else.
func (b *Outbox) restate(ctx context.Context) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	b.mu.Lock()
	keys := slices.Collect(maps.Keys(b.sent))
	for ek := range b.entries {
		if ek.op == opStatus {
			keys = append(keys, ek.key)
		}
	}
	b.mu.Unlock()
	for _, key := range keys {
		old, changed, err := b.restateOne(key)
		if err != nil {
			return fmt.Errorf("applying the unsent status of %s %s/%s: %w", key.Resource, key.Namespace, key.Name, err)
		}
		if changed == nil {
			continue
		}
		if err := b.o.Publish(ctx, old, changed); err != nil {
			b.log.Warn("a local change was not told to watchers", "resource", key.Resource, "name", key.Name, "error", err)
		}
	}
	return nil
}

func (b *Outbox) restateOne(key store.Key) (old, changed *store.Object, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	current, ok, err := b.o.Store.Get(key)
	if err != nil || !ok || b.o.Online() {
		return nil, nil, err
	}
	merged, err := b.overlay(current)
	if err != nil || bytes.Equal(merged.Data, current.Data) {
		return nil, nil, err
	}
	revision := b.o.Store.Revision() + 1
	if merged, err = wire.WithResourceVersion(merged, revision); err != nil {
		return nil, nil, err
	}
	batch := new(store.Batch)
	batch.Put(merged)
	batch.SetRevision(revision)
	if err := b.o.Store.Apply(batch, store.Durable); err != nil {
		return nil, nil, err
	}
	b.taken = revision
	return &current, &merged, nil
}

// enqueue adds a difference to the entry of an object, making one if there is
// none, and applies the batch with it.
func (b *Outbox) enqueue(key store.Key, current store.Object, d difference, batch *store.Batch, durability store.Durability) error {
	if batch == nil {
		batch = new(store.Batch)
	}
	ek := entryKey{key, opStatus}
	e := store.Entry{Key: key, UID: current.UID, Op: opStatus, Created: b.o.Now()}
	known := b.entries[ek]
	switch {
	case known == nil:
	case known.uid != current.UID:
		// A pod of the same name: the other one is gone for good.
		batch.DeleteEntry(known.seq)
		b.m.dropped.WithLabelValues(dropUID).Inc()
		known = nil
	default:
		stored, ok, err := b.o.Store.Entry(key, opStatus)
		if err != nil {
			return fmt.Errorf("reading an unsent status: %w", err)
		}
		if !ok {
			known = nil
			break
		}
		e.Seq, e.Created = stored.Seq, stored.Created
		if earlier, err := decodeDifference(stored.Payload); err == nil {
			d = earlier.then(d)
		} else {
			b.m.dropped.WithLabelValues(dropDamaged).Inc()
			b.log.Error("an unsent status cannot be read; the new one is sent alone", "namespace", key.Namespace, "name", key.Name, "error", err)
		}
	}
	var err error
	if e.Payload, err = d.encode(); err != nil {
		return fmt.Errorf("writing an unsent status: %w", err)
	}
	batch.PutEntry(e)
	if err := b.o.Store.Apply(batch, durability); err != nil {
		return err
	}
	delete(b.sent, key)
	if known != nil {
		known.version++
		return nil
	}
	return b.remember(ek, e)
}

// remember learns the order that the store gave to a new entry.
func (b *Outbox) remember(ek entryKey, e store.Entry) error {
	stored, ok, err := b.o.Store.Entry(ek.key, ek.op)
	if err != nil || !ok {
		return fmt.Errorf("reading back an unsent write of %s %s/%s (found: %t): %w", ek.key.Resource, ek.key.Namespace, ek.key.Name, ok, err)
	}
	b.entries[ek] = &entry{seq: stored.Seq, uid: e.UID, created: e.Created}
	return nil
}

// proposed is the object that a PATCH or PUT asks for.
func (b *Outbox) proposed(req *wire.Request, old runtime.Object, contentType string, body []byte) (runtime.Object, error) {
	if req.Verb == "patch" {
		switch o := old.(type) {
		case *corev1.Pod:
			into := new(corev1.Pod)
			return into, applyPatch(o, into, contentType, body)
		case *corev1.Node:
			into := new(corev1.Node)
			return into, applyPatch(o, into, contentType, body)
		}
		return nil, apierrors.NewInternalError(fmt.Errorf("the store has a %T", old))
	}
	k := req.Key()
	k.Group, k.Version, k.Resource = "", "v1", req.Resource
	obj, err := wire.Decode(contentType, body, k)
	if err != nil {
		return nil, asBadRequest(err)
	}
	typed, err := wire.Typed(obj)
	if err != nil {
		return nil, asBadRequest(err)
	}
	return typed, nil
}

// mayChange checks the preconditions that a body carries in its metadata, and
// whose pod it is.
func (b *Outbox) mayChange(old, proposed runtime.Object, current store.Object, key store.Key) error {
	gr := schema.GroupResource{Resource: key.Resource}
	was, ok := old.(metav1.Object)
	is, ok2 := proposed.(metav1.Object)
	if !ok || !ok2 || fmt.Sprintf("%T", old) != fmt.Sprintf("%T", proposed) {
		return apierrors.NewBadRequest("the body is another kind of object")
	}
	if pod, ok := old.(*corev1.Pod); ok && pod.Spec.NodeName != b.o.NodeName {
		return apierrors.NewForbidden(gr, key.Name, fmt.Errorf("node %q can only update the status of its own pods", b.o.NodeName))
	}
	if is.GetName() != was.GetName() || is.GetNamespace() != was.GetNamespace() {
		return apierrors.NewBadRequest("the name in the body is not that of the request")
	}
	if is.GetUID() != "" && is.GetUID() != was.GetUID() {
		return apierrors.NewConflict(gr, key.Name, fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", is.GetUID(), was.GetUID()))
	}
	return checkVersion(gr, key.Name, is.GetResourceVersion(), current.ResourceVersion)
}

// checkVersion is the optimistic lock.
func checkVersion(gr schema.GroupResource, name, asked string, current uint64) error {
	if asked == "" {
		return nil
	}
	rv, err := strconv.ParseUint(asked, 10, 64)
	if err != nil {
		return apierrors.NewBadRequest("resourceVersion is no number")
	}
	if rv != 0 && rv != current {
		return apierrors.NewConflict(gr, name, fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	return nil
}

// notBelieved says why a transition to Failed is acknowledged and not kept; ""
// if it is kept. See the comment of the package.
func notBelieved(before, after map[string]any) string {
	if after["phase"] != string(corev1.PodFailed) || terminal(before) {
		return ""
	}
	reason, _ := after["reason"].(string)
	message, _ := after["message"].(string)
	switch {
	case reason == "Terminated" && strings.Contains(message, "node shutdown"), reason == "NodeShutdown":
		return dropShutdown
	case strings.HasPrefix(message, "Pod was rejected"):
		return dropRejected
	}
	return ""
}

func terminal(status map[string]any) bool {
	return status["phase"] == string(corev1.PodFailed) || status["phase"] == string(corev1.PodSucceeded)
}

// heartbeatOnly reports whether two statuses of a node say the same at another
// time.
func heartbeatOnly(before, after map[string]any) bool {
	return equality.Semantic.DeepEqual(withoutHeartbeat(before), withoutHeartbeat(after))
}

func withoutHeartbeat(status map[string]any) map[string]any {
	out := maps.Clone(status)
	list, _ := status["conditions"].([]any)
	list = slices.Clone(list)
	for i := range list {
		c := maps.Clone(object(list[i]))
		delete(c, "lastHeartbeatTime")
		list[i] = c
	}
	out["conditions"] = list
	return out
}

// statusOf returns .status of a typed object.
func statusOf(obj runtime.Object) (map[string]any, error) {
	var status any
	switch o := obj.(type) {
	case *corev1.Pod:
		status = &o.Status
	case *corev1.Node:
		status = &o.Status
	default:
		return nil, fmt.Errorf("%T has no status here", obj)
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return nil, fmt.Errorf("reading a status: %w", err)
	}
	return m, nil
}

// withStatus returns the object with another .status; all else is as it was.
func withStatus(obj store.Object, typed runtime.Object, status map[string]any) (store.Object, error) {
	typed = typed.DeepCopyObject()
	var err error
	switch o := typed.(type) {
	case *corev1.Pod:
		o.Status = corev1.PodStatus{}
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(status, &o.Status)
	case *corev1.Node:
		o.Status = corev1.NodeStatus{}
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(status, &o.Status)
	default:
		err = fmt.Errorf("%T has no status here", typed)
	}
	if err != nil {
		return store.Object{}, fmt.Errorf("writing a status: %w", err)
	}
	out, err := wire.FromTyped(typed, obj.Key)
	if err != nil {
		return store.Object{}, fmt.Errorf("writing an object: %w", err)
	}
	out.Kind, out.UID, out.ResourceVersion = obj.Kind, obj.UID, obj.ResourceVersion
	return out, nil
}

func asBadRequest(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return apierrors.NewBadRequest(err.Error())
}
