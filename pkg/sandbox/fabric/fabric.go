// Package fabric is the network of one sandbox, and what switches its machines
// on: one long-lived process that holds a router for the cloud and for every
// site, the weak link between the two, and the way from the host to the API
// server.
//
// All of it belongs to the process: the network namespaces have no names, and
// everything is gone when it ends. It must not know about Kubernetes; what it
// knows of machines is how to boot one and where to plug it in.
package fabric

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"slices"
	"sync"

	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// Config is what a fabric is started with.
type Config struct {
	Dir      string                    // of the sandbox: the socket goes here
	Self     string                    // the skerry program
	Spec     *spec.Spec                //
	Machines map[string]machine.Config // by name
	APIPort  int                       // on the host; 0 chooses one
	Seed     uint64                    // of the links' randomness
	// Routes and Links are what an earlier fabric had; nil when there was none.
	State State
}

// State is what a fabric would forget when it ends.
type State struct {
	PodRanges map[string][]netip.Prefix               `json:"podRanges,omitempty"` // by machine
	Links     map[string]map[string]weaklink.Settings `json:"links,omitempty"`     // by site and direction
	CutOff    map[string]bool                         `json:"cutOff,omitempty"`    // machines cut off by themselves
	Inside    []Inside                                `json:"inside,omitempty"`    // faults between machines of one site
}

// Fabric is a running network.
type Fabric struct {
	config Config
	log    *log.Logger
	cloud  *router
	sites  map[string]*site
	proxy  *proxy

	mu        sync.Mutex
	podRanges map[string][]netip.Prefix
	cutOff    map[string]bool
	inside    map[pair]weaklink.Settings // faults between machines of one site
	filtered  map[string]bool            // sites whose router has rules for them
	booting   map[string]*sync.Mutex
}

// site is a router and its link.
type site struct {
	*router
	link *weaklink.Link
}

