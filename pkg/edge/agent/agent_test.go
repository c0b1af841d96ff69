package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certutil "k8s.io/client-go/util/cert"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
)

// freeAddress is an address of this machine on which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// configuration is that of an agent whose API server nobody has started.
func configuration(t *testing.T) *agentv1.AgentConfiguration {
	t.Helper()
	dir := t.TempDir()
	ca, _, err := certutil.GenerateSelfSignedCertKey("cluster-ca", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := ParseConfig(fmt.Appendf(nil, `
apiVersion: agent.skerry.dev/v1alpha1
kind: AgentConfiguration
nodeName: east-1
servers: ["https://%[2]s"]
listen: {hub: %[3]q, pods: %[4]q, podInterface: none, health: %[5]q, socket: %[1]s/run/agent.sock}
files: {stateDir: %[1]s/state, journal: %[1]s/run/agent.journal, clusterCA: %[1]s/ca.crt, bootstrapKubeconfig: %[1]s/bootstrap.conf}
`, dir, freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// start runs an agent until stop is called, which returns how it ended.
func start(t *testing.T, config *agentv1.AgentConfiguration) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, config, "v0.0.0-test", slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(10 * time.Second):
			return fmt.Errorf("the agent does not end")
		}
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return stop
}

// An agent that starts without its cloud, and knows nothing yet, serves and
// says so; what it cannot answer is no "not found".
func TestStartsWithoutTheCloud(t *testing.T) {
	config := configuration(t)
	stop := start(t, config)
	var status agentapi.Status
	deadline := time.Now().Add(5 * time.Second)
	for {
		var err error
		if status, err = agentapi.Get(t.Context(), config.Listen.Socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if status.Node != "east-1" || status.Version != "v0.0.0-test" || status.Online || !status.CertificateExpires.IsZero() || status.Unsent != 0 {
		t.Errorf("status %+v", status)
	}
	if info, err := os.Stat(config.Listen.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	if code, body := get(t, http.DefaultTransport, "http://"+config.Listen.Health+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz answers %d %s", code, body)
	}
	if code, body := get(t, http.DefaultTransport, "http://"+config.Listen.Health+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "certificate") {
		t.Errorf("/readyz answers %d %s", code, body)
	}
	_, metrics := get(t, http.DefaultTransport, "http://"+config.Listen.Health+"/metrics")
	for _, name := range []string{"skerry_hub_requests_in_flight 0", "skerry_hub_online 0", "skerry_hub_store_full 0", "skerry_hub_store_max_bytes 5.36870912e+08", "skerry_hub_problems 0"} {
		if !strings.Contains(metrics, name) {
			t.Errorf("/metrics lacks %s:\n%s", name, metrics)
		}
	}
	kubelet := kubeletTransport(t, config)
	for _, address := range []string{config.Listen.Hub, config.Listen.Pods} {
		waitFor(t, address)
		code, body := get(t, kubelet, "https://"+address+"/api/v1/pods?fieldSelector=spec.nodeName%3Deast-1")
		var answer struct{ Kind, Reason string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusServiceUnavailable || answer.Kind != "Status" {
			t.Errorf("%s answers %d %s", address, code, body)
		}
		anonymous := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		if code, body := get(t, anonymous, "https://"+address+"/api/v1/pods"); code != http.StatusUnauthorized {
			t.Errorf("%s answers anonymous callers %d %s", address, code, body)
		}
	}

	// A second agent on the same store says why it does not start.
	second := *config
	second.Listen.Hub, second.Listen.Health = freeAddress(t), freeAddress(t)
	if err := Run(t.Context(), &second, "v0", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "store") {
		t.Errorf("a second agent: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}
	// And again, with what the first one left.
	start(t, config)
	waitFor(t, config.Listen.Hub)
	if code, body := get(t, kubeletTransport(t, config), "https://"+config.Listen.Hub+"/api/v1/nodes/east-1"); code != http.StatusServiceUnavailable {
		t.Errorf("after a restart: %d %s", code, body)
	}
}

// A store of which nothing can be read is no reason never to start again.
func TestUnreadableStore(t *testing.T) {
	config := configuration(t)
	path := filepath.Join(config.Files.StateDir, "store.db")
	if err := os.MkdirAll(config.Files.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("no database "), 1<<12)
	if err := os.WriteFile(path, garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &Agent{config: config, log: slog.New(slog.DiscardHandler), policy: NewPolicy()}
	if err := a.openStore(); err != nil {
		t.Fatal(err)
	}
	if err := a.store.Close(); err != nil {
		t.Fatal(err)
	}
	// Whoever wants to look finds it beside the new one.
	kept := false
	entries, err := os.ReadDir(config.Files.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(config.Files.StateDir, entry.Name()))
		kept = kept || (err == nil && entry.Name() != "store.db" && bytes.Equal(data, garbage))
	}
	if !kept {
		t.Errorf("what could not be read is gone: %v", entries)
	}
}

func TestPortIsTaken(t *testing.T) {
	config := configuration(t)
	listener, err := net.Listen("tcp", config.Listen.Hub)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := Run(t.Context(), config, "v0", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), config.Listen.Hub) {
		t.Errorf("got %v", err)
	}
}

func kubeletTransport(t *testing.T, config *agentv1.AgentConfiguration) http.RoundTripper {
	t.Helper()
	pki := filepath.Join(config.Files.StateDir, "pki")
	certificate, err := tls.LoadX509KeyPair(filepath.Join(pki, "kubelet.crt"), filepath.Join(pki, "kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := certutil.NewPool(filepath.Join(pki, "node-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func get(t *testing.T, transport http.RoundTripper, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func waitFor(t *testing.T, address string) {
	t.Helper()
	for range 200 {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			connection.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %s", address)
}
