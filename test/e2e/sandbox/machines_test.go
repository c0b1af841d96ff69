//go:build e2e

package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/test/sandbox"
)

const small = `
sites:
- {name: east, nodes: 2}
- {name: west, nodes: 3, memory: 256Mi}
`

// TestMachines proves machines and links without Kubernetes.
func TestMachines(t *testing.T) {
	sb := sandbox.NewMachines(t, small)
	for _, c := range []struct {
		name string
		test func(*testing.T, *sandbox.Sandbox)
	}{
		{"reboot keeps the disk and nothing else", rebootKeepsDisk},
		{"power off ends everything at once", powerOffEndsEverything},
		{"freeze stops and thaw continues", freezeStops},
		{"a machine is not the host", machineIsNotHost},
		{"memory is bounded", memoryIsBounded},
		{"commands: exit code, output, errors", commands},
		{"packets: who reaches whom", whoReachesWhom},
		{"packets: cut and one-way", cutAndOneWay},
		{"packets: delay", delay},
		{"packets: loss", loss},
		{"packets: rate", rate},
		{"packets: one node cut off", oneNodeCutOff},
		{"packets: faults inside a site", insideASite},
		{"the network's process dies", networkDies},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, sb.In(t)) })
	}
}

func rebootKeepsDisk(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("east-1")
	files := []string{"/root/kept", "/var/lib/kept", "/etc/kept", "/usr/share/kept"}
	for _, f := range files {
		n.Shell("echo hello > " + f)
	}
	n.Shell("echo gone > /run/gone; echo gone > /tmp/gone; ip link add extra0 type bridge")
	bootID, machineID := n.Shell("cat /proc/sys/kernel/random/boot_id"), n.Shell("cat /etc/machine-id")

	n.Reboot()

	for _, f := range files {
		if got := n.Shell("cat " + f); got != "hello\n" {
			t.Errorf("%s holds %q after the reboot", f, got)
		}
	}
	if out := n.Shell("ls /run/gone /tmp/gone 2>&1; ip link show extra0 2>&1; true"); strings.Count(out, "No such file") != 2 || !strings.Contains(out, "does not exist") {
		t.Errorf("something of /run, /tmp or the network survived the reboot: %s", out)
	}
	if now := n.Shell("cat /proc/sys/kernel/random/boot_id"); now == bootID || len(now) != 37 {
		t.Errorf("boot id %q, before the reboot %q", now, bootID)
	}
	if now := n.Shell("cat /etc/machine-id"); now != machineID {
		t.Errorf("the machine id changed from %q to %q", machineID, now)
	}
	if other := sb.Node("east-2").Shell("cat /etc/machine-id"); other == machineID {
		t.Error("two machines have the same machine id")
	}
}

func powerOffEndsEverything(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("east-1")
	// A process that left its session and ignores what it can.
	n.Shell(`setsid sh -c 'trap "" TERM HUP INT; while :; do sleep 0.1; done' > /dev/null 2>&1 &`)
	if n.Processes() < 2 {
		t.Fatal("the process did not start")
	}
	n.PowerOff()
	if left := n.Processes(); left != 0 {
		t.Errorf("%d processes survived power off", left)
	}
	if _, err := n.Try("true"); err == nil || !strings.Contains(err.Error(), "is off") {
		t.Errorf("a command in a machine that is off: %v", err)
	}
	// Twice is the same as once.
	n.PowerOff()
	n.PowerOn()
	if err := sb.Box().PowerOn(t.Context(), n.Name()); err == nil || !strings.Contains(err.Error(), "is on") {
		t.Errorf("switching on a machine that is on: %v", err)
	}
}

