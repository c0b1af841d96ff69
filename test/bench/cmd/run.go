package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/test/bench"
	"skerry.dev/skerry/test/bench/closed"
	"skerry.dev/skerry/test/bench/components"
	"skerry.dev/skerry/test/bench/grid"
	"skerry.dev/skerry/test/bench/hub"
	"skerry.dev/skerry/test/bench/observer"
)

// description of the sandbox that is measured: the smallest one with an edge.
const description = `
name: bench
sites:
- name: edge
  nodes: 1
`

const (
	createGoal = 120 // seconds
	// nodeGoal in MiB is half of the smallest computer that one would make a node.
	nodeGoal = 256
	// After this time a new node does what it always does.
	nodeSettle  = 15 * time.Second
	nodeSamples = 10
	// managedNodes are as many as an API server beside it takes in some minutes.
	managedNodes = 20_000
)

type options struct {
	out    string
	pairs  int
	settle time.Duration
	steady time.Duration
	only   string
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	began := time.Now()
	if o.pairs < 1 {
		return fmt.Errorf("-pairs %d: at least 1", o.pairs)
	}
	if known := []string{"", "closed", "grid", "observer", "hub", "components"}; !slices.Contains(known, o.only) {
		return fmt.Errorf("-only %s: there are %s", o.only, strings.Join(known[1:], ", "))
	}
	places, err := sandbox.FindPlaces(sandbox.Places{})
	if err != nil {
		return err
	}
	logs := filepath.Join(o.out, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(out, "bench: %d processors, load average %s; other work at the same time shows in start-up times\n", runtime.NumCPU(), load())
	var all []bench.Row
	for _, part := range []struct {
		name    string
		measure func() ([]bench.Row, error)
	}{
		{"closed", func() ([]bench.Row, error) {
			return closed.Measure(ctx, closed.Options{Dist: places.Dist, Logs: logs, Services: 1000, Sites: 100, SiteNodes: 5, Settle: o.settle, Out: out})
		}},
		{"grid", func() ([]bench.Row, error) { return measureGrids(ctx, places.Dist, logs, out) }},
		{"observer", func() ([]bench.Row, error) { return measureObservers(ctx, places.Dist, out) }},
	} {
		if o.only != "" && o.only != part.name {
			continue
		}
		rows, err := part.measure()
		all = append(all, rows...)
		if err := errors.Join(err, bench.Save(o.out, part.name, rows)); err != nil || o.only != "" {
			return errors.Join(err, bench.Print(out, all))
		}
	}
	box, creation, err := create(ctx, places, out)
	if err != nil {
		return err
	}
	defer func() {
		removal := bench.Step(out, "removing the sandbox", func() error { return sandbox.Delete(places.Root, box.Name()) })
		err = errors.Join(err, removal)
	}()
	memory, err := nodeMemory(ctx, box, out)
	if err != nil {
		return err
	}
	all = append(all, creation, memory)
	if err := bench.Save(o.out, "sandbox", []bench.Row{creation, memory}); err != nil {
		return err
	}
	if o.only != "components" {
		rows, err := hub.Measure(ctx, hub.Options{Box: box, Steady: o.steady, Out: out})
		all = append(all, rows...)
		if err := errors.Join(err, bench.Save(o.out, "hub", rows)); err != nil {
			return errors.Join(err, bench.Print(out, all))
		}
	}
	if o.only == "" {
		// The components are measured in a cluster that has nothing else.
		if err := bench.Step(out, "removing the sandbox", func() error { return sandbox.Delete(places.Root, box.Name()) }); err != nil {
			return err
		}
		if box, _, err = create(ctx, places, out); err != nil {
			return err
		}
	}
	if o.only != "hub" {
		rows, err := components.Measure(ctx, components.Options{
			Box: box, Dist: places.Dist, Logs: logs, Pairs: o.pairs, Settle: o.settle, Out: out,
		})
		all = append(all, rows...)
		if err := errors.Join(err, bench.Save(o.out, "components", rows)); err != nil {
			return errors.Join(err, bench.Print(out, all))
		}
	}
	fmt.Fprintf(out, "\nAfter %.0f s; control: the direct path or upstream's binary in the same place, in the same run\n", time.Since(began).Seconds())
	return bench.Print(out, all)
}

// measureGrids needs no sandbox.
func measureGrids(ctx context.Context, dist, logs string, out io.Writer) ([]bench.Row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	return grid.Measure(ctx, grid.Options{
		Dist: dist, Logs: logs, CRDs: filepath.Join("cluster", "crds"), Self: self, Grids: 20, Sites: 500, Steady: time.Minute, Out: out,
	})
}

// measureObservers needs no sandbox either.
func measureObservers(ctx context.Context, dist string, out io.Writer) ([]bench.Row, error) {
	rows, err := observer.Measure(ctx, observer.Options{Out: out})
	if err != nil {
		return rows, err
	}
	dir, err := os.MkdirTemp("", "skerry-bench-")
	if err != nil {
		return rows, fmt.Errorf("making a folder for a control plane: %w", err)
	}
	defer os.RemoveAll(dir)
	manager, err := observer.MeasureManager(ctx, observer.ManagerOptions{Dist: dist, Dir: dir, Nodes: managedNodes, Sites: managedNodes / 10, Out: out})
	return append(rows, manager...), err
}

// create makes the sandbox, and a row of the time that took.
func create(ctx context.Context, places sandbox.Places, out io.Writer) (*sandbox.Sandbox, bench.Row, error) {
	s, err := spec.Parse([]byte(description))
	if err != nil {
		return nil, bench.Row{}, err
	}
	if _, err := os.Stat(filepath.Join(places.Root, s.Name)); err == nil {
		err := bench.Step(out, "removing the sandbox of an earlier run", func() error { return sandbox.Delete(places.Root, s.Name) })
		if err != nil {
			return nil, bench.Row{}, err
		}
	}
	self := filepath.Join(places.Dist, "bin", "skerry")
	if _, err := os.Stat(self); err != nil {
		return nil, bench.Row{}, fmt.Errorf("Skerry is not built (`make build`): %w", err)
	}
	began := time.Now()
	box, err := sandbox.Create(ctx, s, sandbox.Options{Places: places, Self: self, Out: out})
	if err != nil {
		return nil, bench.Row{}, err
	}
	took := time.Since(began).Seconds()
	return box, bench.Alone("sandbox creation, one cloud and one edge node", "s", took, createGoal), nil
}

// nodeMemory measures what a whole edge node takes that has nothing to do but
// to be one. Pages of program files are charged to whoever read them first on
// this host: mostly not to the node.
func nodeMemory(ctx context.Context, box *sandbox.Sandbox, out io.Writer) (bench.Row, error) {
	machines := box.Spec.Machines()
	m, err := box.Machine(machines[len(machines)-1].Name)
	if err != nil {
		return bench.Row{}, err
	}
	var values []float64
	err = bench.Step(out, "memory of edge node "+m.Name, func() error {
		wait := nodeSettle
		for range nodeSamples {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			used, err := m.Cgroup.Memory()
			if err != nil {
				return err
			}
			values = append(values, float64(used)/(1<<20))
			wait = 500 * time.Millisecond
		}
		return nil
	})
	if err != nil {
		return bench.Row{}, err
	}
	return bench.Alone("edge node without pods, whole machine", "MiB", bench.Median(values), nodeGoal), nil
}

// load is the load average of the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
