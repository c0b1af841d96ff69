// Command bench makes a sandbox, measures in it what Skerry costs, prints the
// table, keeps it as JSON and removes the sandbox. It ends with 0 whether or
// not goals are met.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"skerry.dev/skerry/test/bench/grid"
	"skerry.dev/skerry/test/bench/hub"
)

func main() {
	var o options
	flag.StringVar(&o.out, "out", "_output/bench", "folder for the results")
	flag.IntVar(&o.pairs, "pairs", 4, "how often memory is measured, patched and pristine")
	flag.DurationVar(&o.settle, "settle", 15*time.Second, "time from a component's start to the memory measured")
	flag.DurationVar(&o.steady, "steady", 5*time.Minute, "how long the agent's writes are watched")
	flag.StringVar(&o.only, "only", "", "measure only `what`: closed, grid, observer, hub or components")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch flag.Arg(0) {
	case grid.ControllerArgument:
		err = grid.RunController(ctx, flag.Args()[1:])
	case hub.FloorArgument:
		err = hub.RunFloor(ctx, flag.Args()[1:])
	default:
		err = run(ctx, o, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
