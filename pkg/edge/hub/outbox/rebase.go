package outbox

import (
	"fmt"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Rebase returns an object of the cloud as it is to be presented on this node:
// with the status that was written here and that the cloud does not know yet.
// An entry that the rules give up is dropped, and the cloud's object returned.
func (b *Outbox) Rebase(cloud store.Object) (store.Object, error) {
	if cloud.Group != "" || cloud.Resource != "pods" && cloud.Resource != "nodes" {
		return cloud, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ek := entryKey{cloud.Key, opStatus}
	if b.entries[ek] != nil {
		return b.rebaseUnsent(ek, cloud)
	}
	s, ok := b.sent[cloud.Key]
	if !ok {
		return cloud, nil
	}
	if s.uid != cloud.UID || cloud.ResourceVersion >= s.rv {
		delete(b.sent, cloud.Key)
		return cloud, nil
	}
	// An older version than the one that we were answered is still under way.
	merged, change, reason, err := merge(cloud, s.uid, s.diff)
	if err != nil || reason != "" || change.empty() {
		return cloud, err
	}
	return merged, nil
}

func (b *Outbox) rebaseUnsent(ek entryKey, cloud store.Object) (store.Object, error) {
	e, ok, err := b.o.Store.Entry(ek.key, opStatus)
	if err != nil {
		return store.Object{}, fmt.Errorf("reading the unsent status of %s %s/%s: %w", ek.key.Resource, ek.key.Namespace, ek.key.Name, err)
	}
	if !ok {
		delete(b.entries, ek)
		return cloud, nil
	}
	d, err := decodeDifference(e.Payload)
	if err != nil {
		return cloud, b.drop(ek, dropDamaged)
	}
	merged, change, reason, err := merge(cloud, e.UID, d)
	if err != nil {
		return store.Object{}, err
	}
	if reason != "" {
		return cloud, b.drop(ek, reason)
	}
	if change.empty() {
		return cloud, nil
	}
	return merged, nil
}

// overlay returns a stored object with what was written here and may not be in
// it. A stored object may be Succeeded or Failed because of just that, so nothing
// is given up. The caller holds mu.
func (b *Outbox) overlay(stored store.Object) (store.Object, error) {
	var s sent
	if b.entries[entryKey{stored.Key, opStatus}] != nil {
		e, ok, err := b.o.Store.Entry(stored.Key, opStatus)
		if err != nil || !ok {
			return stored, err
		}
		d, err := decodeDifference(e.Payload)
		if err != nil {
			return stored, nil // reported when it is sent
		}
		s = sent{uid: e.UID, diff: d}
	} else if s = b.sent[stored.Key]; s.rv <= stored.ResourceVersion {
		return stored, nil
	}
	merged, change, reason, err := merge(stored, s.uid, s.diff)
	if err != nil || reason != "" || change.empty() {
		return stored, err
	}
	return merged, nil
}

// merge applies the rules: the cloud's object with a difference on top, and what
// that changes; or the reason why the difference is given up.
func merge(cloud store.Object, uid string, d difference) (store.Object, difference, string, error) {
	if cloud.UID != uid {
		return cloud, difference{}, dropUID, nil
	}
	typed, err := wire.Typed(cloud)
	if err != nil {
		return store.Object{}, difference{}, "", fmt.Errorf("reading the cloud's %s %s/%s: %w", cloud.Resource, cloud.Namespace, cloud.Name, err)
	}
	status, err := statusOf(typed)
	if err != nil {
		return store.Object{}, difference{}, "", err
	}
	if cloud.Resource == "pods" && terminal(status) {
		return cloud, difference{}, dropTerminal, nil
	}
	wanted := d.apply(status)
	merged, err := withStatus(cloud, typed, wanted)
	if err != nil {
		return store.Object{}, difference{}, "", err
	}
	return merged, diff(status, wanted), "", nil
}

// drop gives an entry up. The caller holds mu.
func (b *Outbox) drop(ek entryKey, reason string) error {
	e := b.entries[ek]
	if e == nil {
		return nil
	}
	batch := new(store.Batch)
	batch.DeleteEntry(e.seq)
	if err := b.o.Store.Apply(batch, store.Soon); err != nil {
		return fmt.Errorf("dropping an unsent write: %w", err)
	}
	delete(b.entries, ek)
	b.m.dropped.WithLabelValues(reason).Inc()
	b.log.Info("an unsent write is dropped", "resource", ek.key.Resource, "namespace", ek.key.Namespace, "name", ek.key.Name, "op", ek.op, "reason", reason)
	return nil
}
