package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skerry.dev/skerry/pkg/sandbox"
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
still reach it, the cloud does not.`,
		Example: `  skerry sandbox link west --cut
  skerry sandbox link west --heal
  skerry sandbox link east --delay 100ms --jitter 20ms --loss 10% --rate 2mbit
  skerry sandbox link east --one-way down --cut
  skerry sandbox link west --cut --node west-1`,
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
	case len(o.nodes) > 0 && (o.set.Cut == o.heal || o.oneWay != "" || changes > 1):
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
