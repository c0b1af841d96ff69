package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

func newLink(c *common) *cobra.Command {
	o := &linkOptions{}
	cmd := &cobra.Command{
		Use:   "link SITE",
		Short: "Make the link between a site and the cloud worse, or better",
		Long: `Changes the link of a site at once. What is not named stays as it is; --heal
makes the link perfect first, so that "--heal --delay 100ms" leaves nothing but
the delay. Every packet between the site and the cloud passes the link; packets
inside the site never do. Up is from the site to the cloud.

Jitter keeps packets in order unless --reorder is given. A rate has a queue of
` + weaklink.QueueTime.String() + `; what does not fit is dropped.

With --node only that machine's packets are cut (or healed): its neighbours
still reach it, the cloud does not.

With --inside it is not the link that changes but the network inside the site,
which can be cut and lossy: between the machines of --node and all others of the
site, or without --node between any two. Up is then what the named machines send
to the others. The cloud is still reached as before.`,
		Example: `  skerry sandbox link west --cut
  skerry sandbox link west --heal
  skerry sandbox link east --delay 100ms --jitter 20ms --loss 10% --rate 2mbit
  skerry sandbox link east --one-way down --cut
  skerry sandbox link west --cut --node west-1
  skerry sandbox link west --inside --cut --node west-1,west-2
  skerry sandbox link west --inside --heal`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			site, err := s.Spec.Site(args[0])
			if err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			if o.inside {
				return o.changeInside(cmd.Context(), s, site)
			}
			if len(o.nodes) > 0 {
				return o.cutNodes(cmd.Context(), s, site)
			}
			return o.change(cmd.Context(), cmd.OutOrStdout(), s, site)
		},
	}
	o.addTo(cmd.Flags())
	return cmd
}

// linkOptions are the flags of link.
type linkOptions struct {
	set    weaklink.Settings
	heal   bool
	oneWay string
	nodes  []string
	inside bool
	flags  *pflag.FlagSet
}

func (o *linkOptions) addTo(flags *pflag.FlagSet) {
	o.flags = flags
	flags.BoolVar(&o.set.Cut, "cut", false, "drop every packet")
	flags.BoolVar(&o.heal, "heal", false, "make the link perfect")
	flags.Var(&o.set.Delay, "delay", "time every packet takes, such as 100ms")
	flags.Var(&o.set.Jitter, "jitter", "spread of the delay, such as 20ms")
	flags.BoolVar(&o.set.Reorder, "reorder", false, "let jitter change the order of packets")
	flags.Var(&o.set.Loss, "loss", "share of packets lost, such as 10%")
	flags.Var(&o.set.Rate, "rate", "throughput, such as 2mbit")
	flags.StringVar(&o.oneWay, "one-way", "", "change one direction only: up (site to cloud) or down")
	flags.StringSliceVar(&o.nodes, "node", nil, "cut or heal only this machine of the site")
	flags.BoolVar(&o.inside, "inside", false, "change the network inside the site instead of its link")
}

// settings are the flags that change a link, with what each changes.
func (o *linkOptions) settings() map[string]func(*weaklink.Settings) {
	return map[string]func(*weaklink.Settings){
		"cut":     func(s *weaklink.Settings) { s.Cut = o.set.Cut },
		"delay":   func(s *weaklink.Settings) { s.Delay = o.set.Delay },
		"jitter":  func(s *weaklink.Settings) { s.Jitter = o.set.Jitter },
		"reorder": func(s *weaklink.Settings) { s.Reorder = o.set.Reorder },
		"loss":    func(s *weaklink.Settings) { s.Loss = o.set.Loss },
		"rate":    func(s *weaklink.Settings) { s.Rate = o.set.Rate },
	}
}

