package outbox

import (
	"encoding/json"
	"fmt"
	"mime"
	"strconv"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// opEvent is the operation of an entry with a whole event, opEventPatch that
	// of one with a merge patch of an event that the cloud has.
	opEvent      = "event"
	opEventPatch = "event-patch"

	// maxEvent bounds one event. The API server bounds its message to 1 KiB.
	maxEvent = 32 << 10
)

// eventPayload is the payload of opEvent.
type eventPayload struct {
	Replace bool            `json:"replace,omitempty"` // PUT it, do not POST it
	Object  json.RawMessage `json:"object"`
}

func isEvent(r *wire.Request) bool {
	if r.Resource != "events" || r.Subresource != "" || r.Version != "v1" || r.Namespace == "" {
		return false
	}
	return (r.Group == "" || r.Group == "events.k8s.io") && (r.Verb == "create" || r.Verb == "update" || r.Verb == "patch")
}

// writeEvent queues an event, or changes one in the queue.
func (b *Outbox) writeEvent(req *wire.Request, contentType string, body []byte) (store.Object, int, error) {
	if len(body) > maxEvent {
		return store.Object{}, 0, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit for an event is %d bytes", maxEvent))
	}
	key := store.Key{Group: req.Group, Version: req.Version, Resource: req.Resource, Namespace: req.Namespace, Name: req.Name}
	b.mu.Lock()
	defer b.mu.Unlock()
	if req.Verb == "patch" {
		obj, err := b.patchEvent(key, contentType, body)
		return obj, 200, err
	}
	event, err := decodeEvent(key, contentType, body)
	if err != nil {
		return store.Object{}, 0, err
	}
	m := event.(metav1.Object)
	gr := schema.GroupResource{Group: key.Group, Resource: key.Resource}
	code := 200
	if req.Verb == "create" {
		code = 201
		if m.GetName() == "" && m.GetGenerateName() != "" {
			m.SetName(m.GetGenerateName() + rand.String(5))
		}
		if m.GetName() == "" {
			return store.Object{}, 0, apierrors.NewBadRequest("an event needs a name")
		}
		key.Name = m.GetName()
		if b.entries[entryKey{key, opEvent}] != nil {
			return store.Object{}, 0, apierrors.NewAlreadyExists(gr, key.Name)
		}
		m.SetUID(uuid.NewUUID())
		m.SetCreationTimestamp(metav1.NewTime(b.o.Now()))
	} else if m.GetName() != key.Name {
		return store.Object{}, 0, apierrors.NewBadRequest("the name in the body is not that of the request")
	}
	replace := req.Verb == "update"
	if replace {
		stored, ok, err := b.queuedEvent(key)
		if err != nil {
			return store.Object{}, 0, err
		}
		replace = !ok || stored.Replace
	}
	if err := b.queueEvent(key, event, replace); err != nil {
		return store.Object{}, 0, err
	}
	obj, err := b.eventAnswer(key, event)
	return obj, code, err
}

// patchEvent changes an event in the queue; of another one, which the cloud
// has, it queues the patch. The later of two patches wins, key by key: what the
// kubelet patches is a count, a time and a message.
func (b *Outbox) patchEvent(key store.Key, contentType string, body []byte) (store.Object, error) {
	queued, ok, err := b.queuedEvent(key)
	if err != nil {
		return store.Object{}, err
	}
	event := newEvent(key)
	if ok {
		if err := json.Unmarshal(queued.Object, event); err != nil {
			return store.Object{}, fmt.Errorf("reading an unsent event: %w", err)
		}
	} else {
		m := event.(metav1.Object)
		m.SetName(key.Name)
		m.SetNamespace(key.Namespace)
	}
	changed := newEvent(key)
	if err := applyPatch(event, changed, contentType, body); err != nil {
		return store.Object{}, err
	}
	m := changed.(metav1.Object)
	if m.GetName() != key.Name || m.GetNamespace() != key.Namespace {
		return store.Object{}, apierrors.NewBadRequest("the name in the patch is not that of the request")
	}
	if ok {
		m.SetUID(event.(metav1.Object).GetUID())
		if err := b.queueEvent(key, changed, queued.Replace); err != nil {
			return store.Object{}, err
		}
		return b.eventAnswer(key, changed)
	}

	if mediaType, _, _ := mime.ParseMediaType(contentType); types.PatchType(mediaType) == types.JSONPatchType {
		return store.Object{}, ErrNotOffline
	}
	patch := body
	earlier, ok, err := b.o.Store.Entry(key, opEventPatch)
	if err != nil {
		return store.Object{}, fmt.Errorf("reading an unsent event: %w", err)
	}
	if ok {
		if patch, err = jsonpatch.MergeMergePatches(earlier.Payload, body); err != nil {
			return store.Object{}, apierrors.NewBadRequest(err.Error())
		}
		if len(patch) > maxEvent {
			return store.Object{}, apierrors.NewRequestEntityTooLargeError("the patches of the event are too large")
		}
	}
	if err := b.queue(key, opEventPatch, patch); err != nil {
		return store.Object{}, err
	}
	return b.eventAnswer(key, changed)
}

