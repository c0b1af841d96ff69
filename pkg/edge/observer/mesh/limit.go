package mesh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// Messages per second of one peer, and handshakes per second of one address and
// of all: an observer sends a few messages a second, and opens a connection now
// and then.
const (
	peerRate, peerBurst       = 40, 200
	guestRate                 = 5
	addressRate, addressBurst = 2, 20
	allRate, allBurst         = 40, 200
	// busyBelow is how few handshakes must be left of the burst before those who
	// open connections must show that their address is theirs.
	busyBelow = allBurst - 20
	// maxAddresses bounds what is remembered.
	maxAddresses = 4096
)

// bucket is a token bucket.
type bucket struct {
	rate, burst, tokens float64
	last                time.Time
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) fill(now time.Time) {
	if !b.last.IsZero() && now.After(b.last) {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate)
	}
	b.last = now
}

func (b *bucket) take(now time.Time) bool {
	if b.fill(now); b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// limits bounds the handshakes that others begin: each costs a signature before
// it is known who begins it.
type limits struct {
	now       func() time.Time
	mu        sync.Mutex
	all       bucket
	addresses map[netip.Addr]*bucket
}

func (l *limits) init() {
	if l.addresses == nil {
		l.all, l.addresses = newBucket(allRate, allBurst), map[netip.Addr]*bucket{}
	}
}

// busy says that more handshakes are begun than usual.
func (l *limits) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init()
	l.all.fill(l.now())
	return l.all.tokens <= busyBelow
}

// allow says whether an address may begin another handshake. Those of members,
// if they are no forgeries, do not share what is left for all.
func (l *limits) allow(address netip.Addr, member bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init()
	now := l.now()
	if address = address.Unmap(); address.Is6() {
		prefix, _ := address.Prefix(64) // one machine has them all
		address = prefix.Addr()
	}
	b := l.addresses[address]
	if b == nil {
		if len(l.addresses) >= maxAddresses {
			clear(l.addresses)
		}
		fresh := newBucket(addressRate, addressBurst)
		b = &fresh
		l.addresses[address] = b
	}
	own := b.take(now)
	all := own && l.all.take(now)
	return all || (own && member)
}

var errTooMany = errors.New("too many connections")

// admit decides about a handshake before it costs anything.
func (m *Mesh) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	remote, ok := info.RemoteAddr.(*net.UDPAddr)
	if !ok {
		return nil, errTooMany
	}
	address := remote.AddrPort().Addr().Unmap()
	member := info.AddrVerified && m.o.Known != nil && m.o.Known(address)
	if !m.limits.allow(address, member) {
		m.counters.limited.Add(1)
		return nil, errTooMany
	}
	return ctx, nil
}
