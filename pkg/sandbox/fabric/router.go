package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/thread"
)

const (
	bridge = "br0"
	uplink = "uplink" // in a site's router
	mtu    = 1500
	// siteTable is the routing table of the cloud's router for packets that
	// come from a site.
	siteTable = 100
)

// router is a network namespace with a bridge for the machines of one place.
type router struct {
	name   string
	subnet netip.Prefix
	ns     netns.NsHandle
	nl     *netlink.Handle
	bridge *netlink.Bridge
}

// newRouter makes the namespace and the bridge.
func newRouter(name string, subnet netip.Prefix) (*router, error) {
	r := &router{name: name, subnet: subnet}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("making the router of %s: %w", name, err)
	}
	return r, nil
}

func (r *router) open() error {
	err := thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace (needs root): %w", err)
		}
		var err error
		r.ns, err = netns.Get()
		return err
	})
	if err != nil {
		return err
	}
	if r.nl, err = netlink.NewHandleAt(r.ns); err != nil {
		return err
	}
	err = r.do(func() error {
		for _, s := range [][2]string{
			{"net/ipv4/ip_forward", "1"},
			// What is refused is refused every time.
			{"net/ipv4/icmp_ratelimit", "0"},
			// Pods of a neighbour are reached through the router, on purpose.
			{"net/ipv4/conf/all/send_redirects", "0"}, {"net/ipv4/conf/default/send_redirects", "0"},
			{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
			{"net/ipv6/conf/all/disable_ipv6", "1"}, {"net/ipv6/conf/default/disable_ipv6", "1"},
		} {
			if err := os.WriteFile("/proc/sys/"+s[0], []byte(s[1]), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	lo, err := r.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := r.nl.LinkSetUp(lo); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridge, mtu
	r.bridge = &netlink.Bridge{LinkAttrs: attrs}
	if err := r.nl.LinkAdd(r.bridge); err != nil {
		return fmt.Errorf("making a bridge: %w", err)
	}
	gateway := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(spec.Gateway(r.subnet), r.subnet.Bits()))}
	if err := r.nl.AddrAdd(r.bridge, gateway); err != nil {
		return err
	}
	if err := r.nl.LinkSetUp(r.bridge); err != nil {
		return err
	}
	// What is not routed is refused rather than dropped, as a router does.
	return r.nl.RouteReplace(&netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Priority: 9999})
}

// do runs f in the router's network namespace.
func (r *router) do(f func() error) error {
	return thread.Throwaway(func() error {
		if err := netns.Set(r.ns); err != nil {
			return fmt.Errorf("entering the network of %s: %w", r.name, err)
		}
		return f()
	})
}

// addTUN makes a device whose packets we read and write.
func (r *router) addTUN(name string) (*os.File, error) {
	var file *os.File
	err := r.do(func() error {
		fd, err := openTUN()
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			unix.Close(fd)
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("making the TUN device %s of %s: %w", name, r.name, err)
	}
	link, err := r.nl.LinkByName(name)
	if err == nil {
		err = errors.Join(r.nl.LinkSetMTU(link, mtu), r.nl.LinkSetTxQLen(link, 1000), r.nl.LinkSetUp(link))
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("setting up the TUN device %s of %s: %w", name, r.name, err)
	}
	return file, nil
}

// openTUN opens the driver. A host without udev may have the driver but no
// file for it; then one is made for the moment.
func openTUN() (int, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open("/dev/net/tun", flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, explainTUN(err)
	}
	dir, err := os.MkdirTemp("", "skerry-tun-")
	if err != nil {
		return -1, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "tun")
	if err := unix.Mknod(file, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
		return -1, fmt.Errorf("making a file for the TUN driver: %w", err)
	}
	fd, err = unix.Open(file, flags, 0)
	if err != nil {
		return -1, explainTUN(err)
	}
	return fd, nil
}

// explainTUN adds what to do where a file has no driver behind it.
func explainTUN(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("opening the TUN driver (is module tun loaded? try `modprobe tun`): %w", err)
	}
	return err
}

// plug makes a cable between the bridge and the network namespace of a
// process, and configures the far end.
func (r *router) plug(m spec.Machine, pid int) error {
	port := fmt.Sprintf("port%d", m.Index)
	// The end of a cable that led to the machine's last boot.
	if old, err := r.nl.LinkByName(port); err == nil {
		if err := r.nl.LinkDel(old); err != nil {
			return fmt.Errorf("pulling the old cable: %w", err)
		}
	}
	far, err := handleOf(pid)
	if err != nil {
		return err
	}
	defer far.Close()
	// The other end of a cable that led to a router that is gone.
	if old, err := far.LinkByName("eth0"); err == nil {
		if err := far.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("pulling the old cable: %w", err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = port, mtu, r.bridge.Index
	mac := macOf(m.Address)
	if err := r.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: mac}); err != nil {
		return fmt.Errorf("making a cable: %w", err)
	}
	link, err := r.nl.LinkByName(port)
	if err != nil {
		return err
	}
	if err := r.nl.LinkSetUp(link); err != nil {
		return err
	}
	return r.configure(m, far)
}

func macOf(a netip.Addr) net.HardwareAddr {
	ip := a.As4()
	return net.HardwareAddr{0x02, 0x00, ip[0], ip[1], ip[2], ip[3]}
}

// handleOf talks to the network of a process.
func handleOf(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

// configure gives the machine's end its address and default route.
func (r *router) configure(m spec.Machine, nl *netlink.Handle) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(m.Address, r.subnet.Bits()))}
			if err := nl.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		if err := nl.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nl.RouteReplace(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: spec.Gateway(r.subnet).AsSlice()})
}

