package cmd

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/spec"
)

func newCreate(c *common) *cobra.Command {
	var file string
	o := sandbox.Options{}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a sandbox and form the cluster in it",
		Long: `Makes the machines and links that a file describes and forms the cluster with
` + "`skerry init` and `skerry join`" + ` inside the machines. Without a file there is a cloud
of one machine and the sites east and west of two nodes each.

When it fails, or is interrupted, nothing stays but the logs.`,
		Example: `  skerry sandbox create
  skerry sandbox create -f three-sites.yaml --name three
  skerry sandbox create --machines-only     # then: skerry sandbox shell cloud-1, skerry init`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			description, err := spec.Load(file)
			if err != nil {
				return err
			}
			if file == "" || cmd.Flags().Changed("name") {
				description.Name = c.name
			}
			if err := description.Validate(); err != nil {
				return err
			}
			o.Places.Root, o.Out = c.places.Root, cmd.OutOrStdout()
			s, err := sandbox.Create(cmd.Context(), description, o)
			if err != nil {
				return err
			}
			printNext(cmd.OutOrStdout(), s, o.MachinesOnly)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&file, "file", "f", "", "description of the sandbox (YAML, see docs/sandbox.md)")
	flags.BoolVar(&o.KeepOnFailure, "keep-on-failure", false, "leave a sandbox that could not be made, to look into it")
	flags.BoolVar(&o.MachinesOnly, "machines-only", false, "stop before Kubernetes")
	flags.StringVar(&o.Places.Dist, "dist", "", "folder with the built Skerry (default: _output/<arch> of the checkout, or $"+sandbox.DistVariable+")")
	return cmd
}

// nameFlag is what the next commands need to find this sandbox.
func nameFlag(s *sandbox.Sandbox) string {
	if s.Name() == "default" {
		return ""
	}
	return " --name " + s.Name()
}

func printNext(out io.Writer, s *sandbox.Sandbox, machinesOnly bool) {
	n := nameFlag(s)
	if machinesOnly {
		fmt.Fprintf(out, "\nNext:\n  skerry sandbox%s shell %s\n", n, s.Spec.Machines()[0].Name)
		return
	}
	fmt.Fprintf(out, "\nNext:\n  export KUBECONFIG=%s\n  kubectl get nodes\n  skerry sandbox%s status\n", s.Kubeconfig(), n)
	if names := s.Spec.SiteNames(); len(names) > 0 {
		fmt.Fprintf(out, "  skerry sandbox%s link %s --cut\n", n, names[len(names)-1])
	}
}

func newDelete(c *common) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "delete",
		Short: "Remove a sandbox and every trace of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			places, err := sandbox.FindPlaces(c.places)
			if err != nil {
				return err
			}
			names := []string{c.name}
			if all {
				if names, err = sandbox.List(places.Root); err != nil {
					return err
				}
			}
			var errs []error
			for _, name := range names {
				if err := sandbox.Delete(places.Root, name); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "sandbox %q is deleted\n", name)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "delete all sandboxes of the folder")
	return cmd
}

func newKubeconfig(c *common) *cobra.Command {
	return &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the path of the kubeconfig for this machine",
		Example: "  export KUBECONFIG=$(skerry sandbox kubeconfig)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), s.Kubeconfig())
			return nil
		},
	}
}

func newRepair(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "repair",
		Short: "Start the network again if it has ended, and route all pods",
		Long: `Starts the sandbox's network if its process has ended, as it was before, plugs
all machines in and routes the pod ranges of all nodes: for instance of one that
was joined by hand. After a restart of this computer, follow it with
` + "`skerry sandbox poweron`" + `.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			return s.Repair(cmd.Context())
		},
	}
}
