package observer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/observer/detect"
)

// cloud is where the reports of one node go.
type cloud struct {
	mu      sync.Mutex
	online  bool
	changes chan struct{}
	spec    *sitev1.NodeReportSpec
	writes  int
}

func (c *cloud) Put(_ context.Context, spec sitev1.NodeReportSpec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.online {
		return errors.New("away")
	}
	c.spec, c.writes = &spec, c.writes+1
	return nil
}

func (c *cloud) Delete(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.online {
		return errors.New("away")
	}
	c.spec = nil
	return nil
}

func (c *cloud) said(node string) sitev1.NeighbourState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spec != nil {
		for _, n := range c.spec.Neighbours {
			if n.Node == node {
				return n.State
			}
		}
	}
	return ""
}

// island is some observers on one machine, each at an address of its own with
// the same port, as on machines of their own.
type island struct {
	t         testing.TB
	key       *ecdsa.PrivateKey
	authority *x509.Certificate
	pool      *x509.CertPool
	port      uint16
	members   []Member
	nodes     map[string]*islander
	tuning    detect.Tuning
}

type islander struct {
	*Observer
	cloud  cloud
	health chan detect.Health
	stop   func()
	site   Site
}

func newIsland(t testing.TB, tuning detect.Tuning, count int) *island {
	i := &island{t: t, nodes: map[string]*islander{}, pool: x509.NewCertPool(), tuning: tuning}
	i.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	i.authority = i.sign(ca, ca, &i.key.PublicKey)
	i.pool.AddCert(i.authority)
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i.port = l.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	l.Close()
	for n := range count {
		address := netip.AddrFrom4([4]byte{127, 0, byte(1 + n>>8), byte(1 + n)})
		i.members = append(i.members, Member{Name: fmt.Sprintf("west-%d", n+1), UID: fmt.Sprint("uid-", n+1), Addresses: []netip.Addr{address}})
	}
	for _, m := range i.members {
		i.start(m)
	}
	return i
}

func (i *island) sign(template, parent *x509.Certificate, public any) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return c
}

func (i *island) start(m Member) *islander {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	leaf := i.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "system:node:" + m.Name, Organization: []string{"system:nodes"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, i.authority, &key.PublicKey)
	certificate := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	n := &islander{cloud: cloud{online: true, changes: make(chan struct{})}, health: make(chan detect.Health, 1)}
	n.Observer, err = New(Options{
		Node: m.Name, Listen: netip.AddrPortFrom(m.Addresses[0], i.port),
		Certificate: func() (*tls.Certificate, error) { return certificate, nil },
		Authority:   func() (*x509.CertPool, error) { return i.pool, nil },
		Online: func() bool {
			n.cloud.mu.Lock()
			defer n.cloud.mu.Unlock()
			return n.cloud.online
		},
		Changes: func() <-chan struct{} { return n.cloud.changes },
		Reports: &n.cloud,
		Health: func(ctx context.Context, changed func(detect.Health)) {
			for {
				select {
				case <-ctx.Done():
					return
				case h := <-n.health:
					changed(h)
				}
			}
		},
		Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler), Tuning: i.tuning,
	})
	if err != nil {
		i.t.Fatal(err)
	}
	n.site = Site{Name: "west", Members: i.members, Witnesses: 1}
	n.SetSite(n.site)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
	i.t.Cleanup(n.stop)
	i.nodes[m.Name] = n
	return n
}

