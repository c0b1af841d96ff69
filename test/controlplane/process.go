package controlplane

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a program that dies with the one that started it.
type Process struct {
	Name string
	log  string
	path string
	args []string
	cmd  *exec.Cmd
	done chan struct{}
}

// Program is one more process, which ends with the control plane. It is not
// started yet.
func (c *ControlPlane) Program(name, program string, args ...string) *Process {
	if c.o.Bin != "" {
		program = filepath.Join(c.o.Bin, program)
	}
	p := &Process{Name: name, log: filepath.Join(c.o.Dir, name+".log"), path: program, args: args}
	c.processes = append(c.processes, p)
	return p
}

// Start starts it, again if it has ended.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s, which make builds into _output/<arch>/bin: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	return nil
}

// PID of a process that has been started.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// End sends a signal and waits until the process is gone.
func (p *Process) End(signal syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
		return nil
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s does not end after %s", p.Name, signal)
	}
}

// Alive says whether it has been started and has not ended.
func (p *Process) Alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Tail is the end of what the process said.
func (p *Process) Tail(lines int) string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
