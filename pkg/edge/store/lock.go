package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lockFile is the lock of a store: a file beside the database, because the
// database itself may be replaced (a damaged one, a compacted one) while the
// lock is held. bbolt's own lock on the database is taken as well. The holder
// writes who it is into the file.
func lockFile(path string, shared bool, timeout time.Duration) (*os.File, error) {
	flags, how := os.O_RDWR|os.O_CREATE, syscall.LOCK_EX
	if shared {
		flags, how = os.O_RDONLY, syscall.LOCK_SH
	}
	name := path + ".lock"
	f, err := os.OpenFile(name, flags|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if shared && errors.Is(err, fs.ErrNotExist) {
		return nil, nil // bbolt's lock is left
	}
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		if time.Now().After(end) {
			who := holder(f)
			_ = f.Close()
			return nil, fmt.Errorf("%w: %s", ErrHeld, who)
		}
	}
	if !shared {
		// Telling who holds it is a service; the lock is held without it.
		if err := f.Truncate(0); err == nil {
			_, _ = f.WriteAt([]byte(fmt.Sprintf("%d %s\n", os.Getpid(), filepath.Base(os.Args[0]))), 0)
		}
	}
	return f, nil
}

// holder says which process has the lock: the kernel knows, and else what the
// last exclusive holder wrote.
func holder(f *os.File) string {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err == nil {
		if locks, err := os.Open("/proc/locks"); err == nil {
			defer func() { _ = locks.Close() }()
			for sc := bufio.NewScanner(locks); sc.Scan(); {
				// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
				w := strings.Fields(sc.Text())
				if len(w) < 6 || w[1] != "FLOCK" || !strings.HasSuffix(w[5], ":"+strconv.FormatUint(st.Ino, 10)) {
					continue
				}
				if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
					return describeProcess(pid)
				}
			}
		}
	}
	text, _ := io.ReadAll(io.LimitReader(io.NewSectionReader(f, 0, 256), 256))
	if who := strings.TrimSpace(string(text)); who != "" {
		return "process " + who
	}
	return "an unknown process"
}

func describeProcess(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
}
