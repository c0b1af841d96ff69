package sandbox

import (
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// Site is one place at the edge.
type Site struct {
	s    *Sandbox
	name string
}

// Site finds a site; the test fails if there is none of that name.
func (s *Sandbox) Site(name string) *Site {
	s.t.Helper()
	_, err := s.box.Spec.Site(name)
	s.must(err)
	return &Site{s, name}
}

// Cloud is the place of the control plane. It has no link.
func (s *Sandbox) Cloud() *Site { return &Site{s, spec.CloudName} }

// Sites lists all sites.
func (s *Sandbox) Sites() []*Site {
	var all []*Site
	for _, name := range s.box.Spec.SiteNames() {
		all = append(all, &Site{s, name})
	}
	return all
}

// Name is the site's name.
func (p *Site) Name() string { return p.name }

// Nodes lists the site's machines.
func (p *Site) Nodes() []*Node {
	var all []*Node
	for _, m := range p.s.box.Spec.Machines() {
		if m.Site == p.name {
			all = append(all, &Node{p.s, m})
		}
	}
	return all
}

// NodeNames lists the names of the site's machines.
func (p *Site) NodeNames() []string {
	var names []string
	for _, n := range p.Nodes() {
		names = append(names, n.Name())
	}
	return names
}

// Cut cuts the site's link to the cloud.
func (p *Site) Cut() {
	p.s.t.Helper()
	p.s.Step("cutting site %s off the cloud", p.name)
	p.set(&weaklink.Settings{Cut: true}, &weaklink.Settings{Cut: true})
}

// CutUp cuts the way from the site to the cloud only.
func (p *Site) CutUp() {
	p.s.t.Helper()
	p.s.Step("cutting the way up from site %s", p.name)
	p.set(&weaklink.Settings{Cut: true}, nil)
}

// CutDown cuts the way from the cloud to the site only.
func (p *Site) CutDown() {
	p.s.t.Helper()
	p.s.Step("cutting the way down to site %s", p.name)
	p.set(nil, &weaklink.Settings{Cut: true})
}

// Heal makes the site's link perfect.
func (p *Site) Heal() {
	p.s.t.Helper()
	p.s.Step("healing the link of site %s", p.name)
	p.set(&weaklink.Settings{}, &weaklink.Settings{})
}

// Link makes both directions of the link what is given.
func (p *Site) Link(both weaklink.Settings) {
	p.s.t.Helper()
	p.s.Step("link of site %s: %s", p.name, both)
	p.set(&both, &both)
}

// LinkEach makes each direction what is given.
func (p *Site) LinkEach(up, down weaklink.Settings) {
	p.s.t.Helper()
	p.s.Step("link of site %s: up %s, down %s", p.name, up, down)
	p.set(&up, &down)
}

func (p *Site) set(up, down *weaklink.Settings) {
	p.s.t.Helper()
	p.s.must(p.s.box.Fabric().SetLink(p.s.t.Context(), p.name, up, down))
}

// Counters tells what happened on the link so far.
func (p *Site) Counters() fabric.LinkStatus {
	p.s.t.Helper()
	status, err := p.s.box.Fabric().Status(p.s.t.Context())
	p.s.must(err)
	return status.Links[p.name]
}

// Flap cuts and heals the link again and again, each for half of the period,
// and leaves it whole.
func (p *Site) Flap(period, duration time.Duration) {
	p.s.t.Helper()
	for end := time.Now().Add(duration); time.Now().Before(end); {
		p.Cut()
		p.s.Sleep(period/2, "the link is down")
		p.Heal()
		p.s.Sleep(period/2, "the link is up")
	}
}

// Split cuts the site's network in two: the named machines and the others do
// not reach each other any more. The cloud is reached as before.
func (p *Site) Split(names ...string) {
	p.s.t.Helper()
	p.s.Step("splitting site %s: %s on one side", p.name, strings.Join(names, ", "))
	p.between(names, true, true, weaklink.Settings{Cut: true})
}

// Inside makes the site's network what is given, between any two machines: cut
// and loss only.
func (p *Site) Inside(settings weaklink.Settings) {
	p.s.t.Helper()
	p.s.Step("network inside site %s: %s", p.name, settings)
	p.between(nil, true, true, settings)
}

// HealInside ends all faults inside the site.
func (p *Site) HealInside() {
	p.s.t.Helper()
	p.s.Step("healing the network inside site %s", p.name)
	p.between(nil, true, true, weaklink.Settings{})
}

// between changes what the named machines send to the others, what they hear
// from them, or both; without names, all of the site's network.
func (p *Site) between(names []string, sent, heard bool, settings weaklink.Settings) {
	p.s.t.Helper()
	var changes []fabric.Inside
	all := p.NodeNames()
	for _, from := range all {
		for _, to := range all {
			fromNamed, toNamed := slices.Contains(names, from), slices.Contains(names, to)
			if from != to && (len(names) == 0 || sent && fromNamed && !toNamed || heard && toNamed && !fromNamed) {
				changes = append(changes, fabric.Inside{From: from, To: to, Settings: settings})
			}
		}
	}
	p.s.must(p.s.box.Fabric().SetInside(p.s.t.Context(), changes))
}

// CutBetween cuts two machines of the site off each other, both ways.
func (p *Site) CutBetween(a, b string) {
	p.s.t.Helper()
	p.s.Step("cutting %s and %s off each other", a, b)
	cut := weaklink.Settings{Cut: true}
	p.s.must(p.s.box.Fabric().SetInside(p.s.t.Context(), []fabric.Inside{{From: a, To: b, Settings: cut}, {From: b, To: a, Settings: cut}}))
}
