// Package closed measures what closed Services cost a node's kube-proxy: time,
// rules and memory at a thousand Services over a hundred sites, beside
// upstream's own kube-proxy on the same cluster. API server and etcd are real;
// kube-proxy has a network namespace of its own.
//
// It must not know how Services are closed: it annotates them.
package closed

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/test/bench"
)

// goal is the most that time, rules and memory may be of upstream's.
const goal = 0.2

// Options of Measure.
type Options struct {
	// Dist is the folder of the built Skerry; it has bin and pristine.
	Dist string
	// Logs is the folder for what the programs print.
	Logs string
	// Services are annotated, each with one endpoint a site; SiteNodes are the
	// nodes of a site, which take turns.
	Services, Sites, SiteNodes int
	Settle                     time.Duration
	Out                        io.Writer
}

// Measure runs kube-proxy on one node, patched and pristine, in both modes, and
// then the patched one in a cluster of very many nodes.
func Measure(ctx context.Context, o Options) (rows []bench.Row, err error) {
	err = with(ctx, o, func(c *control, n *network) error { rows, err = c.services(ctx, o, n); return err })
	if err != nil {
		return rows, err
	}
	err = with(ctx, o, func(c *control, n *network) error {
		more, err := c.manyNodes(ctx, o, n)
		rows = append(rows, more...)
		return err
	})
	return rows, err
}

// with makes a control plane and a network for it.
func with(ctx context.Context, o Options, do func(*control, *network) error) error {
	dir, err := os.MkdirTemp("", "skerry-bench-closed-")
	if err != nil {
		return fmt.Errorf("making a folder for the control plane: %w", err)
	}
	defer os.RemoveAll(dir)
	n, err := newNetwork()
	if err != nil {
		return err
	}
	defer n.remove()
	var c *control
	err = bench.Step(o.Out, "control plane", func() error { c, err = startControl(ctx, o, dir, n.host); return err })
	if err != nil {
		return err
	}
	defer c.Stop()
	return do(c, n)
}

// services measures at very many Services.
func (c *control) services(ctx context.Context, o Options, n *network) (rows []bench.Row, err error) {
	if err := bench.Step(o.Out, fmt.Sprintf("%d nodes", o.Sites*o.SiteNodes), func() error { return c.fillNodes(ctx, o) }); err != nil {
		return nil, err
	}
	filled := 0
	for _, m := range []struct {
		mode     string
		services int
	}{
		// Upstream's takes tens of minutes for what mode nftables writes in
		// seconds.
		{"iptables", o.Services / 10},
		{"nftables", o.Services},
	} {
		mode := m.mode
		err := bench.Step(o.Out, fmt.Sprintf("%d Services, %d endpoints", m.services, m.services*o.Sites), func() error { return c.fill(ctx, o, filled, m.services) })
		if err != nil {
			return rows, err
		}
		filled = m.services
		figures := map[string]*figures{}
		for _, kind := range []string{"pristine", "bin"} {
			err := bench.Step(o.Out, fmt.Sprintf("kube-proxy, %s, %s", mode, kind), func() (err error) {
				figures[kind], err = c.measure(ctx, o, n, m.services, mode, filepath.Join(o.Dist, kind, "kube-proxy"))
				return err
			})
			if err != nil {
				return rows, err
			}
			f := figures[kind]
			fmt.Fprintf(o.Out, "   first sync %.2f s, %.0f rules, RSS %.0f MiB, heap and stacks %.0f MiB\n", f.sync, f.rules, f.memory.RSS, f.memory.Anonymous)
		}
		ours, theirs := figures["bin"], figures["pristine"]
		name := func(what string) string {
			return fmt.Sprintf("kube-proxy %s, %d closed Services × %d sites, %s", mode, m.services, o.Sites, what)
		}
		rows = append(rows,
			bench.Against(name("first sync"), "s", ours.sync, theirs.sync, goal),
			bench.Against(name("rules"), "", ours.rules, theirs.rules, goal))
		if m.services != o.Services {
			continue // most of its memory is the program's
		}
		rows = append(rows,
			bench.Against(name("RSS"), "MiB", ours.memory.RSS, theirs.memory.RSS, goal),
			bench.Against(name("heap and stacks"), "MiB", ours.memory.Anonymous, theirs.memory.Anonymous, goal))
	}
	return rows, nil
}
