package machine

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/process"
	"skerry.dev/skerry/pkg/sandbox/thread"
)

// outputDelay is how long after the command's end Wait waits for processes
// that it left behind with its output. It does not matter where input and
// output are files, such as a terminal.
const outputDelay = 5 * time.Second

// Command is to be run inside a machine.
type Command struct {
	Args   []string
	Env    []string // added to the machine's own
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Start starts the command in the machine and returns it for Wait.
func (c Config) Start(command Command) (*exec.Cmd, error) {
	id, on := c.Process()
	if !on {
		return nil, fmt.Errorf("machine %s is off", c.Name)
	}
	frozen, err := c.Cgroup.Frozen()
	if err != nil {
		return nil, err
	}
	if frozen {
		return nil, fmt.Errorf("machine %s is frozen; thaw it first", c.Name)
	}
	var cmd *exec.Cmd
	err = thread.Throwaway(func() error {
		var err error
		cmd, err = c.startInside(id, command)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", c.Name, err)
	}
	return cmd, nil
}

func (c Config) startInside(id process.ID, command Command) (*exec.Cmd, error) {
	attr := &syscall.SysProcAttr{}
	closeGroup, err := c.Cgroup.JoinThread(attr)
	if err != nil {
		return nil, err
	}
	defer closeGroup()
	if err := enter(id); err != nil {
		return nil, err
	}
	program, err := lookPath(command.Args[0])
	if err != nil {
		return nil, err
	}
	var env []string
	for _, k := range slices.Sorted(maps.Keys(environment)) {
		env = append(env, k+"="+environment[k])
	}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	cmd := &exec.Cmd{
		Path: program, Args: command.Args, Env: append(env, command.Env...), Dir: "/root",
		Stdin: command.Stdin, Stdout: command.Stdout, Stderr: command.Stderr,
		SysProcAttr: attr, WaitDelay: outputDelay,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	return cmd, nil
}

// enter moves the calling thread into the namespaces of the process; its
// children will be in the PID namespace too.
func enter(id process.ID) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	names := []string{"ipc", "uts", "net", "pid", "mnt"}
	if !cgroup.Unified() {
		// On version 2 a process that is outside of a control group namespace
		// may not start one inside its groups: it stays in the host's, which
		// changes what it reads in /proc/self/cgroup and nothing else.
		names = append(names, "cgroup")
	}
	for _, name := range names {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", id.PID, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening its %s namespace: %w", name, err)
		}
		fds = append(fds, fd)
	}
	if !id.Alive() {
		return errors.New("it was switched off just now")
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("entering its %s namespace: %w", names[i], err)
		}
	}
	return nil
}

// lookPath finds a program as the machine's own shell would; the calling
// thread is inside.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(path, ":") {
		file := filepath.Join(dir, name)
		if unix.Access(file, unix.X_OK) == nil {
			if info, err := os.Stat(file); err == nil && !info.IsDir() {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("it has no program %q in %s", name, path)
}
