// Command skerry-controller-manager runs beside the control plane: it decides
// which nodes of sites are dead (docs/verdict.md), and serves nodes whose
// certificate ran out (docs/hub.md).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/component-base/version/verflag"

	"skerry.dev/skerry/pkg/cloud/manager"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := pflag.NewFlagSet(manager.Name, pflag.ContinueOnError)
	var options manager.Options
	options.AddFlags(flags)
	verflag.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	verflag.PrintAndExitIfRequested()
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: %s takes no arguments", flags.Args(), manager.Name)
	}
	return manager.Run(ctx, options, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
