// Package thread runs functions on operating system threads that are thrown
// away afterwards, because what was done to them cannot be undone: entering
// namespaces and control groups. It knows nothing of what the functions do.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Throwaway runs f on a thread of its own and returns when f has. The thread
// ends with it.
func Throwaway(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlocking it the thread ends with this goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The main thread is never ended by the runtime. While this goroutine
		// holds it, another one gets another.
		err := Throwaway(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