// check says what does not go together.
func (o *linkOptions) check() error {
	changes := 0
	for name := range o.settings() {
		if o.flags.Changed(name) {
			changes++
		}
	}
	switch {
	case o.oneWay != "" && o.oneWay != "up" && o.oneWay != "down":
		return fmt.Errorf("--one-way: %q is neither up nor down", o.oneWay)
	case o.inside && (o.flags.Changed("delay") || o.flags.Changed("jitter") || o.flags.Changed("reorder") || o.flags.Changed("rate")):
		return errors.New("--inside goes with --cut, --loss and --heal only: a site's network neither delays nor shapes")
	case o.inside && o.oneWay != "" && len(o.nodes) == 0:
		return errors.New("--inside --one-way needs --node: up is what those machines send")
	case !o.inside && len(o.nodes) > 0 && (o.set.Cut == o.heal || o.oneWay != "" || changes > 1):
		return errors.New("--node goes with either --cut or --heal, and nothing else")
	case !o.heal && changes == 0:
		return errors.New("say what to change: --cut, --heal, --delay, --jitter, --reorder, --loss or --rate")
	}
	return nil
}

// apply returns what becomes of one direction.
func (o *linkOptions) apply(now weaklink.Settings) weaklink.Settings {
	if o.heal {
		now = weaklink.Settings{}
	}
	for name, change := range o.settings() {
		if o.flags.Changed(name) {
			change(&now)
		}
	}
	return now
}

func (o *linkOptions) change(ctx context.Context, out io.Writer, s *sandbox.Sandbox, site spec.Site) error {
	status, err := s.Fabric().Status(ctx)
	if err != nil {
		return err
	}
	up, down := status.Links[site.Name].Up.Settings, status.Links[site.Name].Down.Settings
	if o.oneWay != "down" {
		up = o.apply(up)
	}
	if o.oneWay != "up" {
		down = o.apply(down)
	}
	if err := s.Fabric().SetLink(ctx, site.Name, &up, &down); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: up %s, down %s\n", site.Name, up, down)
	return nil
}

// cutNodes cuts or heals single machines.
func (o *linkOptions) cutNodes(ctx context.Context, s *sandbox.Sandbox, site spec.Site) error {
	for _, node := range o.nodes {
		m, err := s.Spec.Machine(node)
		if err != nil {
			return err
		}
		if m.Site != site.Name {
			return fmt.Errorf("machine %s belongs to %s, not to %s", node, m.Site, site.Name)
		}
		if err := s.Fabric().CutOff(ctx, node, o.set.Cut); err != nil {
			return err
		}
	}
	return nil
}

// changeInside changes the network inside a site.
func (o *linkOptions) changeInside(ctx context.Context, s *sandbox.Sandbox, site spec.Site) error {
	all, err := s.MachineNames(site.Name)
	if err != nil {
		return err
	}
	for _, name := range o.nodes {
		if !slices.Contains(all, name) {
			return fmt.Errorf("machine %s does not belong to %s; there are %s", name, site.Name, strings.Join(all, ", "))
		}
	}
	status, err := s.Fabric().Status(ctx)
	if err != nil {
		return err
	}
	now := map[[2]string]weaklink.Settings{}
	for _, i := range status.Inside {
		now[[2]string{i.From, i.To}] = i.Settings
	}
	var changes []fabric.Inside
	for _, p := range o.pairs(all) {
		changes = append(changes, fabric.Inside{From: p[0], To: p[1], Settings: o.apply(now[p])})
	}
	return s.Fabric().SetInside(ctx, changes)
}

// pairs lists from which machine to which other one of all something changes.
func (o *linkOptions) pairs(all []string) [][2]string {
	var pairs [][2]string
	for _, from := range all {
		for _, to := range all {
			up := slices.Contains(o.nodes, from) && !slices.Contains(o.nodes, to) && o.oneWay != "down"
			down := slices.Contains(o.nodes, to) && !slices.Contains(o.nodes, from) && o.oneWay != "up"
			if from != to && (len(o.nodes) == 0 || up || down) {
				pairs = append(pairs, [2]string{from, to})
			}
		}
	}
	return pairs
}
