// Package spec is the description of a sandbox: what the user writes, with
// defaults filled in and checked. It must not know how any of it is made.
package spec

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

const (
	// CloudName is where the control plane is. No site may have this name.
	CloudName = "cloud"

	maxSites    = 64
	maxMachines = 100 // in one site: addresses .10 and up of a /24
	maxName     = 20
	firstHost   = 10
)

// Spec describes one sandbox.
type Spec struct {
	// Name tells several sandboxes apart.
	Name string `json:"name,omitempty"`
	// PodSubnet and ServiceSubnet are what kubeadm calls them.
	PodSubnet     string `json:"podSubnet,omitempty"`
	ServiceSubnet string `json:"serviceSubnet,omitempty"`
	// Cloud holds the control plane (cloud-1) and, with more nodes, machines
	// that join the cluster without belonging to a site.
	Cloud Cloud `json:"cloud,omitempty"`
	// Sites are the places at the edge. None are made when the list is given
	// and empty; without it there are east and west.
	Sites []Site `json:"sites"`
	// ControlPlane changes the components of the control plane.
	ControlPlane ControlPlane `json:"controlPlane,omitempty"`
	// Kubelet holds fields of the KubeletConfiguration of all nodes.
	Kubelet map[string]any `json:"kubelet,omitempty"`
	// Images are OCI archives that every node imports beside Skerry's own.
	Images []string `json:"images,omitempty"`
}

// Cloud describes the machines on the far side of every link.
type Cloud struct {
	Nodes  int                `json:"nodes,omitempty"`
	Memory *resource.Quantity `json:"memory,omitempty"`
	Subnet string             `json:"subnet,omitempty"`
}

// Site describes one place at the edge and its link to the cloud.
type Site struct {
	Name   string             `json:"name"`
	Nodes  int                `json:"nodes,omitempty"`
	Memory *resource.Quantity `json:"memory,omitempty"`
	Subnet string             `json:"subnet,omitempty"`
	Link   Link               `json:"link,omitempty"`
	// Hub is false for a site whose nodes join without skerry-agent, as plain
	// nodes of upstream's kind. Default: true.
	Hub *bool `json:"hub,omitempty"`
}

// Link is how a site's link starts out: the same in both directions, unless a
// direction has settings of its own.
type Link struct {
	weaklink.Settings `json:",inline"`
	Up                *weaklink.Settings `json:"up,omitempty"`
	Down              *weaklink.Settings `json:"down,omitempty"`
}

// Direction returns the settings of one direction.
func (l Link) Direction(d weaklink.Direction) weaklink.Settings {
	switch {
	case d == weaklink.Up && l.Up != nil:
		return *l.Up
	case d == weaklink.Down && l.Down != nil:
		return *l.Down
	}
	return l.Settings
}

// ControlPlane holds flags of components: component, flag, value.
type ControlPlane struct {
	ExtraArgs map[string]map[string]string `json:"extraArgs,omitempty"`
}

// Components that ControlPlane.ExtraArgs may name.
var components = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// Machine is one computer of the sandbox.
type Machine struct {
	Name    string     `json:"name"`
	Site    string     `json:"site"` // CloudName for cloud machines
	Index   int        `json:"index"`
	Address netip.Addr `json:"address"`
	Memory  int64      `json:"memory,omitempty"` // bytes, 0 is without limit
	Hub     bool       `json:"hub"`              // the node has skerry-agent between it and the API server
}

// Cloud reports whether the machine is on the far side of all links.
func (m Machine) Cloud() bool { return m.Site == CloudName }