func freezeStops(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("west-1")
	n.Shell(`setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.05; done' > /dev/null 2>&1 &`)
	count := func() string { return n.ReadFile("/root/count") }
	sb.Eventually(10*time.Second, "it counts", func() error { _, err := os.Stat(n.Config().Disk() + "/root/count"); return err })
	n.Freeze()
	frozen := count()
	time.Sleep(500 * time.Millisecond)
	if now := count(); now != frozen {
		t.Errorf("a frozen machine went on from %q to %q", frozen, now)
	}
	if _, err := n.Try("true"); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("a command in a frozen machine: %v", err)
	}
	n.Thaw()
	sb.Eventually(10*time.Second, "it goes on", func() error {
		if now := count(); now == frozen {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
	// The power goes while it is frozen.
	n.Freeze()
	n.PowerOff()
	if left := n.Processes(); left != 0 {
		t.Errorf("%d frozen processes survived power off", left)
	}
}

func machineIsNotHost(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("east-1")
	if got := n.Shell("hostname"); got != "east-1\n" {
		t.Errorf("host name %q", got)
	}
	if got := n.Shell("cat /proc/1/cmdline | tr '\\0' ' '"); !strings.HasPrefix(got, "skerry sandbox") {
		t.Errorf("process 1 is %q", got)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{wd, sb.Box().Dir(), "/etc/shadow", "/etc/kubernetes", "/etc/ssh"} {
		if out, err := n.Try("ls", "-d", secret); err == nil {
			t.Errorf("the machine sees %s of the host: %s", secret, out)
		}
	}
	if got := n.Shell("cat /proc/self/cgroup"); strings.Contains(got, "skerry") {
		t.Errorf("the machine sees its place in the host's control groups:\n%s", got)
	}
	if out, err := n.Try("touch", "/usr/local/bin/x"); err == nil {
		t.Errorf("the lent programs can be written: %s", out)
	}
	mark := "/usr/share/skerry-e2e-mark"
	n.Shell("touch " + mark)
	if _, err := os.Stat(mark); err == nil {
		t.Errorf("a file written in the machine is on the host: %s", mark)
	}
	// What kubelet sets for the whole kernel stays the machine's own.
	before, err := os.ReadFile("/proc/sys/kernel/panic")
	if err != nil {
		t.Fatal(err)
	}
	n.Shell("echo 77 > /proc/sys/kernel/panic")
	if after, err := os.ReadFile("/proc/sys/kernel/panic"); err != nil || string(after) != string(before) {
		t.Errorf("kernel.panic of the host went from %q to %q (%v)", before, after, err)
	}
	for _, other := range []string{"cloud-1", "west-2"} {
		if out := n.Shell("cat /etc/hosts"); !strings.Contains(out, other) {
			t.Errorf("/etc/hosts does not name %s: %s", other, out)
		}
	}
	if got := n.Shell("findmnt -no PROPAGATION / 2>/dev/null || grep ' / / ' /proc/self/mountinfo"); !strings.Contains(got, "shared") {
		t.Errorf("the root is not shared, kubelet needs that: %q", got)
	}
}

func memoryIsBounded(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("west-2")
	if got := n.Shell("grep MemTotal /proc/meminfo"); !strings.Contains(got, "262144 kB") {
		t.Errorf("the machine believes to have %q", got)
	}
	// tail keeps its input: 400 MB of it do not fit.
	if out, err := n.Try("sh", "-c", "head -c 400000000 /dev/zero | tail | wc -c"); err == nil && strings.TrimSpace(out) == "400000000" {
		t.Error("a process took 400 MB in a machine of 256 MiB")
	}
	if got := n.Shell("echo alive"); got != "alive\n" {
		t.Errorf("the machine did not survive: %q", got)
	}
}

func commands(t *testing.T, sb *sandbox.Sandbox) {
	n := sb.Node("east-2")
	if _, err := n.Try("sh", "-c", "echo why >&2; exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v, want the exit status and what it said", err)
	}
	if _, err := n.Try("no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error %v", err)
	}
	// What a command leaves running belongs to the machine.
	n.Shell("setsid sleep 1000 > /dev/null 2>&1 &")
	n.Kill("sleep")
	// One that keeps the output open does not keep us past the timeout.
	began := time.Now()
	_, err := sb.Box().Output(t.Context(), time.Second, n.Name(), "sh", "-c", "setsid sleep 1000 & exec sleep 1000")
	if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "not done after 1s") || took > 15*time.Second {
		t.Errorf("after %s: %v, want the timeout of 1s", took, err)
	}
	n.Kill("sleep")
	for name, err := range map[string]error{
		"west-9":  sb.Box().PowerOff("west-9"),
		"no site": func() error { _, err := sb.Box().MachineNames("north"); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "west") {
			t.Errorf("%s: error %v, want one that lists what there is", name, err)
		}
	}
}

func networkDies(t *testing.T, sb *sandbox.Sandbox) {
	east, cloud := sb.Node("east-1"), sb.ControlPlane()
	sb.Site("west").Cut()
	killNetwork(t, sb.Box())
	status, err := sb.Box().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Problems) == 0 || !strings.Contains(status.Problems[0], "repair") {
		t.Errorf("status does not say what to do: %v", status.Problems)
	}
	east.Shell("echo the machine lives on")
	if err := sb.Box().Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	sb.Serve()
	if got := east.Ping(cloud, 3, 10*time.Millisecond); got.Received != 3 {
		t.Errorf("after the repair %d of 3 packets reached the cloud", got.Received)
	}
	if got := sb.Node("west-1").Ping(cloud, 3, 10*time.Millisecond); got.Received != 0 {
		t.Error("the repair forgot that west was cut")
	}
}

