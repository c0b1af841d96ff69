package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/supervisor"
)

// systemctlTimeout bounds one systemctl; stopping a busy containerd takes time.
const systemctlTimeout = 2 * time.Minute

// Systemd is the Supervisor of a host that systemd runs.
type Systemd struct {
	// unitDir gets our unit files; packageDirs are where packages put theirs.
	unitDir     string
	packageDirs []string
	// run runs systemctl and returns what it prints.
	run func(ctx context.Context, args ...string) (string, error)
}

// NewSystemd returns the Supervisor of a host that systemd runs.
func NewSystemd() *Systemd {
	return &Systemd{
		unitDir:     "/etc/systemd/system",
		packageDirs: []string{"/lib/systemd/system", "/usr/lib/systemd/system"},
		run:         systemctl,
	}
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, "systemctl", args...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

func (s *Systemd) path(name string) string {
	return filepath.Join(s.unitDir, name+".service")
}

// Install implements Supervisor. It refuses to shadow or replace a unit of the
// same name that somebody else installed.
func (s *Systemd) Install(ctx context.Context, unit supervisor.Unit) error {
	if err := s.CheckForeign(unit.Name); err != nil {
		return err
	}
	if err := os.WriteFile(s.path(unit.Name), renderUnit(unit), 0o644); err != nil {
		return fmt.Errorf("writing unit %q: %w", unit.Name, err)
	}
	if _, err := s.run(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("installing unit %q: %w", unit.Name, err)
	}
	if _, err := s.run(ctx, "enable", unit.Name+".service"); err != nil {
		return fmt.Errorf("enabling unit %q: %w", unit.Name, err)
	}
	return nil
}

// CheckForeign fails if a unit of this name exists that we did not write.
func (s *Systemd) CheckForeign(name string) error {
	for _, dir := range append([]string{s.unitDir}, s.packageDirs...) {
		path := filepath.Join(dir, name+".service")
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading unit %q: %w", name, err)
		}
		if !ours(data) {
			return fmt.Errorf("%s exists and was not written by skerry: remove the package that brought it (`dpkg -S %s` names it) or the file, then run this again", path, path)
		}
	}
	return nil
}

// Start implements Supervisor.
func (s *Systemd) Start(ctx context.Context, name string) error {
	return s.unit(ctx, "start", name)
}

// Stop implements Supervisor.
func (s *Systemd) Stop(ctx context.Context, name string) error {
	return s.unit(ctx, "stop", name)
}

// Restart implements Supervisor.
func (s *Systemd) Restart(ctx context.Context, name string) error {
	return s.unit(ctx, "restart", name)
}

func (s *Systemd) unit(ctx context.Context, verb, name string) error {
	if _, err := s.run(ctx, verb, name+".service"); err != nil {
		return fmt.Errorf("%w; `journalctl -u %s` shows why", err, name)
	}
	return nil
}

// Remove implements Supervisor. Units that somebody else installed stay.
func (s *Systemd) Remove(ctx context.Context, name string) error {
	data, err := os.ReadFile(s.path(name))
	if errors.Is(err, os.ErrNotExist) || (err == nil && !ours(data)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading unit %q: %w", name, err)
	}
	if _, err := s.run(ctx, "disable", "--now", name+".service"); err != nil {
		return fmt.Errorf("stopping unit %q: %w", name, err)
	}
	if err := os.Remove(s.path(name)); err != nil {
		return fmt.Errorf("removing unit %q: %w", name, err)
	}
	if _, err := s.run(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("removing unit %q: %w", name, err)
	}
	// A failed unit stays in the list of units until somebody resets it.
	_, _ = s.run(ctx, "reset-failed", name+".service")
	return nil
}

// Status implements Supervisor.
func (s *Systemd) Status(ctx context.Context, name string) (supervisor.Status, error) {
	out, err := s.run(ctx, "show", name+".service", "--timestamp=unix",
		"--property=LoadState,ActiveState,MainPID,ActiveEnterTimestamp,NRestarts,Result")
	if err != nil {
		return supervisor.Status{}, fmt.Errorf("asking for the state of unit %q: %w", name, err)
	}
	return parseShow(name, out)
}

// parseShow reads the output of `systemctl show`.
func parseShow(name, out string) (supervisor.Status, error) {
	values := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	if values["LoadState"] == "not-found" {
		return supervisor.Status{}, fmt.Errorf("unit %q is not installed", name)
	}
	status := supervisor.Status{Active: values["ActiveState"] == "active"}
	status.PID, _ = strconv.Atoi(values["MainPID"])
	status.Restarts, _ = strconv.Atoi(values["NRestarts"])
	if seconds, err := strconv.ParseInt(strings.TrimPrefix(values["ActiveEnterTimestamp"], "@"), 10, 64); err == nil {
		status.Since = time.Unix(seconds, 0)
	}
	if result := values["Result"]; result != "success" {
		status.LastExit = result
	}
	return status, nil
}

// renderUnit returns the content of the unit file. /etc/default/NAME is read for
// any unit, as Debian does, so KUBELET_EXTRA_ARGS can be set there.
func renderUnit(unit supervisor.Unit) []byte {
	var out bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	line("%s", marker)
	line("[Unit]")
	line("Description=%s", unit.Description)
	// A node that goes on without its cloud starts without a network, too: only
	// a kubelet of upstream's kind waits for one.
	after := []string{"network.target"}
	if unit.Name == KubeletUnit && !slices.Contains(unit.After, AgentUnit) {
		line("Wants=network-online.target")
		after = []string{"network-online.target"}
	}
	for _, name := range unit.After {
		after = append(after, name+".service")
	}
	line("After=%s", strings.Join(after, " "))
	line("StartLimitIntervalSec=0")
	line("")
	line("[Service]")
	words := make([]string, len(unit.Command))
	for i, word := range unit.Command {
		words[i] = quoteWord(word)
	}
	for _, variable := range unit.Environment {
		line("Environment=%s", quoteWord(variable))
	}
	line("EnvironmentFile=-/etc/default/%s", unit.Name)
	if unit.EnvironmentFile != "" {
		line("EnvironmentFile=-%s", unit.EnvironmentFile)
	}
	line("ExecStart=%s", strings.Join(words, " "))
	line("Restart=always")
	line("RestartSec=1")
	line("LimitNOFILE=1048576")
	line("TasksMax=infinity")
	if unit.Name == AgentUnit {
		line("OOMScoreAdjust=-999")
	}
	if unit.Name == ContainerdUnit {
		// Containers outlive a restart of containerd, and their cgroups are
		// runc's business; the last process to be killed for memory.
		line("KillMode=process")
		line("Delegate=yes")
		line("OOMScoreAdjust=-999")
	}
	line("")
	line("[Install]")
	line("WantedBy=multi-user.target")
	return out.Bytes()
}

// quoteWord quotes a word of a systemd command line if it has to be. A word
// that is a variable ($NAME) stays bare: systemd splits it at blanks.
func quoteWord(word string) string {
	word = strings.ReplaceAll(word, "%", "%%")
	special := func(r rune) bool { return strings.ContainsRune(" \t\"'\\;", r) }
	if word == "" || slices.ContainsFunc([]rune(word), special) {
		return strconv.Quote(word)
	}
	return word
}
