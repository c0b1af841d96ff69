package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Host is everything a sandbox could leave behind, as it is at one moment.
type Host map[string]bool

// LookAtHost takes a picture. marks are strings that tell the sandbox's
// processes and mounts from those of others: its folder, its name.
func LookAtHost(t testing.TB, marks ...string) Host {
	t.Helper()
	h := Host{}
	for _, look := range []func(Host, []string) error{processes, mounts, groups, links, rules, tables, settings} {
		if err := look(h, marks); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// Diff lists what came and what went since before.
func (h Host) Diff(before Host) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(h)) {
		if !before[k] {
			all = append(all, "new: "+k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if !h[k] {
			all = append(all, "gone: "+k)
		}
	}
	return all
}

func marked(text string, marks []string) bool {
	return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) })
}

// processes finds those that run, sit or are grouped in the sandbox.
func processes(h Host, marks []string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" || e.Name() == fmt.Sprint(os.Getpid()) {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		mounted, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if marked(string(group), marks) || marked(string(mounted), marks) || strings.Contains(string(line), "skerry\x00sandbox") && marked(string(line), marks) {
			network, _ := os.Readlink(filepath.Join(dir, "ns/net"))
			h[fmt.Sprintf("process %s %q in %s", e.Name(), strings.ReplaceAll(string(line), "\x00", " "), network)] = true
		}
	}
	return nil
}

func mounts(h Host, marks []string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Any named network namespace would be a mount too.
		if text := lines.Text(); marked(text, marks) || strings.Contains(text, "nsfs") {
			h["mount "+text] = true
		}
	}
	return lines.Err()
}

func groups(h Host, marks []string) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && marked(path, marks) {
			h["control group "+path] = true
		}
		return err
	})
}

func links(h Host, _ []string) error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range all {
		h[fmt.Sprintf("link %s (%s)", l.Attrs().Name, l.Type())] = true
	}
	return nil
}

func rules(h Host, _ []string) error {
	rules, err := netlink.RuleList(unix.AF_INET)
	if err != nil {
		return err
	}
	for _, r := range rules {
		h["routing rule "+r.String()] = true
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		h["route "+r.String()] = true
	}
	return nil
}

// tables lists the nftables of the host, which need no program to be seen.
func tables(h Host, _ []string) error {
	const subsystem, getTable, nameAttribute = 10 << 8, 1, 1
	req := nl.NewNetlinkRequest(subsystem|getTable, unix.NLM_F_DUMP)
	req.AddRawData([]byte{unix.AF_UNSPEC, 0, 0, 0}) // struct nfgenmsg
	answers, err := req.Execute(unix.NETLINK_NETFILTER, subsystem)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // no nftables in this kernel
	}
	if err != nil {
		return fmt.Errorf("listing nftables: %w", err)
	}
	for _, a := range answers {
		attrs, err := nl.ParseRouteAttr(a[4:])
		if err != nil {
			return fmt.Errorf("reading a table of nftables: %w", err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == nameAttribute {
				h[fmt.Sprintf("nftables table %q of family %d", strings.TrimRight(string(attr.Value), "\x00"), a[0])] = true
			}
		}
	}
	return nil
}

// settings of the kernel that Kubernetes likes to change.
func settings(h Host, _ []string) error {
	for _, name := range []string{
		"net/ipv4/ip_forward", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/netfilter/nf_conntrack_max",
	} {
		data, err := os.ReadFile("/proc/sys/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		h[fmt.Sprintf("setting %s = %s", name, strings.TrimSpace(string(data)))] = true
	}
	return nil
}