// until waits until something is so.
func (i *island) until(what string, limit time.Duration, so func() bool) {
	i.t.Helper()
	begin := time.Now()
	for !so() {
		if time.Since(begin) > limit {
			for name, n := range i.nodes {
				i.t.Logf("%s: %+v; %v", name, n.Neighbours(), n.Problem())
			}
			i.t.Fatalf("not after %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	i.t.Logf("%s after %v", what, time.Since(begin).Round(10*time.Millisecond))
}

func (i *island) state(at, of string) agentapi.NeighbourState {
	n, ok := i.nodes[at].Neighbour(of)
	if !ok {
		return "none"
	}
	return n.State
}

// quick makes the tests short.
var quick = detect.Tuning{Period: 100 * time.Millisecond, Timeout: 100 * time.Millisecond, MinQuestion: 300 * time.Millisecond, MaxQuestion: time.Second}

// The whole of it: real connections, one node that dies, is reported, asked
// about, and comes back.
func TestObserver(t *testing.T) {
	t.Parallel()
	i := newIsland(t, quick, 3)
	all := func(want agentapi.NeighbourState, of string) func() bool {
		return func() bool {
			for _, m := range i.members {
				if m.Name != of && i.state(m.Name, of) != want {
					return false
				}
			}
			return true
		}
	}
	for _, m := range i.members {
		i.until(m.Name+" is alive", 10*time.Second, all(agentapi.NeighbourAlive, m.Name))
	}
	one := i.nodes["west-1"]
	changes := one.Changes()
	i.nodes["west-3"].stop()
	i.until("west-3 is gone", 20*time.Second, all(agentapi.NeighbourUnreachable, "west-3"))
	select {
	case <-changes:
	default:
		t.Error("a change was not told")
	}
	// Its machine answers, and says that nobody listens.
	i.until("it is reported", 5*time.Second, func() bool {
		return one.cloud.said("west-3") == sitev1.NeighbourKubeletDown && i.nodes["west-2"].cloud.said("west-3") == sitev1.NeighbourKubeletDown
	})
	asked := one.site
	asked.Doubts = []sitev1.Doubt{{Node: "west-2", UID: "uid-2"}}
	one.SetSite(asked)
	i.until("the question is answered", 5*time.Second, func() bool { return one.cloud.said("west-2") == sitev1.NeighbourReachable })
	one.SetSite(one.site)
	i.nodes["west-2"].health <- detect.Health{KubeletDown: true}
	i.until("its kubelet is reported", 5*time.Second, func() bool { return one.cloud.said("west-2") == sitev1.NeighbourKubeletDown })
	if n, _ := one.Neighbour("west-2"); !n.KubeletDown || n.RuntimeDown {
		t.Errorf("%+v", n)
	}
	i.nodes["west-2"].health <- detect.Health{}
	i.start(i.members[2])
	i.until("west-3 is back", 20*time.Second, all(agentapi.NeighbourAlive, "west-3"))
	i.until("there is nothing to say", 10*time.Second, func() bool {
		one.cloud.mu.Lock()
		defer one.cloud.mu.Unlock()
		return one.cloud.spec == nil
	})
	known := one.Neighbours()
	if known.Site != "west" || len(known.Members) != 2 || known.Blind || known.Isolated {
		t.Errorf("%+v", known)
	}
	// The node leaves the site: nobody is observed, and the port is closed.
	one.SetSite(Site{})
	i.until("it is alone", 5*time.Second, func() bool { return len(one.Neighbours().Members) == 0 && one.mesh.Load() == nil })
	one.SetSite(one.site)
	i.until("and back", 20*time.Second, func() bool { return i.state("west-1", "west-2") == agentapi.NeighbourAlive })
}

// A port that somebody else has is a problem that is told, and tried again.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	i := newIsland(t, quick, 2)
	i.until("they meet", 10*time.Second, func() bool { return i.state("west-1", "west-2") == agentapi.NeighbourAlive })
	i.nodes["west-2"].stop()
	other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(i.members[1].Addresses[0], i.port)))
	if err != nil {
		t.Fatal(err)
	}
	two := i.start(i.members[1])
	i.until("the problem is told", 5*time.Second, func() bool { return two.Problem() != nil })
	other.Close()
	i.until("they meet again", 20*time.Second, func() bool { return i.state("west-2", "west-1") == agentapi.NeighbourAlive })
	if err := two.Problem(); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	listening, err := newDoor(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	go listening.run()
	open := listening.listener.Addr().(*net.TCPAddr).AddrPort()
	closed := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), open.Port())
	if refused(t.Context(), []netip.AddrPort{open}) || refused(t.Context(), nil) {
		t.Error("refused though somebody listens, or is not asked")
	}
	began := time.Now()
	if !refused(t.Context(), []netip.AddrPort{open, closed}) {
		t.Error("not refused though nobody listens")
	}
	if took := time.Since(began); took > 2*knocks*knockTime {
		t.Errorf("that took %v", took)
	}
	listening.close()
	if !refused(t.Context(), []netip.AddrPort{open}) {
		t.Error("not refused though nobody listens any more")
	}
}

func TestBlindness(t *testing.T) {
	t.Parallel()
	address := func(text string) netip.Addr { return netip.MustParseAddr(text) }
	own := []netip.Addr{address("192.0.2.1"), address("2001:db8::1")}
	lan, uplink := address("192.0.2.1"), address("198.51.100.1")
	for _, test := range []struct {
		name       string
		interfaces []netInterface
		err        error
		want       bool
	}{
		{"all is well", []netInterface{{true, []netip.Addr{lan}}, {true, []netip.Addr{uplink}}}, nil, false},
		{"the cable is out", []netInterface{{false, []netip.Addr{lan}}, {true, []netip.Addr{uplink}}}, nil, true},
		{"another cable is out", []netInterface{{true, []netip.Addr{lan}}, {false, []netip.Addr{uplink}}}, nil, false},
		{"one of two", []netInterface{{false, []netip.Addr{lan}}, {true, []netip.Addr{own[1]}}}, nil, false},
		{"both", []netInterface{{false, []netip.Addr{lan}}, {false, []netip.Addr{own[1]}}}, nil, true},
		{"the address is gone", []netInterface{{false, []netip.Addr{uplink}}}, nil, false},
		{"nobody can tell", nil, errors.New("no"), false},
	} {
		b := blindness{interfaces: func() ([]netInterface, error) { return test.interfaces, test.err }}
		if got := b.look(time.Now(), own); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
	found, err := systemInterfaces()
	if err != nil || len(found) == 0 {
		t.Errorf("%v, %v", found, err)
	}
}
