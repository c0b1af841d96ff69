package status

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
	"skerry.dev/skerry/pkg/supervisor"
)

var now = time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)

func certificate(t testing.TB, expires time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: expires}
	data, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyBlock := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	return append(keyBlock, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data})...)
}

func TestReadCertificates(t *testing.T) {
	dir := t.TempDir()
	expires := now.AddDate(1, 0, 0)
	for name, data := range map[string][]byte{"a.crt": certificate(t, expires), "b.crt": []byte("no certificate")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := readCertificates([]string{filepath.Join(dir, "*.crt"), filepath.Join(dir, "none.pem")})
	if len(found) != 1 || !found[0].Expires.Equal(expires) {
		t.Errorf("got %v", found)
	}
	if err == nil || !strings.Contains(err.Error(), "b.crt") {
		t.Errorf("a file without a certificate gave %v", err)
	}
}

func FuzzParseExpiry(f *testing.F) {
	f.Add(certificate(f, now))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if expires, err := parseExpiry("f", data); err != nil && !expires.IsZero() {
			t.Error("a time and an error")
		}
	})
}

func TestParseKubeletVersion(t *testing.T) {
	const raw = `version.Info{Major:"1", Minor:"37", GitVersion:"v1.37.2+skerry.0", GitCommit:""}`
	tests := []struct {
		name, out string
		want      Version
	}{
		{"patched", "skerry_patches: [0001-a, 0002-b]\n" + raw + "\n", Version{"kubelet", "v1.37.2+skerry.0", []string{"0001-a", "0002-b"}}},
		{"no patch for it", "skerry_patches: []\n" + raw, Version{"kubelet", "v1.37.2+skerry.0", []string{}}},
		{"pristine", raw, Version{"kubelet", "v1.37.2+skerry.0", nil}},
		{"nonsense", "hello", Version{"kubelet", "", nil}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := parseKubeletVersion(test.out); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func FuzzParseKubeletVersion(f *testing.F) {
	f.Add("skerry_patches: [a, b]\nversion.Info{GitVersion:\"v1\"}")
	f.Fuzz(func(t *testing.T, out string) {
		for _, patch := range parseKubeletVersion(out).Patches {
			if patch == "" {
				t.Error("a patch without a name")
			}
		}
	})
}

// states answers for units as a supervisor would.
type states map[string]supervisor.Status

func (s states) Status(_ context.Context, name string) (supervisor.Status, error) {
	state, ok := s[name]
	if !ok {
		return state, errors.New("unit " + name + " is not installed")
	}
	return state, nil
}
func (states) Install(context.Context, supervisor.Unit) error {
	return errors.New("status changes nothing")
}
func (states) Start(context.Context, string) error   { return errors.New("status changes nothing") }
func (states) Stop(context.Context, string) error    { return errors.New("status changes nothing") }
func (states) Restart(context.Context, string) error { return errors.New("status changes nothing") }
func (states) Remove(context.Context, string) error  { return errors.New("status changes nothing") }

func TestCollectWithoutACluster(t *testing.T) {
	dir := t.TempDir()
	record := filepath.Join(dir, "node.yaml")
	heard := now.Add(-time.Hour)
	if err := site.WriteRecord(record, site.Record{Role: site.RoleWorker, NodeName: "east-1", Site: "east", Server: "https://192.0.2.1:6443", LastReached: heard}); err != nil {
		t.Fatal(err)
	}
	running := supervisor.Status{Active: true, PID: 7}
	tests := []struct {
		name        string
		states      states
		wantHealthy bool
	}{
		{"all run", states{"containerd": running, "kubelet": running}, true},
		{"one is down", states{"containerd": running, "kubelet": {LastExit: "exit status 1"}}, false},
		{"one is not installed", states{"containerd": running}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := collector{
				record: record, kubeconfig: filepath.Join(dir, "none"), socket: filepath.Join(dir, "none.sock"),
				detect: func() (host.Supervisor, error) { return test.states, nil },
			}
			s := c.collect(context.Background())
			if s.Healthy() != test.wantHealthy {
				t.Errorf("healthy = %v: %+v", s.Healthy(), s.Units)
			}
			if s.Node.Name != "east-1" || s.Node.Site != "east" || s.Node.From != "this machine's record" {
				t.Errorf("node %+v", s.Node)
			}
			if s.APIServer.Reachable || !s.APIServer.LastReached.Equal(heard) || s.APIServer.Error == "" {
				t.Errorf("API server %+v", s.APIServer)
			}
		})
	}
}

func TestNotANode(t *testing.T) {
	dir := t.TempDir()
	c := collector{
		record: filepath.Join(dir, "none.yaml"), kubeconfig: filepath.Join(dir, "none"), socket: filepath.Join(dir, "none.sock"),
		detect: func() (host.Supervisor, error) { return nil, errors.New("no supervisor") },
	}
	s := c.collect(context.Background())
	if s.Healthy() || !strings.Contains(strings.Join(s.Problems, "\n"), "skerry join") {
		t.Errorf("got %+v", s)
	}
	var out bytes.Buffer
	if err := Print(&out, s, now); err != nil || !strings.Contains(out.String(), "not a node") {
		t.Errorf("%v, printed %s", err, out.String())
	}
}

func TestPrint(t *testing.T) {
	s := Status{
		Node:         Node{Name: "east-1", Role: "worker", Site: "east", From: "cluster"},
		Versions:     []Version{{Program: "kubelet", Version: "v1", Patches: []string{"0001-a"}}},
		Units:        []Unit{{Name: "kubelet", Active: true, PID: 7, Since: now.Add(-2 * time.Hour), Restarts: 3}, {Name: "containerd", LastExit: "exit status 2"}},
		Runtime:      Runtime{Version: "2.4.2", Images: []string{"a", "b"}},
		APIServer:    APIServer{Address: "https://192.0.2.1:6443", LastReached: now.Add(-3 * time.Hour), Error: "timeout"},
		Certificates: []Certificate{{"/a.pem", now.AddDate(1, 0, 0)}, {"/b.pem", now.AddDate(0, 0, 3)}},
		Conditions:   []corev1.NodeCondition{{Type: "Ready", Status: "True", Reason: "KubeletReady"}},
		Problems:     []string{"one\ntwo"},
	}
	var out bytes.Buffer
	if err := Print(&out, s, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"east-1, worker, site east (cluster)", "v1, patches: 0001-a", "running, pid 7, since 120m ago, 3 restarts",
		"DOWN, 0 restarts, last ended: exit status 2", "2.4.2, 2 images", "does not answer; skerry last heard it 3h ago: timeout",
		"True (KubeletReady)", "/b.pem expires 2026-11-26 (in 3d)", "2, the first to expire is /b.pem on 2026-11-26", "one; two",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestPrintAgent(t *testing.T) {
	agent := agentapi.Status{
		Online: true, Since: now.Add(-time.Hour), Server: "https://192.0.2.1:6443", LastContact: now,
		Views: []agentapi.ViewStatus{
			{Resource: "pods", Selector: "spec.nodeName=east-1", Objects: 3, Synced: now.Add(-time.Hour), Live: true},
			{Resource: "secrets", Namespace: "shop", Synced: now.Add(-2 * time.Hour)},
			{Resource: "csinodes.storage.k8s.io", Selector: "metadata.name=east-1", Synced: now.Add(-2 * time.Hour)},
		},
		CertificateExpires: now.AddDate(1, 0, 0), Store: agentapi.StoreStatus{Bytes: 3 << 20, MaxBytes: 512 << 20, Objects: 7},
	}
	s := Status{
		Node: Node{Name: "east-1", Role: "worker", Site: "east", From: "cluster"}, Agent: &agent, APIServer: APIServer{Reachable: true},
		Pods: &Pods{Total: 3, Ready: 2, NotReady: []string{"shop/till"}},
	}
	lost := agent
	lost.Online, lost.Reason, lost.Unsent, lost.OldestUnsent = false, "dial tcp: i/o timeout", 4, now.Add(-time.Minute)
	lost.Since, lost.Views = now.Add(-time.Hour), []agentapi.ViewStatus{{Resource: "pods", Synced: now.Add(-time.Hour)}}
	lost.CertificateExpires = now.Add(-time.Hour)
	lost.Store.Full, lost.Store.Quarantined, lost.Problems = true, 1, []string{"the policy is wrong"}
	for _, test := range []struct {
		agent *agentapi.Status
		wants []string
	}{
		{&agent, []string{"reachable since", "https://192.0.2.1:6443", "3 views, 1 followed, 1 stale: shop/secrets (120m ago)", "unsent writes      none",
			"7 objects, 3.0 MiB of 512.0 MiB", "3, 2 ready; not ready: shop/till", "expires"}},
		{&lost, []string{"lost since", "(60m ago)", "1 views as of 2026-11-23 16:00:00 (60m ago), none stale", "i/o timeout", "4, the oldest of", "EXPIRED", "FULL", "1 damaged", "the policy is wrong"}},
	} {
		s.Agent = test.agent
		var out bytes.Buffer
		if err := Print(&out, s, now); err != nil {
			t.Fatal(err)
		}
		for _, want := range test.wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
		}
	}
}

// A node with a hub whose agent does not answer is not healthy, and says why.
// One whose agent answers where its configuration says is.
func TestAgent(t *testing.T) {
	dir := t.TempDir()
	record, config, pki := filepath.Join(dir, "node.yaml"), filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state", "pki")
	if err := site.WriteRecord(record, site.Record{Role: site.RoleWorker, NodeName: "east-1", Site: "east", Hub: true}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(config, []byte("listen: {socket: "+socket+"}\nfiles: {stateDir: "+filepath.Dir(pki)+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	running := supervisor.Status{Active: true, PID: 7}
	c := collector{
		record: record, kubeconfig: filepath.Join(dir, "none"), socket: filepath.Join(dir, "none.sock"), agent: config,
		detect: func() (host.Supervisor, error) {
			return states{"containerd": running, "kubelet": running, "skerry-agent": {LastExit: "exit status 1"}}, nil
		},
	}
	s := c.collect(context.Background())
	if s.Healthy() || s.Agent != nil || s.APIServer.Reachable || !strings.Contains(s.APIServer.Error, "no skerry-agent runs here") || !strings.Contains(s.APIServer.Error, socket) {
		t.Errorf("got %+v", s)
	}

	if err := errors.Join(os.MkdirAll(pki, 0o700), os.WriteFile(filepath.Join(pki, "hub.crt"), certificate(t, now), 0o600)); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"node":"east-1","online":true,"server":"https://192.0.2.1:6443"}`))
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	c.detect = func() (host.Supervisor, error) {
		return states{"containerd": running, "kubelet": running, "skerry-agent": running}, nil
	}
	s = c.collect(context.Background())
	if !s.Healthy() || s.Agent == nil || s.Agent.Node != "east-1" || !s.APIServer.Reachable {
		t.Errorf("got %+v", s)
	}
	if len(s.Certificates) != 1 || s.Certificates[0].Path != filepath.Join(pki, "hub.crt") {
		t.Errorf("certificates %+v", s.Certificates)
	}

	// What is wrong with the configuration is told.
	if err := os.WriteFile(config, []byte("listen: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if s = c.collect(context.Background()); !strings.Contains(strings.Join(s.Problems, "\n"), config) {
		t.Errorf("problems %q", s.Problems)
	}
}

func TestPrintNeighbours(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		name string
		n    agentapi.Neighbours
		want []string
		not  string
	}{
		{"no site", agentapi.Neighbours{}, []string{"the node has no site"}, "alive"},
		{"alone", agentapi.Neighbours{Site: "west"}, []string{"0 of 0 alive in site west"}, ";"},
		{"all is well", agentapi.Neighbours{Site: "west", Members: []agentapi.Neighbour{
			{Name: "west-2", State: agentapi.NeighbourAlive}, {Name: "west-3", State: agentapi.NeighbourAlive},
		}}, []string{"2 of 2 alive in site west"}, ";"},
		{"trouble", agentapi.Neighbours{Site: "west", Isolated: true, KubeletDown: true, Members: []agentapi.Neighbour{
			{Name: "west-2", State: agentapi.NeighbourUnreachable, Since: now.Add(-90 * time.Second), Heard: now.Add(-95 * time.Second)},
			{Name: "west-3", State: agentapi.NeighbourAlive, RuntimeDown: true},
			{Name: "west-4", State: agentapi.NeighbourSuspect}, {Name: "west-5", State: agentapi.NeighbourUnknown},
		}}, []string{
			"1 of 4 alive in site west; this node reaches NONE of them", "west-2 UNREACHABLE since", "(90s ago), last heard",
			"west-3 is alive, its container runtime is DOWN", "west-4 does not answer just now", "west-5 not known yet", "this node   its kubelet is DOWN",
		}, "cannot tell"},
		{"blind", agentapi.Neighbours{Site: "west", Blind: true}, []string{"this node's own network is DOWN"}, "NONE"},
	} {
		var lines []string
		printNeighbours(func(columns ...string) { lines = append(lines, strings.Join(columns, "   ")) }, test.n, now)
		text := strings.Join(lines, "\n")
		for _, want := range test.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is missing in %q", test.name, want, text)
			}
		}
		if strings.Contains(text, test.not) {
			t.Errorf("%s: %q is in %q", test.name, test.not, text)
		}
	}
}
