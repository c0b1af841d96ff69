package cmd

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

func newLink(c *common) *cobra.Command {
	var set weaklink.Settings
	var heal bool
	var oneWay string
	var nodes []string
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
			changed := cmd.Flags().Changed
			if len(nodes) > 0 {
				if set.Cut == heal {
					return errors.New("--node goes with either --cut or --heal, and nothing else")
				}
				for _, node := range nodes {
					m, err := s.Spec.Machine(node)
					if err != nil {
						return err
					}
					if m.Site != site.Name {
						return fmt.Errorf("machine %s belongs to %s, not to %s", node, m.Site, site.Name)
					}
					if err := s.Fabric().CutOff(cmd.Context(), node, set.Cut); err != nil {
						return err
					}
				}
				return nil
			}
			if !heal && !changed("cut") && !changed("delay") && !changed("jitter") && !changed("reorder") && !changed("loss") && !changed("rate") {
				return errors.New("say what to change: --cut, --heal, --delay, --jitter, --reorder, --loss or --rate")
			}
			change := func(now weaklink.Settings) weaklink.Settings {
				if heal {
					now = weaklink.Settings{}
				}
				if changed("cut") {
					now.Cut = set.Cut
				}
				if changed("delay") {
					now.Delay = set.Delay
				}
				if changed("jitter") {
					now.Jitter = set.Jitter
				}
				if changed("reorder") {
					now.Reorder = set.Reorder
				}
				if changed("loss") {
					now.Loss = set.Loss
				}
				if changed("rate") {
					now.Rate = set.Rate
				}
				return now
			}
			status, err := s.Fabric().Status(cmd.Context())
			if err != nil {
				return err
			}
			link := status.Links[site.Name]
			up, down := change(link.Up.Settings), change(link.Down.Settings)
			var upTo, downTo *weaklink.Settings
			switch oneWay {
			case "":
				upTo, downTo = &up, &down
			case "up":
				upTo, down = &up, link.Down.Settings
			case "down":
				downTo, up = &down, link.Up.Settings
			default:
				return fmt.Errorf("--one-way: %q is neither up nor down", oneWay)
			}
			if err := s.Fabric().SetLink(cmd.Context(), site.Name, upTo, downTo); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: up %s, down %s\n", site.Name, up, down)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&set.Cut, "cut", false, "drop every packet")
	flags.BoolVar(&heal, "heal", false, "make the link perfect")
	flags.Var(&set.Delay, "delay", "time every packet takes, such as 100ms")
	flags.Var(&set.Jitter, "jitter", "spread of the delay, such as 20ms")
	flags.BoolVar(&set.Reorder, "reorder", false, "let jitter change the order of packets")
	flags.Var(&set.Loss, "loss", "share of packets lost, such as 10%")
	flags.Var(&set.Rate, "rate", "throughput, such as 2mbit")
	flags.StringVar(&oneWay, "one-way", "", "change one direction only: up (site to cloud) or down")
	flags.StringSliceVar(&nodes, "node", nil, "cut or heal only this machine of the site")
	return cmd
}
