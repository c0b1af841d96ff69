package agent

import (
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func TestEnsureInterface(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a network interface needs root")
	}
	// A network of our own, on a thread that is thrown away.
	runtime.LockOSThread()
	network, err := netns.New()
	if err != nil {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	defer network.Close()
	address := netip.MustParseAddr("169.254.20.10")
	for range 2 { // the second time it is there
		if err := ensureInterface("skerry0", address); err != nil {
			t.Fatal(err)
		}
	}
	link, err := netlink.LinkByName("skerry0")
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addresses) != 1 || addresses[0].IPNet.String() != "169.254.20.10/32" {
		t.Errorf("addresses %v, %v", addresses, err)
	}
	if link.Attrs().Flags&1 == 0 {
		t.Error("the interface is not up")
	}
}