func (b *Outbox) queuedEvent(key store.Key) (eventPayload, bool, error) {
	var p eventPayload
	e, ok, err := b.o.Store.Entry(key, opEvent)
	if err != nil || !ok {
		return p, false, err
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return p, false, fmt.Errorf("reading an unsent event: %w", err)
	}
	return p, true, nil
}

func (b *Outbox) queueEvent(key store.Key, event runtime.Object, replace bool) error {
	object, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("writing an unsent event: %w", err)
	}
	payload, err := json.Marshal(eventPayload{Replace: replace, Object: object})
	if err != nil {
		return fmt.Errorf("writing an unsent event: %w", err)
	}
	return b.queue(key, opEvent, payload)
}

// queue puts an entry about an event, and makes room for it.
func (b *Outbox) queue(key store.Key, op string, payload []byte) error {
	ek := entryKey{key, op}
	e := store.Entry{Key: key, Op: op, Payload: payload, Created: b.o.Now()}
	batch := new(store.Batch)
	var gone []entryKey
	known := b.entries[ek]
	if known != nil {
		e.Seq, e.Created = known.seq, known.created
	} else {
		gone = b.oldestEvents()
		for _, g := range gone {
			batch.DeleteEntry(b.entries[g].seq)
		}
	}
	batch.PutEntry(e)
	if err := b.o.Store.Apply(batch, store.Soon); err != nil {
		return err
	}
	for _, g := range gone {
		delete(b.entries, g)
		b.m.dropped.WithLabelValues(dropFull).Inc()
	}
	if known != nil {
		known.version++
		return nil
	}
	return b.remember(ek, e)
}

// oldestEvents returns the entries that must go so that one more fits.
func (b *Outbox) oldestEvents() []entryKey {
	var (
		n      int
		oldest entryKey
	)
	for k, e := range b.entries {
		if k.op != opEvent && k.op != opEventPatch {
			continue
		}
		if n++; oldest.op == "" || e.seq < b.entries[oldest].seq {
			oldest = k
		}
	}
	if n < b.o.MaxEvents {
		return nil
	}
	return []entryKey{oldest}
}

// eventAnswer is the event as a client sees it.
func (b *Outbox) eventAnswer(key store.Key, event runtime.Object) (store.Object, error) {
	event.(metav1.Object).SetResourceVersion(strconv.FormatUint(b.o.Store.Revision(), 10))
	obj, err := wire.FromTyped(event, key)
	if err != nil {
		return store.Object{}, fmt.Errorf("writing an event: %w", err)
	}
	return obj, nil
}

func newEvent(key store.Key) runtime.Object {
	if key.Group == "" {
		return new(corev1.Event)
	}
	return new(eventsv1.Event)
}

func decodeEvent(key store.Key, contentType string, body []byte) (runtime.Object, error) {
	obj, err := wire.Decode(contentType, body, store.Key{Group: key.Group, Version: key.Version, Resource: key.Resource})
	if err != nil {
		return nil, asBadRequest(err)
	}
	typed, err := wire.Typed(obj)
	if err != nil {
		return nil, asBadRequest(err)
	}
	switch typed.(type) {
	case *corev1.Event, *eventsv1.Event:
	default:
		return nil, apierrors.NewBadRequest("the body is no Event")
	}
	m := typed.(metav1.Object)
	if m.GetNamespace() == "" {
		m.SetNamespace(key.Namespace)
	}
	if m.GetNamespace() != key.Namespace {
		return nil, apierrors.NewBadRequest("the namespace in the body is not that of the request")
	}
	m.SetResourceVersion("")
	return typed, nil
}
