package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/supervisor"
)

// The hidden subcommands of `skerry sandbox` that are a machine's first
// process, one after the other in the same process.
const (
	StageOne = "machine-start"
	StageTwo = "machine-init"
)

const (
	path     = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	fdGate   = 3
	fdReport = 4
)

// Start is stage one: it waits until it has been put into its control groups
// and its network has been plugged in, takes its groups as the root of what it
// sees, and becomes stage two. Only a whole new program can be sure to have
// all of its threads in the control group namespace.
func Start(configPath string) error {
	// The report goes on to stage two, but to no process after it.
	gate := os.NewFile(fdGate, "gate")
	n, err := gate.Read(make([]byte, 1))
	gate.Close()
	if err != nil || n == 0 {
		return errors.New("whoever started this machine is gone")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return report(fmt.Errorf("making a control group namespace: %w", err))
	}
	self := "/proc/self/exe"
	err = unix.Exec(self, []string{"skerry", "sandbox", StageTwo, configPath}, []string{"PATH=" + path})
	return report(fmt.Errorf("becoming stage two: %w", err))
}

// Init is stage two: it builds the machine's file system around itself and
// then supervises. It returns only with an error.
func Init(ctx context.Context, configPath string) error {
	if os.Getpid() != 1 {
		return errors.New("this command is the first process of a sandbox machine and nothing else")
	}
	unix.CloseOnExec(fdReport)
	c, err := load(configPath)
	if err != nil {
		return report(err)
	}
	if err := c.buildRoot(); err != nil {
		return report(err)
	}
	if err := c.settle(); err != nil {
		return report(err)
	}
	server, err := supervisor.NewServer(supervisor.Config{Log: os.Stderr})
	if err != nil {
		return report(err)
	}
	out := os.NewFile(fdReport, "report")
	if _, err := io.WriteString(out, ready); err != nil {
		return err
	}
	out.Close()
	return server.Run(ctx)
}

// report tells whoever switched the machine on why it does not boot.
func report(err error) error {
	out := os.NewFile(fdReport, "report")
	_, _ = io.WriteString(out, err.Error())
	out.Close()
	return err
}

// settle does what a system does between mounting and starting services.
func (c Config) settle() error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	os.Clearenv()
	for k, v := range environment {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	// As many open files as the host lets us have; a container runtime that
	// is given fewer says so itself.
	for _, n := range []uint64{1 << 20, 1 << 16} {
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}) == nil {
			break
		}
	}
	for _, s := range sysctls {
		err := os.WriteFile("/proc/sys/"+s.key, []byte(s.value), 0o644)
		if s.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("setting %s: %w", s.key, err)
		}
	}
	return nil
}

var environment = map[string]string{"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "USER": "root", "container": "skerry"}

// sysctls of the machine's own network namespace.
var sysctls = []struct {
	key, value string
	optional   bool
}{
	{"net/ipv4/ip_forward", "1", false},
	{"net/ipv4/conf/all/rp_filter", "0", false},
	{"net/ipv4/conf/default/rp_filter", "0", false},
	{"net/ipv4/conf/all/accept_redirects", "0", false},
	{"net/bridge/bridge-nf-call-iptables", "1", true},
}
