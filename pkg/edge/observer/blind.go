package observer

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// blindness finds out whether this node's own network is down: then it is no
// wonder that nobody answers, and no evidence against anybody.
type blindness struct {
	interfaces func() ([]netInterface, error) // the system's, if nil
}

type netInterface struct {
	running   bool // up, and with a carrier
	addresses []netip.Addr
}

// look says whether all interfaces that have one of the node's addresses are
// down. If none has one, nothing is known.
func (b *blindness) look(_ time.Time, own []netip.Addr) bool {
	list := systemInterfaces
	if b.interfaces != nil {
		list = b.interfaces
	}
	interfaces, err := list()
	if err != nil {
		return false
	}
	down := false
	for _, i := range interfaces {
		if !slices.ContainsFunc(i.addresses, func(a netip.Addr) bool { return slices.Contains(own, a) }) {
			continue
		}
		if i.running {
			return false
		}
		down = true
	}
	return down
}

func systemInterfaces() ([]netInterface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	list := make([]netInterface, 0, len(all))
	for _, i := range all {
		found := netInterface{running: i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range addresses {
			if prefix, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(prefix.IP); ok {
					found.addresses = append(found.addresses, ip.Unmap())
				}
			}
		}
		list = append(list, found)
	}
	return list, nil
}
