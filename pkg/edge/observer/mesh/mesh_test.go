package mesh

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const soon = 5 * time.Second

func TestTalk(t *testing.T) {
	t.Parallel()
	a, site := newAuthority(t), &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	west2 := start(t, site, a, "west-2", loopback, a.issue(t, "west-2", nil))
	west1.Send("west-2", []byte("hello"))
	if err := west2.has("west-1", "hello", soon); err != nil {
		t.Fatal(err)
	}
	// The answer takes the same connection.
	west2.Send("west-1", []byte("hello, too"))
	if err := west1.has("west-2", "hello, too", soon); err != nil {
		t.Fatal(err)
	}
	if one, two := west1.Connections(), west2.Connections(); one != 1 || two != 1 {
		t.Errorf("%d and %d connections", one, two)
	}
	if s := west1.Stats(); s.Dialled != 1 || s.Sent != 1 || s.Received != 1 || s.BytesOut == 0 || s.BytesIn == 0 {
		t.Errorf("%+v", s)
	}
	west1.Send("west-2", make([]byte, MaxMessage+1))
	west1.Send("west-2", []byte(strings.Repeat("x", MaxMessage)))
	if err := west2.has("west-1", strings.Repeat("x", MaxMessage), soon); err != nil {
		t.Error("the longest message did not arrive")
	}
	if west2.count("west-1") != 2 {
		t.Error("too long a message arrived")
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	ends := func(ago time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-ago-time.Hour), time.Now().Add(-ago)
		}
	}
	tests := []struct {
		name string
		cert func(t *testing.T) *tls.Certificate
		ok   bool
		as   string // who it is, if not west-2
	}{
		{name: "a node", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-2", nil) }, ok: true},
		{name: "ended an hour ago", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-2", ends(time.Hour)) }, ok: true},
		{name: "ended 89 days ago", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-2", ends(89*24*time.Hour)) }, ok: true},
		{name: "ended 91 days ago", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-2", ends(91*24*time.Hour)) }},
		{name: "begins in an hour", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-2", ends(-2*time.Hour)) }, ok: true},
		{name: "another authority", cert: func(t *testing.T) *tls.Certificate { return other.issue(t, "west-2", nil) }},
		{name: "another node's name", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-3", nil) }, as: "west-3"},
		{name: "a node of another site", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "east-1", nil) }, as: "east-1"},
		{name: "the receiver's own name", cert: func(t *testing.T) *tls.Certificate { return a.issue(t, "west-1", nil) }},
		{name: "an administrator", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "", func(c *x509.Certificate) {
				c.Subject.CommonName, c.Subject.Organization = "kubernetes-admin", []string{"system:masters"}
			})
		}},
		{name: "a node's name in another group", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "west-2", func(c *x509.Certificate) { c.Subject.Organization = []string{"system:bootstrappers"} })
		}},
		{name: "a node in a second group", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "west-2", func(c *x509.Certificate) { c.Subject.Organization = []string{nodesGroup, "system:masters"} })
		}},
		{name: "a server's certificate", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "west-2", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		}},
		{name: "a kubelet's serving certificate", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "west-2", func(c *x509.Certificate) {
				c.DNSNames = []string{"west-2"}
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			})
		}},
		{name: "with a name beside the subject", cert: func(t *testing.T) *tls.Certificate {
			return a.issue(t, "west-2", func(c *x509.Certificate) { c.DNSNames = []string{"west-3"} })
		}},
		{name: "signed by a node", cert: func(t *testing.T) *tls.Certificate {
			node := a.issue(t, "west-3", nil)
			fake := &authority{certificate: node.Leaf, key: node.PrivateKey.(crypto.Signer)}
			c := fake.issue(t, "west-2", nil)
			c.Certificate = append(c.Certificate, node.Certificate[0])
			return c
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			site := &members{}
			west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
			site.set("west-3")
			// The one in question knows all, and believes it is west-2.
			theirs := &members{}
			theirs.set("west-1", west1.Address())
			peer := start(t, theirs, a, "west-2", loopback, test.cert(t))
			site.set("west-2", peer.Address())
			wait := 700 * time.Millisecond
			if test.ok {
				wait = soon
			}
			peer.Send("west-1", []byte(test.name))
			if err := west1.has("west-2", test.name, wait); (err == nil) != test.ok {
				t.Errorf("it called: %v", err)
			}
			// And the other way round: called, it is refused by the caller.
			west1.Send("west-2", []byte("back "+test.name))
			if err := peer.has("west-1", "back "+test.name, wait); (err == nil) != test.ok {
				t.Errorf("it was called: %v", err)
			}
			if got := west1.count(test.as); !test.ok && west1.total() != got || test.as != "" && got != 1 {
				t.Errorf("received: %v", west1.got)
			}
		})
	}
}

func (n *node) total() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, messages := range n.got {
		count += len(messages)
	}
	return count
}

