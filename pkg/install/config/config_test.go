package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	componentversion "k8s.io/component-base/version"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	kubeadmscheme "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/scheme"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
)

// version is one that this binary would accept for a cluster; test binaries
// have none of their own.
var version = kubeadmconstants.CurrentKubernetesVersion.String()

const (
	initHead    = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.1}\nnodeRegistration: {name: cloud-1}\n"
	clusterHead = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n"
	joinHead    = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\nnodeRegistration: {name: east-1}\n"
)

func cluster(text string) string {
	return initHead + "---\n" + clusterHead + "kubernetesVersion: " + version + "\n" + text
}

func forceDetachOf(cfg *kubeadmapi.InitConfiguration) (values []string) {
	for _, arg := range cfg.ControllerManager.ExtraArgs {
		if arg.Name == forceDetach {
			values = append(values, arg.Value)
		}
	}
	return values
}

func TestParseInitDefaults(t *testing.T) {
	tests := []struct {
		name, text    string
		wantPodSubnet string
		wantDetach    string
	}{
		{"nothing said", "", DefaultPodSubnet, "true"},
		{"pod subnet", "networking: {podSubnet: 10.200.0.0/16}\n", "10.200.0.0/16", "true"},
		{"no pod subnet", "networking: {podSubnet: \"\"}\n", "", "true"},
		{"service subnet only", "networking: {serviceSubnet: 10.97.0.0/16}\n", DefaultPodSubnet, "true"},
		{"other arguments", "controllerManager: {extraArgs: [{name: v, value: \"4\"}]}\n", DefaultPodSubnet, "true"},
		{"force detach on purpose", "controllerManager: {extraArgs: [{name: disable-force-detach-on-timeout, value: \"false\"}]}\n", DefaultPodSubnet, "false"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseInit([]byte(cluster(test.text)))
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Networking.PodSubnet != test.wantPodSubnet {
				t.Errorf("pod subnet %q, want %q", cfg.Networking.PodSubnet, test.wantPodSubnet)
			}
			if got := strings.Join(forceDetachOf(cfg), ","); got != test.wantDetach {
				t.Errorf("%s = %q, want %q", forceDetach, got, test.wantDetach)
			}
			if cfg.NodeRegistration.CRISocket != kubeadmconstants.CRISocketContainerd {
				t.Errorf("runtime socket %q", cfg.NodeRegistration.CRISocket)
			}
			if len(cfg.NodeRegistration.Taints) != 1 {
				t.Errorf("control-plane node has taints %v", cfg.NodeRegistration.Taints)
			}
		})
	}
}

func TestParseInitKeepsOtherDocuments(t *testing.T) {
	cfg, err := ParseInit([]byte(cluster("") + "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: cgroupfs\nmaxPods: 17\n" +
		"---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.NodeRegistration.Name != "cloud-1" || cfg.LocalAPIEndpoint.AdvertiseAddress != "192.0.2.1" {
		t.Errorf("InitConfiguration was lost: %+v", cfg.NodeRegistration)
	}
	for _, group := range []string{"kubelet.config.k8s.io", "kubeproxy.config.k8s.io"} {
		if component, ok := cfg.ComponentConfigs[group]; !ok || !component.IsUserSupplied() {
			t.Errorf("the document of %s was lost", group)
		}
	}
}

func TestParseInitErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a label, which upstream would look up", initHead + "---\n" + clusterHead + "kubernetesVersion: stable-1\n", "kubernetesVersion"},
		{"no version, and the binary has none", initHead + "---\n" + clusterHead, "kubernetesVersion"},
		{"no ClusterConfiguration, and the binary has none", initHead, "kubernetesVersion"},
		{"empty version", initHead + "---\n" + clusterHead + "kubernetesVersion: \"\"\n", "kubernetesVersion"},
		{"type of a field", cluster("networking: everything\n"), "networking"},
		{"type of the version", initHead + "---\n" + clusterHead + "kubernetesVersion: [1]\n", "kubernetesVersion"},
		{"pod subnet", cluster("networking: {podSubnet: 10.0.0.0}\n"), "podSubnet"},
		{"duplicate key", cluster("clusterName: a\nclusterName: b\n"), "clusterName"},
		{"kind twice", cluster("") + "---\n" + clusterHead, "ClusterConfiguration"},
		{"old API", strings.ReplaceAll(cluster(""), "v1beta4", "v1beta3"), "v1beta3"},
		{"no kind", "a: b\n", "kind"},
		{"nothing", "", "InitConfiguration"},
		{"node name", strings.Replace(cluster(""), "cloud-1", "Cloud_1", 1), "name"},
		{"not YAML", "\t", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseInit([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %q", err, test.want)
			}
		})
	}
}

