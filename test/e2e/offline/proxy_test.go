//go:build e2e

package offline

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// proxyTable is kube-proxy's table of rules.
var proxyTable = []string{"ip", "kube-proxy"}

// rules lists the chains of kube-proxy's table: of each Service, and of each of
// its endpoints.
func (s *subject) rules() ([]string, error) {
	out, err := s.node.Try(append([]string{"nft", "list", "table"}, proxyTable...)...)
	if err != nil {
		return nil, err
	}
	var chains []string
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "chain "); ok {
			chains = append(chains, strings.TrimSuffix(name, " {"))
		}
	}
	slices.Sort(chains)
	return chains, nil
}

// proxyRestarts takes kube-proxy's rules away while it stands still, so that
// only one that starts anew, and is told everything by the hub, can make them
// again.
func (s *subject) proxyRestarts() {
	s.t.Helper()
	url := "http://" + s.serviceIP("web") + "/hostname"
	s.Eventually(time.Minute, "the Service's address answers", func() error { return s.get(url) })
	before, err := s.rules()
	if err != nil {
		s.t.Fatal(err)
	}
	if !slices.ContainsFunc(before, func(chain string) bool { return strings.Contains(chain, namespace+"/web/") }) {
		s.t.Fatalf("the rules do not name the Service: this looks in the wrong place: %q", before)
	}
	s.Step("kube-proxy stands still, and its rules are taken away")
	s.signal("kube-proxy", syscall.SIGSTOP)
	s.node.Exec(append([]string{"nft", "delete", "table"}, proxyTable...)...)
	if err := s.get(url); err == nil {
		s.t.Fatal("the Service's address answers without rules: this looks in the wrong place")
	}
	s.node.Kill("kube-proxy")
	s.Eventually(time.Minute, "kube-proxy is back with all its rules", func() error {
		now, err := s.rules()
		if err == nil && !slices.Equal(now, before) {
			err = fmt.Errorf("%d chains, there were %d", len(now), len(before))
		}
		return err
	})
	s.Eventually(10*time.Second, "the Service's address answers again", func() error { return s.get(url) })
}

// signal sends a signal to every process of the node that runs a program.
func (s *subject) signal(program string, sig syscall.Signal) {
	s.t.Helper()
	pids, err := s.node.Config().Cgroup.Processes()
	if err != nil {
		s.t.Fatal(err)
	}
	err = errors.New("no process runs it")
	for _, pid := range pids {
		line, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if arg0, _, _ := strings.Cut(string(line), "\x00"); readErr == nil && filepath.Base(arg0) == program {
			err = syscall.Kill(pid, sig)
		}
	}
	if err != nil {
		s.t.Fatalf("sending %s to %s: %v", sig, program, err)
	}
}
