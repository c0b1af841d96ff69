package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/supervisor"
)

// Names of the units of a node.
const (
	AgentUnit      = "skerry-agent"
	ContainerdUnit = "containerd"
	KubeletUnit    = "kubelet"
)

// unitTimeout bounds stopping and starting a unit: a kubelet that shuts down
// takes its time.
const unitTimeout = 2 * time.Minute

// inside is the path, on the host, of a file in the machine while it runs:
// unlike ReadFile it reaches what is on no disk, such as /run.
func (n *Node) inside(path string) (string, error) {
	id, on := n.Config().Process()
	if !on {
		return "", fmt.Errorf("machine %s is off", n.m.Name)
	}
	return fmt.Sprintf("/proc/%d/root%s", id.PID, path), nil
}

// Units is the supervisor of the machine.
func (n *Node) Units() *supervisor.Client {
	n.s.t.Helper()
	socket, err := n.inside(supervisor.DefaultSocket)
	n.s.must(err)
	return supervisor.NewClient(socket)
}

// RestartUnit ends a unit, which is asked to and has time, and starts it.
func (n *Node) RestartUnit(name string) {
	n.s.t.Helper()
	n.s.Step("restarting %s on %s", name, n.m.Name)
	ctx, cancel := context.WithTimeout(n.s.t.Context(), unitTimeout)
	defer cancel()
	n.s.must(n.Units().Restart(ctx, name))
}

// StopUnit ends a unit until it is started or the machine boots.
func (n *Node) StopUnit(name string) {
	n.s.t.Helper()
	n.s.Step("stopping %s on %s", name, n.m.Name)
	ctx, cancel := context.WithTimeout(n.s.t.Context(), unitTimeout)
	defer cancel()
	n.s.must(n.Units().Stop(ctx, name))
}

// StartUnit starts a unit.
func (n *Node) StartUnit(name string) {
	n.s.t.Helper()
	n.s.Step("starting %s on %s", name, n.m.Name)
	ctx, cancel := context.WithTimeout(n.s.t.Context(), unitTimeout)
	defer cancel()
	n.s.must(n.Units().Start(ctx, name))
}

// RestartAgent restarts skerry-agent.
func (n *Node) RestartAgent() { n.s.t.Helper(); n.RestartUnit(AgentUnit) }

// RestartKubelet restarts the kubelet.
func (n *Node) RestartKubelet() { n.s.t.Helper(); n.RestartUnit(KubeletUnit) }

// RestartContainerd restarts containerd.
func (n *Node) RestartContainerd() { n.s.t.Helper(); n.RestartUnit(ContainerdUnit) }

// KillAgent ends skerry-agent as a crash does.
func (n *Node) KillAgent() { n.s.t.Helper(); n.Kill(AgentUnit) }

// HasHub says whether the machine's node has skerry-agent.
func (n *Node) HasHub() bool { return n.m.Hub }

// TryAgentStatus asks the machine's agent how it is doing.
func (n *Node) TryAgentStatus() (agentapi.Status, error) {
	var status agentapi.Status
	body, err := n.AgentGet("/status")
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return status, fmt.Errorf("the agent of %s answers %q: %w", n.m.Name, body, err)
	}
	return status, nil
}

// AgentStatus asks the machine's agent how it is doing; the test fails if it
// does not answer.
func (n *Node) AgentStatus() agentapi.Status {
	n.s.t.Helper()
	status, err := n.TryAgentStatus()
	n.s.must(err)
	return status
}

// WaitAgent waits until the agent is online or offline.
func (n *Node) WaitAgent(timeout time.Duration, online bool) {
	n.s.t.Helper()
	word := map[bool]string{true: "online", false: "offline"}[online]
	n.s.Eventually(timeout, "the agent of "+n.m.Name+" is "+word, func() error {
		status, err := n.TryAgentStatus()
		if err != nil {
			return err
		}
		if status.Online != online {
			return fmt.Errorf("online is %v since %s: %s", status.Online, status.Since, status.Reason)
		}
		return nil
	})
}

// maxAnswer bounds what an agent answers.
const maxAnswer = 64 << 20

// AgentGet reads a page of the agent's socket.
func (n *Node) AgentGet(path string) ([]byte, error) {
	socket, err := n.inside(agentapi.Socket)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: transport}
	answer, err := client.Get("http://agent" + path)
	if err != nil {
		return nil, fmt.Errorf("asking the agent of %s: %w", n.m.Name, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("asking the agent of %s for %s: %w", n.m.Name, path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent of %s answers %s to %s: %s", n.m.Name, answer.Status, path, bytes.TrimSpace(body))
	}
	return body, nil
}

// AgentMetric returns the sum of the samples of a metric of the agent, over all
// its labels.
func (n *Node) AgentMetric(name string) float64 {
	n.s.t.Helper()
	body, err := n.AgentGet("/metrics")
	n.s.must(err)
	sum := 0.0
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		var value float64
		_, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &value)
		n.s.must(err)
		sum += value
	}
	return sum
}

// HubConfig is how a program on the host speaks to the machine's hub, as the
// components of its node do: connections are made in the machine's network.
func (n *Node) HubConfig() *rest.Config {
	n.s.t.Helper()
	read := func(name string) []byte { return []byte(n.ReadFile(filepath.Join(agentapi.PKIDir, name))) }
	return &rest.Config{
		Host:            "https://" + agentapi.HubAddress,
		TLSClientConfig: rest.TLSClientConfig{CAData: read("node-ca.crt"), CertData: read("kubelet.crt"), KeyData: read("kubelet.key")},
		Dial:            n.Connect,
		QPS:             200,
		Burst:           400,
	}
}

// Hub is a client of the machine's hub, with the kubelet's credentials.
func (n *Node) Hub() kubernetes.Interface {
	n.s.t.Helper()
	client, err := kubernetes.NewForConfig(n.HubConfig())
	n.s.must(err)
	return client
}

// connectTimeout bounds Connect: a busy host drops a packet now and then, and who
// cannot wait has a context.
const connectTimeout = 20 * time.Second

// Connect opens a connection from the machine, to an address that needs no name
// resolution.
func (n *Node) Connect(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Config().InNetwork(func() (err error) {
		dialer := net.Dialer{Timeout: connectTimeout}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
