package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/hub/wire"
)

// streamWatch writes the events of a watch until it, the client, or the time
// that was asked for ends.
func (x *exchange) streamWatch(view *views.View, synced time.Time) {
	ctx := x.r.Context()
	if timeout := x.req.Options.Timeout; timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), true)
	if err != nil {
		x.source = sourceHub
		x.fail(err)
		return
	}
	watcher, err := view.Watch(ctx, x.req.Options)
	if err != nil {
		x.fail(asStatus(err))
		return
	}
	defer watcher.Stop()
	live := view.Live()
	header := x.w.Header()
	header.Set("Content-Type", media.ContentType(true))
	header.Set("Cache-Control", "no-cache, private")
	header.Set(HeaderSource, x.source)
	if !live {
		x.age(synced)
	}
	x.w.WriteHeader(http.StatusOK)
	x.w.Flush()
	x.streamEvents(ctx, watcher, media)
}

// burst is for how long events that come together are gathered.
const burst = 2 * time.Millisecond

// streamEvents writes one event at once, and those that are waiting behind it
// together.
func (x *exchange) streamEvents(ctx context.Context, watcher *views.Watcher, media wire.Media) {
	concerned := x.rewrites()
	var batch bytes.Buffer
	var gather struct { // while batch has events
		ctx  context.Context
		stop context.CancelFunc
	}
	flush := func() bool {
		if gather.stop != nil {
			gather.stop()
		}
		gather.ctx, gather.stop = ctx, nil
		if batch.Len() == 0 {
			return true
		}
		_, err := x.w.Write(batch.Bytes())
		batch = bytes.Buffer{} // an idle watch holds no memory
		return err == nil && x.w.FlushError() == nil
	}
	flush()
	defer func() { flush() }()
	for {
		event, err := watcher.Next(gather.ctx)
		if err != nil && batch.Len() > 0 && ctx.Err() == nil && gather.ctx.Err() != nil {
			if !flush() {
				return
			}
			continue
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				x.Logger.Debug("a watch ended", "path", x.r.URL.Path, "err", err)
			}
			return
		}
		offline := !x.link.up()
		if concerned || offline {
			if event, err = x.rewriteEvent(event, offline); err != nil {
				x.Logger.Error("an event could not be rewritten", "path", x.r.URL.Path, "err", err)
				panic(http.ErrAbortHandler)
			}
		}
		frame, err := wire.EncodeEvent(media, event)
		if err != nil {
			x.Logger.Error("an event could not be written", "path", x.r.URL.Path, "err", err)
			panic(http.ErrAbortHandler)
		}
		media.NoHeaders = true // of a Table, after the first
		more := watcher.Pending()
		if batch.Len() == 0 && more {
			gather.ctx, gather.stop = context.WithTimeout(ctx, burst)
		}
		batch.Write(frame)
		if (!more || batch.Len() >= heldBytes) && !flush() {
			return
		}
	}
}
