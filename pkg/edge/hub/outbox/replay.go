package outbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// maxObject bounds one object of the cloud, maxAnswer the answer to a write,
	// of which only the metadata is asked for.
	maxObject = 4 << 20
	maxAnswer = 1 << 20

	eventsAreOldAfter = time.Hour

	acceptObject = "application/vnd.kubernetes.protobuf,application/json"
	acceptMeta   = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)

// errStop ends a pass: the next entry would fare no better.
var errStop = errors.New("the replay stops")

// errBehind means that the cloud has yet to pass the resourceVersions that were
// taken here. The views see to that before they show anything; a status that is
// sent earlier would get a resourceVersion below the one that it was shown with.
var errBehind = errors.New("the cloud's revision is behind the local one")

// behindBy is how far the cloud can be behind before it counts as restored from
// a backup: then nothing is waited for.
const behindBy = 10_000

// Run replays whenever the cloud is online and something is unsent, until ctx
// ends. It must run for writes to be right when the link flaps.
func (b *Outbox) Run(ctx context.Context) error {
	const first, most = time.Second, 30 * time.Second
	wait := first
	for {
		var changes <-chan struct{}
		if b.o.Changes != nil {
			changes = b.o.Changes()
		}
		var again <-chan time.Time
		if b.o.Online() {
			if err := b.Replay(ctx); err == nil {
				wait = first
			} else if errors.Is(err, errBehind) {
				again = time.After(200 * time.Millisecond)
			} else if ctx.Err() == nil {
				b.log.Warn("unsent writes remain", "error", err, "retry", wait)
				again = time.After(wait)
				wait = min(2*wait, most)
			}
		} else if err := b.restate(ctx); err != nil {
			b.log.Error("the store lacks an unsent status", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			wait = first
		case <-b.kick:
		case <-again:
		}
	}
}

// pending is an entry of a pass.
type pending struct {
	entryKey
	seq     uint64
	version int
}

// Replay sends what is unsent once: statuses, then events, each in the order in
// which they were first written. It returns nil when nothing is left. Entries
// that the rules give up are dropped; an entry that the API server refuses for
// now does not keep the next ones. Safe to call while Run runs.
func (b *Outbox) Replay(ctx context.Context) error {
	if err := b.dropOldEvents(); err != nil {
		return err
	}
	err := b.pass(ctx, "statuses", func(op string) bool { return op == opStatus })
	if err != nil && (errors.Is(err, errStop) || ctx.Err() != nil) {
		return err
	}
	if err := errors.Join(err, b.pass(ctx, "events", func(op string) bool { return op != opStatus })); err != nil {
		return err
	}
	if n, _ := b.Pending(); n > 0 {
		// Written while they were being sent: at once again.
		select {
		case b.kick <- struct{}{}:
		default:
		}
	}
	return ctx.Err()
}

// ReplayStatuses is Replay without the events: to be called after the cloud has
// passed the local revision and before its objects are shown, so that a pod that
// was changed here and there is not shown with the lower resourceVersion that
// its change there has.
func (b *Outbox) ReplayStatuses(ctx context.Context) error {
	return b.pass(ctx, "statuses", func(op string) bool { return op == opStatus })
}

// pass sends the entries of some operations. An error that is errStop says that
// others would fare no better.
func (b *Outbox) pass(ctx context.Context, what string, which func(op string) bool) error {
	b.replaying.Lock()
	defer b.replaying.Unlock()
	if b.o.Do == nil {
		return errors.New("outbox: there is no way to the API server")
	}
	todo := slices.DeleteFunc(b.queueInOrder(), func(p pending) bool { return !which(p.op) })
	if len(todo) == 0 {
		return nil
	}
	_, oldest := b.Pending()
	start, counts := b.o.Now(), map[string]int{}
	b.log.Info("replaying unsent writes", "of", what, "entries", len(todo), "oldest", oldest)

	var refused, stop error
	objects, err := b.objects(ctx, todo)
	if err != nil {
		return errors.Join(errStop, fmt.Errorf("reading the cloud's objects before the replay: %w", err))
	}
	for i, p := range todo {
		if i > 0 {
			if err := b.pace(ctx); err != nil {
				return err
			}
		}
		result, err := b.replay(ctx, p, objects)
		if errors.Is(err, errStop) || ctx.Err() != nil {
			stop = err
			break
		}
		if err != nil {
			refused = err
		}
		counts[result]++
		b.m.replayed.WithLabelValues(result).Inc()
	}
	b.log.Info("replayed unsent writes", "of", what, "sent", counts[resultSent], "unchanged", counts[resultSame],
		"dropped", counts[resultDropped], "deferred", counts[resultDeferred], "left", len(b.queueInOrder()), "took", b.o.Now().Sub(start))
	if stop != nil {
		return stop
	}
	return refused
}

func (b *Outbox) queueInOrder() []pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	todo := make([]pending, 0, len(b.entries))
	for k, e := range b.entries {
		todo = append(todo, pending{k, e.seq, e.version})
	}
	slices.SortFunc(todo, func(x, y pending) int { return cmp.Compare(x.seq, y.seq) })
	for k, s := range b.sent {
		if b.o.Now().Sub(s.at) > 5*time.Minute {
			delete(b.sent, k) // of an object that was never shown again
		}
	}
	return todo
}

