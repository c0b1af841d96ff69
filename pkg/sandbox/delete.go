package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/process"
)

const killTimeout = 30 * time.Second

// Delete ends everything of a sandbox and removes its folder. It needs no
// intact state: a sandbox that was half made is deleted all the same.
func Delete(root, name string) error {
	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		_, err := Open(root, name)
		return err
	}
	unlock, err := lock(root, name)
	if err != nil {
		return err
	}
	defer unlock()
	return remove(dir)
}

// remove does the work of Delete for a folder whose lock is held.
func remove(dir string) error {
	if err := stop(dir); err != nil {
		return fmt.Errorf("deleting sandbox %q: %w (its folder %s is kept; try again)", filepath.Base(dir), err, dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("deleting sandbox %q: %w", filepath.Base(dir), err)
	}
	return depart()
}

// stop ends all processes of a sandbox and removes their control groups.
func stop(dir string) error {
	all := group(dir)
	entries, err := os.ReadDir(filepath.Join(dir, machinesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	errs := make([]error, len(entries))
	var wg sync.WaitGroup
	for i, e := range entries {
		m := machine.Config{Name: e.Name(), Dir: filepath.Join(dir, machinesDir, e.Name()), Cgroup: all + cgroup.Group("/"+e.Name())}
		wg.Go(func() { errs[i] = m.PowerOff() })
	}
	if id, runs := fabricProcess(dir); runs {
		errs = append(errs, id.Kill(killTimeout, nil))
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Whatever is still in our control groups is ours too, on record or not:
	// a process that was started a moment before the power went.
	pids, err := all.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if id, err := process.Find(pid); err == nil {
			if err := id.Kill(killTimeout, nil); err != nil {
				return err
			}
		}
	}
	return all.Remove(killTimeout)
}
