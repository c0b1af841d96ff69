package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestControllers(t *testing.T) {
	for options, want := range map[string]string{
		"rw,cpu,cpuacct": "cpu,cpuacct", "rw,xattr,name=systemd": "name=systemd", "rw,xattr,release_agent=/x,name=systemd": "name=systemd",
		"ro,cpuset,cpuset_v2_mode": "cpuset", "rw,net_cls,net_prio": "net_cls,net_prio",
	} {
		if got := controllers(options); got != want {
			t.Errorf("%s: got %q, want %q", options, got, want)
		}
	}
	h := Hierarchy{Controllers: "cpu,cpuacct"}
	if !h.Has("cpu") || !h.Has("cpuacct") || h.Has("cpus") || h.Has("") {
		t.Error("Has is wrong")
	}
}

func TestRemoveTreeGoesFromTheLeavesAndKeepsFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	if err := os.MkdirAll(filepath.Join(dir, "b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if err := removeTree(dir); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

func TestOnlyWhatIsWantedAndOffIsSwitchedOn(t *testing.T) {
	for _, c := range []struct{ has, on, want string }{
		{"cpuset cpu io memory hugetlb pids rdma misc\n", "", "cpuset cpu io memory pids hugetlb"},
		{"cpuset cpu io memory hugetlb pids rdma misc\n", "cpu memory pids\n", "cpuset io hugetlb"},
		{"cpuset cpu io memory pids\n", "cpuset cpu io memory pids\n", ""},
		{"\n", "\n", ""},
	} {
		dir := t.TempDir()
		for file, text := range map[string]string{"cgroup.controllers": c.has, "cgroup.subtree_control": c.on} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := missing(dir); err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("has %q, passes on %q: missing are %q, %v; want %q", c.has, c.on, got, err, c.want)
		}
	}
	if _, err := missing(t.TempDir()); err == nil {
		t.Error("a folder that is no control group")
	}
}
