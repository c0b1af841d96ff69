package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
)

// buildRoot makes the machine's file system and moves into it. All of it lives
// in the mount namespace of this process and ends with it.
func (c Config) buildRoot() error {
	// First of all: nothing that follows may reach the host.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root := c.Disk()
	if err := mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, step := range []func(string) error{c.mountUsr, c.lend, mountProc, mountSys, mountDev, c.mountRun, c.disguise} {
		if err := step(root); err != nil {
			return err
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("making %s the root: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// kubelet needs mounts to propagate between it and containers.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// mountUsr lays a writable layer of the machine's disk over the host's
// programs.
func (c Config) mountUsr(root string) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("the kernel has no overlay file system: %w", err)
	}
	defer unix.Close(fsfd)
	usr := filepath.Join(c.Dir, diskDir, "usr")
	for _, o := range [][2]string{{"lowerdir", "/usr"}, {"upperdir", filepath.Join(usr, "upper")}, {"workdir", filepath.Join(usr, "work")}, {"source", "usr"}} {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return fmt.Errorf("overlay on /usr: %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("overlay on /usr (the sandbox's folder must be on a disk file system such as ext4, xfs or btrfs, not on overlay): %w", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("overlay on /usr: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, filepath.Join(root, "usr"), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("overlay on /usr: %w", err)
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if err := mirror("/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

// mirror makes /bin and its like what they are on the host: links into /usr,
// or folders.
func mirror(host, path string) error {
	info, err := os.Lstat(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSymlink == 0 {
		return bindReadOnly(host, path)
	}
	target, err := os.Readlink(host)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// lend mounts what the product brings.
func (c Config) lend(root string) error {
	if err := bindReadOnly(c.Programs, filepath.Join(root, "usr/local/bin")); err != nil {
		return err
	}
	if err := bindReadOnly(c.Plugins, filepath.Join(root, "opt/cni/bin")); err != nil {
		return err
	}
	dir := filepath.Join(root, "var/lib/skerry/images")
	// Archives of the last boot, which may be other ones.
	old, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range old {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	for _, image := range c.Images {
		file := filepath.Join(dir, filepath.Base(image))
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			return err
		}
		if err := bindReadOnly(image, file); err != nil {
			return err
		}
	}
	return nil
}

func mountProc(root string) error {
	dir := filepath.Join(root, "proc")
	return mount("proc", dir, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// mountSys mounts /sys of the machine's own network, and in it the control
// groups with the machine's own group as root.
func mountSys(root string) error {
	sys := filepath.Join(root, "sys")
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	if err := mount("sysfs", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	top := filepath.Join(sys, "fs/cgroup")
	if cgroup.Unified() {
		if err := mount("cgroup2", top, "cgroup2", flags, ""); err != nil {
			return err
		}
		return cgroup.PassOn(top)
	}
	if err := mount("cgroup", top, "tmpfs", flags, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := filepath.Join(top, filepath.Base(h.Mount))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", dir, "cgroup", flags, h.Controllers); err != nil {
			return err
		}
	}
	return nil
}

// devices of a machine. kubelet reads the kernel's log; the rest is what every
// Linux has, and what pods of tests ask for.
var devices = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"kmsg", 1, 11},
	{"tty", 5, 0}, {"fuse", 10, 229}, {"net/tun", 10, 200},
}

func mountDev(root string) error {
	dev := filepath.Join(root, "dev")
	if err := mount("dev", dev, "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, d := range []string{"pts", "shm", "mqueue", "net"} {
		if err := os.Mkdir(filepath.Join(dev, d), 0o755); err != nil {
			return err
		}
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range devices {
		if err := unix.Mknod(filepath.Join(dev, d.name), unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("making device /dev/%s: %w", d.name, err)
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx", "core": "/proc/kcore"} {
		if err := os.Symlink(target, filepath.Join(dev, link)); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := mount("devpts", filepath.Join(dev, "pts"), "devpts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	if err := mount("shm", filepath.Join(dev, "shm"), "tmpfs", flags|unix.MS_NODEV, "mode=1777,size=64m"); err != nil {
		return err
	}
	// Kernels without POSIX queues exist, and nothing here needs them.
	if err := mount("mqueue", filepath.Join(dev, "mqueue"), "mqueue", flags|unix.MS_NODEV, ""); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// mountRun mounts what a reboot empties.
func (c Config) mountRun(root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := mount("run", filepath.Join(root, "run"), "tmpfs", flags, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"lock", "skerry"} {
		if err := os.Mkdir(filepath.Join(root, "run", dir), 0o755); err != nil {
			return err
		}
	}
	return mount("tmp", filepath.Join(root, "tmp"), "tmpfs", flags, "mode=1777")
}

// disguise puts files of the machine in front of those kernel files that would
// speak of the host, or change it: the boot id; memory when it is bounded;
// swap, which kubelet refuses; the file that stops the host; and the settings
// that kubelet makes for the whole kernel, already at the values it wants.
func (c Config) disguise(root string) error {
	files := map[string]string{
		"proc/sys/kernel/random/boot_id":     c.BootID() + "\n",
		"proc/sysrq-trigger":                 "",
		"proc/swaps":                         "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
		"proc/sys/vm/overcommit_memory":      "1\n",
		"proc/sys/vm/panic_on_oom":           "0\n",
		"proc/sys/kernel/panic":              "10\n",
		"proc/sys/kernel/panic_on_oops":      "1\n",
		"proc/sys/kernel/keys/root_maxkeys":  "1000000\n",
		"proc/sys/kernel/keys/root_maxbytes": "25000000\n",
		"sys/class/dmi/id/product_uuid":      c.BootID() + "\n",
	}
	if id, err := os.ReadFile(filepath.Join(root, "etc/machine-id")); err == nil {
		files["sys/class/dmi/id/product_uuid"] = string(id)
	}
	if c.Memory > 0 {
		text, err := boundedMeminfo(c.Memory)
		if err != nil {
			return err
		}
		files["proc/meminfo"] = text
	}
	dir := filepath.Join(root, "run/skerry/kernel")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		target := filepath.Join(root, name)
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
		if err := mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// boundedMeminfo is the kernel's table with the machine's share as the total.
func boundedMeminfo(limit int64) (string, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	kib := strconv.FormatInt(limit>>10, 10)
	var text strings.Builder
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, _, _ := strings.Cut(lines.Text(), ":")
		switch key {
		case "MemTotal", "MemFree", "MemAvailable":
			fmt.Fprintf(&text, "%-15s %8s kB\n", key+":", kib)
		case "SwapTotal", "SwapFree", "SwapCached":
			fmt.Fprintf(&text, "%-15s %8s kB\n", key+":", "0")
		default:
			text.WriteString(lines.Text() + "\n")
		}
	}
	return text.String(), lines.Err()
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}

// bindReadOnly mounts a file or folder of the host, making the target.
func bindReadOnly(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}
