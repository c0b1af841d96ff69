package cmd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstraptokenv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/bootstraptoken/v1"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	outputapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/output/v1alpha3"
	kubeadmcmd "k8s.io/kubernetes/cmd/kubeadm/app/cmd"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"

	"skerry.dev/skerry/pkg/install/site"
)

// phasesOf returns the names of the phases of a command, and of their parts.
func phasesOf(t *testing.T, command *cobra.Command) []string {
	t.Helper()
	var names []string
	var visit func(prefix string, c *cobra.Command)
	visit = func(prefix string, c *cobra.Command) {
		for _, sub := range c.Commands() {
			names = append(names, prefix+sub.Name())
			visit(prefix+sub.Name()+"/", sub)
		}
	}
	for _, sub := range command.Commands() {
		if sub.Name() == "phase" {
			visit("", sub)
		}
	}
	if len(names) == 0 {
		t.Fatalf("%s has no phases", command.Name())
	}
	return names
}

// upstream returns a command of kubeadm.
func upstream(t *testing.T, name string) *cobra.Command {
	t.Helper()
	for _, command := range kubeadmcmd.NewKubeadmCommand(nil, nil, nil).Commands() {
		if command.Name() == name {
			return command
		}
	}
	t.Fatalf("kubeadm has no command %s", name)
	return nil
}

// Whoever knows kubeadm finds its phases and flags here.
func TestPhasesAndFlagsOfKubeadm(t *testing.T) {
	// What kubeadm has for further control-plane nodes, and join lacks.
	lacking := []string{"control-plane-prepare", "control-plane-join", "check-etcd", "etcd-join", "wait-control-plane"}
	lackingFlags := []string{options.CertificateKey, options.APIServerAdvertiseAddress, options.APIServerBindPort, "rootfs"}
	for name, ours := range map[string]*cobra.Command{"init": NewInitCommand(), "join": NewJoinCommand(), "reset": NewResetCommand()} {
		theirs := upstream(t, name)
		have := phasesOf(t, ours)
		for _, phase := range phasesOf(t, theirs) {
			top, _, _ := strings.Cut(phase, "/")
			if !slices.Contains(have, phase) && (name != "join" || !slices.Contains(lacking, top)) {
				t.Errorf("skerry %s has no phase %s", name, phase)
			}
		}
		for _, flag := range flagsOf(theirs) {
			if ours.Flags().Lookup(flag) == nil && (name != "join" || !slices.Contains(lackingFlags, flag)) {
				t.Errorf("skerry %s has no flag --%s", name, flag)
			}
		}
	}
}

