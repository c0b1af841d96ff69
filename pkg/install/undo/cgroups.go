package undo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// exitTimeout bounds how long the processes of containers that have been
	// killed may take to leave their control groups.
	exitTimeout = 10 * time.Second
)

// PodCgroups removes the control groups that the kubelet makes for pods and
// leaves behind. Nothing may run in them any more.
func PodCgroups(ctx context.Context) error { return podCgroups(ctx, cgroupRoot) }

func podCgroups(ctx context.Context, root string) error {
	// Version 2 of control groups, or each hierarchy of version 1. Under systemd
	// they are a slice, which systemd removes with all slices in it.
	managed, err := globs(filepath.Join(root, "kubepods.slice"), filepath.Join(root, "*", "kubepods.slice"))
	if err != nil {
		return err
	}
	if len(managed) > 0 {
		if _, err := run(ctx, nil, "systemctl", "stop", "kubepods.slice"); err != nil {
			return err
		}
	}
	groups, err := globs(filepath.Join(root, "kubepods"), filepath.Join(root, "*", "kubepods"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exitTimeout)
	defer cancel()
	for _, group := range groups {
		if err := removeGroups(ctx, group); err != nil {
			return fmt.Errorf("removing the control groups of pods: %w; something runs in them still, run reset again", err)
		}
	}
	return nil
}

func globs(patterns ...string) ([]string, error) {
	var all []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("looking for the control groups of pods: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// removeGroups removes a control group and those in it: folders that cannot be
// removed with what is in them, because the files in them cannot.
func removeGroups(ctx context.Context, group string) error {
	var dirs []string
	err := filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	slices.Reverse(dirs)
	for _, dir := range dirs {
		for {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}
