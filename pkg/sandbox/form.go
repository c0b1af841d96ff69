package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/spec"
)

const (
	// joinsAtOnce is how many machines join at a time: each needs about one
	// processor for most of it.
	joinsAtOnce = 4
	initTimeout = 8 * time.Minute
	joinTimeout = 8 * time.Minute
	nodeTimeout = 5 * time.Minute
)

// form makes the cluster with the commands a user would give.
func (s *Sandbox) form(ctx context.Context, p *steps) error {
	machines := s.Spec.Machines()
	first := machines[0]
	if err := s.WriteConfigFiles(); err != nil {
		return err
	}
	err := p.run("skerry init on "+first.Name, func() error {
		return s.runLogged(ctx, initTimeout, first.Name, "skerry", "init", "--config", InitFile)
	})
	if err != nil {
		return err
	}
	if err := s.Adopt(); err != nil {
		return err
	}
	if len(machines) > 1 {
		if err := p.run(fmt.Sprintf("skerry join on %d machines", len(machines)-1), func() error { return s.joinAll(ctx, machines[1:]) }); err != nil {
			return err
		}
	}
	if err := p.run("routes to pods", func() error { return s.waitForPodRanges(ctx, len(machines)) }); err != nil {
		return err
	}
	return p.run("all nodes Ready, cluster DNS available", func() error { return s.waitReady(ctx, len(machines)) })
}

// runLogged runs a command in a machine with its output in a log file. The
// error holds the end of it.
func (s *Sandbox) runLogged(ctx context.Context, timeout time.Duration, name string, args ...string) error {
	file := filepath.Join(s.LogDir(), fmt.Sprintf("%s-%s.log", name, args[1]))
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := s.run(ctx, timeout, name, out, out, args...); err != nil {
		return fmt.Errorf("`%s` on %s failed: %w\n%s", strings.Join(args[:2], " "), name, err, indent(tail(file, 12)))
	}
	return nil
}

func indent(lines []string) string { return "    " + strings.Join(lines, "\n    ") }

// run runs a command in a machine, bounded in time.
func (s *Sandbox) run(ctx context.Context, timeout time.Duration, name string, stdout, stderr io.Writer, args ...string) error {
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd, err := m.Start(machine.Command{Args: args, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("not done after %s: %w", timeout, context.Cause(ctx))
	}
	return err
}

// Output runs a command in a machine and returns what it printed.
func (s *Sandbox) Output(ctx context.Context, timeout time.Duration, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	if err := s.run(ctx, timeout, name, &stdout, &stderr, args...); err != nil {
		text := strings.TrimSpace(stderr.String() + "\n" + stdout.String())
		return stdout.String(), fmt.Errorf("%s on %s: %w: %s", args[0], name, err, text)
	}
	return stdout.String(), nil
}

// joinAll joins machines, each with the token of its site.
func (s *Sandbox) joinAll(ctx context.Context, machines []spec.Machine) error {
	first := s.Spec.Machines()[0]
	hash, err := s.caHash()
	if err != nil {
		return err
	}
	tokens := map[string]string{}
	for _, m := range machines {
		if tokens[m.Site] != "" {
			continue
		}
		args := []string{"skerry", "token", "create"}
		if !m.Cloud() {
			args = append(args, "--site", m.Site)
		}
		out, err := s.Output(ctx, time.Minute, first.Name, args...)
		if err != nil {
			return err
		}
		tokens[m.Site] = strings.TrimSpace(out)
	}
	// The first failure ends the others: their errors would hide it.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, joinsAtOnce)
	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			err := s.runLogged(ctx, joinTimeout, m.Name, "skerry", "join", apiEndpoint(first), "--token", tokens[m.Site],
				"--discovery-token-ca-cert-hash", hash, "--config", JoinFile)
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func apiEndpoint(m spec.Machine) string { return m.Address.String() + ":6443" }

// poll calls do every 200 ms until it succeeds. The error is that of the last
// try.
func poll(ctx context.Context, timeout time.Duration, do func(context.Context) error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not done after %s: %w", timeout, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// waitForPodRanges routes pods as soon as every node has been given its range.
func (s *Sandbox) waitForPodRanges(ctx context.Context, nodes int) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	return poll(ctx, nodeTimeout, func(ctx context.Context) error {
		list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(list.Items) < nodes {
			return fmt.Errorf("%d of %d nodes have registered", len(list.Items), nodes)
		}
		for _, n := range list.Items {
			if len(n.Spec.PodCIDRs) == 0 {
				return fmt.Errorf("node %s has no pod range yet", n.Name)
			}
		}
		return s.RoutePods(ctx)
	})
}

func (s *Sandbox) waitReady(ctx context.Context, nodes int) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	return poll(ctx, nodeTimeout, func(ctx context.Context) error {
		conditions, err := s.nodeConditions(ctx)
		if err != nil {
			return err
		}
		ready := 0
		for name, c := range conditions {
			if c != "Ready" {
				err = fmt.Errorf("node %s is %s (see its log: skerry sandbox logs %s kubelet)", name, c, name)
				continue
			}
			ready++
		}
		if ready < nodes {
			return fmt.Errorf("%d of %d nodes are Ready: %w", ready, nodes, err)
		}
		dns, err := client.AppsV1().DaemonSets("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if available := int(dns.Status.NumberAvailable); available < nodes {
			return fmt.Errorf("CoreDNS is available on %d of %d nodes", available, nodes)
		}
		return nil
	})
}
