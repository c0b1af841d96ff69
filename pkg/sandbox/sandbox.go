// Package sandbox makes whole edge clusters on one Linux machine: machines out
// of namespaces, sites out of bridges, and a weak link from every site to the
// cloud. It uses the skerry program inside the machines as a user would.
//
// It must not import pkg/install, pkg/cloud or pkg/edge: what a sandbox shows
// must be what users get.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/process"
	"skerry.dev/skerry/pkg/sandbox/spec"
)

// Sandbox is one sandbox on disk, running or not.
type Sandbox struct {
	Spec *spec.Spec
	dir  string
	meta meta
}

// meta is what a later command must know beside the description.
type meta struct {
	Spec    *spec.Spec `json:"spec"`
	Dist    Dist       `json:"dist"`
	Self    string     `json:"self"`              // the skerry program outside
	APIPort int        `json:"apiPort,omitempty"` // on the host
	Cluster bool       `json:"cluster"`           // Kubernetes was formed
	Created time.Time  `json:"created"`
}

// Files of a sandbox's folder.
const (
	metaFile       = "sandbox.json"
	kubeconfigFile = "kubeconfig"
	fabricPIDFile  = "fabric-pid.json"
	fabricState    = "fabric-state.json"
	fabricLog      = "fabric.log"
	fabricLock     = "fabric.lock"
	machinesDir    = "machines"
	logsDir        = "logs"
)

// Name is the sandbox's name.
func (s *Sandbox) Name() string { return s.Spec.Name }

// Dir is the sandbox's folder.
func (s *Sandbox) Dir() string { return s.dir }

// Kubeconfig is the file for kubectl on the host.
func (s *Sandbox) Kubeconfig() string { return filepath.Join(s.dir, kubeconfigFile) }

// LogDir holds the logs of making the sandbox.
func (s *Sandbox) LogDir() string { return filepath.Join(s.dir, logsDir) }

// group is the control group of everything in the sandbox. Two checkouts may
// have sandboxes of one name, hence the hash.
func group(dir string) cgroup.Group {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir))
	return cgroup.Group(fmt.Sprintf("%s/%s-%08x", cgroupTop, filepath.Base(dir), h.Sum32()))
}

const cgroupTop = "skerry"