// dropOldEvents keeps the newest of the events that are old: after a long
// outage what happened last says most.
func (b *Outbox) dropOldEvents() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var old []entryKey
	for k, e := range b.entries {
		if k.op != opStatus && b.o.Now().Sub(e.created) > eventsAreOldAfter {
			old = append(old, k)
		}
	}
	if len(old) <= b.o.MaxOldEvents {
		return nil
	}
	slices.SortFunc(old, func(x, y entryKey) int { return cmp.Compare(b.entries[x].seq, b.entries[y].seq) })
	for _, k := range old[:len(old)-b.o.MaxOldEvents] {
		if err := b.drop(k, dropExpired); err != nil {
			return err
		}
	}
	return nil
}

func (b *Outbox) pace(ctx context.Context) error {
	t := time.NewTimer(time.Duration(float64(time.Second) / b.o.Rate))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// objects returns the cloud's versions of the pods and of the node that have an
// entry. They are read with consistent lists: a node may list its own pods, so a
// pod that is not there is gone; a GET of a pod that is gone would be forbidden,
// and say nothing.
func (b *Outbox) objects(ctx context.Context, todo []pending) (map[store.Key]store.Object, error) {
	wanted := map[store.Key]bool{}
	selectors := map[string]string{}
	for _, p := range todo {
		if p.op != opStatus {
			continue
		}
		wanted[p.key] = true
		selectors[p.key.Resource] = "spec.nodeName=" + b.o.NodeName
		if p.key.Resource == "nodes" {
			selectors[p.key.Resource] = "metadata.name=" + b.o.NodeName
		}
	}
	found := make(map[store.Key]store.Object, len(wanted))
	for resource, selector := range selectors {
		if err := b.list(ctx, resource, selector, func(o store.Object) {
			if wanted[o.Key] {
				o.Data = slices.Clone(o.Data)
				found[o.Key] = o
			}
		}); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// list reads all pages of a list, if the cloud is beyond what was taken here.
func (b *Outbox) list(ctx context.Context, resource, selector string, fn func(store.Object)) error {
	query := url.Values{"fieldSelector": {selector}, "limit": {"500"}}
	for {
		resp, err := b.o.Do(ctx, http.MethodGet, "/api/v1/"+resource, query, "", acceptObject, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return answer(resp)
		}
		meta, err := wire.ReadList(resp.Header.Get("Content-Type"), resp.Body, store.Key{Version: "v1", Resource: resource}, maxObject, func(o store.Object) error {
			fn(o)
			return nil
		})
		resp.Body.Close()
		if err != nil {
			return err
		}
		if revision, err := strconv.ParseUint(meta.ResourceVersion, 10, 64); err != nil {
			return fmt.Errorf("the list of %s has resourceVersion %q", resource, meta.ResourceVersion)
		} else if b.behind(revision) {
			return errBehind
		}
		if meta.Continue == "" {
			return nil
		}
		query.Set("continue", meta.Continue)
	}
}

func (b *Outbox) behind(revision uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken > b.o.Store.Revision() {
		b.taken = 0 // the cloud has been restored, and the count begun anew
	}
	return revision <= b.taken && b.taken-revision <= behindBy
}

// replay sends one entry. An error that is errStop ends the pass.
func (b *Outbox) replay(ctx context.Context, p pending, objects map[store.Key]store.Object) (result string, err error) {
	e, ok, err := b.o.Store.Entry(p.key, p.op)
	if err != nil {
		return resultDeferred, err
	}
	if !ok || e.Seq != p.seq {
		return resultSame, nil // dropped meanwhile
	}
	if p.op == opStatus {
		return b.replayStatus(ctx, p, e, objects)
	}
	return b.replayEvent(ctx, p, e)
}

func (b *Outbox) replayStatus(ctx context.Context, p pending, e store.Entry, objects map[store.Key]store.Object) (string, error) {
	cloud, ok := objects[p.key]
	if !ok {
		return b.give(p, dropGone)
	}
	d, err := decodeDifference(e.Payload)
	if err != nil {
		return b.give(p, dropDamaged)
	}
	_, change, reason, err := merge(cloud, e.UID, d)
	if err != nil {
		return resultDeferred, err
	}
	if reason != "" {
		return b.give(p, reason)
	}
	if change.empty() {
		return resultSame, b.done(p, sent{uid: e.UID, rv: cloud.ResourceVersion, diff: d, at: b.o.Now()})
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": e.UID}, "status": change.patch()})
	if err != nil {
		return resultDeferred, fmt.Errorf("writing a patch: %w", err)
	}
	path := "/api/v1/nodes/" + url.PathEscape(p.key.Name)
	if p.key.Resource == "pods" {
		path = "/api/v1/namespaces/" + url.PathEscape(p.key.Namespace) + "/pods/" + url.PathEscape(p.key.Name)
	}
	// As online, where the kubelet's own name is taken from its User-Agent.
	query := url.Values{"fieldManager": {"kubelet"}}
	resp, err := b.o.Do(ctx, http.MethodPatch, path+"/status", query, "application/strategic-merge-patch+json", acceptMeta, body)
	if err != nil {
		return resultDeferred, errors.Join(errStop, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return b.refusedBy(p, resp)
	}
	var got struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&got); err != nil {
		return resultDeferred, errors.Join(errStop, fmt.Errorf("reading the answer to a patch: %w", err))
	}
	rv, err := strconv.ParseUint(got.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return resultDeferred, errors.Join(errStop, fmt.Errorf("reading the answer to a patch: %w", err))
	}
	return resultSent, b.done(p, sent{uid: e.UID, rv: rv, diff: d, at: b.o.Now()})
}

// refusedBy judges an answer that is no success.
func (b *Outbox) refusedBy(p pending, resp *http.Response) (string, error) {
	err := answer(resp)
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return b.give(p, dropGone)
	case code == http.StatusForbidden, code == http.StatusConflict:
		// Maybe the API server has just started; maybe the UID differs, which the
		// next pass sees.
		return b.refusedForNow(p, err)
	case code == http.StatusUnauthorized, code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500, code < 400:
		return resultDeferred, errors.Join(errStop, err)
	}
	b.log.Warn("the API server does not take an unsent write", "resource", p.key.Resource, "namespace", p.key.Namespace, "name", p.key.Name, "error", err)
	return b.give(p, dropInvalid)
}

func (b *Outbox) refusedForNow(p pending, err error) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[p.entryKey]
	if e == nil || e.seq != p.seq {
		return resultDropped, nil
	}
	now := b.o.Now()
	if e.forbidden.IsZero() {
		e.forbidden = now
	}
	if now.Sub(e.forbidden) < b.o.ForbiddenFor {
		return resultDeferred, err
	}
	b.log.Warn("the API server forbids an unsent write", "resource", p.key.Resource, "namespace", p.key.Namespace, "name", p.key.Name, "error", err)
	return resultDropped, b.drop(p.entryKey, dropDenied)
}

// give drops the entry of a pass. What was written to it meanwhile would fare
// no better.
func (b *Outbox) give(p pending, reason string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[p.entryKey]; e == nil || e.seq != p.seq {
		return resultDropped, nil // another object's by now
	}
	return resultDropped, b.drop(p.entryKey, reason)
}

// done removes an entry that the cloud has, unless it has changed since.
func (b *Outbox) done(p pending, s sent) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[p.entryKey]
	if e == nil || e.seq != p.seq || e.version != p.version {
		return nil
	}
	batch := new(store.Batch)
	batch.DeleteEntry(p.seq)
	if err := b.o.Store.Apply(batch, store.Soon); err != nil {
		return fmt.Errorf("removing a sent write: %w", err)
	}
	delete(b.entries, p.entryKey)
	if p.op == opStatus {
		b.sent[p.key] = s
	}
	return nil
}

// answer is the error that an answer means; it closes the body.
func answer(resp *http.Response) error {
	defer resp.Body.Close()
	var status struct {
		Message string `json:"message"`
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		return fmt.Errorf("the API server answered %d: %.500s", resp.StatusCode, status.Message)
	}
	return fmt.Errorf("the API server answered %d", resp.StatusCode)
}
