package serve

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// pendingWait is how long an answer from the store waits for what is on its way
// into it.
const pendingWait = 2 * time.Second

// pending counts the answers of the cloud that clients have and the store has not
// yet. A client that asks again when the link has just been lost must not be shown
// an older state than before.
type pending struct {
	mu    sync.Mutex
	count map[schema.GroupResource]int
	ended chan struct{} // closed at the next end
}

func newPending() *pending {
	return &pending{count: map[schema.GroupResource]int{}, ended: make(chan struct{})}
}

// begin counts one in. The function that it returns counts it out, and must be
// called once.
func (p *pending) begin(resource schema.GroupResource) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count[resource]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.count[resource]--; p.count[resource] == 0 {
			delete(p.count, resource)
			close(p.ended)
			p.ended = make(chan struct{})
		}
	}
}

// wait waits until nothing of a resource is on its way, for at most pendingWait.
func (p *pending) wait(ctx context.Context, resource schema.GroupResource) {
	ctx, cancel := context.WithTimeout(ctx, pendingWait)
	defer cancel()
	for {
		p.mu.Lock()
		busy, ended := p.count[resource] > 0, p.ended
		p.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}
