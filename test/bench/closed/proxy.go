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
type network struct{ name, host, inside string }

func newNetwork() (*network, error) {
	n := &network{name: fmt.Sprintf("skerry-bench-%d", os.Getpid()), host: "169.254.77.1", inside: "169.254.77.2"}
	veth := fmt.Sprintf("skb%d", os.Getpid())
	for _, args := range [][]string{
		{"netns", "add", n.name},
		{"link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", n.name},
		{"addr", "add", n.host + "/30", "dev", veth},
		{"link", "set", veth, "up"},
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

// measure runs a kube-proxy until its rules are written, and measures it.
func (c *control) measure(ctx context.Context, o Options, n *network, services int, mode, program string) (*figures, error) {
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
	waiting, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		cancel(fmt.Errorf("it ended: see %s", log.Name()))
		close(ended)
	}()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		_, _ = n.output("nft", "flush", "ruleset")
	}()
	f := &figures{}
	err = until(waiting, syncTimeout, func() error {
		done, sum, err := n.syncs()
		if err == nil && done == 0 {
			err = errors.New("no rules are written yet")
		}
		f.sync = sum
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kube-proxy %s: %w (see %s)", mode, err, log.Name())
	}
	select {
	case <-waiting.Done():
		return nil, context.Cause(waiting)
	case <-time.After(o.Settle):
	}
	if f.rules, err = n.rules(mode); err != nil {
		return nil, err
	}
	if f.rules < float64(services) {
		return nil, fmt.Errorf("%.0f rules for %d Services: kube-proxy has not done its work (see %s)", f.rules, services, log.Name())
	}
	var rss, anonymous []float64
	for range samples {
		m, err := bench.ReadMemory(cmd.Process.Pid)
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
