// Package machine is one simulated computer: a set of namespaces around a
// process that believes to be number 1, on a disk of its own.
//
// It knows how to make such a process, what that process does until the
// supervisor runs, and how to run a command inside. It must not know about
// sites, links and clusters: whoever starts a machine plugs in its network.
package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/process"
)

// Config is all that a machine is told at boot.
type Config struct {
	Name    string            `json:"name"`
	Dir     string            `json:"dir"`    // its folder on the host
	Cgroup  cgroup.Group      `json:"cgroup"` //
	Memory  int64             `json:"memory"` // bytes, 0 is without limit
	Hosts   map[string]string `json:"hosts"`  // name to address, for /etc/hosts
	Gateway string            `json:"gateway"`
	// What is lent to the machine, read-only.
	Programs string   `json:"programs"` // becomes /usr/local/bin
	Plugins  string   `json:"plugins"`  // becomes /opt/cni/bin
	Images   []string `json:"images"`   // archives, put into /var/lib/skerry/images
}

// Files of a machine's folder.
const (
	configFile  = "boot.json"
	pidFile     = "pid.json"
	bootIDFile  = "boot_id"
	consoleFile = "console.log"
	diskDir     = "disk"
)

// Disk is the machine's file system as the host sees it. /usr is not in it.
func (c Config) Disk() string { return filepath.Join(c.Dir, diskDir, "root") }

// Console is the file with what the machine's first process printed.
func (c Config) Console() string { return filepath.Join(c.Dir, consoleFile) }

// BootID is the boot id of the last boot.
func (c Config) BootID() string {
	data, err := os.ReadFile(filepath.Join(c.Dir, bootIDFile))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}

// Process returns the machine's first process, or false if the power is off.
func (c Config) Process() (process.ID, bool) {
	var id process.ID
	data, err := os.ReadFile(filepath.Join(c.Dir, pidFile))
	if err != nil || json.Unmarshal(data, &id) != nil || !id.Alive() {
		return process.ID{}, false
	}
	return id, true
}

// PowerOff ends the machine's first process and with it, at once, everything
// that runs in the machine.
func (c Config) PowerOff() error {
	id, on := c.Process()
	if !on {
		return nil
	}
	// A frozen process dies only when it is thawed.
	err := id.Kill(30*time.Second, func() error { return c.Cgroup.Thaw(10 * time.Second) })
	if err != nil {
		return fmt.Errorf("machine %s: power off: %w", c.Name, err)
	}
	return nil
}

// startTimeout bounds the time from the first process to its supervisor.
const startTimeout = 60 * time.Second

// PowerOn boots the machine. self is the skerry program, to be run as the first
// process; plug connects the network of the process before anything else
// runs. The machine lives on when the caller ends, but is reaped by it until
// then.
func (c Config) PowerOn(self string, plug func(pid int) error) (err error) {
	if _, on := c.Process(); on {
		return fmt.Errorf("machine %s is on", c.Name)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("machine %s: power on: %w", c.Name, err)
		}
	}()
	// Groups of containers of the last boot may still be there.
	if err := c.Cgroup.Remove(30 * time.Second); err != nil {
		return err
	}
	if err := c.Cgroup.Create(c.Memory); err != nil {
		return err
	}
	if err := c.prepareDisk(); err != nil {
		return err
	}
	p, err := c.spawn(self)
	if err != nil {
		return err
	}
	err = p.boot(c, plug)
	if err != nil {
		_ = p.cmd.Process.Kill()
	}
	go func() { _ = p.cmd.Wait() }() // the reaper of the machine
	return err
}

// spawned is a first process that waits to be let go.
type spawned struct {
	cmd     *exec.Cmd
	release io.WriteCloser // closing it lets the process boot
	report  *os.File       // what went wrong; nothing and EOF when all is well
}

func (c Config) spawn(self string) (*spawned, error) {
	console, err := os.OpenFile(c.Console(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer console.Close()
	gateR, gateW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gateR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		gateW.Close()
		return nil, err
	}
	defer reportW.Close()
	cmd := exec.Command(self, "sandbox", StageOne, filepath.Join(c.Dir, configFile))
	cmd.Env = []string{"PATH=" + path}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{gateR, reportW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		gateW.Close()
		reportR.Close()
		return nil, fmt.Errorf("starting %s in new namespaces (needs root): %w", self, err)
	}
	return &spawned{cmd: cmd, release: gateW, report: reportR}, nil
}

func (p *spawned) boot(c Config, plug func(pid int) error) error {
	defer p.report.Close()
	defer p.release.Close()
	pid := p.cmd.Process.Pid
	id, err := process.Find(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, pidFile), data, 0o640); err != nil {
		return err
	}
	if err := c.Cgroup.Join(pid); err != nil {
		return err
	}
	if err := plug(pid); err != nil {
		return err
	}
	if _, err := p.release.Write([]byte{1}); err != nil {
		return fmt.Errorf("letting the first process go: %w", err)
	}
	if err := p.report.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(p.report, 4096))
	if err != nil {
		return fmt.Errorf("the first process did not get ready in %s (see %s): %w", startTimeout, c.Console(), err)
	}
	if string(said) != ready {
		if len(said) == 0 {
			said = []byte("the first process ended early")
		}
		return fmt.Errorf("%s (see %s)", said, c.Console())
	}
	return nil
}

// ready is what the first process reports when the supervisor serves.
const ready = "ready"

// Uptime is the time since the machine was switched on.
func Uptime(id process.ID) time.Duration {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	seconds, _, _ := bytes.Cut(data, []byte(" "))
	up, err := strconv.ParseFloat(string(seconds), 64)
	if err != nil {
		return 0
	}
	const ticks = 100 // USER_HZ, the same on every Linux
	return time.Duration((up - float64(id.Start)/ticks) * float64(time.Second))
}

// RemoveCgroup waits for the last process of the machine and removes its group.
func (c Config) RemoveCgroup() error { return c.Cgroup.Remove(30 * time.Second) }

// load reads the configuration a first process was started with.
func load(file string) (Config, error) {
	var c Config
	data, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("reading %s: %w", file, err)
	}
	if c.Name == "" || !filepath.IsAbs(c.Dir) {
		return c, errors.New(file + " does not describe a machine")
	}
	return c, nil
}
