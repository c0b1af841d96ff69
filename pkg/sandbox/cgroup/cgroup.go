// Package cgroup makes, fills, freezes and removes control groups, the same on
// version 1 hosts (one hierarchy per controller) and version 2 hosts (one
// tree). It knows nothing of machines and sandboxes but the paths it is given.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const mountPoint = "/sys/fs/cgroup"

// Leaf is where the processes of a group live on version 2 after PassOn: it
// allows no processes beside child groups.
const Leaf = "init"

// Hierarchy is one mounted tree of groups.
type Hierarchy struct {
	Controllers string // "cpu,cpuacct", "name=systemd"; empty on version 2
	Mount       string // where it is mounted
}

// Unified reports whether the host has version 2 only.
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(mountPoint, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Hierarchies lists the trees that a machine needs: all of version 1, or the
// one of version 2. On a host with both, version 2 has no controllers and is
// left out.
func Hierarchies() ([]Hierarchy, error) {
	if Unified() {
		return []Hierarchy{{Mount: mountPoint}}, nil
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Hierarchy
	for lines := bufio.NewScanner(f); lines.Scan(); {
		left, right, _ := strings.Cut(lines.Text(), " - ")
		mount, super := strings.Fields(left), strings.Fields(right)
		if len(mount) < 5 || len(super) < 3 || super[0] != "cgroup" || !strings.HasPrefix(mount[4], mountPoint+"/") {
			continue
		}
		all = append(all, Hierarchy{Controllers: controllers(super[2]), Mount: mount[4]})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no control groups are mounted under %s; mount them (package cgroupfs-mount does) and try again", mountPoint)
	}
	return all, nil
}

// controllers drops from a mount's options what does not name a controller.
func controllers(options string) string {
	var names []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode":
			continue
		}
		if !strings.HasPrefix(o, "release_agent=") {
			names = append(names, o)
		}
	}
	return strings.Join(names, ",")
}

// Has reports whether the hierarchy has the controller.
func (h Hierarchy) Has(controller string) bool {
	for c := range strings.SplitSeq(h.Controllers, ",") {
		if c == controller {
			return true
		}
	}
	return false
}

// Group is one path, such as "skerry/default/east-1", in all hierarchies.
type Group string

// Create makes the group and its parents. memory in bytes bounds it; 0 does not.
func (g Group) Create(memory int64) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := g.createIn(h); err != nil {
			return fmt.Errorf("making control group %s in %s: %w", g, h.Mount, err)
		}
	}
	if memory == 0 {
		return nil
	}
	return g.write("memory", "memory.limit_in_bytes", "memory.max", strconv.FormatInt(memory, 10))
}

