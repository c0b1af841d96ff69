package outbox

import (
	"fmt"
	"strconv"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const leaseNamespace = "kube-node-lease"

// isLease is also true of a creation, whose name is in the body.
func isLease(r *wire.Request, node string) bool {
	return r.Group == "coordination.k8s.io" && r.Version == "v1" && r.Resource == "leases" && r.Subresource == "" &&
		r.Namespace == leaseNamespace &&
		(r.Verb == "create" || (r.Name == node && (r.Verb == "update" || r.Verb == "patch")))
}

// writeLease acknowledges a heartbeat. It is kept so that the kubelet reads what
// it wrote, and never sent: after reconnecting the kubelet's next one counts.
func (b *Outbox) writeLease(req *wire.Request, contentType string, body []byte) (store.Object, error) {
	key := store.Key{Group: req.Group, Version: req.Version, Resource: req.Resource, Namespace: leaseNamespace, Name: b.o.NodeName}
	gr := schema.GroupResource{Group: key.Group, Resource: key.Resource}
	b.mu.Lock()
	defer b.mu.Unlock()
	current, ok, err := b.o.Store.Get(key)
	if err != nil {
		return store.Object{}, err
	}
	if !ok {
		if req.Verb == "create" {
			return b.createLease(key, contentType, body)
		}
		return store.Object{}, ErrNotOffline
	}
	typed, err := wire.Typed(current)
	if err != nil {
		return store.Object{}, fmt.Errorf("reading the stored lease: %w", err)
	}
	old, ok := typed.(*coordinationv1.Lease)
	if !ok {
		return store.Object{}, fmt.Errorf("the store has a %T as lease", typed)
	}
	proposed := new(coordinationv1.Lease)
	if req.Verb == "patch" {
		err = applyPatch(old, proposed, contentType, body)
	} else {
		proposed, err = decodeLease(key, contentType, body)
	}
	if err != nil {
		return store.Object{}, err
	}
	if proposed.Name != key.Name || proposed.Namespace != "" && proposed.Namespace != key.Namespace {
		return store.Object{}, apierrors.NewForbidden(gr, proposed.Name, fmt.Errorf("node %q has one lease, of its own name", b.o.NodeName))
	}
	if req.Verb == "create" {
		return store.Object{}, apierrors.NewAlreadyExists(gr, key.Name)
	}
	if proposed.UID != "" && proposed.UID != old.UID {
		return store.Object{}, apierrors.NewConflict(gr, key.Name, fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", proposed.UID, old.UID))
	}
	// The kubelet's last renewal may have gone to the cloud without being kept
	// here: a version that is newer than ours is the cloud's.
	asked, err := strconv.ParseUint(proposed.ResourceVersion, 10, 64)
	if proposed.ResourceVersion != "" && err != nil {
		return store.Object{}, apierrors.NewBadRequest("resourceVersion is no number")
	}
	if asked != 0 && asked < current.ResourceVersion {
		return store.Object{}, checkVersion(gr, key.Name, proposed.ResourceVersion, current.ResourceVersion)
	}
	old.Spec = proposed.Spec
	changed, err := wire.FromTyped(old, key)
	if err != nil {
		return store.Object{}, fmt.Errorf("writing a lease: %w", err)
	}
	changed.Kind, changed.UID = current.Kind, current.UID
	if changed, err = wire.WithResourceVersion(changed, max(b.o.Store.Revision(), asked, current.ResourceVersion)); err != nil {
		return store.Object{}, err
	}
	batch := new(store.Batch)
	batch.Put(changed)
	return changed, b.o.Store.Apply(batch, store.Lazy)
}

// createLease keeps a lease that the kubelet makes because it could not read
// one. Whether the cloud has one shows on reconnecting: either way the kubelet's
// next renewal is a conflict there, and it begins anew.
func (b *Outbox) createLease(key store.Key, contentType string, body []byte) (store.Object, error) {
	lease, err := decodeLease(key, contentType, body)
	if err != nil {
		return store.Object{}, err
	}
	if lease.Name != key.Name || lease.Namespace != "" && lease.Namespace != key.Namespace {
		return store.Object{}, apierrors.NewForbidden(schema.GroupResource{Group: key.Group, Resource: key.Resource}, lease.Name,
			fmt.Errorf("node %q has one lease, of its own name", b.o.NodeName))
	}
	revision := max(b.o.Store.Revision(), 1)
	lease.ObjectMeta = metav1.ObjectMeta{
		Namespace: key.Namespace, Name: key.Name, UID: uuid.NewUUID(), CreationTimestamp: metav1.NewTime(b.o.Now()),
		ResourceVersion: strconv.FormatUint(revision, 10), OwnerReferences: lease.OwnerReferences,
	}
	obj, err := wire.FromTyped(lease, key)
	if err != nil {
		return store.Object{}, fmt.Errorf("writing a lease: %w", err)
	}
	q := store.Query{Group: key.Group, Version: key.Version, Resource: key.Resource, Namespace: key.Namespace, FieldSelector: "metadata.name=" + key.Name}
	batch := new(store.Batch)
	batch.SetView(store.View{Query: q, Kind: "Lease", Node: true, Complete: true})
	batch.Put(obj)
	batch.Join(q, key)
	return obj, b.o.Store.Apply(batch, store.Lazy)
}

func decodeLease(key store.Key, contentType string, body []byte) (*coordinationv1.Lease, error) {
	obj, err := wire.Decode(contentType, body, store.Key{Group: key.Group, Version: key.Version, Resource: key.Resource})
	if err != nil {
		return nil, asBadRequest(err)
	}
	typed, err := wire.Typed(obj)
	if err != nil {
		return nil, asBadRequest(err)
	}
	lease, ok := typed.(*coordinationv1.Lease)
	if !ok {
		return nil, apierrors.NewBadRequest("the body is no Lease")
	}
	return lease, nil
}
