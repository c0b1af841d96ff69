// Package process names a process in a way that survives the process: by pid
// and start time, so that a number that was given to somebody else is never
// signalled. It knows nothing of sandboxes.
package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ID is one process.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the host booted
	Boot  string `json:"boot"`  // of the host
}

// Find returns the identity of a process that runs now.
func Find(pid int) (ID, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ID{}, fmt.Errorf("looking for process %d: %w", pid, err)
	}
	// The second field is the program's name in brackets and may hold anything.
	_, rest, ok := strings.Cut(string(data[max(0, strings.LastIndexByte(string(data), ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return ID{}, fmt.Errorf("process %d: unexpected /proc/PID/stat", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return ID{}, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return ID{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ID{}, fmt.Errorf("process %d: boot id of the host: %w", pid, err)
	}
	return ID{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// Alive reports whether the process still runs.
func (id ID) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	now, err := Find(id.PID)
	return err == nil && now == id
}

// Kill ends the process and waits until it is gone. A process that is gone
// already is no error. whileWaiting, if not nil, runs after the signal is sent.
func (id ID) Kill(timeout time.Duration, whileWaiting func() error) error {
	if id.PID <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", id.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor holds the process; now see that it is the right one.
	if !id.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", id.PID, err)
	}
	if whileWaiting != nil {
		if err := whileWaiting(); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d was killed but did not end within %s", id.PID, timeout)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for process %d: %w", id.PID, err)
		}
		if n > 0 {
			return nil
		}
	}
}
