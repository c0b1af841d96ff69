// Command skerry-agent stands between an edge node and its API server, so that
// the node goes on without it: docs/hub.md.
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
	"k8s.io/component-base/version"
	"k8s.io/component-base/version/verflag"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/agent"
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
	flags := pflag.NewFlagSet("skerry-agent", pflag.ContinueOnError)
	file := flags.String("config", agentapi.ConfigFile, "AgentConfiguration of this node.")
	verflag.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	verflag.PrintAndExitIfRequested()
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: skerry-agent takes no arguments", flags.Args())
	}
	config, err := agent.LoadConfig(*file)
	if err != nil {
		return err
	}
	return agent.Run(ctx, config, version.Get().GitVersion, slog.New(agent.LogHandler(config, os.Stderr)))
}
