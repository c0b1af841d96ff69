package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock makes sure that one command at a time makes, deletes or switches a
// sandbox. The returned function unlocks.
func lock(root, name string) (func(), error) {
	unlock, err := lockFile(filepath.Join(root, "."+name+".lock"), unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another command is making or deleting sandbox %q; wait for it to end", name)
	}
	return unlock, err
}

// lockFile makes and locks a file; unlocking removes it.
func lockFile(file string, flags int) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o640)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|flags); err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", file, err)
		}
		// The holder before us removed the file: what we locked is nobody's.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(file)
		if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
			f.Close()
			continue
		}
		return func() {
			_ = os.Remove(file)
			f.Close()
		}, nil
	}
}
