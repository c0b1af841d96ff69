package mesh

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/quic-go/quic-go"
)

// peer is a member that there are, or should be, connections to.
type peer struct {
	name    string
	links   []*link
	pending []pending
	dialing bool
	backoff time.Duration
	redial  time.Time
	bucket  bucket
}

type pending struct {
	at   time.Time
	data []byte
}

// link is one connection to a peer.
type link struct {
	connection *quic.Conn
	out        chan []byte
	outbound   bool
	ends       time.Time // when the peer's certificate is good for nothing
	opened     time.Time
	heard      time.Time // the last message on it
	unanswered int       // messages since then
	spoken     time.Time // the second of them: the first may be an answer
}

// Send sends a message to a member, now or as soon as there is a connection; to
// another node only if it has opened one. It does not wait, and does not tell
// whether the message arrives.
func (m *Mesh) Send(to string, data []byte) {
	if len(data) > MaxMessage {
		return
	}
	now := m.o.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, member := m.o.Addresses(to); !member && m.peers[to] == nil {
		m.counters.dropped.Add(1)
		return
	}
	p := m.peer(to)
	l := p.best(m.o.Self, now)
	if l != nil {
		select {
		case l.out <- data:
			l.spoke(now)
			m.counters.sent.Add(1)
		default:
			m.counters.dropped.Add(1) // it is blocked
		}
	} else {
		if len(p.pending) >= maxPending {
			p.pending = p.pending[1:]
			m.counters.dropped.Add(1)
		}
		p.pending = append(p.pending, pending{now, data})
	}
	if l == nil || l.silent(now) {
		m.dial(p, now)
	}
}

func (m *Mesh) peer(name string) *peer {
	p := m.peers[name]
	if p == nil {
		p = &peer{name: name, bucket: newBucket(peerRate, peerBurst)}
		m.peers[name] = p
	}
	return p
}

// spoke notes a message. That one has no answer means nothing.
func (l *link) spoke(now time.Time) {
	if l.unanswered++; l.unanswered == 2 {
		l.spoken = now
	}
}

// silent says that we speak on a link and hear nothing.
func (l *link) silent(now time.Time) bool {
	return !l.spoken.IsZero() && now.Sub(l.spoken) > silence
}

// waits says that there has been time for an answer, and none has come: not for
// long, but where another link is heard, that one is the better.
func (l *link) waits(now time.Time) bool {
	return !l.spoken.IsZero() && now.Sub(l.spoken) > silence/8
}

// best is the link to send on: one that is heard, and of several the one that
// the node with the lower name has opened, so that both sides choose the same
// and the other one goes idle.
func (p *peer) best(self string, now time.Time) *link {
	var best *link
	for _, l := range p.links {
		if best == nil || p.better(self, l, best, now) {
			best = l
		}
	}
	return best
}

func (p *peer) better(self string, a, b *link, now time.Time) bool {
	if a.waits(now) != b.waits(now) {
		return b.waits(now)
	}
	preferred := func(l *link) bool { return l.outbound == (self < p.name) }
	if preferred(a) != preferred(b) {
		return preferred(a)
	}
	return a.opened.After(b.opened)
}

// add starts to use a connection.
func (m *Mesh) add(name string, connection *quic.Conn, outbound bool) {
	now := m.o.Now()
	l := &link{
		connection: connection, out: make(chan []byte, 16), outbound: outbound, opened: now, heard: now,
		ends: connection.ConnectionState().TLS.PeerCertificates[0].NotAfter.Add(m.o.MaxExpired),
	}
	m.mu.Lock()
	p := m.peer(name)
	p.links = append(p.links, l)
	p.backoff, p.redial = 0, time.Time{}
	var surplus []*link
	if len(p.links) > perPeer {
		surplus = append(surplus, p.links[0])
		p.links = slices.Delete(p.links, 0, 1)
	}
	for _, waiting := range p.pending {
		if now.Sub(waiting.at) < pendingFor {
			l.out <- waiting.data // there is room for all
			l.spoke(now)
			m.counters.sent.Add(1)
		}
	}
	p.pending = nil
	surplus = append(surplus, m.crowd(l, total, func(string) bool { return true })...)
	surplus = append(surplus, m.crowd(l, guests, m.isGuest)...)
	m.mu.Unlock()
	for _, s := range surplus {
		_ = s.connection.CloseWithError(closeCrowded, "")
	}
	go m.write(l)
	go m.read(p, l)
}

