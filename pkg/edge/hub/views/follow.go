package views

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// ensureFollowed starts to follow a view, if nobody does yet.
func (vs *Views) ensureFollowed(v *view) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wanted = true
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v.following || v.gone || vs.running == nil || vs.running.Err() != nil {
		return
	}
	v.following = true
	var ctx context.Context
	ctx, v.stop = context.WithCancel(vs.running)
	vs.wg.Add(1)
	go func() {
		defer vs.wg.Done()
		v.follow(ctx)
	}()
}

// follow keeps a view up to date until ctx ends.
func (v *view) follow(ctx context.Context) {
	wait := backoff{min: v.vs.o.RetryMin, max: v.vs.o.RetryMax}
	defer func() {
		v.mu.Lock()
		v.following = false
		v.mu.Unlock()
		v.setLive(false)
	}()
	for ctx.Err() == nil {
		g := v.vs.currentGate()
		select {
		case <-ctx.Done():
			return
		case <-g.ctx.Done():
			continue
		case <-g.open:
		}
		if g.ctx.Err() != nil {
			continue
		}
		cred, ok := v.credential()
		if !ok {
			if !v.awaitCredential(ctx) {
				return
			}
			continue
		}
		stream, cancel := context.WithCancel(ctx)
		unlink := context.AfterFunc(g.ctx, cancel)
		progress, err := v.turn(stream, cred)
		unlink()
		cancel()
		if progress {
			wait.reset()
		}
		pause, over := v.judge(ctx, g, cred, err, &wait)
		if over {
			return
		}
		if pause > 0 {
			v.setLive(false)
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
			case <-v.kick: // somebody needs it now
			case <-g.ctx.Done(): // and begin at once when the link is back
				wait.reset()
			}
			t.Stop()
		}
	}
}

// turn lists if that is needed, else watches. progress says that upstream
// answered well for a while.
func (v *view) turn(ctx context.Context, c credential) (progress bool, err error) {
	v.mu.Lock()
	needList := !v.complete || v.relist || v.restored || v.rv == 0 || v.localRV > v.rv
	first := !v.complete
	v.mu.Unlock()
	if needList {
		if !first {
			v.vs.m.relists.WithLabelValues(v.resource()).Inc()
		}
		return false, v.list(ctx, c)
	}
	if err := v.sameHistory(ctx, c); err != nil {
		return false, err
	}
	return v.watch(ctx, c)
}

// judge decides what follows from how a turn ended.
func (v *view) judge(ctx context.Context, g *gate, c credential, err error, wait *backoff) (pause time.Duration, over bool) {
	var api apierrors.APIStatus
	switch {
	case ctx.Err() != nil:
		return 0, true
	case g.ctx.Err() != nil:
		v.setLive(false)
		return 0, false
	case err == nil:
		return 0, false
	case errors.Is(err, errOvertaken):
		v.mu.Lock()
		v.relist = true
		v.mu.Unlock()
		return 0, false
	case !errors.As(err, &api):
		v.log.Debug("following the cloud", "error", err)
		v.brokeAt = time.Now()
		return wait.next(), false
	}
	status := api.Status()
	switch {
	case apierrors.IsGone(err) || apierrors.IsResourceExpired(err) || causedBy(status, metav1.CauseTypeResourceVersionTooLarge):
		v.mu.Lock()
		v.relist = true
		v.mu.Unlock()
		if wait.now == 0 {
			wait.next()
			return jitter(wait.min), false
		}
		return wait.next(), false
	case c.caller.Node && (status.Code == http.StatusUnauthorized || v.permanent && status.Code == http.StatusForbidden):
		// The node's certificate is about to be renewed, or its rights are
		// about to be installed: that is no matter of this view.
		v.log.Warn("the API server does not accept the node's credential", "error", err)
		return wait.next(), false
	case status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden:
		v.refuse(c)
		if _, ok := v.credential(); ok {
			return jitter(wait.min), false
		}
		return 0, v.finish(err)
	case status.Code == http.StatusNotFound || status.Code == http.StatusBadRequest || status.Code == http.StatusMethodNotAllowed:
		// The resource is not served, or not like this.
		return 0, v.finish(err)
	}
	pause = wait.next()
	if d := status.Details; d != nil && d.RetryAfterSeconds > 0 {
		pause = max(pause, jitter(2*min(time.Duration(d.RetryAfterSeconds)*time.Second, time.Minute)))
	}
	v.log.Debug("following the cloud", "error", err)
	return pause, false
}

