package undo

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// What the agent made goes; what it was only told to use stays, without the
// agent's address.
func TestPodLink(t *testing.T) {
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
	for _, test := range []struct {
		name      string
		addresses []string
		port      bool
		stays     bool
	}{
		{"as-made", []string{"169.254.20.10/32"}, false, false},
		{"half-made", nil, false, false},
		{"in-use", []string{"169.254.20.10/32", "192.0.2.1/24"}, false, true},
		{"of-pods", []string{"169.254.20.10/32"}, true, true},
	} {
		// No subtests: they would run on other threads, in the host's network.
		attributes := netlink.NewLinkAttrs()
		attributes.Name = test.name
		link := &netlink.Bridge{LinkAttrs: attributes}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		for _, text := range test.addresses {
			address, err := netlink.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
		}
		if test.port {
			attributes := netlink.NewLinkAttrs()
			attributes.Name, attributes.MasterIndex = "port", link.Attrs().Index
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "peer"}); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
		}
		for range 2 { // the second time there is nothing to do
			if err := PodLink(test.name, netip.MustParseAddr("169.254.20.10")); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
		}
		found, err := netlink.LinkByName(test.name)
		var missing netlink.LinkNotFoundError
		if stays := err == nil; stays != test.stays || (!stays && !errors.As(err, &missing)) {
			t.Errorf("%s stays: %v (%v), want %v", test.name, stays, err, test.stays)
		}
		if err != nil {
			continue
		}
		addresses, err := netlink.AddrList(found, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.String() == "169.254.20.10" }) {
			t.Errorf("%s still has the agent's address", test.name)
		}
		if want := max(0, len(test.addresses)-1); len(addresses) != want {
			t.Errorf("%s has %d addresses, want %d", test.name, len(addresses), want)
		}
	}
}
