package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs a server on fresh folders until the test ends or stop is called.
func start(t *testing.T, dir string) (client *Client, stop func()) {
	t.Helper()
	socket := filepath.Join(dir, "s")
	s, err := NewServer(Config{
		Socket: socket, UnitDir: filepath.Join(dir, "units"), LogDir: filepath.Join(dir, "log"),
		MinDelay: 20 * time.Millisecond, MaxDelay: 80 * time.Millisecond, StopTimeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return NewClient(socket), stop
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func shell(name, script string) Unit {
	return Unit{Name: name, Command: []string{"/bin/sh", "-c", script}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

func status(t *testing.T, c *Client, name string) Status {
	t.Helper()
	s, err := c.Status(t.Context(), name)
	must(t, err)
	return s
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestStartStopRestartRemove(t *testing.T) {
	dir := shortDir(t)
	c, _ := start(t, dir)
	ctx := t.Context()
	must(t, c.Install(ctx, shell("web", "echo hello; exec sleep 1000")))
	if s := status(t, c, "web"); s.Active {
		t.Error("installing started the unit")
	}
	must(t, c.Start(ctx, "web"))
	first := status(t, c, "web")
	if !first.Active || first.PID == 0 || first.Since.IsZero() {
		t.Fatalf("after start: %+v", first)
	}
	must(t, c.Start(ctx, "web"))
	if s := status(t, c, "web"); s.PID != first.PID {
		t.Error("starting a running unit started it again")
	}
	eventually(t, "the log has the output", func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "log/web.log"))
		return err == nil && string(data) == "hello\n"
	})
	must(t, c.Restart(ctx, "web"))
	second := status(t, c, "web")
	if !second.Active || second.PID == first.PID || !gone(first.PID) || second.Restarts != 0 {
		t.Errorf("after restart: %+v, before %+v", second, first)
	}
	must(t, c.Stop(ctx, "web"))
	if s := status(t, c, "web"); s.Active || !gone(second.PID) || !strings.Contains(s.LastExit, "terminated") {
		t.Errorf("after stop: %+v", s)
	}
	must(t, c.Start(ctx, "web"))
	third := status(t, c, "web")
	must(t, c.Remove(ctx, "web"))
	must(t, c.Remove(ctx, "web"))
	if _, err := c.Status(ctx, "web"); err == nil || !gone(third.PID) {
		t.Errorf("after remove: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "units/web.json")); !os.IsNotExist(err) {
		t.Errorf("the unit's file is still there: %v", err)
	}
}

func TestCrashingUnitIsRestartedWithGrowingPauses(t *testing.T) {
	dir := shortDir(t)
	c, _ := start(t, dir)
	must(t, c.Install(t.Context(), shell("crash", "date +%s%N; exit 3")))
	must(t, c.Start(t.Context(), "crash"))
	eventually(t, "five restarts", func() bool { return status(t, c, "crash").Restarts >= 5 })
	if s := status(t, c, "crash"); s.LastExit != "exit status 3" {
		t.Errorf("last exit %q", s.LastExit)
	}
	data, err := os.ReadFile(filepath.Join(dir, "log/crash.log"))
	must(t, err)
	var times []int64
	for line := range strings.Lines(string(data)) {
		var ns int64
		if _, err := fmt.Sscan(line, &ns); err != nil {
			t.Fatal(err)
		}
		times = append(times, ns)
	}
	for i, least := range []time.Duration{20, 40, 80, 80} {
		if pause := time.Duration(times[i+1] - times[i]); pause < least*time.Millisecond {
			t.Errorf("pause %d is %v, want at least %v", i, pause, least*time.Millisecond)
		}
	}
	must(t, c.Stop(t.Context(), "crash"))
	before := status(t, c, "crash").Restarts
	time.Sleep(200 * time.Millisecond)
	if after := status(t, c, "crash").Restarts; after != before {
		t.Errorf("a stopped unit went on crashing: %d restarts, then %d", before, after)
	}
}

func TestKilledUnitComesBack(t *testing.T) {
	c, _ := start(t, shortDir(t))
	must(t, c.Install(t.Context(), shell("web", "exec sleep 1000")))
	must(t, c.Start(t.Context(), "web"))
	pid := status(t, c, "web").PID
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "another process", func() bool { s := status(t, c, "web"); return s.Active && s.PID != pid })
	if s := status(t, c, "web"); s.Restarts != 1 || !strings.Contains(s.LastExit, "killed") {
		t.Errorf("%+v", s)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	c, _ := start(t, shortDir(t))
	must(t, c.Install(t.Context(), shell("deaf", `trap "" TERM; while :; do sleep 0.05; done`)))
	must(t, c.Start(t.Context(), "deaf"))
	pid := status(t, c, "deaf").PID
	time.Sleep(50 * time.Millisecond) // the trap is set
	began := time.Now()
	must(t, c.Stop(t.Context(), "deaf"))
	if took := time.Since(began); took < 300*time.Millisecond || !gone(pid) {
		t.Errorf("stopped after %v, gone: %v", took, gone(pid))
	}
}

func TestMissingProgramIsReportedAndTriedAgain(t *testing.T) {
	dir := shortDir(t)
	c, _ := start(t, dir)
	program := filepath.Join(dir, "later")
	must(t, c.Install(t.Context(), Unit{Name: "later", Command: []string{program}}))
	if err := c.Start(t.Context(), "later"); err == nil || !strings.Contains(err.Error(), program) {
		t.Errorf("start: %v, want an error with the program's name", err)
	}
	must(t, os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755))
	eventually(t, "it runs", func() bool { return status(t, c, "later").Active })
}

func TestUnitsStartAtBootInOrder(t *testing.T) {
	dir := shortDir(t)
	out := filepath.Join(dir, "order")
	c, stop := start(t, dir)
	for _, u := range []Unit{
		{Name: "a", After: []string{"b", "missing"}}, {Name: "b", After: []string{"c"}}, {Name: "c", After: []string{"a"}},
	} {
		u.Command = []string{"/bin/sh", "-c", "echo " + u.Name + " >> " + out + "; exec sleep 1000"}
		must(t, c.Install(t.Context(), u))
	}
	stop()
	// A file that is no unit must not keep the machine from booting.
	must(t, os.WriteFile(filepath.Join(dir, "units/bad.json"), []byte("{"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "units/name.json"), []byte(`{"name":"other","command":["/x"]}`), 0o644))
	c, stop = start(t, dir)
	var pids []int
	for _, name := range []string{"a", "b", "c"} {
		eventually(t, name+" runs", func() bool { return status(t, c, name).Active })
		pids = append(pids, status(t, c, name).PID)
	}
	eventually(t, "all have written", func() bool { data, _ := os.ReadFile(out); return len(data) == 6 })
	stop()
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %d outlived the server", pid)
		}
	}
}

func TestBootOrder(t *testing.T) {
	units := map[string]*service{}
	for name, after := range map[string][]string{"kubelet": {"containerd"}, "containerd": {"network"}, "network": nil, "agent": {"missing"}} {
		units[name] = &service{name: name, unit: Unit{Name: name, After: after}}
	}
	var got []string
	for _, u := range bootOrder(units) {
		got = append(got, u.name)
	}
	if want := "agent network containerd kubelet"; strings.Join(got, " ") != want {
		t.Errorf("order %v, want %s", got, want)
	}
}

func TestEnvironmentFile(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "env")
	u := Unit{Name: "x", Command: []string{"/x", "$FLAGS", "$NONE", "$", "a$FLAGS"}, Environment: []string{"FLAGS=--old", "OTHER=1"}, EnvironmentFile: file}
	env, err := u.environment()
	must(t, err)
	if got := u.arguments(env); strings.Join(got, "|") != "/x|--old|$|a$FLAGS" {
		t.Errorf("without the file: %q", got)
	}
	must(t, os.WriteFile(file, []byte("# comment\n\n; other\nFLAGS=\"--a=1 --b  --c=x=y\"\nSINGLE='q'\nPLAIN=p\n"), 0o644))
	env, err = u.environment()
	must(t, err)
	if got := u.arguments(env); strings.Join(got, "|") != "/x|--a=1|--b|--c=x=y|$|a$FLAGS" {
		t.Errorf("with the file: %q", got)
	}
	must(t, os.WriteFile(file, []byte("no equals sign"), 0o644))
	if _, err := u.environment(); err == nil {
		t.Error("a malformed file is accepted")
	}
}

