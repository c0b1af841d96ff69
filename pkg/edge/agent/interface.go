package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensureInterface makes the interface and gives it the address, unless both are
// there. It is of a kind that leads nowhere: the address is for this machine's
// own pods, and no neighbour can ask for it.
func ensureInterface(name string, address netip.Addr) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("%s interface %s for pods (needs CAP_NET_ADMIN and kernel module dummy or bridge): %w", doing, name, err)
	}
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		if err := addInterface(name); err != nil {
			return fail("making", err)
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return fail("finding", err)
	}
	bits := address.BitLen()
	if err := netlink.AddrReplace(link, &netlink.Addr{
		IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Scope: unix.RT_SCOPE_LINK, // no connection of the machine starts from it
	}); err != nil {
		return fail("giving an address to", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fail("switching on", err)
	}
	return nil
}

// addInterface makes a dummy interface or, in kernels without them, a bridge
// that nothing is plugged into.
func addInterface(name string) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attributes})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes})
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