func (m *Mesh) isGuest(name string) bool {
	_, member := m.o.Addresses(name)
	return !member
}

// crowd removes the link that has been quiet for longest, if those with the nodes
// in question are too many.
func (m *Mesh) crowd(but *link, most int, among func(name string) bool) []*link {
	count := 0
	var oldest *link
	var of *peer
	for _, p := range m.peers {
		if !among(p.name) {
			continue
		}
		count += len(p.links)
		for _, l := range p.links {
			if l != but && (oldest == nil || l.heard.Before(oldest.heard)) {
				oldest, of = l, p
			}
		}
	}
	if count <= most || oldest == nil {
		return nil
	}
	of.remove(oldest)
	return []*link{oldest}
}

func (p *peer) remove(l *link) {
	if i := slices.Index(p.links, l); i >= 0 {
		p.links = slices.Delete(p.links, i, i+1)
	}
}

// write sends what is queued for a link, until it ends.
func (m *Mesh) write(l *link) {
	for {
		select {
		case <-l.connection.Context().Done():
			return
		case data := <-l.out:
			if err := l.connection.SendDatagram(data); err != nil {
				m.counters.dropped.Add(1)
			}
		}
	}
}

// read hands on what arrives on a link, until it ends.
func (m *Mesh) read(p *peer, l *link) {
	ctx := l.connection.Context()
	for {
		data, err := l.connection.ReceiveDatagram(ctx)
		if err != nil {
			break
		}
		now := m.o.Now()
		m.mu.Lock()
		rate := float64(peerRate)
		if m.isGuest(p.name) {
			rate = guestRate
		}
		p.bucket.rate = rate
		allowed := len(data) <= MaxMessage && now.Before(l.ends) && p.bucket.take(m.limits.now())
		if allowed {
			l.heard, l.unanswered, l.spoken = now, 0, time.Time{}
		}
		m.mu.Unlock()
		if !allowed {
			m.counters.dropped.Add(1)
			continue
		}
		m.counters.received.Add(1)
		m.o.Receive(p.name, data)
	}
	m.mu.Lock()
	p.remove(l)
	m.mu.Unlock()
	_ = l.connection.CloseWithError(closeDone, "")
}

// look closes links that are of no use, and forgets peers without any.
func (m *Mesh) look(now time.Time) {
	var over []*link
	m.mu.Lock()
	for name, p := range m.peers {
		_, member := m.o.Addresses(name)
		for _, l := range slices.Clone(p.links) {
			if !now.Before(l.ends) || (!l.spoken.IsZero() && now.Sub(l.spoken) > deaf) {
				p.remove(l)
				over = append(over, l)
			}
		}
		if len(p.links) == 0 && !p.dialing && (!member || now.After(p.redial.Add(redialMax))) {
			delete(m.peers, name)
		}
	}
	m.mu.Unlock()
	for _, l := range over {
		_ = l.connection.CloseWithError(closeDone, "")
	}
}

func (m *Mesh) closeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		for _, l := range p.links {
			_ = l.connection.CloseWithError(closeDone, "")
		}
	}
}

// Connections is how many there are.
func (m *Mesh) Connections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := 0
	for _, p := range m.peers {
		count += len(p.links)
	}
	return count
}

// wait is the pause before the next try to reach a peer.
func (p *peer) wait() time.Duration {
	p.backoff = min(redialMax, max(redialMin, 2*p.backoff))
	return p.backoff/2 + time.Duration(rand.Int64N(int64(p.backoff)))
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
