package closed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skerry.dev/skerry/test/bench"
	"skerry.dev/skerry/test/controlplane"
)

const (
	// syncTimeout is for upstream's kube-proxy, which writes every endpoint.
	syncTimeout = 10 * time.Minute
	samples     = 10
	sampleEvery = 500 * time.Millisecond
)

// figures of one kube-proxy.
type figures struct {
	sync, rules float64
	memory      bench.Memory
}

// network is a network namespace with one link to this host.
type network struct{ name, link, host, inside string }

func newNetwork() (*network, error) {
	n := &network{name: fmt.Sprintf("skerry-bench-%d", os.Getpid()), link: fmt.Sprintf("skb%d", os.Getpid()), host: "169.254.77.1", inside: "169.254.77.2"}
	for _, args := range [][]string{
		{"netns", "add", n.name},
		{"link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", n.name},
		{"addr", "add", n.host + "/30", "dev", n.link},
		{"link", "set", n.link, "up"},
		{"-n", n.name, "addr", "add", n.inside + "/30", "dev", "eth0"},
		{"-n", n.name, "link", "set", "eth0", "up"},
		{"-n", n.name, "link", "set", "lo", "up"},
		{"-n", n.name, "route", "add", "default", "via", n.host},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			n.remove()
			return nil, fmt.Errorf("making a network: ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return n, nil
}

// remove removes the namespace, and its link with it.
func (n *network) remove() { _ = exec.Command("ip", "netns", "del", n.name).Run() }

// sent is how many bytes have gone into the namespace.
func (n *network) sent() (float64, error) {
	text, err := os.ReadFile(filepath.Join("/sys/class/net", n.link, "statistics", "tx_bytes"))
	if err != nil {
		return 0, fmt.Errorf("reading what %s has sent: %w", n.link, err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}

func (n *network) output(args ...string) ([]byte, error) {
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.name}, args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// configuration leaves the host's connection table alone.
const configuration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %[1]s
hostnameOverride: %[2]s
clientConnection: {kubeconfig: %[3]s}
metricsBindAddress: %[4]s:10249
healthzBindAddress: %[4]s:10256
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: eth}
`

// proxy is a kube-proxy that runs in the network, and that has written rules.
type proxy struct {
	n    *network
	cmd  *exec.Cmd
	log  string
	sync float64 // seconds until rules were written
	// alive ends, with the reason, when the process does.
	alive context.Context
	ended chan struct{}
}

// startProxy runs a kube-proxy, and waits until it has written rules.
func (c *control) startProxy(ctx context.Context, o Options, n *network, mode, program string) (*proxy, error) {
	kubeconfig, config := filepath.Join(c.dir, "kube-proxy.conf"), filepath.Join(c.dir, "config.yaml")
	err := errors.Join(
		controlplane.WriteKubeconfig(kubeconfig, c.proxy),
		os.WriteFile(config, fmt.Appendf(nil, configuration, mode, node(0, 0), kubeconfig, n.inside), 0o600))
	if err != nil {
		return nil, fmt.Errorf("configuring kube-proxy: %w", err)
	}
	log, err := os.Create(filepath.Join(o.Logs, fmt.Sprintf("closed-kube-proxy-%s-%s.log", filepath.Base(filepath.Dir(program)), mode)))
	if err != nil {
		return nil, fmt.Errorf("making a log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("ip", "netns", "exec", n.name, program, "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil { // ip replaces itself
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	alive, cancel := context.WithCancelCause(ctx)
	p := &proxy{n: n, cmd: cmd, log: log.Name(), alive: alive, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		cancel(fmt.Errorf("it ended: see %s", p.log))
		close(p.ended)
	}()
	err = until(alive, syncTimeout, func() error {
		done, sum, err := n.syncs()
		if err == nil && done == 0 {
			err = errors.New("no rules are written yet")
		}
		p.sync = sum
		return err
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("kube-proxy %s: %w (see %s)", mode, err, p.log)
	}
	return p, nil
}

func (p *proxy) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	_, _ = p.n.output("nft", "flush", "ruleset")
}

// rest lets it run for a while.
func (p *proxy) rest(d time.Duration) error {
	select {
	case <-p.alive.Done():
		return context.Cause(p.alive)
	case <-time.After(d):
		return nil
	}
}

// measure runs a kube-proxy until its rules are written, and measures it.
func (c *control) measure(ctx context.Context, o Options, n *network, services int, mode, program string) (*figures, error) {
	p, err := c.startProxy(ctx, o, n, mode, program)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if err := p.rest(o.Settle); err != nil {
		return nil, err
	}
	f := &figures{sync: p.sync}
	if f.rules, err = n.rules(mode); err != nil {
		return nil, err
	}
	if f.rules < float64(services) {
		return nil, fmt.Errorf("%.0f rules for %d Services: kube-proxy has not done its work (see %s)", f.rules, services, p.log)
	}
	var rss, anonymous []float64
	for range samples {
		m, err := bench.ReadMemory(p.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		rss, anonymous = append(rss, m.RSS), append(anonymous, m.Anonymous)
		time.Sleep(sampleEvery)
	}
	f.memory = bench.Memory{RSS: bench.Median(rss), Anonymous: bench.Median(anonymous)}
	return f, nil
}

// syncs reads how often kube-proxy has written rules for IPv4, and for how many
// seconds.
func (n *network) syncs() (count, seconds float64, err error) {
	client := &http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get("http://" + n.inside + ":10249/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.Contains(name, `ip_family="IPv4"`) {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case strings.HasPrefix(name, "kubeproxy_sync_proxy_rules_duration_seconds_count"):
			count = number
		case strings.HasPrefix(name, "kubeproxy_sync_proxy_rules_duration_seconds_sum"):
			seconds = number
		}
	}
	return count, seconds, nil
}

// rules counts what is in the kernel: rules, and elements of sets and maps.
func (n *network) rules(mode string) (float64, error) {
	if mode == "iptables" {
		out, err := n.output("iptables-save")
		return float64(bytes.Count(out, []byte("\n-A "))), err
	}
	out, err := n.output("nft", "-j", "list", "table", "ip", "kube-proxy")
	if err != nil {
		return 0, err
	}
	// A rule of a Service has its endpoints in a map: each is an address and a
	// port.
	return float64(bytes.Count(out, []byte(`"rule": {`)) + bytes.Count(out, []byte(`"concat": [`))), nil
}
