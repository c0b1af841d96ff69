// Package supervisor keeps the services of a machine running where there is no
// systemd: a Server, the first process of a sandbox machine, and a Client for
// those who install services.
//
// It must not know which services there are, nor anything of Kubernetes or of
// the sandbox around it.
package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"
)

// DefaultSocket is where the server of a machine listens.
const DefaultSocket = "/run/skerry/supervisor.sock"

// Unit is one service. It is started at boot once installed, and again
// whenever it ends.
type Unit struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Command is the program and its arguments. An argument that is exactly
	// "$NAME" is replaced by the words of that variable, as systemd does.
	Command     []string `json:"command"`
	Environment []string `json:"environment,omitempty"`
	// EnvironmentFile holds KEY="VALUE" lines and is read at every start. It
	// need not exist.
	EnvironmentFile string `json:"environmentFile,omitempty"`
	// After names units that are started first, if they are installed.
	After []string `json:"after,omitempty"`
}

// Status is how a unit is doing.
type Status struct {
	Active   bool      `json:"active"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since,omitzero"`     // of the last start or stop
	Restarts int       `json:"restarts"`           // since boot, not counting asked-for ones
	LastExit string    `json:"lastExit,omitempty"` // how it last ended
}

const (
	maxUnitSize   = 64 << 10
	maxEnvFile    = 64 << 10
	maxNameLength = 64
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.@-]*$`)

func checkName(name string) error {
	if len(name) > maxNameLength || !namePattern.MatchString(name) {
		return fmt.Errorf("%q is no name of a unit: letters, digits and _.@- up to %d characters", name, maxNameLength)
	}
	return nil
}

// Validate says what is missing or malformed.
func (u Unit) Validate() error {
	if err := checkName(u.Name); err != nil {
		return err
	}
	if len(u.Command) == 0 || !strings.HasPrefix(u.Command[0], "/") {
		return fmt.Errorf("unit %q: command must start with the absolute path of a program", u.Name)
	}
	for _, arg := range u.Command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("unit %q: command contains a zero byte", u.Name)
		}
	}
	for _, e := range u.Environment {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
			return fmt.Errorf("unit %q: environment: %q is not KEY=VALUE", u.Name, e)
		}
	}
	for _, name := range u.After {
		if err := checkName(name); err != nil {
			return fmt.Errorf("unit %q: after: %w", u.Name, err)
		}
	}
	return nil
}

// environment is the server's own, then the unit's, then the file's: the later
// one wins.
func (u Unit) environment() ([]string, error) {
	env := append(os.Environ(), u.Environment...)
	if u.EnvironmentFile == "" {
		return env, nil
	}
	f, err := os.Open(u.EnvironmentFile)
	if errors.Is(err, fs.ErrNotExist) {
		return env, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the environment: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxEnvFile))
	lines.Buffer(nil, maxEnvFile)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("environment file %s: %q is not KEY=VALUE", u.EnvironmentFile, line)
		}
		env = append(env, strings.TrimSpace(key)+"="+unquote(strings.TrimSpace(value)))
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("environment file %s: %w", u.EnvironmentFile, err)
	}
	return env, nil
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// arguments expands "$NAME" arguments.
func (u Unit) arguments(env []string) []string {
	var args []string
	for _, arg := range u.Command {
		name, ok := strings.CutPrefix(arg, "$")
		if !ok || name == "" {
			args = append(args, arg)
			continue
		}
		value := ""
		for _, e := range env {
			if k, v, _ := strings.Cut(e, "="); k == name {
				value = v
			}
		}
		args = append(args, strings.Fields(value)...)
	}
	return args
}
