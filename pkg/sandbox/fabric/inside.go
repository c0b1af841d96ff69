package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// Inside says what packets meet that one machine sends to another one of its
// site, or its pods to theirs. Only the Cut and Loss of the settings are used:
// the network inside a site is a bridge, which neither delays nor shapes.
type Inside struct {
	From     string            `json:"from"`
	To       string            `json:"to"`
	Settings weaklink.Settings `json:"settings"`
}

// pair is one direction between two machines.
type pair struct{ from, to string }

// SetInside changes what packets inside sites meet, all of it at once. Perfect
// settings take a fault away; pairs that are not named stay as they are.
func (f *Fabric) SetInside(changes []Inside) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	inside := maps.Clone(f.inside)
	sites := map[string]bool{}
	for _, c := range changes {
		site, err := f.checkInside(c)
		if err != nil {
			return err
		}
		sites[site] = true
		delete(inside, pair{c.From, c.To})
		if !c.Settings.Perfect() {
			inside[pair{c.From, c.To}] = c.Settings
		}
	}
	f.inside = inside
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		if err := f.filterLocked(site); err != nil {
			return err
		}
	}
	return nil
}

// checkInside returns the site of a change.
func (f *Fabric) checkInside(c Inside) (string, error) {
	from, err := f.config.Spec.Machine(c.From)
	if err != nil {
		return "", err
	}
	to, err := f.config.Spec.Machine(c.To)
	if err != nil {
		return "", err
	}
	rest := c.Settings
	rest.Cut, rest.Loss = false, 0
	switch {
	case from.Site != to.Site:
		return "", fmt.Errorf("machine %s belongs to %s and %s to %s: no packet inside a site goes between them", c.From, from.Site, c.To, to.Site)
	case c.From == c.To:
		return "", fmt.Errorf("machine %s: no packet to itself leaves it", c.From)
	case from.Cloud():
		return "", fmt.Errorf("machine %s is in the cloud: only the networks of sites have faults", c.From)
	case !rest.Perfect():
		return "", fmt.Errorf("%s: inside a site packets can be cut and lost, and nothing else", rest)
	}
	return from.Site, c.Settings.Validate()
}

// insideLocked lists all faults inside sites, in a fixed order.
func (f *Fabric) insideLocked() []Inside {
	var all []Inside
	for p, settings := range f.inside {
		all = append(all, Inside{p.from, p.to, settings})
	}
	slices.SortFunc(all, func(a, b Inside) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return all
}

const filterTable = "skerry-inside"

// filterLocked gives a site's router the rules for what happens inside.
func (f *Fabric) filterLocked(site string) error {
	var rules []Inside
	for _, i := range f.insideLocked() {
		if m, err := f.config.Spec.Machine(i.From); err == nil && m.Site == site {
			rules = append(rules, i)
		}
	}
	if len(rules) == 0 && !f.filtered[site] {
		return nil // sandboxes without such faults do not need the nft program
	}
	text, err := ruleset(rules, f.config.Spec, f.podRanges)
	if err != nil {
		return err
	}
	if err := f.routerOf(site).filter(text); err != nil {
		return fmt.Errorf("site %s: %w", site, err)
	}
	f.filtered[site] = len(rules) > 0
	return nil
}

// ruleset writes the rules as nft reads them: all that was there goes. A frame
// from machine to machine is known by its hardware addresses. Between pods
// packets may go by the router: they are known by who sent them there, and by
// the address in them.
func ruleset(rules []Inside, s *spec.Spec, pods map[string][]netip.Prefix) (string, error) {
	var direct, routed strings.Builder
	for _, r := range rules {
		from, err := s.Machine(r.From)
		if err != nil {
			return "", err
		}
		to, err := s.Machine(r.To)
		if err != nil {
			return "", err
		}
		what := "drop"
		if !r.Settings.Cut {
			const all = 1 << 20
			what = fmt.Sprintf("numgen random mod %d < %d drop", all, int(float64(r.Settings.Loss)/100*all))
		}
		fmt.Fprintf(&direct, "ether saddr %s ether daddr %s %s\n", macOf(from.Address), macOf(to.Address), what)
		fmt.Fprintf(&routed, "ether saddr %s ip daddr %s %s\n", macOf(from.Address), addresses(to, pods), what)
	}
	// Adding the table first makes deleting it work when it is not there. Only
	// the bridge sees each packet once: with br_netfilter the tables of IP see
	// those between two ports as well.
	text := fmt.Sprintf("add table bridge %[1]s\ndelete table bridge %[1]s\n", filterTable)
	if len(rules) == 0 {
		return text, nil
	}
	return text + fmt.Sprintf(`table bridge %s {
chain forward {
type filter hook forward priority 0; policy accept;
%s}
chain input {
type filter hook input priority 0; policy accept;
%s}
}
`, filterTable, direct.String(), routed.String()), nil
}

// addresses are those of a machine and its pods, as a set of nft.
func addresses(m spec.Machine, pods map[string][]netip.Prefix) string {
	all := []string{m.Address.String()}
	for _, p := range pods[m.Name] {
		all = append(all, p.String())
	}
	return "{ " + strings.Join(all, ", ") + " }"
}

// filter replaces the packet filter of the router.
func (r *router) filter(rules string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return r.do(func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-") // it starts in the namespaces of this thread
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("faults inside a site need the program nft (Debian package nftables): %w", err)
		}
		if err != nil {
			return fmt.Errorf("setting the packet filter: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}
