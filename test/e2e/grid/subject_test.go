//go:build e2e

package grid

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"skerry.dev/skerry/pkg/sandbox/fabric"
	vocabulary "skerry.dev/skerry/test/sandbox"
)

func (s *subject) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// apply leaves what it applies for the next case.
func (s *subject) apply(image, policy string) {
	s.t.Helper()
	text := strings.NewReplacer("IMAGE", image, "POLICY\n", policy).Replace(echo)
	file := filepath.Join(s.t.TempDir(), "echo.yaml")
	s.must(os.WriteFile(file, []byte(text), 0o600))
	s.Kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
}

// follow runs `skerry grid status -w`, as a user does.
func (s *subject) follow(name string, timeout time.Duration) (string, error) {
	command := exec.CommandContext(s.Context(), filepath.Join(s.Dist(), "bin", "skerry"), "grid", "status", name, "-w", "--timeout", timeout.String())
	command.Env = append(os.Environ(), "KUBECONFIG="+s.Box().Kubeconfig())
	out, err := command.CombinedOutput()
	s.t.Logf("skerry grid status %s -w:\n%s", name, out)
	return string(out), err
}

func (s *subject) done(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if out, err := s.follow(name, 4*time.Minute); err != nil {
			s.t.Fatalf("%s is not done: %v\n%s\n%s", name, err, out, s.Kubectl("get", "grids,deploy,sts,pods", "-o", "wide"))
		}
	}
}

func (s *subject) field(object, path string) string {
	s.t.Helper()
	return s.Kubectl("get", object, "-o", "jsonpath="+path)
}

// answers asks a Service from a machine, a connection each, and counts the sites
// of the pods that answered.
func (s *subject) answers(n *vocabulary.Node, address string, requests int) map[string]int {
	s.t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return n.Connect(ctx, network, address)
		},
	}}
	var mu sync.Mutex
	counts := map[string]int{}
	var group sync.WaitGroup
	next := make(chan struct{})
	for range 8 {
		group.Go(func() {
			for range next {
				who := ask(client)
				mu.Lock()
				counts[who]++
				mu.Unlock()
			}
		})
	}
	for range requests {
		next <- struct{}{}
	}
	close(next)
	group.Wait()
	return counts
}

// linkBytes is what an uplink has carried, both ways.
func linkBytes(l fabric.LinkStatus) int64 { return l.Up.Counters.Bytes + l.Down.Counters.Bytes }

func ask(client *http.Client) string {
	response, err := client.Get("http://echo/hostname")
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		return "error: " + err.Error()
	}
	defer response.Body.Close()
	name, err := io.ReadAll(io.LimitReader(response.Body, 256))
	if err != nil {
		return "error: " + err.Error()
	}
	parts := strings.Split(string(name), "-") // echo-SITE-HASH-ID
	if len(parts) < 2 {
		return string(name)
	}
	return parts[1]
}

func (s *subject) address() string {
	s.t.Helper()
	return net.JoinHostPort(s.field("service/echo", "{.spec.clusterIP}"), "80")
}
