// Package host prepares the machine that a node runs on: it checks what the
// machine has, configures containerd, and installs and starts units.
//
// It must not know Kubernetes objects or the API server; what it needs of a
// cluster's configuration comes in as plain values.
package host

import (
	"context"
	"fmt"
	"os"

	"skerry.dev/skerry/pkg/supervisor"
)

// Supervisor starts units, keeps them running, and starts them at boot.
type Supervisor interface {
	// Install writes the unit, replacing ours of the same name, and enables it.
	Install(ctx context.Context, unit supervisor.Unit) error
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Restart(ctx context.Context, name string) error
	// Remove stops the unit and forgets it; a unit that is not there is fine.
	Remove(ctx context.Context, name string) error
	Status(ctx context.Context, name string) (supervisor.Status, error)
}

var (
	_ Supervisor = (*supervisor.Client)(nil)
	_ Supervisor = (*Systemd)(nil)
)

// systemdBooted exists when systemd runs the host (see sd_booted(3)).
const systemdBooted = "/run/systemd/system"

// Detect returns the supervisor of this machine.
func Detect() (Supervisor, error) {
	if _, err := os.Stat(supervisor.DefaultSocket); err == nil {
		return supervisor.NewClient(supervisor.DefaultSocket), nil
	}
	if UnderSystemd() {
		return NewSystemd(), nil
	}
	return nil, fmt.Errorf("no supervisor for containerd and the kubelet: neither systemd (%s) nor a skerry supervisor (%s) runs here: boot the host with systemd (Debian package systemd-sysv)", systemdBooted, supervisor.DefaultSocket)
}

// UnderSystemd reports whether systemd runs the host.
func UnderSystemd() bool {
	info, err := os.Stat(systemdBooted)
	return err == nil && info.IsDir()
}
