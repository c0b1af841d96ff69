package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Check is one thing that the machine must have. It has the methods of
// upstream's preflight checks, so that --ignore-preflight-errors works for it.
type Check struct {
	name string
	run  func() (warnings, errors []error)
}

// Name is what --ignore-preflight-errors calls the check.
func (c Check) Name() string { return c.name }

// Check runs the check.
func (c Check) Check() (warnings, errorList []error) { return c.run() }

// program is a program that a node needs, and what brings it.
type program struct {
	names []string // any of them will do
	from  string
}

// programs are what kubeadm, the kubelet, containerd and the CNI plugins start.
// kube-proxy brings its own tools in its image; conntrack is needed by none.
var programs = []program{
	{[]string{"containerd"}, "Skerry's binaries, in /usr/local/bin"},
	{[]string{"containerd-shim-runc-v2"}, "Skerry's binaries, in /usr/local/bin"},
	{[]string{"runc"}, "Skerry's binaries, in /usr/local/bin"},
	{[]string{"kubelet"}, "Skerry's binaries, in /usr/local/bin"},
	{[]string{"mount"}, "Debian package mount"},
	{[]string{"umount"}, "Debian package mount"},
	{[]string{"losetup"}, "Debian package mount"},
	{[]string{"cp"}, "Debian package coreutils"},
	{[]string{"nft", "iptables"}, "Debian package nftables"},
}

// Needs is what a machine is checked for.
type Needs struct {
	// FailSwapOn is the kubelet's setting: it does not start when swap is on.
	FailSwapOn bool
	// CNIBinDir has to hold CNIPlugins.
	CNIBinDir  string
	CNIPlugins []string
	// Supervisor is nil when none was found, for the reason in SupervisorError.
	Supervisor      Supervisor
	SupervisorError error
	// OwnContainerd is set when we are to configure and start containerd.
	OwnContainerd bool
}

// Checks returns the checks of this machine.
func Checks(needs Needs) []Check {
	checks := []Check{
		{"HostPrograms", func() ([]error, []error) { return nil, missingPrograms(exec.LookPath) }},
		{"HostCNIPlugins", func() ([]error, []error) { return nil, missingPlugins(needs.CNIBinDir, needs.CNIPlugins) }},
		{"HostSupervisor", func() ([]error, []error) { return nil, list(needs.SupervisorError) }},
		{"HostOverlayFS", func() ([]error, []error) { return nil, list(checkOverlay()) }},
		{"HostNetfilter", checkNetfilter},
		{"HostSwap", func() ([]error, []error) { return nil, list(checkSwap("/proc/swaps", needs.FailSwapOn)) }},
		{"HostMemory", func() ([]error, []error) { return list(checkMemory("/proc/meminfo")), nil }},
	}
	units := []string{KubeletUnit}
	if needs.OwnContainerd {
		units = Units
		checks = append(checks, Check{"HostContainerdConfig", func() ([]error, []error) { return nil, list(checkConfig(ContainerdConfig)) }})
	}
	return append(checks, Check{"HostUnits", func() ([]error, []error) { return nil, checkUnits(needs.Supervisor, units) }})
}

// AgentPorts checks that nobody listens where skerry-agent will.
func AgentPorts(addresses ...string) Check {
	return Check{"HostAgentPorts", func() ([]error, []error) {
		var problems []error
		for _, address := range addresses {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				problems = append(problems, fmt.Errorf("skerry-agent needs %s, where somebody else listens (`ss -ltnp` shows who): %w", address, err))
				continue
			}
			problems = append(problems, list(listener.Close())...)
		}
		return nil, problems
	}}
}

func list(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

func missingPrograms(lookPath func(string) (string, error)) []error {
	var missing []error
	for _, program := range programs {
		found := false
		for _, name := range program.names {
			if _, err := lookPath(name); err == nil {
				found = true
			}
		}
		if !found {
			missing = append(missing, fmt.Errorf("%s not found in PATH: comes with %s", strings.Join(program.names, " or "), program.from))
		}
	}
	return missing
}

func missingPlugins(dir string, plugins []string) []error {
	var missing []error
	for _, plugin := range plugins {
		if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
			missing = append(missing, fmt.Errorf("CNI plugin %s is missing: install Skerry's CNI plugins into %s: %w", plugin, dir, err))
		}
	}
	return missing
}

// checkOverlay makes sure that the kernel has overlayfs, loading the module if
// it is one.
func checkOverlay() error {
	if hasFilesystem("/proc/filesystems", "overlay") {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", "overlay").CombinedOutput()
	if err == nil && hasFilesystem("/proc/filesystems", "overlay") {
		return nil
	}
	return fmt.Errorf("the kernel has no overlay filesystem, and `modprobe overlay` did not bring it: %w: %s (modprobe comes with Debian package kmod)", err, strings.TrimSpace(string(out)))
}

func hasFilesystem(path, name string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
			return true
		}
	}
	return false
}

// checkNetfilter asks the kernel for its rules, which needs nf_tables (or the
// older ip_tables) in it.
func checkNetfilter() (warnings, errorList []error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var problems []error
	for _, command := range [][]string{{"nft", "list", "tables"}, {"iptables", "-w", "5", "-t", "nat", "-S"}} {
		if _, err := exec.LookPath(command[0]); err != nil {
			continue // missingPrograms speaks about it
		}
		out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
		if err == nil {
			return nil, nil
		}
		problems = append(problems, fmt.Errorf("`%s` failed: %w: %s (kernel module nf_tables)", strings.Join(command, " "), err, strings.TrimSpace(string(out))))
	}
	return nil, problems
}

func checkSwap(path string, failSwapOn bool) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the list of swap areas: %w", err)
	}
	if failSwapOn && strings.Count(strings.TrimSpace(string(data)), "\n") > 0 {
		return errors.New("swap is on and the kubelet does not start then: `swapoff -a` and remove it from /etc/fstab, or set failSwapOn: false in the KubeletConfiguration")
	}
	return nil
}

// minMemory is what containerd, a kubelet, kube-proxy and a pod need to live.
const minMemory = 512 << 20

func checkMemory(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading how much memory there is: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "MemTotal:" {
			continue
		}
		kilobytes, err := strconv.ParseUint(fields[1], 10, 64)
		if err == nil && kilobytes<<10 < minMemory {
			return fmt.Errorf("the machine has %d MiB of memory, a node needs %d MiB", kilobytes>>10, minMemory>>20)
		}
		return nil
	}
	return nil
}

// checkConfig fails, before anything is written, if containerd's configuration
// is somebody else's.
func checkConfig(config string) error {
	if _, err := os.Stat(config); err == nil && !IsOurs(config) {
		return ForeignConfigError(config)
	}
	return nil
}

// checkUnits fails if units of these names are somebody else's.
func checkUnits(s Supervisor, names []string) []error {
	systemd, ok := s.(*Systemd)
	if !ok {
		return nil
	}
	var problems []error
	for _, name := range names {
		problems = append(problems, list(systemd.CheckForeign(name))...)
	}
	return problems
}
