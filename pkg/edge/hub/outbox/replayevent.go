package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

// replayEvent sends one event, or a patch of one. An event that the cloud has
// already was sent before a crash.
func (b *Outbox) replayEvent(ctx context.Context, p pending, e store.Entry) (string, error) {
	path := "/api/v1"
	if p.key.Group != "" {
		path = "/apis/" + p.key.Group + "/" + p.key.Version
	}
	path += "/namespaces/" + url.PathEscape(p.key.Namespace) + "/events"
	named := path + "/" + url.PathEscape(p.key.Name)

	method, contentType, body := http.MethodPatch, string(types.MergePatchType), e.Payload
	if p.op == opEventPatch {
		path = named
	} else {
		replace, object, err := eventBody(p.key, e.Payload)
		if err != nil {
			return b.give(p, dropDamaged)
		}
		method, contentType, body = http.MethodPost, "application/json", object
		if replace {
			method, path = http.MethodPut, named
		}
	}
	resp, err := b.o.Do(ctx, method, path, nil, contentType, acceptMeta, body)
	if err != nil {
		return resultDeferred, errors.Join(errStop, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode/100 == 2:
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
		return resultSent, b.done(p, sent{})
	case resp.StatusCode == http.StatusConflict && method == http.MethodPost:
		return resultSame, b.done(p, sent{})
	}
	return b.refusedBy(p, resp)
}

// eventBody is a queued event as the API server takes it.
func eventBody(key store.Key, payload []byte) (replace bool, body []byte, err error) {
	var p eventPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return false, nil, fmt.Errorf("reading an unsent event: %w", err)
	}
	event := newEvent(key)
	if err := json.Unmarshal(p.Object, event); err != nil {
		return false, nil, fmt.Errorf("reading an unsent event: %w", err)
	}
	m, ok := event.(metav1.Object)
	if !ok {
		return false, nil, errors.New("reading an unsent event: no metadata")
	}
	m.SetUID("")
	m.SetResourceVersion("")
	m.SetCreationTimestamp(metav1.Time{})
	m.SetManagedFields(nil)
	body, err = json.Marshal(event)
	return p.Replace, body, err
}
