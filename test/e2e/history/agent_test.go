//go:build e2e

package history

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/test/controlplane"
)

// agent is one skerry-agent on loopback.
type agent struct {
	t    *testing.T
	dir  string
	hub  string
	proc *controlplane.Process
	http *http.Client
}

func newAgent(t *testing.T, dir string, c *cloud, l *link) *agent {
	t.Helper()
	hub, err := controlplane.FreeAddress()
	check(t, err)
	health, err := controlplane.FreeAddress()
	check(t, err)
	node, err := c.User("system:node:"+nodeName, "system:nodes")
	check(t, err)
	a := &agent{t: t, dir: filepath.Join(dir, "agent"), hub: hub}
	check(t, os.MkdirAll(filepath.Join(a.dir, "pki"), 0o700))
	check(t, os.WriteFile(filepath.Join(a.dir, "pki", "node-client-current.pem"), append(node.CertData, node.KeyData...), 0o600))
	config := filepath.Join(dir, "agent.yaml")
	socket := filepath.Join(dir, "agent.sock")
	check(t, os.WriteFile(config, fmt.Appendf(nil, `
apiVersion: agent.skerry.dev/v1alpha1
kind: AgentConfiguration
nodeName: %s
servers: [%q]
listen: {hub: %q, pods: none, podInterface: none, health: %q, socket: %q}
files: {stateDir: %q, journal: %q, clusterCA: %q, bootstrapKubeconfig: %q}
`, nodeName, l.url(), hub, health, socket, a.dir, filepath.Join(dir, "journal"), filepath.Join(dir, "ca.crt"), filepath.Join(dir, "none")), 0o600))
	a.proc = c.Program("skerry-agent", "skerry-agent", "--config", config)
	a.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	return a
}

// start waits until the hub answers.
func (a *agent) start() {
	a.t.Helper()
	check(a.t, a.proc.Start())
	eventually(a.t, 20*time.Second, "the hub", func() error {
		if !a.proc.Alive() {
			a.t.Fatalf("skerry-agent ended:\n%s", a.proc.Tail(20))
		}
		conn, err := net.DialTimeout("tcp", a.hub, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func (a *agent) end(signal syscall.Signal) {
	a.t.Helper()
	check(a.t, a.proc.End(signal))
}

func (a *agent) kill()    { a.end(syscall.SIGKILL) }
func (a *agent) restart() { a.end(syscall.SIGTERM); a.start() }

func (a *agent) status() (s agentapi.Status, err error) {
	resp, err := a.http.Get("http://agent/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("status: %s", resp.Status)
	}
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// asNode is a client of the node's components, asToken one of a service account.
func (a *agent) asNode() *kubernetes.Clientset {
	pki := func(name string) string { return filepath.Join(a.dir, "pki", name) }
	return client(a.t, &rest.Config{
		Host: "https://" + a.hub, TLSClientConfig: rest.TLSClientConfig{CAFile: pki("node-ca.crt"), CertFile: pki("kubelet.crt"), KeyFile: pki("kubelet.key")},
		ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"},
	})
}

func (a *agent) asToken(token, contentType string) *kubernetes.Clientset {
	return client(a.t, &rest.Config{
		Host: "https://" + a.hub, TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(a.dir, "pki", "node-ca.crt")}, BearerToken: token,
		ContentConfig: rest.ContentConfig{ContentType: contentType},
	})
}
