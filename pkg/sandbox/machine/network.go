package machine

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
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
	done := make(chan error)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("machine %s: entering its network: %w", c.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}
