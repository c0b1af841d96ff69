package machine

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox/thread"
)

// InNetwork runs f on a thread that is in the machine's network: a socket that
// f opens belongs to the machine, for as long as it is open. f must not start
// goroutines that open sockets.
func (c Config) InNetwork(f func() error) error {
	id, on := c.Process()
	if !on {
		return fmt.Errorf("machine %s is off", c.Name)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", id.PID))
	if err != nil {
		return fmt.Errorf("machine %s: opening its network: %w", c.Name, err)
	}
	defer ns.Close()
	return thread.Throwaway(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("machine %s: entering its network: %w", c.Name, err)
		}
		return f()
	})
}
