package supervisor

import (
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// stableAfter is how long a unit must run for its next crash to count as the
// first one.
const stableAfter = 10 * time.Second

// service is a unit and the process that runs for it.
type service struct {
	server *Server
	name   string

	// One start or stop at a time; never held while a crash is handled.
	control sync.Mutex

	mu      sync.Mutex
	unit    Unit
	status  Status
	stopped chan struct{} // closed to make the keeper end; nil when there is none
	ended   chan struct{} // closed when the keeper has ended
}

func (s *Server) newService(u Unit) *service { return &service{server: s, name: u.Name, unit: u} }

func (u *service) redefine(unit Unit) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unit = unit
}

func (u *service) definition() Unit {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.unit
}

func (u *service) getStatus() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

// start runs the unit if it does not run. The error is that of the first try;
// others follow whatever it was.
func (u *service) start() error {
	u.control.Lock()
	defer u.control.Unlock()
	return u.startLocked()
}

func (u *service) startLocked() error {
	u.mu.Lock()
	if u.stopped != nil {
		u.mu.Unlock()
		return nil
	}
	u.stopped, u.ended = make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go u.keep(u.stopped, u.ended, first)
	u.mu.Unlock()
	return <-first
}

// stop ends the unit and returns when it has.
func (u *service) stop() error {
	u.control.Lock()
	defer u.control.Unlock()
	u.stopLocked()
	return nil
}

func (u *service) stopLocked() {
	u.mu.Lock()
	stopped, ended := u.stopped, u.ended
	u.stopped = nil
	u.mu.Unlock()
	if stopped != nil {
		close(stopped)
		<-ended
	}
}

func (u *service) restart() error {
	u.control.Lock()
	defer u.control.Unlock()
	u.stopLocked()
	return u.startLocked()
}

// keep runs the unit again and again until it is stopped. It sends on first how
// the first try to start it went.
func (u *service) keep(stopped, ended chan struct{}, first chan<- error) {
	defer close(ended)
	delay := u.server.config.MinDelay
	for {
		began := time.Now()
		pid, exited, err := u.launch()
		first <- err
		first = make(chan error, 1) // nobody listens to the others
		exit := ""
		if err != nil {
			exit = err.Error()
		} else {
			exit = u.await(pid, exited, stopped)
		}
		u.mu.Lock()
		u.status.Active, u.status.PID, u.status.Since, u.status.LastExit = false, 0, time.Now(), exit
		u.mu.Unlock()
		u.server.log.Printf("unit %s ended: %s", u.name, exit)
		if time.Since(began) >= stableAfter {
			delay = u.server.config.MinDelay
		}
		select {
		case <-stopped:
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, u.server.config.MaxDelay)
		u.mu.Lock()
		u.status.Restarts++
		u.mu.Unlock()
	}
}

// launch starts the process once.
func (u *service) launch() (pid int, exited <-chan syscall.WaitStatus, err error) {
	unit := u.definition()
	env, err := unit.environment()
	if err != nil {
		return 0, nil, err
	}
	logs, err := openLog(filepath.Join(u.server.config.LogDir, unit.Name+".log"))
	if err != nil {
		return 0, nil, err
	}
	defer logs.release()
	pid, exited, err = u.server.reaper.start(unit.arguments(env), env, logs.pipe)
	if err != nil {
		logs.printf("supervisor: %v", err)
		return 0, nil, err
	}
	u.mu.Lock()
	u.status.Active, u.status.PID, u.status.Since = true, pid, time.Now()
	u.mu.Unlock()
	u.server.log.Printf("unit %s started: process %d", unit.Name, pid)
	return pid, exited, nil
}

// await returns how the process ended, by itself or because it was told to.
func (u *service) await(pid int, exited <-chan syscall.WaitStatus, stopped <-chan struct{}) string {
	select {
	case s := <-exited:
		return describe(s)
	case <-stopped:
	}
	// Only the process itself, not its children: a container runtime that is
	// restarted leaves its containers running.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		u.server.log.Printf("unit %s: asking process %d to end: %v", u.name, pid, err)
	}
	select {
	case s := <-exited:
		return describe(s)
	case <-time.After(u.server.config.StopTimeout):
		u.server.log.Printf("unit %s did not end within %s and is killed", u.name, u.server.config.StopTimeout)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		u.server.log.Printf("unit %s: killing process %d: %v", u.name, pid, err)
	}
	return describe(<-exited)
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return fmt.Sprintf("signal: %s", s.Signal())
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}
