package agentfiles

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/pkg/agentapi"
)

var standard = Files{
	Socket: agentapi.Socket, StateDir: agentapi.StateDir, Journal: agentapi.JournalFile, BootstrapKubeconfig: agentapi.BootstrapKubeconfig,
	PodInterface: agentapi.PodInterface, PodAddress: netip.MustParseAddrPort(agentapi.PodAddress).Addr(),
}

func TestRead(t *testing.T) {
	with := func(change func(*Files)) Files {
		f := standard
		change(&f)
		return f
	}
	const head = "apiVersion: agent.skerry.dev/v1alpha1\nkind: AgentConfiguration\nnodeName: east-1\n"
	for _, test := range []struct {
		name, config string
		want         Files
		problem      string
	}{
		{"as join writes it", head + "servers: [https://192.0.2.1:6443]\nfiles: {clusterCA: /etc/kubernetes/pki/ca.crt}\n", standard, ""},
		{"empty", "", standard, ""},
		{"all elsewhere", head + `
listen: {socket: /run/other/agent.sock, pods: "169.254.7.7:10270", podInterface: hub0}
files: {stateDir: /data/agent/, journal: /run/other/journal, bootstrapKubeconfig: /data/bootstrap.conf}
`, Files{
			Socket: "/run/other/agent.sock", StateDir: "/data/agent", Journal: "/run/other/journal", BootstrapKubeconfig: "/data/bootstrap.conf",
			PodInterface: "hub0", PodAddress: netip.MustParseAddr("169.254.7.7"),
		}, ""},
		{"no interface", head + "listen: {podInterface: none}\n", with(func(f *Files) { f.PodInterface, f.PodAddress = "", netip.Addr{} }), ""},
		{"no listener for pods", head + "listen: {pods: none}\n", with(func(f *Files) { f.PodInterface, f.PodAddress = "", netip.Addr{} }), ""},
		{"a field of a later version", head + "later: true\nfiles: {stateDir: /data}\n", with(func(f *Files) { f.StateDir = "/data" }), ""},
		{"not YAML", "listen: [", standard, "agent.yaml"},
		{"another shape", "files: 7\n", standard, "agent.yaml"},
		{"relative", head + "files: {stateDir: data, journal: /run/j}\n", with(func(f *Files) { f.Journal = "/run/j" }), "files.stateDir"},
		{"no address", head + "listen: {pods: everywhere}\n", standard, "listen.pods"},
		{"endless", strings.Repeat("#", maxConfig+1), standard, "bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "agent.yaml")
			if err := os.WriteFile(path, []byte(test.config), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Read(path)
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if (err != nil) != (test.problem != "") || (err != nil && !strings.Contains(err.Error(), test.problem)) {
				t.Errorf("got error %v, want one of %q", err, test.problem)
			}
		})
	}
	if got, err := Read(filepath.Join(t.TempDir(), "none.yaml")); got != standard || err != nil {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	if got := standard.PKIDir(); got != agentapi.PKIDir {
		t.Errorf("PKIDir %s", got)
	}
}
