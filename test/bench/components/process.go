package components

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"skerry.dev/skerry/pkg/sandbox/machine"
)

const (
	healthEvery   = 5 * time.Millisecond
	healthTimeout = 2 * time.Minute
	stopTimeout   = 20 * time.Second
)

// component is one program and the place it is measured in.
type component struct {
	name    string
	machine string
	health  string // its health check, as seen inside the machine
	args    []string

	// before undoes what the last start left; works waits until the component
	// does its work, which may be after it is healthy. Both may be nil.
	before, works func(context.Context) error
}

// process is a component that was started by us.
type process struct {
	cmd   *exec.Cmd
	pid   int // as the host sees it
	log   string
	ended chan struct{}
}

// start runs a component of one kind and returns how long it took until the
// health check passed.
func (s *stage) start(ctx context.Context, c *component, k kind) (*process, time.Duration, error) {
	m, err := s.Box.Machine(c.machine)
	if err != nil {
		return nil, 0, err
	}
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return nil, 0, err
		}
	}
	log := filepath.Join(s.Logs, fmt.Sprintf("%s-%s.log", c.name, k))
	out, err := os.Create(log)
	if err != nil {
		return nil, 0, err
	}
	defer out.Close()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DialContext: dialInside(m),
		// Certificates made at start are nobody's we know; this is loopback.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
	if healthy(ctx, client, c.health) == nil {
		return nil, 0, fmt.Errorf("%s on %s is healthy before it is started: another one runs", c.name, c.machine)
	}
	began := time.Now()
	args := append([]string{filepath.Join("/", programs, string(k), c.name)}, c.args...)
	cmd, err := m.Start(machine.Command{Args: args, Stdout: out, Stderr: out})
	if err != nil {
		return nil, 0, fmt.Errorf("starting %s, %s: %w", c.name, k, err)
	}
	p := &process{cmd: cmd, pid: cmd.Process.Pid, log: log, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	if err := p.waitHealthy(ctx, client, c.health); err != nil {
		p.stop()
		return nil, 0, fmt.Errorf("starting %s, %s: %w; %s", c.name, k, err, p.said())
	}
	return p, time.Since(began), nil
}

func (p *process) waitHealthy(ctx context.Context, client *http.Client, url string) error {
	deadline := time.Now().Add(healthTimeout)
	for {
		err := healthy(ctx, client, url)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not healthy after %s: %w", healthTimeout, err)
		}
		select {
		case <-p.ended:
			return fmt.Errorf("it ended early: %s", p.cmd.ProcessState)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(healthEvery):
		}
	}
}

func healthy(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s says %s", url, res.Status)
	}
	return nil
}

// dialInside connects from inside a machine's network. The address must be a
// number: a name would be looked up on another thread, outside.
func dialInside(m machine.Config) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = m.InNetwork(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// stop ends the process, gently at first.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// said is the last line that the process printed, and where the others are.
func (p *process) said() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Sprintf("it printed last: %.400s (all: %s)", lines[len(lines)-1], p.log)
}

var errNotRunning = errors.New("it does not run")

// arguments are those of the process in a machine that runs the program.
func arguments(m machine.Config, program string) ([]string, error) {
	pids, err := m.Cgroup.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it ended meanwhile
		}
		args := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
		if filepath.Base(args[0]) == program {
			return args[1:], nil
		}
	}
	return nil, fmt.Errorf("looking for %s on %s: %w", program, m.Name, errNotRunning)
}
