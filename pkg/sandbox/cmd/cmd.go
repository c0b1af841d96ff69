// Package cmd is the command line of sandboxes: `skerry sandbox …`. It parses
// flags and prints; everything else is in package sandbox.
package cmd

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/machine"
)

// common are the flags of all commands.
type common struct {
	name   string
	places sandbox.Places
}

// open finds the sandbox that the flags name.
func (c *common) open() (*sandbox.Sandbox, error) {
	places, err := sandbox.FindPlaces(c.places)
	if err != nil {
		return nil, err
	}
	return sandbox.Open(places.Root, c.name)
}

// NewSandboxCommand makes `skerry sandbox` with all its commands, and with the
// hidden ones that are the processes of a sandbox: the program that runs this
// command becomes them.
func NewSandboxCommand() *cobra.Command {
	c := &common{}
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Make a whole edge cluster on this machine, and break it",
		Long: `A sandbox is an edge cluster made of namespaces on one Linux machine: a cloud
with the control plane, sites with nodes, and between each site and the cloud a
link that can be cut, delayed, slowed and made lossy. Nodes can be switched
off, rebooted and frozen.`,
		Example: `  skerry sandbox create                          # a cloud and the sites east and west
  skerry sandbox status
  export KUBECONFIG=$(skerry sandbox kubeconfig)
  skerry sandbox link west --cut                 # west is an island
  skerry sandbox reboot west-1
  skerry sandbox link west --heal
  skerry sandbox delete`,
		SilenceUsage: true,
		Args:         cobra.NoArgs,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.name, "name", "default", "name of the sandbox")
	flags.StringVar(&c.places.Root, "root", "", "folder of all sandboxes (default: _output/sandbox of the checkout, or $"+sandbox.RootVariable+")")
	cmd.AddCommand(
		newCreate(c), newDelete(c), newStatus(c), newKubeconfig(c), newRepair(c),
		newExec(c), newShell(c), newLogs(c), newLoad(c), newLink(c),
		newPower(c, power{verb: "poweroff", short: "Switch machines off, without warning", do: func(_ context.Context, s *sandbox.Sandbox, names []string) error { return s.PowerOff(names...) }}),
		newPower(c, power{verb: "poweron", short: "Switch machines on", do: func(ctx context.Context, s *sandbox.Sandbox, names []string) error { return s.PowerOn(ctx, names...) }}),
		newPower(c, power{verb: "reboot", short: "Switch machines off, without warning, and on again", do: func(ctx context.Context, s *sandbox.Sandbox, names []string) error { return s.Reboot(ctx, names...) }}),
		newPower(c, power{verb: "freeze", short: "Stop every process of machines, as a machine that hangs", do: func(_ context.Context, s *sandbox.Sandbox, names []string) error { return s.Freeze(names...) }}),
		newPower(c, power{verb: "thaw", short: "Let frozen machines go on", do: func(_ context.Context, s *sandbox.Sandbox, names []string) error { return s.Thaw(names...) }}),
	)
	cmd.AddCommand(hidden()...)
	return cmd
}

// hidden are the processes of a sandbox.
func hidden() []*cobra.Command {
	one := func(use string, run func(context.Context, string) error) *cobra.Command {
		return &cobra.Command{
			Use: use + " FILE", Hidden: true, Args: cobra.ExactArgs(1), SilenceUsage: true,
			RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args[0]) },
		}
	}
	return []*cobra.Command{
		one(sandbox.FabricCommand, sandbox.RunFabric),
		one(machine.StageOne, func(_ context.Context, file string) error { return machine.Start(file) }),
		one(machine.StageTwo, machine.Init),
	}
}

// power is a verb that takes machines.
type power struct {
	verb, short string
	do          func(context.Context, *sandbox.Sandbox, []string) error
}

func newPower(c *common, p power) *cobra.Command {
	var site string
	var all bool
	cmd := &cobra.Command{
		Use:     p.verb + " NODE... | --site SITE | --all",
		Short:   p.short,
		Example: fmt.Sprintf("  skerry sandbox %s east-1\n  skerry sandbox %s --site west", p.verb, p.verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			names, err := selected(s, args, site, all)
			if err != nil {
				return err
			}
			return p.do(cmd.Context(), s, names)
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "all machines of this site")
	cmd.Flags().BoolVar(&all, "all", false, "all machines")
	return cmd
}

// selected lists the machines that arguments, --site or --all name.
func selected(s *sandbox.Sandbox, args []string, site string, all bool) ([]string, error) {
	ways := 0
	for _, used := range []bool{len(args) > 0, site != "", all} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		names, err := s.MachineNames("")
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("name machines, or --site, or --all: one of them; there are %s", strings.Join(names, ", "))
	}
	if len(args) > 0 {
		return args, nil
	}
	return s.MachineNames(site)
}
