package machine

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// folders of a fresh disk. The machine has nothing of the host but /usr.
var folders = []struct {
	path string
	mode os.FileMode
}{
	{"dev", 0o755}, {"etc", 0o755}, {"home", 0o755}, {"media", 0o755}, {"mnt", 0o755}, {"opt/cni/bin", 0o755},
	{"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"srv", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}, {"usr", 0o755},
	{"var/cache", 0o755}, {"var/lib", 0o755}, {"var/lib/skerry/images", 0o755}, {"var/log/skerry", 0o755},
	{"var/spool", 0o755}, {"var/tmp", 0o1777}, {"etc/skerry/units", 0o755},
}

// fromHost lists the parts of the host's /etc that its programs need: accounts,
// the dynamic linker, names of services, certificates. Everything else, secrets
// and another cluster's files among it, stays out.
var fromHost = []string{
	"passwd", "group", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols", "ethertypes", "networks", "rpc",
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "ca-certificates",
	"ca-certificates.conf", "pki/tls/certs", "pki/ca-trust", "bash.bashrc", "profile", "inputrc", "terminfo", "iproute2",
	"localtime", "timezone", "os-release", "debian_version", "issue", "login.defs", "shells", "mke2fs.conf", "nftables.conf",
	"xattr.conf", "protocols", "mime.types", "skel",
}

// prepareDisk makes the disk on the first boot, and on every boot writes the
// files that may change between two.
func (c Config) prepareDisk() error {
	root := c.Disk()
	if _, err := os.Stat(filepath.Join(root, "etc/machine-id")); errors.Is(err, fs.ErrNotExist) {
		if err := c.formatDisk(); err != nil {
			return fmt.Errorf("making the disk: %w", err)
		}
	}
	names := slices.Sorted(maps.Keys(c.Hosts))
	hosts := &strings.Builder{}
	fmt.Fprintf(hosts, "127.0.0.1\tlocalhost\n")
	for _, name := range names {
		fmt.Fprintf(hosts, "%s\t%s\n", c.Hosts[name], name)
	}
	id, err := newUUID()
	if err != nil {
		return err
	}
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	for file, content := range map[string]string{
		filepath.Join(root, "etc/hostname"):    c.Name + "\n",
		filepath.Join(root, "etc/hosts"):       hosts.String(),
		filepath.Join(root, "etc/resolv.conf"): "nameserver " + c.Gateway + "\n",
		filepath.Join(c.Dir, bootIDFile):       id + "\n",
		filepath.Join(c.Dir, configFile):       string(config),
	} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) formatDisk() error {
	root := c.Disk()
	for _, d := range folders {
		path := filepath.Join(root, d.path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, d.mode.Perm()|stickyIf(d.mode)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, diskDir, "usr", dir), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, name := range fromHost {
		if err := copyTree(filepath.Join("/etc", name), filepath.Join(root, "etc", name)); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte(hex.EncodeToString(id)+"\n"), 0o444)
}

func stickyIf(m os.FileMode) os.FileMode {
	if m&0o1000 != 0 {
		return os.ModeSticky
	}
	return 0
}

// copyTree copies files, folders and links that the host's /etc may have;
// anything else, and what is missing, is left out.
func copyTree(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case info.IsDir():
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(to, info.Mode().Perm()); err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyTree(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	case info.Mode().IsRegular():
		return copyFile(from, to, info.Mode().Perm())
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// newUUID makes a random UUID, the form of a kernel's boot id.
func newUUID() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}