// Open finds a sandbox by name.
func Open(root, name string) (*Sandbox, error) {
	dir := filepath.Join(root, name)
	s := &Sandbox{dir: dir}
	err := readJSON(filepath.Join(dir, metaFile), &s.meta)
	if errors.Is(err, fs.ErrNotExist) {
		names, listErr := List(root)
		if listErr != nil {
			return nil, listErr
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("there is no sandbox %q: none exists in %s; make one with `skerry sandbox create`", name, root)
		}
		return nil, fmt.Errorf("there is no sandbox %q in %s; there are: %s", name, root, strings.Join(names, ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", name, err)
	}
	if s.meta.Spec == nil {
		return nil, fmt.Errorf("sandbox %q: %s holds no description", name, filepath.Join(dir, metaFile))
	}
	s.Spec = s.meta.Spec
	return s, nil
}

// List names the sandboxes in root, damaged ones too.
func List(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// machineConfig is what a machine is booted with.
func (s *Sandbox) machineConfig(m spec.Machine) machine.Config {
	hosts := map[string]string{}
	for _, other := range s.Spec.Machines() {
		hosts[other.Name] = other.Address.String()
	}
	return machine.Config{
		Name: m.Name, Dir: filepath.Join(s.dir, machinesDir, m.Name), Cgroup: group(s.dir) + cgroup.Group("/"+m.Name), Memory: m.Memory,
		Hosts: hosts, Gateway: spec.Gateway(s.Spec.Subnet(m.Site)).String(),
		Programs: s.meta.Dist.programs(), Plugins: s.meta.Dist.plugins(), Images: append(slices.Clone(s.meta.Dist.Images), s.Spec.Images...),
	}
}

// Machine finds a machine by name.
func (s *Sandbox) Machine(name string) (machine.Config, error) {
	m, err := s.Spec.Machine(name)
	if err != nil {
		return machine.Config{}, err
	}
	return s.machineConfig(m), nil
}

// Fabric talks to the sandbox's network.
func (s *Sandbox) Fabric() *fabric.Client { return fabric.NewClient(s.dir) }

// fabricProcess is the network's process, or false if there is none.
func fabricProcess(dir string) (process.ID, bool) {
	var id process.ID
	if readJSON(filepath.Join(dir, fabricPIDFile), &id) != nil || !id.Alive() {
		return process.ID{}, false
	}
	return id, true
}

// ensureFabric starts the network if it does not run, as it was before.
func (s *Sandbox) ensureFabric(ctx context.Context) error {
	if _, runs := fabricProcess(s.dir); runs {
		return nil
	}
	// Of two commands that find it gone, one starts it.
	unlock, err := lockFile(filepath.Join(s.dir, fabricLock), 0)
	if err != nil {
		return err
	}
	defer unlock()
	if _, runs := fabricProcess(s.dir); runs {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(s.dir, fabricLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	// A restart of the host has undone what Create prepared.
	if err := arrive(s.dir, func(text string) { fmt.Fprintln(out, text) }); err != nil {
		return err
	}
	cmd := exec.Command(s.meta.Self, "sandbox", FabricCommand, s.dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the network: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // why it ended is in its log
		close(ended)
	}()
	id, err := process.Find(cmd.Process.Pid)
	if err == nil {
		err = writeJSON(filepath.Join(s.dir, fabricPIDFile), id)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("starting the network: %w", err)
	}
	deadline := time.After(20 * time.Second)
	for {
		status, err := s.Fabric().Status(ctx)
		if err == nil {
			return s.setAPIPort(status.APIPort)
		}
		select {
		case <-ended:
			return fmt.Errorf("the network ended at once: %s", lastLine(filepath.Join(s.dir, fabricLog)))
		case <-deadline:
			_ = cmd.Process.Kill()
			return fmt.Errorf("the network is not ready after 20s (see %s): %w", filepath.Join(s.dir, fabricLog), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// setAPIPort records where the API server is on the host. A network that
// starts again may have had to take another port than kubectl knows.
func (s *Sandbox) setAPIPort(port int) error {
	moved := s.meta.APIPort != port
	s.meta.APIPort = port
	if err := s.save(); err != nil || !moved || !s.meta.Cluster {
		return err
	}
	return s.writeKubeconfig()
}

// save writes the sandbox's own file.
func (s *Sandbox) save() error { return writeJSON(filepath.Join(s.dir, metaFile), s.meta) }

// PowerOn boots machines, all at once.
func (s *Sandbox) PowerOn(ctx context.Context, names ...string) error {
	if err := s.ensureFabric(ctx); err != nil {
		return err
	}
	return s.each(names, func(m machine.Config) error { return s.Fabric().PowerOn(ctx, m.Name) })
}

// PowerOff switches machines off without warning.
func (s *Sandbox) PowerOff(names ...string) error { return s.each(names, machine.Config.PowerOff) }

// Reboot switches machines off and on again.
func (s *Sandbox) Reboot(ctx context.Context, names ...string) error {
	if err := s.ensureFabric(ctx); err != nil {
		return err
	}
	return s.each(names, func(m machine.Config) error {
		if err := m.PowerOff(); err != nil {
			return err
		}
		return s.Fabric().PowerOn(ctx, m.Name)
	})
}

const freezeTimeout = 20 * time.Second

// Freeze stops every process of machines, as a machine that hangs.
func (s *Sandbox) Freeze(names ...string) error {
	return s.each(names, func(m machine.Config) error {
		if _, on := m.Process(); !on {
			return fmt.Errorf("machine %s is off", m.Name)
		}
		return m.Cgroup.Freeze(freezeTimeout)
	})
}

// Thaw lets frozen machines go on.
func (s *Sandbox) Thaw(names ...string) error {
	return s.each(names, func(m machine.Config) error { return m.Cgroup.Thaw(freezeTimeout) })
}

// each runs do for several machines at once, after checking all names.
func (s *Sandbox) each(names []string, do func(machine.Config) error) error {
	var machines []machine.Config
	for _, name := range names {
		m, err := s.Machine(name)
		if err != nil {
			return err
		}
		machines = append(machines, m)
	}
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { errs[i] = do(m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// MachineNames lists the machines of a site; "" lists all.
func (s *Sandbox) MachineNames(site string) ([]string, error) {
	if site != "" && site != spec.CloudName {
		if _, err := s.Spec.Site(site); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, m := range s.Spec.Machines() {
		if site == "" || m.Site == site {
			names = append(names, m.Name)
		}
	}
	return names, nil
}

func readJSON(file string, into any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	return nil
}

// writeJSON replaces the file whole, also when several do at once.
func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err := errors.Join(err, tmp.Chmod(0o640), tmp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), file)
}

func lastLine(file string) string {
	lines := tail(file, 1)
	if len(lines) == 0 {
		return "see " + file
	}
	return lines[0]
}

// tail returns the last lines of a file.
func tail(file string, n int) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, 2)
	}
	data := make([]byte, most)
	read, _ := f.Read(data)
	lines := strings.Split(strings.TrimRight(string(data[:read]), "\n"), "\n")
	return lines[max(0, len(lines)-n):]
}
