//go:build e2e

package sandbox

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
	"skerry.dev/skerry/test/sandbox"
)

const often = 10 * time.Millisecond

func ms(n int) weaklink.Duration { return weaklink.Duration(time.Duration(n) * time.Millisecond) }

func whoReachesWhom(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	for _, from := range sb.Nodes() {
		for _, to := range sb.Nodes() {
			if from == to {
				continue
			}
			fromSite, toSite := siteOf(sb, from), siteOf(sb, to)
			apart := fromSite != toSite && fromSite != "cloud" && toSite != "cloud"
			err := from.Dial(to)
			switch {
			case apart && !errors.Is(err, syscall.EHOSTUNREACH):
				t.Errorf("from %s to %s, in another site: %v; want the router to refuse", from.Name(), to.Name(), err)
			case !apart && err != nil:
				t.Errorf("from %s to %s: %v", from.Name(), to.Name(), err)
			}
		}
	}
}

func siteOf(sb *sandbox.Sandbox, n *sandbox.Node) string {
	for _, s := range append(sb.Sites(), sb.Cloud()) {
		for _, name := range s.NodeNames() {
			if name == n.Name() {
				return s.Name()
			}
		}
	}
	return ""
}

func cutAndOneWay(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	west, neighbour, cloud, east := sb.Node("west-1"), sb.Node("west-2"), sb.ControlPlane(), sb.Node("east-1")
	site := sb.Site("west")
	check := func(what string, from, to *sandbox.Node, want int) {
		t.Helper()
		if got := from.Ping(to, 3, time.Millisecond); got.Received != want {
			t.Errorf("%s: %s reached %s with %d of 3 packets, want %d", what, from.Name(), to.Name(), got.Received, want)
		}
	}
	site.Cut()
	check("west cut", west, cloud, 0)
	check("west cut", cloud, west, 0)
	check("west cut", west, neighbour, 3)
	check("west cut", east, cloud, 3)

	site.Heal()
	site.CutUp()
	before := site.Counters()
	check("way up cut", cloud, west, 0)
	after := site.Counters()
	if down, up := after.Down.Counters.Packets-before.Down.Counters.Packets, after.Up.Counters.Cut-before.Up.Counters.Cut; down != 3 || up != 3 {
		t.Errorf("way up cut: %d packets went down and %d answers were cut, want 3 and 3", down, up)
	}
	site.Heal()
	site.CutDown()
	before = site.Counters()
	check("way down cut", west, cloud, 0)
	after = site.Counters()
	if up, down := after.Up.Counters.Packets-before.Up.Counters.Packets, after.Down.Counters.Cut-before.Down.Counters.Cut; up != 3 || down != 3 {
		t.Errorf("way down cut: %d packets went up and %d answers were cut, want 3 and 3", up, down)
	}
	site.Heal()
	check("healed", west, cloud, 3)
	check("healed", cloud, west, 3)
}

func delay(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	west, neighbour, cloud := sb.Node("west-1"), sb.Node("west-2"), sb.ControlPlane()
	between := func(what string, got, least, most time.Duration) {
		t.Helper()
		sb.Step("%s: %s", what, got)
		if got < least || got > most {
			t.Errorf("%s took %s, want %s to %s", what, got, least, most)
		}
	}
	base := west.Ping(cloud, 20, often).Median()
	between("perfect link", base, 0, 10*time.Millisecond)
	sb.Site("west").LinkEach(weaklink.Settings{Delay: ms(100)}, weaklink.Settings{Delay: ms(50)})
	between("100 ms up and 50 ms down", west.Ping(cloud, 20, often).Median(), 150*time.Millisecond, 180*time.Millisecond)
	between("inside the site", west.Ping(neighbour, 20, often).Median(), 0, 10*time.Millisecond)

	sb.Site("west").Link(weaklink.Settings{Delay: ms(100), Jitter: ms(50)})
	echo := west.Ping(cloud, 100, often)
	low, high := echo.Times[0], echo.Times[0]
	for _, took := range echo.Times {
		low, high = min(low, took), max(high, took)
	}
	between("median with jitter", echo.Median(), 150*time.Millisecond, 330*time.Millisecond)
	between("spread with jitter", high-low, 20*time.Millisecond, 220*time.Millisecond)
	if echo.Received != echo.Sent {
		t.Errorf("jitter lost %d of %d packets", echo.Sent-echo.Received, echo.Sent)
	}
	sb.Site("west").Heal()
	between("healed", west.Ping(cloud, 20, often).Median(), 0, 10*time.Millisecond)
}

func loss(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	west, cloud := sb.Node("west-1"), sb.ControlPlane()
	sb.Site("west").LinkEach(weaklink.Settings{Loss: 30}, weaklink.Settings{})
	before := sb.Site("west").Counters().Up.Counters
	echo := west.Ping(cloud, 1000, time.Millisecond)
	after := sb.Site("west").Counters().Up.Counters
	sb.Step("%d of %d packets came back", echo.Received, echo.Sent)
	if echo.Received < 640 || echo.Received > 760 {
		t.Errorf("%d of 1000 packets came back over a link that loses 30%%", echo.Received)
	}
	if lost := int(after.Loss - before.Loss); lost != echo.Sent-echo.Received {
		t.Errorf("%d packets are missing but %d are counted as lost", echo.Sent-echo.Received, lost)
	}
}