func TestRedefinedUnitIsUsedAtTheNextStart(t *testing.T) {
	c, _ := start(t, shortDir(t))
	must(t, c.Install(t.Context(), shell("web", "exec sleep 1000")))
	must(t, c.Start(t.Context(), "web"))
	pid := status(t, c, "web").PID
	must(t, c.Install(t.Context(), shell("web", "exec sleep 2000")))
	if status(t, c, "web").PID != pid {
		t.Error("installing restarted the unit")
	}
	must(t, c.Restart(t.Context(), "web"))
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", status(t, c, "web").PID))
	must(t, err)
	if !bytes.Contains(line, []byte("2000")) {
		t.Errorf("runs %q after the restart", line)
	}
}

func TestLogIsBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.log")
	l, err := openLogSize(file, 1000)
	must(t, err)
	for i := range 100 {
		fmt.Fprintf(l.pipe, "line %d %s\n", i, strings.Repeat("x", 80))
	}
	fmt.Fprintf(l.pipe, "%s\n", strings.Repeat("y", 2*maxLine))
	l.release()
	eventually(t, "the log is closed", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, err := l.file.Stat()
		return err != nil
	})
	for _, f := range []string{file, file + ".1"} {
		info, err := os.Stat(f)
		must(t, err)
		// One piece of an endless line may be longer than the bound.
		if info.Size() > 1000+maxLine {
			t.Errorf("%s has %d bytes", f, info.Size())
		}
	}
}