// A node that has joined a site whose others are cut off is no member to them:
// it may ask them whether they are alive, and they do not call it.
func TestGuests(t *testing.T) {
	t.Parallel()
	a, site, theirs := newAuthority(t), &members{}, &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	theirs.set("west-1", west1.Address())
	guest := start(t, theirs, a, "west-2", loopback, a.issue(t, "west-2", nil))
	west1.Send("west-2", []byte("nobody is called"))
	guest.Send("west-1", []byte("a"))
	if err := west1.has("west-2", "a", soon); err != nil {
		t.Fatal(err)
	}
	west1.Send("west-2", []byte("b"))
	if err := guest.has("west-1", "b", soon); err != nil {
		t.Fatal(err)
	}
	west1.Members()
	if west1.Connections() != 1 || guest.total() != 1 || west1.Stats().Dialled+west1.Stats().Failed != 0 {
		t.Errorf("%d connections, %d messages, %+v", west1.Connections(), guest.total(), west1.Stats())
	}
	// It is heard less than a member is.
	began := time.Now()
	for range 1000 {
		guest.Send("west-1", []byte("flood"))
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	if got := west1.count("west-2"); got > peerBurst+2+int(guestRate*time.Since(began).Seconds()) {
		t.Errorf("%d messages of it were heard", got)
	}
	guest.stop()
	// There is room for so many, and none of it is a member's.
	west3 := start(t, site, a, "west-3", loopback, a.issue(t, "west-3", nil))
	west3.Send("west-1", []byte("c"))
	if err := west1.has("west-3", "c", soon); err != nil {
		t.Fatal(err)
	}
	for i := range guests + 4 {
		theirs := &members{}
		theirs.set("west-1", west1.Address())
		name := fmt.Sprint("east-", i)
		one := start(t, theirs, a, name, loopback, a.issue(t, name, nil))
		one.Send("west-1", []byte("d"))
		if i < addressBurst-3 {
			if err := west1.has(name, "d", soon); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := west1.Connections(); got > guests+1 {
		t.Errorf("%d connections", got)
	}
	west1.Send("west-3", []byte("e"))
	if err := west3.has("west-1", "e", time.Second); err != nil || west1.Stats().Dialled != 0 {
		t.Error("a member has lost its connection to guests")
	}
}

// A node that was restarted, and forgot its connections, is reached at once.
func TestRestart(t *testing.T) {
	t.Parallel()
	a, site := newAuthority(t), &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	certificate := a.issue(t, "west-2", nil)
	west2 := start(t, site, a, "west-2", loopback, certificate)
	west1.Send("west-2", []byte("a"))
	if err := west2.has("west-1", "a", soon); err != nil {
		t.Fatal(err)
	}
	address := west2.Address().String()
	west2.crashed.Store(true)
	west2.socket.Close() // it says nothing
	again := start(t, site, a, "west-2", address, certificate)
	deadline := time.Now().Add(4 * soon)
	for i := 0; ; i++ {
		message := fmt.Sprint("b", i)
		west1.Send("west-2", []byte(message))
		if again.has("west-1", message, 200*time.Millisecond) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not reached")
		}
	}
}

// The first address may lead nowhere, or to somebody else: with several networks
// private addresses repeat.
func TestAddresses(t *testing.T) {
	t.Parallel()
	a, site := newAuthority(t), &members{}
	v6 := "[::1]:0"
	if l, err := net.ListenPacket("udp", v6); err != nil {
		t.Log("no IPv6 here:", err)
		v6 = loopback
	} else {
		l.Close()
	}
	west1 := start(t, site, a, "west-1", "[::]:0", a.issue(t, "west-1", nil))
	west2 := start(t, site, a, "west-2", v6, a.issue(t, "west-2", nil))
	stranger := start(t, &members{}, a, "east-1", loopback, a.issue(t, "east-1", nil))
	third := start(t, site, a, "west-3", loopback, a.issue(t, "west-3", nil))
	silent, err := net.ListenPacket("udp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nowhere := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	site.set("west-2", nowhere, stranger.Address(), third.Address(), west2.Address())
	deadline := time.Now().Add(2 * soon)
	for i := 0; ; i++ {
		message := fmt.Sprint("a", i)
		west1.Send("west-2", []byte(message))
		if west2.has("west-1", message, time.Second) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("west-2 is not reached on its fourth address")
		}
	}
	if stranger.total()+third.total() != 0 {
		t.Error("others have received it")
	}
	west2.Send("west-1", []byte("b"))
	if err := west1.has("west-2", "b", soon); err != nil {
		t.Error(err)
	}
}

// A member that floods is heard only so much, and others are heard all the same.
func TestFloodOfMessages(t *testing.T) {
	t.Parallel()
	a, site := newAuthority(t), &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	west2 := start(t, site, a, "west-2", loopback, a.issue(t, "west-2", nil))
	west3 := start(t, site, a, "west-3", loopback, a.issue(t, "west-3", nil))
	west2.Send("west-1", []byte("first"))
	if err := west1.has("west-2", "first", soon); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for west1.Stats().Dropped == 0 && time.Since(began) < 4*soon {
		west2.Send("west-1", []byte("flood"))
		time.Sleep(100 * time.Microsecond)
	}
	west3.Send("west-1", []byte("help"))
	if err := west1.has("west-3", "help", soon); err != nil {
		t.Error(err)
	}
	allowed := peerBurst + int(peerRate*time.Since(began).Seconds()) + 2
	if got := west1.count("west-2"); got > allowed {
		t.Errorf("%d messages of the flood were heard, %d are allowed", got, allowed)
	}
	if west1.Stats().Dropped == 0 {
		t.Error("nothing was dropped")
	}
}

// Garbage, replayed packets and handshakes without end do no harm.
func TestFloodOfPackets(t *testing.T) {
	t.Parallel()
	a, other, site := newAuthority(t), newAuthority(t), &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	west2 := start(t, site, a, "west-2", loopback, a.issue(t, "west-2", nil))
	west2.Send("west-1", []byte("a"))
	if err := west1.has("west-2", "a", soon); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Dial("udp", west1.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	packet := make([]byte, 1280)
	for i := range 2000 {
		if _, err := rand.Read(packet); err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 1: // a long header, version 1, type Initial
			packet[0] = 0xc0 | packet[0]&0x0f
			copy(packet[1:], []byte{0, 0, 0, 1, 8})
			packet[14] = 8
		case 2: // a short header
			packet[0] = 0x40 | packet[0]&0x3f
		}
		_, _ = socket.Write(packet[:20+i%1260])
	}
	// Strangers who complete the first half of the handshake, again and again.
	theirs := &members{}
	theirs.set("west-1", west1.Address())
	for range 3 {
		stranger := start(t, theirs, other, "west-9", loopback, other.issue(t, "west-9", nil))
		stranger.o.Authority = func() (*x509.CertPool, error) { return a.pool, nil }
		for range 30 {
			_, _ = stranger.reach("west-1", []netip.AddrPort{west1.Address()})
		}
		stranger.stop()
	}
	if s := west1.Stats(); s.Refused == 0 || s.Limited == 0 {
		t.Errorf("strangers were not refused and limited: %+v", s)
	}
	west2.Send("west-1", []byte("b"))
	if err := west1.has("west-2", "b", soon); err != nil {
		t.Error(err)
	}
	if got := west1.total(); got != 2 {
		t.Errorf("%d messages were received", got)
	}
}

// What somebody on the network recorded and sends again is not received again.
func TestReplay(t *testing.T) {
	t.Parallel()
	a, site := newAuthority(t), &members{}
	west1 := start(t, site, a, "west-1", loopback, a.issue(t, "west-1", nil))
	west2 := start(t, site, a, "west-2", loopback, a.issue(t, "west-2", nil))
	// A thief in the middle hands on all packets, each three times.
	thief, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(loopback)))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	one := west1.Address()
	go func() {
		var caller netip.AddrPort
		buffer := make([]byte, 2048)
		for {
			n, from, err := thief.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			to := one
			if from == one {
				to = caller
			} else {
				caller = from
			}
			for range 3 {
				_, _ = thief.WriteToUDPAddrPort(buffer[:n], to)
			}
		}
	}()
	theirs := &members{}
	theirs.set("west-1", thief.LocalAddr().(*net.UDPAddr).AddrPort())
	west2.o.Addresses = theirs.get
	for i := range 20 {
		west2.Send("west-1", []byte(fmt.Sprint(i)))
		if err := west1.has("west-2", fmt.Sprint(i), soon); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if got := west1.count("west-2"); got != 20 {
		t.Errorf("%d messages were received of 20", got)
	}
}

func TestLimits(t *testing.T) {
	now := time.Now()
	l := limits{now: func() time.Time { return now }}
	if l.busy() {
		t.Error("busy before anything has happened")
	}
	address := netip.MustParseAddr("192.0.2.1")
	allowed := 0
	for range 100 {
		if l.allow(address, false) {
			allowed++
		}
	}
	if allowed != addressBurst || !l.busy() {
		t.Errorf("%d of one address were allowed; busy %v", allowed, l.busy())
	}
	for i := range 1000 { // of many
		l.allow(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), false)
	}
	if l.allow(netip.MustParseAddr("192.0.2.2"), false) {
		t.Error("more than all may was allowed")
	}
	if !l.allow(netip.MustParseAddr("192.0.2.3"), true) {
		t.Error("a member is held up by strangers")
	}
	first, second := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for range addressBurst {
		l.allow(first, true)
	}
	if l.allow(second, true) {
		t.Error("a machine with many addresses of one network has them all")
	}
	now = now.Add(time.Minute)
	if l.busy() || !l.allow(address, false) {
		t.Error("it does not get better")
	}
}
