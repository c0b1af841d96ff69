package cmd

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

func options(t *testing.T, args string) *linkOptions {
	t.Helper()
	o := &linkOptions{}
	flags := pflag.NewFlagSet("link", pflag.ContinueOnError)
	o.addTo(flags)
	if err := flags.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestLinkChangesOnlyWhatIsNamed(t *testing.T) {
	now := weaklink.Settings{Delay: weaklink.Duration(time.Second), Loss: 5}
	for args, want := range map[string]string{
		"--cut":                       "cut delay 1s loss 5%",
		"--loss 10%":                  "delay 1s loss 10%",
		"--loss 0":                    "delay 1s",
		"--heal":                      "perfect",
		"--heal --rate 2mbit":         "rate 2mbit",
		"--jitter 10ms --reorder":     "delay 1s jitter 10ms reorder loss 5%",
		"--cut=false --delay 20ms":    "delay 20ms loss 5%",
		"--one-way up --heal --cut":   "cut",
		"--delay 100ms --rate 64kbit": "delay 100ms loss 5% rate 64kbit",
	} {
		o := options(t, args)
		if err := o.check(); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if got := o.apply(now).String(); got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

func TestLinkRefusesNonsense(t *testing.T) {
	for _, args := range []string{
		"", "--one-way up", "--one-way sideways --cut", "--node a", "--node a --cut --heal", "--node a --delay 1s", "--node a --cut --delay 1s", "--node a --cut --one-way up",
		"--inside", "--inside --delay 1s", "--inside --cut --one-way up", "--inside --rate 1mbit",
	} {
		if err := options(t, args).check(); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	for _, args := range []string{"--node a --cut", "--node a --heal", "--node a --node b --cut", "--inside --cut", "--inside --heal", "--inside --loss 5% --node a", "--inside --cut --node a --one-way down"} {
		if err := options(t, args).check(); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestInsideChangesTheRightPairs(t *testing.T) {
	for args, want := range map[string]string{
		"--inside --cut":                         "ab ac ba bc ca cb",
		"--inside --cut --node a":                "ab ac ba ca",
		"--inside --cut --node a,b":              "ac bc ca cb",
		"--inside --cut --node a --one-way up":   "ab ac",
		"--inside --cut --node c --one-way down": "ac bc",
	} {
		var got []string
		for _, p := range options(t, args).pairs([]string{"a", "b", "c"}) {
			got = append(got, p[0]+p[1])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

// run runs `skerry sandbox ARGS` on an empty folder.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := NewSandboxCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append(args, "--root", t.TempDir()))
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestErrorsSayWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(file, []byte("sites: [{name: a, knots: 2}]"), 0o644); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"status":            "skerry sandbox create",
		"link west --cut":   "skerry sandbox create",
		"delete":            "skerry sandbox create",
		"create -f " + file: "bad.yaml: not a sandbox description: sites[0].knots",
		"create -f /none":   "/none",
		"create --name A_b": "name:",
		"exec east-1":       "requires at least 2 arg",
	} {
		if _, err := run(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", args, err, want)
		}
	}
}

func TestDeleteAllGoesOnAfterAFailure(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"busy", "idle"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(root, ".busy.lock")) // as a command that works on it
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	t.Setenv(sandbox.DistVariable, root)
	cmd := NewSandboxCommand()
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"delete", "--all", "--root", root})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), `"busy"`) {
		t.Errorf("%v, want an error that names the busy one", err)
	}
	if _, err := os.Stat(filepath.Join(root, "idle")); !os.IsNotExist(err) {
		t.Errorf("the other one is still there: %v", err)
	}
}

func TestHelpShowsEveryVerbAndHidesTheProcesses(t *testing.T) {
	out, err := run(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"create", "delete", "status", "shell", "exec", "poweroff", "poweron", "reboot", "freeze", "thaw", "link", "load", "logs", "kubeconfig", "repair"} {
		if !strings.Contains(out, "\n  "+verb+" ") {
			t.Errorf("--help does not list %s", verb)
		}
	}
	if strings.Contains(out, "machine-start") || strings.Contains(out, "machine-init") || strings.Contains(out, "\n  fabric ") {
		t.Error("--help lists commands that are not for users")
	}
}

func TestStatusTables(t *testing.T) {
	var out bytes.Buffer
	err := printStatus(&out, sandbox.Status{
		Machines: []sandbox.MachineStatus{
			{Name: "east-1", Site: "east", Power: sandbox.PowerOn, Uptime: "5s", Address: "172.30.1.11", BootID: "12345678-abcd", Memory: 100 << 20, Limit: 256 << 20, Node: "Ready"},
			{Name: "east-2", Site: "east", Power: sandbox.PowerOff, Address: "172.30.1.12"},
		},
		CutOff: []string{"east-1"},
		Links: map[string]fabric.LinkStatus{"east": {
			Up: fabric.LaneStatus{Settings: weaklink.Settings{Cut: true}, Counters: weaklink.Counters{Packets: 7, Bytes: 700, Cut: 3, Queue: 2}},
		}},
		Inside:   []fabric.Inside{{From: "east-1", To: "east-2", Settings: weaklink.Settings{Loss: 50}}},
		Problems: []string{"something"},
	})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"east-1 east on 5s 172.30.1.11 12345678 100 MiB of 256 Ready (cut off)", "east-2 east off - 172.30.1.12 - - -",
		"east up cut 7 700 5 (cut 3, queue 2)", "east down perfect 0 0 0", "INSIDE TO SETTINGS east-1 east-2 loss 50%", "PROBLEM: something",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
