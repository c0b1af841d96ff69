//go:build e2e

package install

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"skerry.dev/skerry/test/sandbox"
)

// picture is everything that init and join change of a machine: how often each
// line was found.
type picture map[string]int

// inside lists what only a process in the machine can see.
const inside = `
awk '{print "mount " $4 " on " $5}' /proc/1/mountinfo
ip -o link | awk '{sub("@.*", "", $2); print "link " $2}'
ip -o address | awk '{print "address " $4 " of " $2}'
ip route show table all | sed 's/^/route /'
ip rule | sed 's/^/routing rule /'
nft list ruleset | sed 's/^[ \t]*/nftables: /'
find /sys/fs/cgroup -type d | sed 's/^/control group /'
find /run /tmp /dev -xdev | sed 's/^/file /'
`

// others lists what other programs make once for their own use, and the kernel
// whenever it likes: routes of link-local addresses; the tables of iptables,
// which stay when their rules go; the lock of iptables and the state of mount;
// the folder that kube-proxy's manifest mounts, where a host has no modules.
var others = regexp.MustCompile(`^(` + strings.Join([]string{
	`route .*fe80.*`,
	`nftables:( (table ip6? (filter|nat|mangle) \{|chain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) \{|type .* policy accept;|\}))?`,
	`file /run/(xtables.lock|mount|mount/utab.*)`,
	`disk \S+ /usr/upper/lib/modules`,
}, "|") + `)$`)

// look takes a picture of a machine.
func look(t *testing.T, n *sandbox.Node) picture {
	t.Helper()
	p := picture{}
	defer maps.DeleteFunc(p, func(line string, _ int) bool { return others.MatchString(line) })
	for line := range strings.Lines(n.Shell("set -e" + inside)) {
		p[strings.TrimSpace(line)]++
	}
	pids, err := n.Config().Cgroup.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil { // it still runs
			p["process "+strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))]++
		}
	}
	if err := p.addDisk(filepath.Dir(n.Config().Disk())); err != nil {
		t.Fatal(err)
	}
	return p
}

// addDisk adds the files of the machine's disk, except logs, with mode and
// content. The layer over /usr is part of it; what else the kernel keeps of
// that layer is not.
func (p picture) addDisk(disk string) error {
	return filepath.WalkDir(disk, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, disk)
		if name == "/root/var/log" || name == "/usr/work" {
			return filepath.SkipDir
		}
		if changed, ok := strings.CutPrefix(name, "/usr/upper"); ok && d.IsDir() {
			if _, err := os.Stat(filepath.Join("/usr", changed)); err == nil {
				return nil // below it is something new; it is not itself
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("disk %s %s", info.Mode(), name)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %.8x", sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + target
		}
		p[line]++
		return nil
	})
}

// diff lists what came and what went since before.
func (p picture) diff(before picture) []string {
	all := maps.Clone(before)
	maps.Copy(all, p)
	var lines []string
	for _, line := range slices.Sorted(maps.Keys(all)) {
		switch n := p[line] - before[line]; {
		case n > 0:
			lines = append(lines, fmt.Sprintf("new: %s (%d)", line, n))
		case n < 0:
			lines = append(lines, fmt.Sprintf("gone: %s (%d)", line, -n))
		}
	}
	return lines
}