func causedBy(s metav1.Status, t metav1.CauseType) bool {
	if s.Details == nil {
		return false
	}
	for _, c := range s.Details.Causes {
		if c.Type == t {
			return true
		}
	}
	return false
}

// finish ends the view for its clients and takes it out of the table. What is
// stored stays: it was true when it came.
func (v *view) finish(err error) (over bool) {
	if v.permanent {
		return false
	}
	v.log.Info("the cloud refuses the view", "error", err)
	v.vs.remove(v)
	v.fail(err)
	return true
}

// remove takes a view out of the table.
func (vs *Views) remove(v *view) {
	v.mu.Lock()
	defer v.mu.Unlock()
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v.gone = true
	if vs.table[v.q] == v {
		delete(vs.table, v.q)
	}
	v.forgetEvents(v.window.from)
}

// awaitCredential waits until somebody asks for the view with a new credential.
func (v *view) awaitCredential(ctx context.Context) bool {
	v.setLive(false)
	v.mu.Lock()
	changed := v.wait()
	has := len(v.creds) > 0
	v.mu.Unlock()
	if has {
		return true
	}
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return false
	}
}

// maxBatch bounds how many events are written at once.
const maxBatch = 32

// watch follows the collection from the view's resourceVersion until the stream
// ends.
func (v *view) watch(ctx context.Context, c credential) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.mu.Lock()
	from := v.rv
	v.mu.Unlock()
	timeout := (v.vs.o.WatchTimeout + jitter(v.vs.o.WatchTimeout)).Round(time.Second)
	p := parameters(v.q)
	p.Set("watch", "1")
	p.Set("allowWatchBookmarks", "true")
	p.Set("resourceVersion", strconv.FormatUint(from, 10))
	p.Set("timeoutSeconds", strconv.Itoa(max(1, int(timeout/time.Second))))
	// The API server ends the stream; if it does not, the stream is dead.
	dead := time.AfterFunc(timeout+stall, cancel)
	defer dead.Stop()
	resp, err := v.vs.request(ctx, c.caller, v.q, p)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	key := store.Key{Group: v.q.Group, Version: v.q.Version, Resource: v.q.Resource}
	reader, err := wire.NewEventReader(resp.Header.Get("Content-Type"), resp.Body, key, v.vs.o.MaxItem)
	if err != nil {
		return false, fmt.Errorf("reading the watch of %s: %w", v.q, err)
	}
	if c.caller.Node {
		v.seenByNode()
	}
	v.setLive(true)
	began := time.Now()
	defer func() { progress = progress || time.Since(began) > 10*time.Second }()

	incoming := make(chan wire.Event, maxBatch)
	ended := make(chan error, 1)
	go func() {
		defer close(incoming)
		for {
			e, err := reader.Next()
			if err != nil {
				ended <- err
				return
			}
			select {
			case incoming <- e:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	// The reader must be gone before the next stream begins.
	defer func() {
		cancel()
		_ = resp.Body.Close()
		for range incoming {
		}
	}()
	batch := make([]wire.Event, 0, 8)
	for {
		select {
		case <-v.kick:
			return progress, nil
		case e, ok := <-incoming:
			if !ok {
				err := <-ended
				if errors.Is(err, io.EOF) {
					return true, nil
				}
				return progress, fmt.Errorf("the watch of %s broke: %w", v.q, err)
			}
			batch = append(batch[:0], e)
		}
	more:
		for len(batch) < maxBatch {
			select {
			case e, ok := <-incoming:
				if !ok {
					break more
				}
				batch = append(batch, e)
			default:
				break more
			}
		}
		status := errorOf(batch)
		if status != nil {
			batch = batch[:len(batch)-1]
		}
		if err := v.apply(ctx, batch); err != nil {
			return progress, err
		}
		progress = true
		clear(batch)
		if status != nil {
			return progress, &apierrors.StatusError{ErrStatus: *status}
		}
	}
}

// errorOf returns the Status of an ERROR event, which is the last of a stream,
// and removes nothing.
func errorOf(batch []wire.Event) *metav1.Status {
	e := batch[len(batch)-1]
	if e.Type != watch.Error {
		return nil
	}
	if e.Status == nil {
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: "an ERROR event without a status"}
	}
	return e.Status
}

// seenByNode notes that the cloud showed the view to the node's identity.
func (v *view) seenByNode() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.node {
		return
	}
	v.node = true
	b := &store.Batch{}
	v.describe(b)
	if err := v.vs.st.Apply(b, store.Soon); err != nil {
		v.degrade(err)
	}
}
