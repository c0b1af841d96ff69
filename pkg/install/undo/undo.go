// Package undo takes from a machine what init and join, and the cluster they
// made, left in its kernel and on its disk, where kubeadm's reset does not.
//
// Every function can be called when there is nothing to do, or half of it. The
// package must not know commands or phases.
package undo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// commandTimeout bounds one nft or iptables command.
const commandTimeout = 30 * time.Second

// nftTables are the tables of kube-proxy and of the portmap plugin.
var nftTables = [][2]string{
	{"ip", "kube-proxy"}, {"ip6", "kube-proxy"}, {"ip", "cni_hostport"}, {"ip6", "cni_hostport"}, {"inet", "cni_hostport"},
}

// chainPrefixes are the beginnings of the names of iptables chains of
// kube-proxy, the kubelet and the portmap plugin.
var chainPrefixes = []string{"KUBE-", "CNI-"}

// Netfilter removes the rules of kube-proxy, the kubelet and the portmap plugin.
func Netfilter(ctx context.Context) error {
	var problems []error
	if _, err := exec.LookPath("nft"); err == nil {
		existing, err := run(ctx, nil, "nft", "list", "tables")
		if err != nil {
			problems = append(problems, err)
		}
		for _, table := range nftTables {
			if slices.Contains(strings.Split(existing, "\n"), "table "+table[0]+" "+table[1]) {
				_, err := run(ctx, nil, "nft", "delete", "table", table[0], table[1])
				problems = append(problems, err)
			}
		}
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(program); err == nil {
			problems = append(problems, iptables(ctx, program))
		}
	}
	return errors.Join(problems...)
}

func iptables(ctx context.Context, program string) error {
	saved, err := run(ctx, nil, program+"-save")
	if err != nil {
		return err
	}
	script := restoreScript(saved)
	if len(script) == 0 {
		return nil
	}
	_, err = run(ctx, script, program+"-restore", "--noflush", "--wait", "5")
	return err
}

// restoreScript turns the output of iptables-save into the input of
// iptables-restore --noflush that removes our chains and the rules that lead to
// them. It is empty if there are none.
func restoreScript(saved string) []byte {
	var script bytes.Buffer
	var chains, jumps []string
	table := ""
	emit := func() {
		if len(chains) == 0 {
			return
		}
		fmt.Fprintf(&script, "*%s\n", table)
		for _, chain := range chains {
			fmt.Fprintf(&script, ":%s - [0:0]\n", chain) // flushes it
		}
		for _, jump := range jumps {
			fmt.Fprintf(&script, "%s\n", jump)
		}
		for _, chain := range chains {
			fmt.Fprintf(&script, "-X %s\n", chain)
		}
		script.WriteString("COMMIT\n")
	}
	lines := bufio.NewScanner(strings.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table, chains, jumps = line[1:], nil, nil
		case strings.HasPrefix(line, ":"):
			if chain, _, _ := strings.Cut(line[1:], " "); ourChain(chain) {
				chains = append(chains, chain)
			}
		case strings.HasPrefix(line, "-A "):
			words := strings.Fields(line)
			target := slices.IndexFunc(words, func(word string) bool { return word == "-j" || word == "-g" })
			if len(words) > 1 && !ourChain(words[1]) && target > 0 && target+1 < len(words) && ourChain(words[target+1]) {
				jumps = append(jumps, "-D"+line[2:])
			}
		case line == "COMMIT":
			emit()
		}
	}
	return script.Bytes()
}

func ourChain(name string) bool {
	return slices.ContainsFunc(chainPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// run runs a program and returns what it prints.
func run(ctx context.Context, input []byte, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// links are network devices that kube-proxy makes and leaves behind.
var links = []string{"kube-ipvs0"}

// Links removes network devices that outlive their pods. Those of pods go with
// the pods' network namespaces.
func Links() error {
	var problems []error
	for _, name := range links {
		problems = append(problems, Link(name))
	}
	return errors.Join(problems...)
}

// Link removes a network device.
func Link(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing network device %s: %w", name, err)
	}
	return nil
}

// netnsDir is where the CRI plugin mounts the network namespaces of pods.
const netnsDir = "/run/netns"

// PodNamespaces removes network namespaces of pods that containerd forgot.
func PodNamespaces() error {
	namespaces, err := filepath.Glob(filepath.Join(netnsDir, "cni-*"))
	if err != nil {
		return fmt.Errorf("looking for network namespaces of pods: %w", err)
	}
	var problems []error
	for _, path := range namespaces {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			problems = append(problems, fmt.Errorf("unmounting %s: %w", path, err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			problems = append(problems, fmt.Errorf("removing %s: %w", path, err))
		}
	}
	EmptyDirs(netnsDir)
	return errors.Join(problems...)
}

// EmptyDirs removes those folders that nothing is in; give the inner before the
// outer ones. Others may have files there, so a folder that stays is no error.
func EmptyDirs(dirs ...string) {
	for _, dir := range dirs {
		_ = unix.Rmdir(dir)
	}
}

// Tree unmounts everything mounted below the folder and removes the folder. A
// folder that is a mount of its own is emptied and stays.
func Tree(dir string) error {
	if err := UnmountBelow(dir); err != nil {
		return err
	}
	mounted, err := isMount(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing %s: %w", dir, err)
		}
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("emptying %s: %w", dir, err)
		}
	}
	return nil
}

func isMount(dir string) (bool, error) {
	points, err := mountPoints()
	return slices.Contains(points, dir), err
}

// UnmountBelow unmounts what is mounted below dir, the latest first.
func UnmountBelow(dir string) error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	slices.Reverse(points)
	var problems []error
	for _, point := range points {
		if strings.HasPrefix(point, dir+"/") {
			// EINVAL: gone already, with a peer of its mount group.
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				problems = append(problems, fmt.Errorf("unmounting %s: %w", point, err))
			}
		}
	}
	return errors.Join(problems...)
}

func mountPoints() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the list of mounts: %w", err)
	}
	return parseMountInfo(string(data)), nil
}

// parseMountInfo returns the mount points of /proc/self/mountinfo in order.
func parseMountInfo(data string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range strings.Lines(data) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	return points
}
