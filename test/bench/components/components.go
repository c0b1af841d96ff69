// Package components measures the memory and the start-up time of the patched
// components against those of the pristine ones, in the places where they run
// in a sandbox: kubelet and kube-proxy on an edge node, kube-controller-manager
// on the control plane, with the command lines they have there.
//
// It must not know what the patches do, nor make or delete the sandbox: the
// sandbox it has measured in is good for nothing else.
package components

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/test/bench"
)

// What the rows promise.
const (
	memoryGoal = 1.02
	// The garbage collector's timing alone moves the heap by 3 percent.
	anonymousGoal = 1.05
	startUpGoal   = 1.10
)

const (
	// startPairs is how often a start is timed, patched and pristine.
	startPairs = 12
	// calm lies before a start that is timed: what ended before it is forgotten.
	calm = 500 * time.Millisecond
	// Memory is sampled this often, this many times, after the components have
	// settled.
	sampleEvery = 500 * time.Millisecond
	samples     = 10
)

// Options of Measure.
type Options struct {
	Box *sandbox.Sandbox
	// Dist is the folder of the built Skerry; it has bin and pristine.
	Dist string
	// Logs is the folder for what the components print.
	Logs string
	// Pairs is how often memory is measured, patched and pristine. Settle is
	// the time from the start to the measured memory.
	Pairs  int
	Settle time.Duration
	Out    io.Writer
}

// A kind of binary, by the folder it is in.
type kind string

const (
	patched  kind = "bin"
	pristine kind = "pristine"
)

func (k kind) String() string {
	if k == patched {
		return "patched"
	}
	return "pristine"
}

// order alternates which kind comes first: a machine that grows slower or
// fuller with time puts both at the same disadvantage.
func order(pairs int) []kind {
	var all []kind
	for i := range pairs {
		if i%2 == 0 {
			all = append(all, pristine, patched)
		} else {
			all = append(all, patched, pristine)
		}
	}
	return all
}

// figures of one component and kind, a value a start or round.
type figures struct{ startUp, rss, anonymous []float64 }

// stage is what is measured on.
type stage struct {
	Options
	client      kubernetes.Interface
	components  []*component
	cloud, edge string // machines
	results     map[string]map[kind]*figures
}

// Measure takes the components' places in the sandbox and runs them there by
// turns.
func Measure(ctx context.Context, o Options) ([]bench.Row, error) {
	client, err := o.Box.Client()
	if err != nil {
		return nil, err
	}
	s := &stage{Options: o, client: client, results: map[string]map[kind]*figures{}}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	for _, c := range s.components {
		s.results[c.name] = map[kind]*figures{patched: {}, pristine: {}}
		err := bench.Step(o.Out, fmt.Sprintf("%d starts of %s", 2*startPairs, c.name), func() error { return s.timeStarts(ctx, c) })
		if err != nil {
			return nil, err
		}
		for _, k := range []kind{pristine, patched} {
			fmt.Fprintf(o.Out, "   %-9s%.0f ms\n", k, s.results[c.name][k].startUp)
		}
	}
	rounds := order(o.Pairs)
	for i, k := range rounds {
		err := bench.Step(o.Out, fmt.Sprintf("memory, round %d of %d: %s", i+1, len(rounds), k), func() error { return s.round(ctx, k) })
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(o.Out, "   %s\n", s.describe(k))
	}
	return rows(s.components, s.results), nil
}

// timeStarts starts one component again and again.
func (s *stage) timeStarts(ctx context.Context, c *component) error {
	for _, k := range order(startPairs) {
		if err := sleep(ctx, calm); err != nil {
			return err
		}
		p, took, err := s.start(ctx, c, k)
		if err != nil {
			return err
		}
		p.stop()
		into := s.results[c.name][k]
		into.startUp = append(into.startUp, float64(took.Microseconds())/1000)
	}
	return nil
}

// round runs all components of one kind together and measures their memory.
func (s *stage) round(ctx context.Context, k kind) error {
	running := map[string]*process{}
	defer func() {
		for _, p := range running {
			p.stop()
		}
	}()
	for _, c := range s.components {
		p, _, err := s.start(ctx, c, k)
		if err != nil {
			return err
		}
		running[c.name] = p
		if c.works == nil {
			continue
		}
		if err := c.works(ctx); err != nil {
			return fmt.Errorf("%s, %s: %w; %s", c.name, k, err, p.said())
		}
	}
	if err := sleep(ctx, s.Settle); err != nil {
		return err
	}
	sampled := map[string]*figures{}
	for range samples {
		for name, p := range running {
			m, err := bench.ReadMemory(p.pid)
			if err != nil {
				return fmt.Errorf("%s, %s: %w; %s", name, k, err, p.said())
			}
			if sampled[name] == nil {
				sampled[name] = &figures{}
			}
			sampled[name].rss = append(sampled[name].rss, m.RSS)
			sampled[name].anonymous = append(sampled[name].anonymous, m.Anonymous)
		}
		if err := sleep(ctx, sampleEvery); err != nil {
			return err
		}
	}
	for name, f := range sampled {
		into := s.results[name][k]
		into.rss = append(into.rss, bench.Median(f.rss))
		into.anonymous = append(into.anonymous, bench.Median(f.anonymous))
	}
	return nil
}

// describe tells what the last round of a kind measured.
func (s *stage) describe(k kind) string {
	last := func(values []float64) float64 { return values[len(values)-1] }
	var parts []string
	for _, c := range s.components {
		f := s.results[c.name][k]
		parts = append(parts, fmt.Sprintf("%s %.1f MiB (%.1f anonymous)", c.name, last(f.rss), last(f.anonymous)))
	}
	return strings.Join(parts, ", ")
}

func rows(components []*component, results map[string]map[kind]*figures) []bench.Row {
	var all []bench.Row
	for _, c := range components {
		ours, theirs := results[c.name][patched], results[c.name][pristine]
		all = append(all,
			bench.Against(c.name+" RSS", "MiB", bench.Median(ours.rss), bench.Median(theirs.rss), memoryGoal),
			bench.Against(c.name+" anonymous memory", "MiB", bench.Median(ours.anonymous), bench.Median(theirs.anonymous), anonymousGoal),
			bench.Against(c.name+" start-up", "ms", bench.Median(ours.startUp), bench.Median(theirs.startUp), startUpGoal),
		)
	}
	return all
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