func flagsOf(command *cobra.Command) (names []string) {
	for line := range strings.Lines(command.LocalFlags().FlagUsages()) {
		if _, rest, ok := strings.Cut(line, "--"); ok && strings.Index(line, "--") < 8 {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

func TestInitPhasesOfOurs(t *testing.T) {
	have := phasesOf(t, NewInitCommand())
	for _, phase := range []string{"host", "images", "cni", "policies"} {
		if !slices.Contains(have, phase) {
			t.Errorf("init has no phase %s: %q", phase, have)
		}
	}
}

// run runs a command as a user would, up to the point where it needs root.
func run(t *testing.T, command *cobra.Command, args ...string) error {
	t.Helper()
	command.SetArgs(args)
	command.SetOut(&bytes.Buffer{})
	command.SetErr(&bytes.Buffer{})
	command.SilenceErrors = true
	return command.Execute()
}

func TestBadFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\ncontrolPlane: {localAPIEndpoint: {advertiseAddress: 192.0.2.7}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const token = "abcdef.0123456789abcdef"
	tests := []struct {
		name    string
		command *cobra.Command
		args    []string
		want    string
	}{
		{"no server", NewJoinCommand(), nil, "discovery"},
		{"no CA hash", NewJoinCommand(), []string{"192.0.2.1:6443", "--token", token}, "caCertHashes"},
		{"token", NewJoinCommand(), []string{"192.0.2.1:6443", "--token", "x", "--discovery-token-unsafe-skip-ca-verification"}, "token"},
		{"server", NewJoinCommand(), []string{"192.0.2.1", "--token", token, "--discovery-token-unsafe-skip-ca-verification"}, "apiServerEndpoint"},
		{"site", NewJoinCommand(), []string{"192.0.2.1:6443", "--site", "E"}, "--site"},
		{"control plane", NewJoinCommand(), []string{"192.0.2.1:6443", "--control-plane", "--token", token}, "workers only"},
		{"control plane in the file", NewJoinCommand(), []string{"192.0.2.1:6443", "--config", file, "--token", token, "--discovery-token-unsafe-skip-ca-verification"}, "workers only"},
		{"flag and file", NewJoinCommand(), []string{"--config", file, "--cri-socket", "/x"}, "can not mix"},
		{"missing file", NewJoinCommand(), []string{"--config", file + "x"}, file + "x"},
		{"feature gate", NewInitCommand(), []string{"--feature-gates", "Nope=true"}, "feature-gates"},
		{"version", NewInitCommand(), []string{"--kubernetes-version", "stable"}, "--kubernetes-version"},
		{"token of init", NewInitCommand(), []string{"--token", "x"}, "--token"},
		{"argument of init", NewInitCommand(), []string{"now"}, "now"},
		{"format", NewStatusCommand(), []string{"-o", "xml"}, "--output"},
		{"site of a token", NewTokenCommand(), []string{"create", "--site", "A_B"}, "--site"},
		{"no token", NewTokenCommand(), []string{"delete"}, "arg"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := run(t, test.command, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %q", err, test.want)
			}
		})
	}
}

func TestUntilInterrupted(t *testing.T) {
	mine := errors.New("mine")
	if err := untilInterrupted(context.Background(), func() error { return mine }); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	blocked := make(chan struct{})
	defer close(blocked)
	cancel()
	if err := untilInterrupted(ctx, func() error { <-blocked; return nil }); !errors.Is(err, errInterrupted) {
		t.Errorf("got %v", err)
	}
}

func TestNewToken(t *testing.T) {
	none := "system:bootstrappers:kubeadm:default-node-token"
	tests := []struct {
		name, site string
		groups     []string
		wantGroups []string
		wantError  string
	}{
		{"cloud", "", nil, []string{none}, ""},
		{"site", "east", nil, append([]string{none}, site.GroupsOf("east")...), ""},
		{"site said twice", "east", site.GroupsOf("east"), site.GroupsOf("east"), ""},
		{"two sites", "east", site.GroupsOf("west"), nil, "west"},
		{"not a name", "a.b", nil, nil, "--site"},
		{"not a group", "", []string{"admins"}, nil, "groups"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			opts := options.NewBootstrapTokenOptions()
			if test.groups != nil {
				opts.Groups = test.groups
			}
			token, err := newToken(opts, test.site, false)
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Fatalf("got error %v, want one with %q", err, test.wantError)
			}
			if err != nil {
				return
			}
			if !reflect.DeepEqual(token.Groups, test.wantGroups) {
				t.Errorf("groups %q, want %q", token.Groups, test.wantGroups)
			}
			if token.Token == nil || len(token.Token.Secret) != 16 || token.TTL == nil || token.TTL.Duration != 24*time.Hour {
				t.Errorf("got %+v", token)
			}
			if test.site != "" && !strings.Contains(token.Description, test.site) {
				t.Errorf("description %q", token.Description)
			}
		})
	}
}

func TestTokenRow(t *testing.T) {
	now := time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)
	token := &outputapi.BootstrapToken{BootstrapToken: bootstraptokenv1.BootstrapToken{
		Token:   &bootstraptokenv1.BootstrapTokenString{ID: "abcdef", Secret: "0123456789abcdef"},
		Expires: &metav1.Time{Time: now.Add(2 * time.Hour)}, Usages: []string{"signing"}, Groups: site.GroupsOf("east"),
	}}
	want := []string{"abcdef.0123456789abcdef", "east", "2h", "2026-11-23T19:00:00Z", "signing", "<none>"}
	if got := tokenRow(token, now); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	token.Expires, token.Groups = nil, nil
	if got := tokenRow(token, now); got[1] != "<cloud>" || got[2] != "<forever>" {
		t.Errorf("got %q", got)
	}
}

func TestSkipAddons(t *testing.T) {
	tests := []struct {
		name               string
		dnsOff, proxyOff   bool
		skip, want         []string
		wantDNS, wantProxy bool
	}{
		{"all", false, false, nil, nil, false, false},
		{"DNS off in the file", true, false, nil, []string{"addon/coredns"}, true, false},
		{"proxy skipped", false, false, []string{"addon/kube-proxy"}, []string{"addon/kube-proxy"}, false, true},
		{"both skipped", false, false, []string{"addon"}, []string{"addon"}, true, true},
		{"both ways", false, true, []string{"addon/kube-proxy"}, []string{"addon/kube-proxy"}, false, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := &kubeadmapi.InitConfiguration{}
			cfg.DNS.Disabled, cfg.Proxy.Disabled = test.dnsOff, test.proxyOff
			if got := skipAddons(cfg, test.skip); !reflect.DeepEqual(got, test.want) {
				t.Errorf("skips %q, want %q", got, test.want)
			}
			if cfg.DNS.Disabled != test.wantDNS || cfg.Proxy.Disabled != test.wantProxy {
				t.Errorf("DNS off %v, proxy off %v", cfg.DNS.Disabled, cfg.Proxy.Disabled)
			}
		})
	}
}
