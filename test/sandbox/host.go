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
type Host struct {
	things map[string]bool
	// shared is what all sandboxes have together: it goes with the last one.
	shared map[string]bool
	inUse  bool // the group above all sandboxes exists
	others bool // other sandboxes exist
}

// LookAtHost takes a picture. marks are strings that tell the sandbox's
// processes and mounts from those of others: its folder, its name.
func LookAtHost(t testing.TB, marks ...string) Host {
	t.Helper()
	h := Host{things: map[string]bool{}, shared: map[string]bool{}}
	for _, look := range []func(Host, []string) error{processes, mounts, links, rules, nftables, settings} {
		if err := look(h, marks); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.groups(marks); err != nil {
		t.Fatal(err)
	}
	return h
}

// Diff lists what came and what went since before. What sandboxes share counts
// where there was none before, and no other one is there now.
func (h Host) Diff(before Host) []string {
	all := diff(before.things, h.things)
	if !before.inUse && !h.others {
		all = append(all, diff(before.shared, h.shared)...)
	}
	return all
}

func diff(before, now map[string]bool) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if !before[k] {
			all = append(all, "new: "+k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if !now[k] {
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
			h.things[fmt.Sprintf("process %s %q in %s", e.Name(), strings.ReplaceAll(string(line), "\x00", " "), network)] = true
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
			h.things["mount "+text] = true
		}
	}
	return lines.Err()
}

// groups finds the sandbox's control groups, the one above those of all
// sandboxes, and whether there are others.
func (h *Host) groups(marks []string) error {
	const top = "skerry"
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		switch {
		case marked(path, marks):
			h.things["control group "+path] = true
		case filepath.Base(path) == top:
			h.shared["control group "+path], h.inUse = true, true
		case filepath.Base(filepath.Dir(path)) == top:
			h.others = true
		}
		return nil
	})
}

func links(h Host, _ []string) error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range all {
		h.things[fmt.Sprintf("link %s (%s)", l.Attrs().Name, l.Type())] = true
	}
	return nil
}

func rules(h Host, _ []string) error {
	rules, err := netlink.RuleList(unix.AF_INET)
	if err != nil {
		return err
	}
	for _, r := range rules {
		h.things["routing rule "+r.String()] = true
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		h.things["route "+r.String()] = true
	}
	return nil
}

// nftables lists the host's tables, chains, sets and rules, which need no
// program to be seen.
func nftables(h Host, _ []string) error {
	// Numbers of linux/netfilter/nf_tables.h; handles stay the same as long as
	// what they name.
	for _, kind := range []struct {
		name       string
		get        int
		attributes []uint16
	}{
		{"table", 1, []uint16{1}},       // name
		{"chain", 4, []uint16{1, 3}},    // table, name
		{"rule", 7, []uint16{1, 2, 3}},  // table, chain, handle
		{"set", 10, []uint16{1, 2, 16}}, // table, name, handle
	} {
		const subsystem = 10 << 8
		req := nl.NewNetlinkRequest(subsystem|kind.get, unix.NLM_F_DUMP)
		req.AddRawData([]byte{unix.AF_UNSPEC, 0, 0, 0}) // struct nfgenmsg
		answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil // no nftables in this kernel
		}
		if err != nil {
			return fmt.Errorf("listing each %s of nftables: %w", kind.name, err)
		}
		for _, a := range answers {
			attrs, err := nl.ParseRouteAttr(a[4:])
			if err != nil {
				return fmt.Errorf("reading a %s of nftables: %w", kind.name, err)
			}
			text := fmt.Sprintf("nftables %s of family %d:", kind.name, a[0])
			for _, attr := range attrs {
				if slices.Contains(kind.attributes, attr.Attr.Type) {
					text += fmt.Sprintf(" %q", strings.TrimRight(string(attr.Value), "\x00"))
				}
			}
			h.things[text] = true
		}
	}
	return nil
}

// settings are those of the kernel that Kubernetes likes to change, and what
// sandboxes change and note themselves.
func settings(h Host, _ []string) error {
	for name, into := range map[string]map[string]bool{
		"net/ipv4/ip_forward": h.things, "vm/overcommit_memory": h.things, "vm/panic_on_oom": h.things, "kernel/panic": h.things,
		"kernel/panic_on_oops": h.things, "kernel/keys/root_maxkeys": h.things, "kernel/keys/root_maxbytes": h.things,
		"net/netfilter/nf_conntrack_max": h.things, "fs/inotify/max_user_instances": h.shared,
	} {
		data, err := os.ReadFile("/proc/sys/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		into[fmt.Sprintf("setting %s = %s", name, strings.TrimSpace(string(data)))] = true
	}
	const notes = "/run/skerry-sandbox"
	if _, err := os.Stat(notes); err == nil {
		h.shared["folder "+notes] = true
	}
	return nil
}
