package rejoin

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// A node may ask limitBurst times at once and then once in limitEvery.
	limitBurst = 5
	limitEvery = 20 * time.Second
	// maxLimited bounds how many nodes are remembered. Their names come out of
	// verified certificates.
	maxLimited = 10_000
)

// limiter bounds how often one node may ask.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	nodes map[string]*rate.Limiter
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, nodes: map[string]*rate.Limiter{}}
}

func (l *limiter) allow(node string) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.nodes[node]
	if one == nil {
		if len(l.nodes) >= maxLimited {
			l.forgetIdle(now)
		}
		if len(l.nodes) >= maxLimited {
			return false
		}
		one = rate.NewLimiter(rate.Every(limitEvery), limitBurst)
		l.nodes[node] = one
	}
	return one.AllowN(now, 1)
}

// forgetIdle forgets the nodes that may ask as if they never had.
func (l *limiter) forgetIdle(now time.Time) {
	for name, one := range l.nodes {
		if one.TokensAt(now) >= limitBurst {
			delete(l.nodes, name)
		}
	}
}
