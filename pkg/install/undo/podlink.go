package undo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// PodLink takes the address from a network device and removes the device, if
// it leads nowhere and has no address of somebody else: one that skerry-agent
// was told to use may have been there before.
func PodLink(name string, address netip.Addr) error {
	fail := func(err error) error {
		return fmt.Errorf("removing network device %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fail(err)
	}
	ours := net.IP(address.AsSlice())
	others := false
	for _, found := range addresses {
		switch {
		case found.IP.Equal(ours):
			if err := netlink.AddrDel(link, &found); err != nil {
				return fail(err)
			}
		case found.IP.To4() == nil && found.IP.IsLinkLocalUnicast():
			// The kernel's own.
		default:
			others = true
		}
	}
	alone, err := leadsNowhere(link)
	if err != nil {
		return fail(err)
	}
	if others || !alone {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil {
		return fail(err)
	}
	return nil
}

// leadsNowhere reports whether a device is a dummy, or a bridge that nothing is
// plugged into.
func leadsNowhere(link netlink.Link) (bool, error) {
	switch link.Type() {
	case "dummy":
		return true, nil
	case "bridge":
		all, err := netlink.LinkList()
		if err != nil {
			return false, err
		}
		for _, other := range all {
			if other.Attrs().MasterIndex == link.Attrs().Index {
				return false, nil
			}
		}
		return true, nil
	}
	return false, nil
}
