package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// errCut ends what passes through when the link is lost: its client is to ask
// again, and is answered from the store then.
var errCut = fmt.Errorf("the API server went out of reach: %w", context.Canceled)

// link is the present stretch of being online. What passes through lives no
// longer than it.
type link struct {
	online func() bool

	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func newLink(online func() bool) *link {
	l := &link{online: online}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

// current returns a context that ends with the stretch; it has ended if there is
// none.
func (l *link) current() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Asked under the lock: whoever comes last knows the newest.
	if online := l.online(); !online {
		l.cancel(errCut)
	} else if l.ctx.Err() != nil {
		l.ctx, l.cancel = context.WithCancelCause(context.Background())
	}
	return l.ctx
}

// bounded is a round tripper that gives up when the link is lost, when no answer
// begins in time, and when an answer stalls. It is for one request.
type bounded struct {
	http.RoundTripper
	link   context.Context
	header time.Duration // 0: no bound
	stall  time.Duration // 0: no bound
	// wait is asked when header is over; true waits on.
	wait func() bool
}

func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	unlink := context.AfterFunc(b.link, func() { cancel(context.Cause(b.link)) })
	var timer *time.Timer
	if b.header > 0 {
		timer = time.AfterFunc(b.header, func() {
			if b.wait == nil || !b.wait() {
				cancel(context.DeadlineExceeded)
			}
		})
	}
	resp, err := b.RoundTripper.RoundTrip(r.WithContext(ctx))
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && r.Context().Err() == nil {
			err = cause
		}
		unlink()
		cancel(nil)
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// From here on the connection is the two ends' own: a flapping state
		// must not end a shell that works.
		unlink()
		return resp, nil
	}
	body := &boundedBody{ReadCloser: resp.Body, ctx: ctx, done: func() { unlink(); cancel(nil) }}
	if b.stall > 0 {
		body.stall = b.stall
		body.timer = time.AfterFunc(b.stall, func() { cancel(context.DeadlineExceeded) })
		body.timer.Stop()
	}
	resp.Body = body
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	ctx   context.Context
	done  func()
	stall time.Duration
	timer *time.Timer
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.timer != nil {
		b.timer.Reset(b.stall)
		defer b.timer.Stop()
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *boundedBody) Close() error {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.done()
	return b.ReadCloser.Close()
}

// up says whether the link is there.
func (l *link) up() bool { return l.current().Err() == nil }
