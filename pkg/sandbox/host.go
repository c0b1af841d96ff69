package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
)

const (
	// hostDir holds what sandboxes must know of each other, whatever their
	// folders.
	hostDir = "/run/skerry-sandbox"
	// A node's programs watch about a dozen places, a control plane's forty;
	// the kernel's default for all machines together is 128.
	watchLimit  = "/proc/sys/fs/inotify/max_user_instances"
	wantWatches = 8192
	// controllersFile is in hostDir: what was switched on at the root of
	// version 2 control groups.
	controllersFile = "cgroup-controllers"
)

// hostLock holds for the moments in which a first sandbox comes or a last one
// goes.
func hostLock() (func(), error) { return lockFile("/run/lock/skerry-sandbox", 0) }

// arrive prepares the host for a sandbox: it raises the one limit of the
// kernel that is too low, and has control groups where they are not passed on.
// Again is the same as once. note gets what the user should know.
func arrive(dir string, note func(string)) error {
	unlock, err := hostLock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := recordControllers(); err != nil {
		return err
	}
	// From now on the host is in use.
	if err := group(dir).Create(0); err != nil {
		return err
	}
	now, err := readNumber(watchLimit)
	if err != nil || now >= wantWatches {
		return err
	}
	if err := os.MkdirAll(hostDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(hostDir, filepath.Base(watchLimit)), []byte(strconv.Itoa(now)), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(watchLimit, []byte(strconv.Itoa(wantWatches)), 0o644); err != nil {
		note(fmt.Sprintf("cannot raise fs.inotify.max_user_instances from %d (%v): it is enough for about %d machines", now, err, now/15))
	}
	return nil
}

// recordControllers notes which controllers the first group will switch on.
func recordControllers() error {
	names, err := cgroup.MissingAtRoot()
	if err != nil || len(names) == 0 {
		return err
	}
	if err := os.MkdirAll(hostDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(hostDir, controllersFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, strings.Join(names, " "))
	return errors.Join(err, f.Close())
}

// depart undoes arrive when the last sandbox of the host is gone.
func depart() error {
	unlock, err := hostLock()
	if err != nil {
		return err
	}
	defer unlock()
	if !cgroup.Group(cgroupTop).RemoveIfEmpty() {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(hostDir, controllersFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := cgroup.DisableAtRoot(strings.Fields(string(controllers))); err != nil {
		return fmt.Errorf("restoring the host's control groups: %w", err)
	}
	saved := filepath.Join(hostDir, filepath.Base(watchLimit))
	before, err := readNumber(saved)
	if err == nil {
		if now, err := readNumber(watchLimit); err == nil && now == wantWatches {
			if err := os.WriteFile(watchLimit, []byte(strconv.Itoa(before)), 0o644); err != nil {
				return fmt.Errorf("restoring a limit of the host: %w", err)
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(hostDir)
}

func readNumber(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", file, err)
	}
	return n, nil
}