func rate(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	west, cloud := sb.Node("west-1"), sb.ControlPlane()
	fast := west.Throughput(cloud, time.Second)
	sb.Step("perfect link: %.0f Mbit/s", fast/1e6)
	if fast < 50e6 {
		t.Errorf("a perfect link carries only %.1f Mbit/s", fast/1e6)
	}
	sb.Site("west").LinkEach(weaklink.Settings{Rate: 4e6}, weaklink.Settings{})
	up := west.Throughput(cloud, 5*time.Second)
	sb.Step("4 Mbit/s up: %.2f Mbit/s arrive", up/1e6)
	if up < 2.5e6 || up > 4.6e6 {
		t.Errorf("%.2f Mbit/s pass a link of 4 Mbit/s", up/1e6)
	}
	down := cloud.Throughput(west, time.Second)
	sb.Step("the other way: %.0f Mbit/s", down/1e6)
	if down < 50e6 {
		t.Errorf("only %.1f Mbit/s pass the way that is not slowed", down/1e6)
	}
}

func oneNodeCutOff(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	west, neighbour, cloud := sb.Node("west-1"), sb.Node("west-2"), sb.ControlPlane()
	check := func(what string, from, to *sandbox.Node, want int) {
		t.Helper()
		if got := from.Ping(to, 3, time.Millisecond); got.Received != want {
			t.Errorf("%s: %s reached %s with %d of 3 packets, want %d", what, from.Name(), to.Name(), got.Received, want)
		}
	}
	west.CutFromCloud()
	check("cut off", west, cloud, 0)
	check("cut off", cloud, west, 0)
	check("cut off", neighbour, cloud, 3)
	check("cut off", west, neighbour, 3)
	check("cut off", neighbour, west, 3)
	west.HealFromCloud()
	check("healed", west, cloud, 3)
}

func insideASite(t *testing.T, sb *sandbox.Sandbox) {
	sb.Serve()
	site := sb.Site("west")
	a, b, c, cloud := sb.Node("west-1"), sb.Node("west-2"), sb.Node("west-3"), sb.ControlPlane()
	check := func(what string, from, to *sandbox.Node, want int) {
		t.Helper()
		if got := from.Ping(to, 3, time.Millisecond); got.Received != want {
			t.Errorf("%s: %s reached %s with %d of 3 packets, want %d", what, from.Name(), to.Name(), got.Received, want)
		}
	}
	site.Split("west-1", "west-2")
	check("split", a, b, 3)
	check("split", a, c, 0)
	check("split", c, b, 0)
	check("split", c, cloud, 3)
	check("split", cloud, a, 3)
	c.Reboot()
	c.Serve()
	check("split, after a reboot", c, a, 0)
	check("split, after a reboot", c, cloud, 3)
	killNetwork(t, sb.Box())
	if err := sb.Box().Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("split, after the network's process died", c, a, 0)
	check("split, after the network's process died", a, b, 3)
	site.HealInside()
	check("healed", c, a, 3)

	oneWay := func(what string, from, to *sandbox.Node, want int) {
		t.Helper()
		if got := heard(t, from, to); got != want {
			t.Errorf("%s: %s heard %d of 3 packets of %s, want %d", what, to.Name(), got, from.Name(), want)
		}
	}
	a.MuteToNeighbours()
	oneWay("mute", a, b, 0)
	oneWay("mute", b, a, 3)
	check("mute", b, c, 3)
	a.HealToNeighbours()
	a.DeafenToNeighbours()
	oneWay("deaf", a, b, 3)
	oneWay("deaf", b, a, 0)
	check("deaf", b, cloud, 3)
	a.HealToNeighbours()
	check("healed", b, a, 3)

	site.Inside(weaklink.Settings{Loss: 30})
	echo := a.Ping(b, 1000, time.Millisecond)
	sb.Step("%d of %d packets came back", echo.Received, echo.Sent)
	if echo.Received < 420 || echo.Received > 560 { // both ways lose 30 %: 49 % come back
		t.Errorf("%d of 1000 packets came back through a site that loses 30%% each way", echo.Received)
	}
	check("loss inside", a, cloud, 3)
	site.HealInside()
	check("healed", a, b, 3)
}

// heard sends three datagrams one way and counts what arrives.
func heard(t *testing.T, from, to *sandbox.Node) int {
	t.Helper()
	var socket net.PacketConn
	err := to.Config().InNetwork(func() error {
		var err error
		socket, err = net.ListenPacket("udp4", ":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var conn net.Conn
	err = from.Config().InNetwork(func() error {
		var err error
		conn, err = net.Dial("udp4", net.JoinHostPort(to.Address(), strconv.Itoa(socket.LocalAddr().(*net.UDPAddr).Port)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	count := 0
	for range 3 {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = socket.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, _, err := socket.ReadFrom(make([]byte, 8)); err == nil {
			count++
		}
	}
	return count
}