func (g Group) createIn(h Hierarchy) error {
	dir := h.Mount
	for part := range strings.SplitSeq(string(g), "/") {
		if h.Controllers == "" {
			if err := enableControllers(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if !h.Has("cpuset") {
			continue
		}
		// A version 1 cpuset starts empty, and an empty one takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// wanted are the controllers of version 2 that a node needs, where the kernel
// has them.
var wanted = []string{"cpuset", "cpu", "io", "memory", "pids", "hugetlb"}

// missing lists the wanted controllers that a version 2 group has and does not
// pass on to its children.
func missing(dir string) ([]string, error) {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	has, passes := strings.Fields(string(available)), strings.Fields(string(on))
	return slices.DeleteFunc(slices.Clone(wanted), func(c string) bool {
		return !slices.Contains(has, c) || slices.Contains(passes, c)
	}), nil
}

// enableControllers passes the wanted controllers of a version 2 group on to
// its children.
func enableControllers(dir string) error {
	names, err := missing(dir)
	if err != nil {
		return err
	}
	for _, c := range names {
		if err := switchController(dir, "+"+c); err != nil {
			return err
		}
	}
	return nil
}

func switchController(dir, change string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(change), 0o644)
	if errors.Is(err, unix.EBUSY) && change[0] == '+' {
		return fmt.Errorf("control group %s has processes of its own, so it cannot pass on a controller (%s): this is a container's cgroup root; run on the host itself, or move the processes to a child group first: %w", dir, change, err)
	}
	if err != nil {
		return fmt.Errorf("switching controller %s of control group %s: %w", change, dir, err)
	}
	return nil
}

// MissingAtRoot lists the controllers that Create will switch on in the host's
// root group: none on version 1.
func MissingAtRoot() ([]string, error) {
	if !Unified() {
		return nil, nil
	}
	return missing(mountPoint)
}

// DisableAtRoot switches off controllers that Create switched on. One that
// others pass on by now stays.
func DisableAtRoot(names []string) error {
	if !Unified() {
		return nil
	}
	for _, c := range names {
		if err := switchController(mountPoint, "-"+c); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// PassOn lets the group that is the root of the version 2 tree mounted at dir
// have controllers in its children. The calling process, the only one in it,
// moves to the leaf.
func PassOn(dir string) error {
	leaf := filepath.Join(dir, Leaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("moving to control group %s: %w", leaf, err)
	}
	return enableControllers(dir)
}

// Join moves the process into the group; 0 means the calling one.
func (g Group) Join(pid int) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		file := filepath.Join(h.Mount, string(g), "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("moving process %d into control group %s: %w", pid, g, err)
		}
	}
	return nil
}

// JoinThread prepares the calling thread, which must be locked and end soon,
// and attr so that a process started from it with attr is in the group. The
// returned function frees what attr holds, once the process has started.
func (g Group) JoinThread(attr *syscall.SysProcAttr) (func(), error) {
	all, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	if Unified() {
		dir, err := os.Open(filepath.Join(mountPoint, string(g), Leaf))
		if err != nil {
			return nil, err
		}
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
		return func() { dir.Close() }, nil
	}
	for _, h := range all {
		file := filepath.Join(h.Mount, string(g), "tasks")
		if err := os.WriteFile(file, []byte(strconv.Itoa(unix.Gettid())), 0o644); err != nil {
			return nil, fmt.Errorf("entering control group %s: %w", g, err)
		}
	}
	return func() {}, nil
}

// write sets one value, under its name in version 1 or 2.
func (g Group) write(controller, v1, v2, value string) error {
	file, err := g.file(controller, v1, v2)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("control group %s: writing %q: %w", g, value, err)
	}
	return nil
}

func (g Group) file(controller, v1, v2 string) (string, error) {
	if Unified() {
		return filepath.Join(mountPoint, string(g), v2), nil
	}
	all, err := Hierarchies()
	if err != nil {
		return "", err
	}
	for _, h := range all {
		if h.Has(controller) {
			return filepath.Join(h.Mount, string(g), v1), nil
		}
	}
	return "", fmt.Errorf("this host has no %s control groups", controller)
}

// Memory is what the group uses, in bytes, without the page cache that could
// be dropped.
func (g Group) Memory() (int64, error) {
	usage, err := g.file("memory", "memory.usage_in_bytes", "memory.current")
	if err != nil {
		return 0, err
	}
	total, err := os.ReadFile(usage)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(total)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", usage, err)
	}
	stat, err := os.ReadFile(filepath.Join(filepath.Dir(usage), "memory.stat"))
	if err != nil {
		return 0, err
	}
	key := "total_inactive_file"
	if Unified() {
		key = "inactive_file"
	}
	for line := range strings.Lines(string(stat)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			cache, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading %s of %s: %w", key, g, err)
			}
			n -= cache
		}
	}
	return max(n, 0), nil
}

// Freeze stops all processes of the group and below; Thaw lets them go on. Both
// wait until it is so.
func (g Group) Freeze(timeout time.Duration) error { return g.freezer(true, timeout) }

// Thaw undoes Freeze. A group that does not exist is not frozen.
func (g Group) Thaw(timeout time.Duration) error {
	frozen, err := g.Frozen()
	if err != nil || !frozen {
		return err
	}
	return g.freezer(false, timeout)
}

func (g Group) freezer(frozen bool, timeout time.Duration) error {
	v1, v2 := "THAWED", "0"
	if frozen {
		v1, v2 = "FROZEN", "1"
	}
	value := v1
	if Unified() {
		value = v2
	}
	deadline := time.Now().Add(timeout)
	for {
		// Version 1 must be told again while processes are being born.
		if err := g.write("freezer", "freezer.state", "cgroup.freeze", value); err != nil {
			return err
		}
		state, err := g.freezerState()
		if err != nil {
			return err
		}
		if state == v1 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("control group %s is %s, not %s, after %s", g, state, v1, timeout)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Frozen reports whether the group is frozen, or about to be.
func (g Group) Frozen() (bool, error) {
	state, err := g.freezerState()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && state != "THAWED", err
}

// freezerState is FROZEN, FREEZING or THAWED.
func (g Group) freezerState() (string, error) {
	file, err := g.file("freezer", "freezer.state", "cgroup.events")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if !Unified() {
		return strings.TrimSpace(string(data)), nil
	}
	if strings.Contains(string(data), "frozen 1") {
		return "FROZEN", nil
	}
	return "THAWED", nil
}

// Remove removes the group and all below it, waiting for the processes in it
// to end. A group that does not exist is removed.
func (g Group) Remove(timeout time.Duration) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	for _, h := range all {
		dir := filepath.Join(h.Mount, string(g))
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("removing control group %s: %w", dir, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// RemoveIfEmpty removes the group unless something is below it, and reports
// whether it is gone.
func (g Group) RemoveIfEmpty() bool {
	all, err := Hierarchies()
	if err != nil {
		return false
	}
	gone := true
	for _, h := range all {
		if err := unix.Rmdir(filepath.Join(h.Mount, string(g))); err != nil && !errors.Is(err, unix.ENOENT) {
			gone = false
		}
	}
	return gone
}

// removeTree removes from the leaves up; the files in a group are not files.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Processes lists the processes of the group and below.
func (g Group) Processes() ([]int, error) {
	all, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	var pids []int
	err = filepath.WalkDir(filepath.Join(all[0].Mount, string(g)), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}