// The server reaps what a unit leaves behind, as a first process must. Here
// the unit's child is not ours, so look at a direct child instead.
func TestReaperTakesAllChildren(t *testing.T) {
	_, stop := start(t, shortDir(t))
	defer stop()
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	must(t, err)
	pid := p.Pid
	must(t, p.Release())
	eventually(t, "the child is reaped", func() bool { return gone(pid) })
}

func TestHostileInput(t *testing.T) {
	dir := shortDir(t)
	c, _ := start(t, dir)
	ctx := t.Context()
	for _, u := range []Unit{
		{Name: "../x", Command: []string{"/x"}}, {Name: "", Command: []string{"/x"}}, {Name: strings.Repeat("a", 100), Command: []string{"/x"}},
		{Name: "x"}, {Name: "x", Command: []string{"relative"}}, {Name: "x", Command: []string{"/x\x00"}},
		{Name: "x", Command: []string{"/x"}, Environment: []string{"novalue"}}, {Name: "x", Command: []string{"/x"}, After: []string{"/etc"}},
	} {
		if err := c.Install(ctx, u); err == nil {
			t.Errorf("unit %+v is accepted", u)
		}
		// The server must not trust the client's own check.
		data, err := json.Marshal(u)
		must(t, err)
		if code := raw(t, filepath.Join(dir, "s"), "PUT", "/units/x", data); code < 400 {
			t.Errorf("the server accepts %s", data)
		}
	}
	for what, body := range map[string][]byte{
		"nothing": nil, "no JSON": []byte("x"), "unknown field": []byte(`{"name":"x","command":["/x"],"evil":1}`),
		"huge": []byte(`{"name":"x","command":["/` + strings.Repeat("a", maxUnitSize) + `"]}`), "other name": []byte(`{"name":"y","command":["/x"]}`),
	} {
		if code := raw(t, filepath.Join(dir, "s"), "PUT", "/units/x", body); code < 400 {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := c.Start(ctx, "unknown"); err == nil || !strings.Contains(err.Error(), "no such unit") {
		t.Errorf("starting an unknown unit: %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "units/*")); len(files) != 0 {
		t.Errorf("hostile input left files: %v", files)
	}
}

func TestAUnitThatCouldNotBeReadBackIsRefused(t *testing.T) {
	dir := shortDir(t)
	c, stop := start(t, dir)
	u := shell("big", "exec sleep 1000")
	// Short on the wire, too long with the file's line breaks and blanks.
	for range 10000 {
		u.Environment = append(u.Environment, "A=")
	}
	if err := c.Install(t.Context(), u); err == nil || !strings.Contains(err.Error(), "big") || !strings.Contains(err.Error(), "at most") {
		t.Errorf("installing: %v", err)
	}
	// The largest that is accepted is there after a boot.
	u.Environment = nil
	data, err := json.MarshalIndent(u, "", "  ")
	must(t, err)
	u.Description = strings.Repeat("d", maxUnitSize-len(data)-len("  \"description\": \"\",\n"))
	must(t, c.Install(t.Context(), u))
	stop()
	c, _ = start(t, dir)
	eventually(t, "it runs", func() bool { return status(t, c, "big").Active })
	u.Description += "d"
	if err := c.Install(t.Context(), u); err == nil {
		t.Error("one byte more is accepted")
	}
}

func TestInstallDuringRemoveInstalls(t *testing.T) {
	dir := shortDir(t)
	c, stop := start(t, dir)
	asked := filepath.Join(dir, "asked")
	must(t, c.Install(t.Context(), shell("web", `trap "touch `+asked+`" TERM; while :; do sleep 0.02; done`)))
	must(t, c.Start(t.Context(), "web"))
	time.Sleep(50 * time.Millisecond) // the trap is set
	removed := make(chan error, 1)
	go func() { removed <- c.Remove(context.Background(), "web") }()
	eventually(t, "the unit is asked to end", func() bool { _, err := os.Stat(asked); return err == nil })
	must(t, c.Install(t.Context(), shell("web", "exec sleep 1000")))
	must(t, <-removed)
	stop()
	c, _ = start(t, dir)
	eventually(t, "it runs after a boot", func() bool { return status(t, c, "web").Active })
}

// raw sends a request without the client's checks and returns the status.
func raw(t *testing.T, socket, method, path string, body []byte) int {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	must(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, path, len(body), body)
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	answer, err := io.ReadAll(conn)
	if len(answer) == 0 {
		must(t, err)
	}
	var code int
	if _, err := fmt.Sscanf(string(answer), "HTTP/1.1 %d", &code); err != nil {
		t.Fatalf("answer %q: %v", answer, err)
	}
	return code
}