// Load reads a file; "" gives the default sandbox.
func Load(file string) (*Spec, error) {
	if file == "" {
		return Parse(nil)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's description: %w", err)
	}
	s, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// Parse reads YAML, fills in defaults and validates.
func Parse(data []byte) (*Spec, error) {
	s := &Spec{}
	if len(bytes.TrimSpace(data)) > 0 {
		if err := decode(data, s); err != nil {
			return nil, fmt.Errorf("not a sandbox description: %w", err)
		}
	}
	s.setDefaults()
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Spec) setDefaults() {
	setDefault(&s.Name, "default")
	setDefault(&s.PodSubnet, "10.244.0.0/16")
	setDefault(&s.ServiceSubnet, "10.96.0.0/16")
	setDefault(&s.Cloud.Nodes, 1)
	setDefault(&s.Cloud.Subnet, "172.30.0.0/24")
	if s.Sites == nil {
		s.Sites = []Site{{Name: "east"}, {Name: "west"}}
	}
	for i := range s.Sites {
		setDefault(&s.Sites[i].Nodes, 2)
		setDefault(&s.Sites[i].Subnet, fmt.Sprintf("172.30.%d.0/24", i+1))
	}
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Validate checks everything and names the field that is wrong.
func (s *Spec) Validate() error {
	if err := checkName("name", s.Name); err != nil {
		return err
	}
	if err := checkPlace("cloud", s.Cloud.Nodes, s.Cloud.Memory); err != nil {
		return err
	}
	if len(s.Sites) > maxSites {
		return fmt.Errorf("sites: %d are too many, at most %d", len(s.Sites), maxSites)
	}
	seen := map[string]bool{CloudName: true}
	for i, site := range s.Sites {
		field := fmt.Sprintf("sites[%d]", i)
		if err := checkName(field+".name", site.Name); err != nil {
			return err
		}
		if seen[site.Name] {
			return fmt.Errorf("%s.name: %q is taken", field, site.Name)
		}
		seen[site.Name] = true
		if err := checkPlace(field, site.Nodes, site.Memory); err != nil {
			return err
		}
		for _, d := range weaklink.Directions() {
			if err := site.Link.Direction(d).Validate(); err != nil {
				return fmt.Errorf("%s.link: %w", field, err)
			}
		}
	}
	if err := s.checkMachineNames(); err != nil {
		return err
	}
	for component := range s.ControlPlane.ExtraArgs {
		if !slices.Contains(components, component) {
			return fmt.Errorf("controlPlane.extraArgs: there is no component %q; there are %s", component, strings.Join(components, ", "))
		}
	}
	return s.checkSubnets()
}

// checkMachineNames: sites "a" and "a-1" could both want a machine "a-1-1".
func (s *Spec) checkMachineNames() error {
	seen := map[string]string{}
	for _, site := range append([]Site{{Name: CloudName, Nodes: s.Cloud.Nodes}}, s.Sites...) {
		for i := 1; i <= site.Nodes; i++ {
			name := fmt.Sprintf("%s-%d", site.Name, i)
			if other, ok := seen[name]; ok {
				return fmt.Errorf("sites: %q and %q would both have a machine %q", other, site.Name, name)
			}
			seen[name] = site.Name
		}
	}
	return nil
}

func checkName(field, name string) error {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return fmt.Errorf("%s: %q: %s", field, name, strings.Join(problems, "; "))
	}
	if len(name) > maxName {
		return fmt.Errorf("%s: %q is longer than %d characters", field, name, maxName)
	}
	return nil
}

func checkPlace(field string, nodes int, memory *resource.Quantity) error {
	if nodes < 1 || nodes > maxMachines {
		return fmt.Errorf("%s.nodes: %d is not between 1 and %d", field, nodes, maxMachines)
	}
	if memory != nil && memory.Value() < 128<<20 {
		return fmt.Errorf("%s.memory: %s is too little for a node, at least 128Mi", field, memory)
	}
	return nil
}

func (s *Spec) checkSubnets() error {
	type subnet struct{ field, value string }
	fields := []subnet{{"podSubnet", s.PodSubnet}, {"serviceSubnet", s.ServiceSubnet}, {"cloud.subnet", s.Cloud.Subnet}}
	for i, site := range s.Sites {
		fields = append(fields, subnet{fmt.Sprintf("sites[%d].subnet", i), site.Subnet})
	}
	var prefixes []netip.Prefix
	for i, f := range fields {
		p, err := netip.ParsePrefix(f.value)
		if err != nil || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("%s: %q is not an IPv4 subnet such as 172.30.1.0/24", f.field, f.value)
		}
		if i >= 2 && p.Bits() > 24 {
			return fmt.Errorf("%s: %s is too small for the machines, at most /24", f.field, p)
		}
		for j, other := range prefixes {
			if p.Overlaps(other) {
				return fmt.Errorf("%s: %s overlaps %s (%s)", f.field, p, fields[j].field, other)
			}
		}
		prefixes = append(prefixes, p)
	}
	return nil
}

// Subnet returns the subnet of the site or of CloudName.
func (s *Spec) Subnet(site string) netip.Prefix {
	if site == CloudName {
		return netip.MustParsePrefix(s.Cloud.Subnet)
	}
	for _, other := range s.Sites {
		if other.Name == site {
			return netip.MustParsePrefix(other.Subnet)
		}
	}
	return netip.Prefix{}
}

// Gateway is the router's address in a subnet.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

// Machines lists all machines, the control plane first.
func (s *Spec) Machines() []Machine {
	var all []Machine
	add := func(site, subnet string, nodes int, memory *resource.Quantity, hub bool) {
		addr := netip.MustParsePrefix(subnet).Addr()
		for range firstHost {
			addr = addr.Next()
		}
		for i := 1; i <= nodes; i++ {
			addr = addr.Next()
			m := Machine{Name: fmt.Sprintf("%s-%d", site, i), Site: site, Index: len(all), Address: addr, Hub: hub}
			if memory != nil {
				m.Memory = memory.Value()
			}
			all = append(all, m)
		}
	}
	add(CloudName, s.Cloud.Subnet, s.Cloud.Nodes, s.Cloud.Memory, false)
	for _, site := range s.Sites {
		add(site.Name, site.Subnet, site.Nodes, site.Memory, site.Hub == nil || *site.Hub)
	}
	return all
}

// SiteNames lists the sites.
func (s *Spec) SiteNames() []string {
	names := make([]string, len(s.Sites))
	for i, site := range s.Sites {
		names[i] = site.Name
	}
	return names
}

// Machine finds a machine by name.
func (s *Spec) Machine(name string) (Machine, error) {
	var names []string
	for _, m := range s.Machines() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Machine{}, fmt.Errorf("sandbox %q has no machine %q; it has %s", s.Name, name, strings.Join(names, ", "))
}

// Site finds a site by name.
func (s *Spec) Site(name string) (Site, error) {
	for _, site := range s.Sites {
		if site.Name == name {
			return site, nil
		}
	}
	return Site{}, fmt.Errorf("sandbox %q has no site %q; it has %s", s.Name, name, strings.Join(s.SiteNames(), ", "))
}
