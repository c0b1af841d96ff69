package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"skerry.dev/skerry/pkg/sandbox/spec"
)

// Options of Create.
type Options struct {
	Places
	// Self is the skerry program that becomes network and machines; empty is
	// the running one.
	Self string
	// MachinesOnly stops before Kubernetes.
	MachinesOnly bool
	// KeepOnFailure leaves a sandbox that could not be made as it is.
	KeepOnFailure bool
	// Out gets a line for every step.
	Out io.Writer
}

// Create makes a sandbox and, unless told otherwise, a cluster in it. When it
// fails it leaves nothing but logs, and says where they are.
func Create(ctx context.Context, description *spec.Spec, o Options) (_ *Sandbox, err error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	s, unlock, err := prepare(description, o)
	if err != nil {
		return nil, err
	}
	defer unlock()
	began := time.Now()
	steps := &steps{out: o.Out}
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("stopped: %w", context.Cause(ctx))
		}
		if o.KeepOnFailure {
			err = fmt.Errorf("%w\nThe sandbox is kept; look into it with `skerry sandbox --name %s status`, remove it with `skerry sandbox delete --name %s`", err, s.Name(), s.Name())
			return
		}
		kept, keepErr := s.keepLogs()
		if removeErr := remove(s.dir); removeErr != nil {
			err = errors.Join(err, removeErr)
		}
		if keepErr == nil {
			err = fmt.Errorf("%w\nAll logs: %s", err, kept)
		}
	}()
	if err := arrive(s.dir, func(text string) { fmt.Fprintln(o.Out, " !", text) }); err != nil {
		return nil, err
	}
	if err := steps.run("network and machines", func() error { return s.bootAll(ctx) }); err != nil {
		return nil, err
	}
	if !o.MachinesOnly {
		if err := s.form(ctx, steps); err != nil {
			return nil, err
		}
	}
	steps.done(began)
	return s, nil
}

// prepare checks everything that can be checked before something is made, and
// makes the folder.
func prepare(description *spec.Spec, o Options) (*Sandbox, func(), error) {
	if os.Geteuid() != 0 {
		return nil, nil, errors.New("a sandbox is made of namespaces and control groups: run this as root")
	}
	places, err := FindPlaces(o.Places)
	if err != nil {
		return nil, nil, err
	}
	dist, err := openDist(places.Dist, !o.MachinesOnly)
	if err != nil {
		return nil, nil, err
	}
	self := o.Self
	if self == "" {
		if self, err = os.Executable(); err != nil {
			return nil, nil, err
		}
	}
	copied := *description
	copied.Images = slices.Clone(copied.Images)
	for i, image := range copied.Images {
		if copied.Images[i], err = filepath.Abs(image); err != nil {
			return nil, nil, err
		}
		if _, err := os.Stat(image); err != nil {
			return nil, nil, fmt.Errorf("images[%d]: %w", i, err)
		}
	}
	unlock, err := lock(places.Root, copied.Name)
	if err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(places.Root, copied.Name)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		unlock()
		return nil, nil, fmt.Errorf("sandbox %q exists; look at it with `skerry sandbox status --name %s` or remove it with `skerry sandbox delete --name %s`", copied.Name, copied.Name, copied.Name)
	}
	s := &Sandbox{Spec: &copied, dir: dir, meta: meta{Spec: &copied, Dist: dist, Self: self, Created: time.Now()}}
	if err := s.makeFolders(); err != nil {
		_ = os.RemoveAll(dir)
		unlock()
		return nil, nil, err
	}
	return s, unlock, nil
}

func (s *Sandbox) makeFolders() error {
	for _, m := range s.Spec.Machines() {
		if err := os.MkdirAll(filepath.Join(s.dir, machinesDir, m.Name), 0o750); err != nil {
			return err
		}
	}
	return errors.Join(os.MkdirAll(s.LogDir(), 0o750), s.save())
}

func (s *Sandbox) bootAll(ctx context.Context) error {
	names, err := s.MachineNames("")
	if err != nil {
		return err
	}
	return s.PowerOn(ctx, names...)
}

// steps prints a line for every step, when it ends, with the time it took.
type steps struct{ out io.Writer }

func (p *steps) run(name string, do func() error) error {
	began := time.Now()
	err := do()
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Fprintf(p.out, " %s %-44s %6.1fs\n", mark, name, time.Since(began).Seconds())
	return err
}

func (p *steps) done(began time.Time) {
	fmt.Fprintf(p.out, "   %-44s %6.1fs\n", "ready", time.Since(began).Seconds())
}
