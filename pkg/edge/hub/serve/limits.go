package serve

import (
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/identity"
)

// Limits bound what is in flight at once. A request over a limit gets 429 and is
// to be tried again.
type Limits struct {
	Requests int // that end soon; default 400
	Streams  int // watches, upgrades, followed logs; default 2000
	// PerCaller bounds are for each identity (and pod) that is not the node;
	// default a quarter of the above. NodeReserve is the share, in per cent,
	// that only the node can use; default 25.
	RequestsPerCaller int
	StreamsPerCaller  int
	NodeReserve       int
}

func (l *Limits) setDefaults() {
	setDefault(&l.Requests, 400)
	setDefault(&l.Streams, 2000)
	setDefault(&l.RequestsPerCaller, max(1, l.Requests/4))
	setDefault(&l.StreamsPerCaller, max(1, l.Streams/4))
	setDefault(&l.NodeReserve, 25)
}

type limiter struct {
	limits Limits

	mu      sync.Mutex
	flying  [2]int // requests, streams
	others  [2]int // of those, not the node's
	callers [2]map[string]int
}

func newLimiter(l Limits) *limiter {
	return &limiter{limits: l, callers: [2]map[string]int{{}, {}}}
}

// enter counts a request in, or refuses it. done counts it out.
func (l *limiter) enter(c identity.Caller, long bool) (done func(), err error) {
	kind, all, each := 0, l.limits.Requests, l.limits.RequestsPerCaller
	if long {
		kind, all, each = 1, l.limits.Streams, l.limits.StreamsPerCaller
	}
	key := c.ID() + "/" + c.PodUID
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.flying[kind] >= all,
		!c.Node && l.others[kind] >= all*(100-l.limits.NodeReserve)/100:
		return nil, apierrors.NewTooManyRequests("the hub has too many requests in flight", 1)
	case !c.Node && l.callers[kind][key] >= each:
		return nil, apierrors.NewTooManyRequests("this client has too many requests in flight at the hub", 1)
	}
	l.flying[kind]++
	if !c.Node {
		l.others[kind]++
		l.callers[kind][key]++
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.flying[kind]--
		if c.Node {
			return
		}
		l.others[kind]--
		if l.callers[kind][key]--; l.callers[kind][key] == 0 {
			delete(l.callers[kind], key)
		}
	}, nil
}

func (l *limiter) inFlight(kind int) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.flying[kind])
}
