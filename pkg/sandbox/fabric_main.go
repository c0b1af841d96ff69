package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/machine"
)

// FabricCommand is the hidden subcommand that is a sandbox's network.
const FabricCommand = "fabric"

// RunFabric is the network of the sandbox in dir, until ctx ends.
func RunFabric(ctx context.Context, dir string) error {
	s, err := Open(filepath.Dir(dir), filepath.Base(dir))
	if err != nil {
		return err
	}
	// Not in the group of whoever started us: it may be bounded, or killed.
	own := group(dir) + cgroup.Group("/fabric")
	if err := own.Create(0); err != nil {
		return err
	}
	if err := own.Join(os.Getpid()); err != nil {
		return err
	}
	config := fabric.Config{
		Dir: dir, Self: s.meta.Self, Spec: s.Spec, Machines: map[string]machine.Config{}, APIPort: s.meta.APIPort,
		Seed: uint64(time.Now().UnixNano()),
	}
	for _, m := range s.Spec.Machines() {
		config.Machines[m.Name] = s.machineConfig(m)
	}
	stateFile := filepath.Join(dir, fabricState)
	if err := readJSON(stateFile, &config.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fabric.New(ctx, config, log.New(os.Stderr, "", log.LstdFlags|log.LUTC))
	if err != nil {
		return err
	}
	return f.Serve(ctx, func(state fabric.State) error { return writeJSON(stateFile, state) })
}