func TestLoadInitFromFlags(t *testing.T) {
	load := func(version string) (*kubeadmapi.InitConfiguration, error) {
		initCfg := &kubeadmapiv1.InitConfiguration{LocalAPIEndpoint: kubeadmapiv1.APIEndpoint{AdvertiseAddress: "192.0.2.1"}}
		kubeadmscheme.Scheme.Default(initCfg)
		return LoadInit("", initCfg, &kubeadmapiv1.ClusterConfiguration{KubernetesVersion: version})
	}
	cfg, err := load(version)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Networking.PodSubnet != DefaultPodSubnet || strings.Join(forceDetachOf(cfg), ",") != "true" {
		t.Errorf("defaults are missing: %+v", cfg.ClusterConfiguration)
	}
	for _, version := range []string{"", "stable-1", "ci/latest"} {
		if _, err := load(version); err == nil || !strings.Contains(err.Error(), "--kubernetes-version") {
			t.Errorf("version %q gave %v", version, err)
		}
	}
}

func TestBinaryVersion(t *testing.T) {
	if componentversion.Get().Major != "" {
		t.Skip("this test binary was built with a version")
	}
	if got := BinaryVersion(); got != "" {
		t.Errorf("a binary without a version claims %q", got)
	}
}

func TestLoadInitFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "init.yaml")
	if _, err := LoadInit(path, nil, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file gave %v", err)
	}
	if err := os.WriteFile(path, []byte(cluster("networking: {dnsDomain: \"!\"}\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadInit(path, nil, nil); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "dnsDomain") {
		t.Errorf("a bad file gave %v", err)
	}
}

func TestParseJoin(t *testing.T) {
	const inFile = "discovery: {bootstrapToken: {token: abcdef.0123456789abcdef, apiServerEndpoint: 192.0.2.1:6443, unsafeSkipCAVerification: true}}\n"
	flags := kubeadmapiv1.Discovery{
		BootstrapToken:    &kubeadmapiv1.BootstrapTokenDiscovery{Token: "abcdef.0123456789abcdef", APIServerEndpoint: "192.0.2.9:6443", UnsafeSkipCAVerification: true},
		TLSBootstrapToken: "abcdef.0123456789abcdef",
	}
	tests := []struct {
		name, text   string
		flags        kubeadmapiv1.Discovery
		wantEndpoint string
		wantError    string
	}{
		{"all in the file", joinHead + inFile, kubeadmapiv1.Discovery{}, "192.0.2.1:6443", ""},
		{"the cluster from flags", joinHead, flags, "192.0.2.9:6443", ""},
		{"both", joinHead + inFile, flags, "", "JoinConfiguration.discovery"},
		{"neither", joinHead, kubeadmapiv1.Discovery{}, "", "discovery"},
		{"another kind", initHead, kubeadmapiv1.Discovery{}, "", "JoinConfiguration"},
		{"token", joinHead + strings.Replace(inFile, "abcdef.", "abc.", 1), kubeadmapiv1.Discovery{}, "", "token"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseJoin([]byte(test.text), test.flags)
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Fatalf("got error %v, want one with %q", err, test.wantError)
			}
			if err != nil {
				return
			}
			if got := cfg.Discovery.BootstrapToken.APIServerEndpoint; got != test.wantEndpoint {
				t.Errorf("server %q, want %q", got, test.wantEndpoint)
			}
			if cfg.NodeRegistration.Name != "east-1" || cfg.NodeRegistration.CRISocket != kubeadmconstants.CRISocketContainerd || cfg.Discovery.TLSBootstrapToken == "" {
				t.Errorf("got %+v", cfg)
			}
		})
	}
}

func TestCheckMixed(t *testing.T) {
	for _, test := range []struct {
		args []string
		ok   bool
	}{
		{[]string{"--token", "a"}, true},
		{[]string{"--config", "f"}, true},
		{[]string{"--config", "f", "--images-dir", "d"}, true},
		{[]string{"--config", "f", "--node-name", "n"}, true},
		{[]string{"--config", "f", "--pod-network-cidr", "c"}, false},
	} {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		for _, name := range []string{"config", "token", "images-dir", "node-name", "pod-network-cidr"} {
			flags.String(name, "", "")
		}
		if err := flags.Parse(test.args); err != nil {
			t.Fatal(err)
		}
		if err := CheckMixed(flags, "images-dir"); (err == nil) != test.ok {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}

func FuzzParseInit(f *testing.F) {
	f.Add([]byte(cluster("")))
	f.Add([]byte(cluster("controllerManager: {extraArgs: [1, {name: 2}]}\nnetworking: []\n")))
	f.Add([]byte(joinHead))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseInit(data)
		if err == nil && len(forceDetachOf(cfg)) == 0 {
			t.Error("accepted without our defaults")
		}
	})
}
