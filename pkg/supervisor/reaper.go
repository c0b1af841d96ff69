package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for all children of the process: those it started, whose end
// somebody wants to know, and those a first process inherits.
type reaper struct {
	mu      sync.Mutex // start and reap exclude each other, so no end is missed
	waiting map[int]chan syscall.WaitStatus
	signals chan os.Signal
}

func newReaper() *reaper {
	return &reaper{waiting: map[int]chan syscall.WaitStatus{}, signals: make(chan os.Signal, 1)}
}

// run reaps until the returned function is called.
func (r *reaper) run() (stop func()) {
	signal.Notify(r.signals, unix.SIGCHLD)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			r.reap()
			select {
			case <-r.signals:
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(r.signals)
		close(done)
		<-ended
	}
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := r.waiting[pid]; ok {
			c <- status
			delete(r.waiting, pid)
		}
	}
}

// start starts a program in a session of its own. Its end is sent once.
func (r *reaper) start(args, env []string, output *os.File) (pid int, exited <-chan syscall.WaitStatus, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, output, output}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	end := make(chan syscall.WaitStatus, 1)
	pid = p.Pid
	r.waiting[pid] = end
	_ = p.Release() // reap waits for it, not package os
	return pid, end, nil
}