// routeLink sends a range over a device, for good.
func (r *router) routeLink(to netip.Prefix, device string) error {
	return r.routeOver(to, device, true)
}

func (r *router) routeOver(to netip.Prefix, device string, add bool) error {
	link, err := r.nl.LinkByName(device)
	if err != nil {
		return err
	}
	return r.route(&netlink.Route{Dst: ipNet(to), LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK}, add)
}

// routeVia sends a range to a machine.
func (r *router) routeVia(to netip.Prefix, via netip.Addr, add bool) error {
	return r.route(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice(), LinkIndex: r.bridge.Index}, add)
}

// allowVia does the same for packets that come from a site.
func (r *router) allowVia(to netip.Prefix, via netip.Addr, add bool) error {
	return r.route(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice(), LinkIndex: r.bridge.Index, Table: siteTable}, add)
}

// allowLocal lets packets from a site reach the router's own subnet.
func (r *router) allowLocal(to netip.Prefix) error {
	local := &netlink.Route{Dst: ipNet(to), LinkIndex: r.bridge.Index, Scope: unix.RT_SCOPE_LINK, Table: siteTable}
	refuse := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Type: unix.RTN_UNREACHABLE, Table: siteTable}
	return errors.Join(r.route(local, true), r.route(refuse, true))
}

// restrict makes packets from the device use siteTable and nothing else.
func (r *router) restrict(device string) error {
	rule := netlink.NewRule()
	rule.Priority, rule.IifName, rule.Table, rule.Family = 1000, device, siteTable, unix.AF_INET
	if err := r.nl.RuleAdd(rule); err != nil {
		return fmt.Errorf("adding a routing rule for %s (is CONFIG_IP_MULTIPLE_TABLES in the kernel?): %w", device, err)
	}
	return nil
}

func (r *router) route(route *netlink.Route, add bool) error {
	if add {
		if err := r.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("router of %s: adding route to %s: %w", r.name, route.Dst, err)
		}
		return nil
	}
	if err := r.nl.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("router of %s: removing route to %s: %w", r.name, route.Dst, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
