package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// Node is one machine, whether Kubernetes runs on it or not.
type Node struct {
	s *Sandbox
	m spec.Machine
}

// Node finds a machine; the test fails if there is none of that name.
func (s *Sandbox) Node(name string) *Node {
	s.t.Helper()
	m, err := s.box.Spec.Machine(name)
	s.must(err)
	return &Node{s, m}
}

// ControlPlane is the machine of the control plane.
func (s *Sandbox) ControlPlane() *Node { return &Node{s, s.box.Spec.Machines()[0]} }

// Nodes lists all machines.
func (s *Sandbox) Nodes() []*Node {
	var all []*Node
	for _, m := range s.box.Spec.Machines() {
		all = append(all, &Node{s, m})
	}
	return all
}

// Name is the machine's name.
func (n *Node) Name() string { return n.m.Name }

// Address is the machine's address.
func (n *Node) Address() string { return n.m.Address.String() }

// PowerOff takes the machine's power away, without warning.
func (n *Node) PowerOff() {
	n.s.t.Helper()
	n.s.Step("powering off %s", n.m.Name)
	n.s.must(n.s.box.PowerOff(n.m.Name))
}

// PowerOn boots the machine.
func (n *Node) PowerOn() {
	n.s.t.Helper()
	n.s.Step("powering on %s", n.m.Name)
	n.s.must(n.s.box.PowerOn(n.s.t.Context(), n.m.Name))
}

// Reboot takes the power away and gives it back.
func (n *Node) Reboot() {
	n.s.t.Helper()
	n.s.Step("rebooting %s", n.m.Name)
	n.s.must(n.s.box.Reboot(n.s.t.Context(), n.m.Name))
}

// Freeze stops every process of the machine.
func (n *Node) Freeze() {
	n.s.t.Helper()
	n.s.Step("freezing %s", n.m.Name)
	n.s.must(n.s.box.Freeze(n.m.Name))
}

// Thaw lets the machine go on.
func (n *Node) Thaw() {
	n.s.t.Helper()
	n.s.Step("thawing %s", n.m.Name)
	n.s.must(n.s.box.Thaw(n.m.Name))
}

// CutFromCloud cuts this machine off from the cloud; its neighbours still
// reach it.
func (n *Node) CutFromCloud() {
	n.s.t.Helper()
	n.s.Step("cutting %s off the cloud", n.m.Name)
	n.s.must(n.s.box.Fabric().CutOff(n.s.t.Context(), n.m.Name, true))
}

// HealFromCloud ends CutFromCloud.
func (n *Node) HealFromCloud() {
	n.s.t.Helper()
	n.s.Step("letting %s reach the cloud again", n.m.Name)
	n.s.must(n.s.box.Fabric().CutOff(n.s.t.Context(), n.m.Name, false))
}

// CutFromNeighbours cuts this machine off from the other machines of its site;
// the cloud still reaches it.
func (n *Node) CutFromNeighbours() {
	n.s.t.Helper()
	n.s.Step("cutting %s off its neighbours", n.m.Name)
	n.s.Site(n.m.Site).between([]string{n.m.Name}, true, true, weaklink.Settings{Cut: true})
}

// DeafenToNeighbours cuts what the other machines of the site send to this one;
// they still hear it.
func (n *Node) DeafenToNeighbours() {
	n.s.t.Helper()
	n.s.Step("%s hears its neighbours no more", n.m.Name)
	n.s.Site(n.m.Site).between([]string{n.m.Name}, false, true, weaklink.Settings{Cut: true})
}

// MuteToNeighbours cuts what this machine sends to the others of its site; it
// still hears them.
func (n *Node) MuteToNeighbours() {
	n.s.t.Helper()
	n.s.Step("%s is heard by its neighbours no more", n.m.Name)
	n.s.Site(n.m.Site).between([]string{n.m.Name}, true, false, weaklink.Settings{Cut: true})
}

// HealToNeighbours ends all faults between this machine and its neighbours.
func (n *Node) HealToNeighbours() {
	n.s.t.Helper()
	n.s.Step("letting %s reach its neighbours again", n.m.Name)
	n.s.Site(n.m.Site).between([]string{n.m.Name}, true, true, weaklink.Settings{})
}

const execTimeout = 2 * time.Minute

// Try runs a command in the machine and returns what it printed.
func (n *Node) Try(args ...string) (string, error) {
	return n.s.box.Output(n.s.t.Context(), execTimeout, n.m.Name, args...)
}

// Exec runs a command in the machine; the test fails if it does.
func (n *Node) Exec(args ...string) string {
	n.s.t.Helper()
	out, err := n.Try(args...)
	n.s.must(err)
	return out
}

// Shell runs a line of shell in the machine; the test fails if it does.
func (n *Node) Shell(line string) string {
	n.s.t.Helper()
	return n.Exec("sh", "-c", line)
}

// Config is the machine as package machine sees it.
func (n *Node) Config() machine.Config {
	n.s.t.Helper()
	c, err := n.s.box.Machine(n.m.Name)
	n.s.must(err)
	return c
}

// ReadFile reads a file of the machine's disk, on or off.
func (n *Node) ReadFile(path string) string {
	n.s.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Config().Disk(), path))
	n.s.must(err)
	return string(data)
}

// Processes counts the machine's processes, as the host sees them.
func (n *Node) Processes() int {
	n.s.t.Helper()
	pids, err := n.Config().Cgroup.Processes()
	n.s.must(err)
	return len(pids)
}

// Kill ends every process of the machine that runs a program of this name,
// those in containers too. The test fails if there is none for some seconds.
func (n *Node) Kill(program string) {
	n.s.t.Helper()
	n.s.Eventually(10*time.Second, "killed "+program+" on "+n.m.Name, func() error {
		pids, err := n.Config().Cgroup.Processes()
		if err != nil {
			return err
		}
		killed := 0
		for _, pid := range pids {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue // it ended by itself
			}
			arg0, _, _ := strings.Cut(string(line), "\x00")
			if filepath.Base(arg0) == program && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
		if killed == 0 {
			return fmt.Errorf("no process of %s runs %s", n.m.Name, program)
		}
		return nil
	})
}
