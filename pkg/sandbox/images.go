package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/sandbox/machine"
)

// importsAtOnce bounds the work for the host's disk.
const importsAtOnce = 3

// Load imports an image archive on machines.
func (s *Sandbox) Load(ctx context.Context, archive string, names ...string) error {
	if _, err := os.Stat(archive); err != nil {
		return err
	}
	slots := make(chan struct{}, importsAtOnce)
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := s.load(ctx, archive, name); err != nil {
				errs[i] = fmt.Errorf("importing %s on %s: %w", archive, name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Sandbox) load(ctx context.Context, archive, name string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	var said limited
	cmd, err := m.Start(machine.Command{Args: []string{"ctr", "-n", "k8s.io", "images", "import", "-"}, Stdin: f, Stdout: &said, Stderr: &said})
	if err != nil {
		return err
	}
	timer := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, said.text)
	}
	return nil
}

// limited keeps the first part of what a command says.
type limited struct{ text []byte }

func (l *limited) Write(p []byte) (int, error) {
	const most = 4096
	l.text = append(l.text, p[:min(len(p), most-len(l.text))]...)
	return len(p), nil
}

// Environment is what a command in the machine finds beside the machine's own:
// on the control plane, the way to the API server.
func (s *Sandbox) Environment(name string) []string {
	if s.Spec.Machines()[0].Name != name {
		return nil
	}
	return []string{"KUBECONFIG=/etc/kubernetes/admin.conf"}
}
