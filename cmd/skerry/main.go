// Command skerry installs and operates Skerry clusters: init, join, reset,
// token, status and store on the hosts, grid and convert for the workloads of
// sites, sandbox for whole clusters on one machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/component-base/version"

	convertcmd "skerry.dev/skerry/pkg/cloud/convert/cmd"
	gridcmd "skerry.dev/skerry/pkg/cloud/servicegroup/cmd"
	storecmd "skerry.dev/skerry/pkg/edge/store/cmd"
	installcmd "skerry.dev/skerry/pkg/install/cmd"
	sandboxcmd "skerry.dev/skerry/pkg/sandbox/cmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "skerry",
		Short:         "Kubernetes for sites that must go on alone",
		Long:          "skerry installs and operates a Kubernetes cluster whose nodes are spread over many sites, behind weak links.",
		Version:       version.Get().GitVersion,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		installcmd.NewInitCommand(),
		installcmd.NewJoinCommand(),
		installcmd.NewResetCommand(),
		installcmd.NewTokenCommand(),
		installcmd.NewStatusCommand(),
		storecmd.NewStoreCommand(),
		gridcmd.NewGridCommand(),
		convertcmd.NewConvertCommand(),
		sandboxcmd.NewSandboxCommand(),
	)
	err := root.ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err))
}

// exitCode is 1 for errors, which are printed; a command that ran inside a
// machine has spoken for itself, and its own code is passed on.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var inside *sandboxcmd.ExitError
	if errors.As(err, &inside) {
		return inside.Code
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	return 1
}
