package undo

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// makeDirs makes folders below a new one.
func makeDirs(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func left(t *testing.T, root string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(path, root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func TestPodCgroups(t *testing.T) {
	for _, c := range []struct {
		name  string
		dirs  []string
		wants string
	}{
		{"none", nil, ""},
		{"version 2", []string{"kubepods/burstable/pod1", "system.slice"}, " /system.slice"},
		{"version 1", []string{"memory/kubepods/besteffort", "memory/mine", "pids/kubepods"}, " /memory /memory/mine /pids"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := makeDirs(t, c.dirs...)
			if err := podCgroups(context.Background(), root); err != nil {
				t.Fatal(err)
			}
			if got := left(t, root); got != c.wants {
				t.Errorf("left %q, want %q", got, c.wants)
			}
		})
	}
}

// systemd's slices are systemd's to remove.
func TestPodCgroupsOfSystemd(t *testing.T) {
	root := makeDirs(t, "kubepods.slice/kubepods-burstable.slice")
	programs := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" > " + programs + "/said\n"
	if err := os.WriteFile(filepath.Join(programs, "systemctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	if err := podCgroups(context.Background(), root); err != nil {
		t.Fatal(err)
	}
	if said, err := os.ReadFile(filepath.Join(programs, "said")); err != nil || string(said) != "stop kubepods.slice\n" {
		t.Errorf("systemctl was told %q (%v)", said, err)
	}
	if got := left(t, root); got != " /kubepods.slice /kubepods.slice/kubepods-burstable.slice" {
		t.Errorf("left %q", got)
	}
}

func TestPodCgroupsInUse(t *testing.T) {
	root := makeDirs(t, "kubepods")
	if err := os.WriteFile(filepath.Join(root, "kubepods", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := podCgroups(context.Background(), root); err == nil || !strings.Contains(err.Error(), "kubepods") {
		t.Errorf("got %v, want an error that names the group", err)
	}
}

func TestEmptyDirs(t *testing.T) {
	root := makeDirs(t, "a/b", "c/d")
	if err := os.WriteFile(filepath.Join(root, "c", "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	EmptyDirs(filepath.Join(root, "a/b"), filepath.Join(root, "a"), filepath.Join(root, "c/d"), filepath.Join(root, "c"), filepath.Join(root, "c/mine"), filepath.Join(root, "none"))
	if got := left(t, root); got != " /c /c/mine" {
		t.Errorf("left %q", got)
	}
}
