package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/install/status"
)

// errUnitDown makes `skerry status` exit with a code that scripts can test.
var errUnitDown = errors.New("a unit of this node is down, or this machine is not a node")

// NewStatusCommand returns `skerry status`.
func NewStatusCommand() *cobra.Command {
	var format string
	command := &cobra.Command{
		Use:   "status",
		Short: "Tell how this node is doing, with or without the cluster",
		Long:  "Tell how this node is doing: its site, units, container runtime, certificates, and whether the API server can be reached. Works while the cluster is out of reach. The exit code is not 0 when a unit is down.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("--output: %q is neither text nor json", format)
			}
			found := status.Collect(cmd.Context())
			if format == "json" {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				if err := encoder.Encode(found); err != nil {
					return fmt.Errorf("writing the status: %w", err)
				}
			} else if err := status.Print(cmd.OutOrStdout(), found, time.Now()); err != nil {
				return fmt.Errorf("writing the status: %w", err)
			}
			if !found.Healthy() {
				return errUnitDown
			}
			return nil
		},
		SilenceUsage: true,
	}
	command.Flags().StringVarP(&format, "output", "o", "text", "Output format: text or json.")
	return command
}