// New builds the network. It is running when New returns; ctx ends it.
func New(ctx context.Context, c Config, logger *log.Logger) (*Fabric, error) {
	f := &Fabric{
		config: c, log: logger, sites: map[string]*site{},
		podRanges: map[string][]netip.Prefix{}, cutOff: map[string]bool{}, booting: map[string]*sync.Mutex{},
		inside: map[pair]weaklink.Settings{}, filtered: map[string]bool{},
	}
	for name := range c.Machines {
		f.booting[name] = &sync.Mutex{}
	}
	var err error
	if f.cloud, err = newRouter(spec.CloudName, c.Spec.Subnet(spec.CloudName)); err != nil {
		return nil, err
	}
	for i, s := range c.Spec.Sites {
		if err := f.addSite(ctx, i, s); err != nil {
			return nil, fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	if err := f.guardCloud(); err != nil {
		return nil, err
	}
	if f.proxy, err = newProxy(ctx, f.cloud, c.APIPort, apiAddress(c.Spec), logger); err != nil {
		return nil, err
	}
	if err := f.restore(); err != nil {
		return nil, err
	}
	return f, nil
}

func apiAddress(s *spec.Spec) netip.AddrPort {
	return netip.AddrPortFrom(s.Machines()[0].Address, 6443)
}

// addSite makes a site's router and joins it to the cloud's by a weak link.
func (f *Fabric) addSite(ctx context.Context, index int, s spec.Site) error {
	r, err := newRouter(s.Name, f.config.Spec.Subnet(s.Name))
	if err != nil {
		return err
	}
	near, err := r.addTUN(uplink)
	if err != nil {
		return err
	}
	far, err := f.cloud.addTUN(fmt.Sprintf("site%d", index))
	if err != nil {
		near.Close()
		return err
	}
	link := weaklink.New(near, far, f.config.Seed+uint64(index))
	for _, d := range weaklink.Directions() {
		if err := link.Set(d, s.Link.Direction(d)); err != nil {
			return err
		}
	}
	f.sites[s.Name] = &site{router: r, link: link}
	go func() {
		if err := link.Run(ctx); err != nil {
			f.log.Printf("the link of site %s ended: %v", s.Name, err)
		}
	}()
	// The cloud reaches the site over the link; the site reaches the cloud and
	// nothing else that way.
	if err := f.cloud.routeLink(f.config.Spec.Subnet(s.Name), fmt.Sprintf("site%d", index)); err != nil {
		return err
	}
	return r.routeLink(f.config.Spec.Subnet(spec.CloudName), uplink)
}

// guardCloud keeps the sites apart: what comes from a site goes to the cloud's
// own machines and is refused otherwise.
func (f *Fabric) guardCloud() error {
	for i := range f.config.Spec.Sites {
		if err := f.cloud.restrict(fmt.Sprintf("site%d", i)); err != nil {
			return err
		}
	}
	return f.cloud.allowLocal(f.config.Spec.Subnet(spec.CloudName))
}

// restore brings back what an earlier fabric had, and plugs in the machines
// that outlived it.
func (f *Fabric) restore() error {
	for name, dirs := range f.config.State.Links {
		s, ok := f.sites[name]
		if !ok {
			continue
		}
		for _, d := range weaklink.Directions() {
			if settings, ok := dirs[d.String()]; ok {
				if err := s.link.Set(d, settings); err != nil {
					return err
				}
			}
		}
	}
	if err := f.SetPodRanges(f.config.State.PodRanges); err != nil {
		return err
	}
	for name := range f.config.State.CutOff {
		if err := f.CutOff(name, true); err != nil {
			return err
		}
	}
	if err := f.SetInside(f.config.State.Inside); err != nil {
		return err
	}
	for _, m := range f.config.Spec.Machines() {
		if id, on := f.config.Machines[m.Name].Process(); on {
			if err := f.plug(m, id.PID); err != nil {
				return err
			}
		}
	}
	return nil
}

// State returns what a later fabric would need.
func (f *Fabric) State() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := State{PodRanges: map[string][]netip.Prefix{}, Links: map[string]map[string]weaklink.Settings{}, CutOff: map[string]bool{}, Inside: f.insideLocked()}
	for name, ranges := range f.podRanges {
		s.PodRanges[name] = slices.Clone(ranges)
	}
	for name := range f.cutOff {
		s.CutOff[name] = true
	}
	for name, site := range f.sites {
		dirs := map[string]weaklink.Settings{}
		for _, d := range weaklink.Directions() {
			dirs[d.String()] = site.link.Settings(d)
		}
		s.Links[name] = dirs
	}
	return s
}

func (f *Fabric) routerOf(site string) *router {
	if s, ok := f.sites[site]; ok {
		return s.router
	}
	return f.cloud
}

// plug connects a machine's network namespace to its site.
func (f *Fabric) plug(m spec.Machine, pid int) error {
	if err := f.routerOf(m.Site).plug(m, pid); err != nil {
		return fmt.Errorf("plugging %s into the network of %s: %w", m.Name, m.Site, err)
	}
	return nil
}

// PowerOn boots one machine.
func (f *Fabric) PowerOn(name string) error {
	m, err := f.config.Spec.Machine(name)
	if err != nil {
		return err
	}
	f.booting[name].Lock()
	defer f.booting[name].Unlock()
	return f.config.Machines[name].PowerOn(f.config.Self, func(pid int) error { return f.plug(m, pid) })
}

// SetLink changes one direction of a site's link.
func (f *Fabric) SetLink(name string, d weaklink.Direction, s weaklink.Settings) error {
	site, ok := f.sites[name]
	if !ok {
		_, err := f.config.Spec.Site(name)
		return err
	}
	return site.link.Set(d, s)
}

// CutOff cuts one machine of a site off from the cloud, or ends that. Its
// neighbours still reach it.
func (f *Fabric) CutOff(name string, off bool) error {
	m, err := f.config.Spec.Machine(name)
	if err != nil {
		return err
	}
	if m.Cloud() {
		return fmt.Errorf("machine %s is in the cloud: no link leads to it", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if off {
		f.cutOff[name] = true
	} else {
		delete(f.cutOff, name)
	}
	f.blockLocked(m.Site)
	return nil
}

// blockLocked tells a site's link which addresses are cut off.
func (f *Fabric) blockLocked(site string) {
	var ranges []netip.Prefix
	for _, m := range f.config.Spec.Machines() {
		if m.Site == site && f.cutOff[m.Name] {
			ranges = append(ranges, netip.PrefixFrom(m.Address, m.Address.BitLen()))
			ranges = append(ranges, f.podRanges[m.Name]...)
		}
	}
	f.sites[site].link.Block(ranges)
}

// SetPodRanges routes the pods of each machine, and replaces what an earlier
// call gave: a site's router knows its own site's and the cloud's, the cloud's
// router knows all.
func (f *Fabric) SetPodRanges(ranges map[string][]netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	machines := f.config.Spec.Machines()
	// All that go before all that come: a range may change hands.
	gone := staleRanges(machines, f.podRanges, ranges)
	for _, m := range machines {
		for _, p := range gone[m.Name] {
			if err := f.routePods(m, p, false); err != nil {
				return err
			}
		}
	}
	for _, m := range machines {
		for _, p := range ranges[m.Name] {
			if err := f.routePods(m, p, true); err != nil {
				return err
			}
		}
		f.podRanges[m.Name] = slices.Clone(ranges[m.Name])
	}
	for name := range f.sites {
		f.blockLocked(name)
		if err := f.filterLocked(name); err != nil {
			return err
		}
	}
	return nil
}

// staleRanges lists by machine the old ranges whose routes must go. One that
// stays in its site is not among them: adding it replaces the route.
func staleRanges(machines []spec.Machine, old, now map[string][]netip.Prefix) map[string][]netip.Prefix {
	kept := map[string][]netip.Prefix{} // by site
	for _, m := range machines {
		kept[m.Site] = append(kept[m.Site], now[m.Name]...)
	}
	stale := map[string][]netip.Prefix{}
	for _, m := range machines {
		for _, p := range old[m.Name] {
			if !slices.Contains(kept[m.Site], p) {
				stale[m.Name] = append(stale[m.Name], p)
			}
		}
	}
	return stale
}

func (f *Fabric) routePods(m spec.Machine, pods netip.Prefix, add bool) error {
	if !pods.Addr().Is4() {
		return fmt.Errorf("the pods of %s have range %s: only IPv4 is routed", m.Name, pods)
	}
	if err := f.routerOf(m.Site).routeVia(pods, m.Address, add); err != nil {
		return err
	}
	if m.Cloud() {
		if err := f.cloud.allowVia(pods, m.Address, add); err != nil {
			return err
		}
		for _, s := range f.sites {
			if err := s.routeOver(pods, uplink, add); err != nil {
				return err
			}
		}
		return nil
	}
	for i, s := range f.config.Spec.Sites {
		if s.Name == m.Site {
			return f.cloud.routeOver(pods, fmt.Sprintf("site%d", i), add)
		}
	}
	return nil
}
