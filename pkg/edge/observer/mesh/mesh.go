// Package mesh carries short messages between the observers of a site: QUIC
// datagrams on connections on which both sides have shown a node's certificate.
// Who somebody is, is the name in that certificate and nothing else: not an
// address, and not what a message says. What is lost is lost, and it is the
// sender's business to notice.
//
// It must not know what the messages mean, nor where the names of the members
// and their addresses come from.
package mesh

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// protocolName is what both sides say they speak.
	protocolName = "skerry-observer/1"
	// idleTimeout closes a connection that nobody has used.
	idleTimeout = 90 * time.Second
	// handshakeIdle is how long a handshake goes on without an answer; it ends
	// in any case after twice that.
	handshakeIdle = 4 * time.Second
	// silence is how long a connection on which we speak may be without an answer
	// before another one is tried beside it.
	silence = 4 * time.Second
	// deaf is when such a connection is given up.
	deaf = 20 * time.Second
	// sweepEvery is how often connections are looked at.
	sweepEvery = 2 * time.Second
	// redialMin and redialMax bound the time between two tries to reach a member.
	redialMin, redialMax = 250 * time.Millisecond, 4 * time.Second
	// addressDelay is how long one address of a member has before the next one
	// is tried too.
	addressDelay = 250 * time.Millisecond
	// pendingFor is how long a message waits for a connection; maxPending how
	// many.
	pendingFor = 1500 * time.Millisecond
	maxPending = 4
	// perPeer and total bound the connections, guests those with nodes that are
	// no members: a node that has just joined the site knows those who have been
	// cut off since before, and they do not know it. It may ask whether they are
	// alive; they call nobody who is no member.
	perPeer, total, guests = 3, 96, 16
	// maxDials bounds the tries under way.
	maxDials = 32
	// MaxMessage is the longest message that is carried.
	MaxMessage = 1100
)

// Options are what a Mesh is made of. All but Logger and Now are required.
type Options struct {
	// Self is the name of this node.
	Self string
	// Listen is where it listens, UDP; the same port is used to reach others.
	Listen netip.AddrPort
	// Certificate returns this node's client certificate of the cluster, with
	// its key. It may have expired.
	Certificate func() (*tls.Certificate, error)
	// Authority returns the cluster's certificate authorities.
	Authority func() (*x509.CertPool, error)
	// MaxExpired is how long after its end a certificate is still good: a site
	// that has been cut off for long goes on. Default 2160h.
	MaxExpired time.Duration
	// Addresses returns where a member can be reached; ok is false if there is no
	// such member. Called often, and must not wait.
	Addresses func(name string) (addresses []netip.AddrPort, ok bool)
	// Known says whether an address is that of a member: handshakes from there
	// are not held up by those of others. It may be nil.
	Known func(netip.Addr) bool
	// Receive takes the messages of other nodes of the cluster, members or not.
	// Called by one goroutine per
	// connection; it must not keep data, and must not wait long.
	Receive func(from string, data []byte)
	Logger  *slog.Logger
	Now     func() time.Time
}

// Mesh is the connections of one node. Safe for concurrent use.
type Mesh struct {
	o        Options
	log      *slog.Logger
	socket   *metered
	quic     *quic.Transport
	listener *quic.Listener
	server   *tls.Config
	sessions tls.ClientSessionCache
	tokens   quic.TokenStore
	limits   limits
	counters counters

	mu    sync.Mutex
	peers map[string]*peer
	dials int
}

// New opens the socket. Run must be called, and ends it.
func New(o Options) (*Mesh, error) {
	if o.MaxExpired == 0 {
		o.MaxExpired = 2160 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	certificate, err := o.Certificate()
	if err != nil {
		return nil, fmt.Errorf("observer: %w", err)
	}
	key, err := resetKey(certificate)
	if err != nil {
		return nil, err
	}
	address := net.UDPAddrFromAddrPort(o.Listen)
	if o.Listen.Addr().IsUnspecified() {
		address.IP = nil // both families, or the one that there is
	}
	udp, err := net.ListenUDP("udp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for neighbours: %w", err)
	}
	m := &Mesh{
		o: o, log: o.Logger, peers: map[string]*peer{},
		sessions: tls.NewLRUClientSessionCache(total), tokens: quic.NewLRUTokenStore(total, 1),
	}
	m.limits.now = time.Now
	m.socket = newMetered(udp, &m.counters)
	m.server = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolName},
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
		ClientAuth:       tls.RequireAnyClientCert, // and then VerifyConnection, which also sees resumed sessions
		VerifyConnection: m.verifyClient,
	}
	m.quic = &quic.Transport{
		Conn: m.socket, StatelessResetKey: key,
		// Whoever claims many addresses must show that it is there first.
		VerifySourceAddress: func(net.Addr) bool { return m.limits.busy() },
		ConnContext:         m.admit,
	}
	if m.listener, err = m.quic.Listen(m.server, m.config()); err != nil {
		udp.Close()
		return nil, fmt.Errorf("listening for neighbours: %w", err)
	}
	return m, nil
}

// resetKey is what a node that has forgotten its connections tells its
// neighbours with, so that they need not find out. It lasts as long as the
// node's key.
func resetKey(certificate *tls.Certificate) (*quic.StatelessResetKey, error) {
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("observer: the node's key: %w", err)
	}
	key := quic.StatelessResetKey(sha256.Sum256(append([]byte("skerry observer reset\x00"), private...)))
	return &key, nil
}

func (m *Mesh) config() *quic.Config {
	return &quic.Config{
		EnableDatagrams: true, MaxIncomingStreams: -1, MaxIncomingUniStreams: -1,
		HandshakeIdleTimeout: handshakeIdle, MaxIdleTimeout: idleTimeout,
		DisablePathMTUDiscovery: true, // it costs packets, and messages are short
		TokenStore:              m.tokens,
		// Nobody sends streams; the windows only have to be something.
		InitialStreamReceiveWindow: 1 << 10, MaxStreamReceiveWindow: 1 << 10,
		InitialConnectionReceiveWindow: 1 << 10, MaxConnectionReceiveWindow: 1 << 10,
	}
}

// Address is where the mesh listens.
func (m *Mesh) Address() netip.AddrPort {
	return m.socket.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Run accepts connections until ctx ends, and closes everything then.
func (m *Mesh) Run(ctx context.Context) error {
	var group sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() { m.sweep(ctx) })
	var failure error
	for {
		connection, err := m.listener.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				failure = fmt.Errorf("listening for neighbours: %w", err)
			}
			break
		}
		m.accept(connection)
	}
	cancel()
	group.Wait()
	m.closeAll()
	return errors.Join(failure, m.quic.Close(), m.socket.Close())
}

// accept takes a connection that another node has opened. Its certificate has
// been verified in the handshake.
func (m *Mesh) accept(connection *quic.Conn) {
	name, err := m.identify(connection.ConnectionState().TLS)
	if err != nil { // the authority has changed meanwhile
		m.counters.refused.Add(1)
		_ = connection.CloseWithError(closeRefused, "")
		return
	}
	m.counters.accepted.Add(1)
	m.add(name, connection, false)
}

// Codes by which connections are closed.
const (
	closeDone quic.ApplicationErrorCode = iota
	closeRefused
	closeCrowded
)

// Close codes need no text: who is refused learns nothing.

// Members looks after what does not belong to a member any more. To be called
// when the members have changed.
func (m *Mesh) Members() { m.look(m.o.Now()) }

// sweep looks at the connections now and then.
func (m *Mesh) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			m.look(m.o.Now())
		}
	}
}