// TestSideBySide proves that two sandboxes with equal addresses do not meet.
func TestSideBySide(t *testing.T) {
	one := sandbox.NewMachines(t, "cloud: {nodes: 2}\nsites: []")
	t.Run("two", func(t *testing.T) {
		two := sandbox.NewMachines(t, "cloud: {nodes: 2}\nsites: []")
		if a, b := one.Node("cloud-1").Address(), two.Node("cloud-1").Address(); a != b {
			t.Fatalf("addresses %s and %s differ, so this proves nothing", a, b)
		}
		one.Serve()
		from := two.Node("cloud-2")
		if err := from.Dial(two.Node("cloud-1")); err == nil {
			t.Error("a server of one sandbox answers in the other")
		}
		two.Node("cloud-1").Serve()
		if err := from.Dial(two.Node("cloud-1")); err != nil {
			t.Errorf("inside the second sandbox: %v", err)
		}
	})
	if err := one.Node("cloud-2").Dial(one.Node("cloud-1")); err != nil {
		t.Errorf("the first sandbox after the second was deleted: %v", err)
	}
}

// TestCommandLine proves what only the program can show: exit codes and input.
func TestCommandLine(t *testing.T) {
	sb := sandbox.NewMachines(t, "sites: []")
	skerry := func(stdin string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(self(box.Places{Dist: sb.Dist()}), append([]string{"sandbox", "--name", sb.Box().Name()}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		stdin string
		args  []string
		out   string
		code  int
	}{
		{"hello", []string{"exec", "cloud-1", "--", "cat"}, "hello", 0},
		{"", []string{"exec", "cloud-1", "--", "sh", "-c", "exit 7"}, "", 7},
		{"", []string{"exec", "cloud-1", "--", "sh", "-c", "kill -KILL $$"}, "", 137},
		{"echo in a shell\nexit 3\n", []string{"shell", "cloud-1"}, "in a shell", 3},
		{"", []string{"exec", "nowhere", "--", "true"}, "it has cloud-1", 1},
		{"", []string{"logs", "cloud-1"}, "console", 0},
		{"", []string{"logs", "cloud-1", "kubelet"}, "it has: console", 1},
		{"", []string{"status"}, "172.30.0.11", 0},
		{"", []string{"status", "-o", "json"}, "\"address\": \"172.30.0.11\"", 0},
		{"", []string{"link", "west", "--cut"}, "no site \"west\"", 1},
		{"", []string{"create", "--machines-only"}, "exists", 1},
	} {
		if out, code := skerry(c.stdin, c.args...); !strings.Contains(out, c.out) || code != c.code {
			t.Errorf("%v: exit code %d, want %d with %q in\n%s", c.args, code, c.code, c.out, out)
		}
	}
}

// TestDelete proves that nothing stays, also of a sandbox whose network died.
func TestDelete(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(*testing.T, *box.Sandbox)
	}{
		{"whole", func(*testing.T, *box.Sandbox) {}},
		{"network dead", killNetwork},
		{"one machine off, one frozen", func(t *testing.T, b *box.Sandbox) {
			if err := b.PowerOff("east-1"); err != nil {
				t.Fatal(err)
			}
			if err := b.Freeze("east-2"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			places, err := box.FindPlaces(box.Places{})
			if err != nil {
				t.Fatal(err)
			}
			const name = "t-delete"
			marks := []string{name, filepath.Join(places.Root, name)}
			before := sandbox.LookAtHost(t, marks...)
			b := createNamed(t, places, name)
			if during := sandbox.LookAtHost(t, marks...); len(during.Diff(before)) < 10 {
				t.Fatalf("the check sees only %v of a running sandbox: it would see nothing left behind either", during.Diff(before))
			}
			c.harm(t, b)
			if err := box.Delete(places.Root, name); err != nil {
				t.Fatal(err)
			}
			if left := sandbox.LookAtHost(t, marks...).Diff(before); len(left) > 0 {
				t.Errorf("the sandbox left:\n  %s", strings.Join(left, "\n  "))
			}
			if _, err := os.Stat(filepath.Join(places.Root, name)); !os.IsNotExist(err) {
				t.Errorf("its folder is still there: %v", err)
			}
		})
	}
}
