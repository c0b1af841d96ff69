package process

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func sleeper(t *testing.T) (*exec.Cmd, ID) {
	t.Helper()
	// A name that could confuse a parser of /proc/PID/stat.
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, id
}

func TestKillEndsTheProcess(t *testing.T) {
	cmd, id := sleeper(t)
	if !id.Alive() {
		t.Fatal("not alive")
	}
	called := false
	go func() { _ = cmd.Wait() }()
	if err := id.Kill(10*time.Second, func() error { called = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if id.Alive() || !called {
		t.Errorf("alive: %v, called: %v", id.Alive(), called)
	}
	if err := id.Kill(time.Second, nil); err != nil {
		t.Errorf("killing it again: %v", err)
	}
}

// A process that took over the number must not be hit.
func TestKillSparesOthers(t *testing.T) {
	_, id := sleeper(t)
	for name, other := range map[string]ID{
		"other start": {id.PID, id.Start + 1, id.Boot}, "other boot of the host": {id.PID, id.Start, "x"}, "nobody": {}, "init": {PID: 1},
	} {
		if other.Alive() {
			t.Errorf("%s: alive", name)
		}
		if err := other.Kill(time.Second, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !id.Alive() {
		t.Error("the process with the same number was killed")
	}
}

func TestZombieIsNotAlive(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := Find(cmd.Process.Pid); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a process that has ended still counts")
		}
	}
}

func TestSelf(t *testing.T) {
	id, err := Find(os.Getpid())
	if err != nil || !id.Alive() || id.Start == 0 || len(id.Boot) != 36 {
		t.Errorf("%+v, %v", id, err)
	}
}
