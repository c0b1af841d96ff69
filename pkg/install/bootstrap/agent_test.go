package bootstrap

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"sigs.k8s.io/yaml"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/config"
)

func TestAgentConfiguration(t *testing.T) {
	shop := &kubeadmapi.ClusterConfiguration{Networking: kubeadmapi.Networking{ServiceSubnet: "10.20.0.0/16", DNSDomain: "example.test"}}
	got, err := agentConfiguration(shop, "east-1", "https://192.0.2.1:6443", "/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	if got.NodeName != "east-1" || !reflect.DeepEqual(got.Servers, []string{"https://192.0.2.1:6443"}) || got.ClusterDomain != "example.test" ||
		!reflect.DeepEqual(got.ServiceAddresses, []string{"10.20.0.1"}) || got.Files.ClusterCA != "/ca.crt" {
		t.Errorf("got %+v", got)
	}
	// What is not said is left to the agent, not written as nothing.
	content, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"listen", "memory", "stateDir", "logLevel", "rejoinPort"} {
		if strings.Contains(string(content), field) {
			t.Errorf("the file says %s:\n%s", field, content)
		}
	}
	if got.Kind != agentv1.AgentConfigurationKind {
		t.Errorf("kind %s", got.Kind)
	}
	shop.Networking.ServiceSubnet = "nonsense"
	if _, err := agentConfiguration(shop, "a", "b", "c"); err == nil || !strings.Contains(err.Error(), "serviceSubnet") {
		t.Errorf("a wrong subnet: %v", err)
	}
}

// The kubelet behind a hub holds nothing that the API server would take, and
// knows no other address.
func TestHubKubeconfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubelet.conf")
	if err := clientcmd.WriteToFile(*hubKubeconfig("shop"), path); err != nil {
		t.Fatal(err)
	}
	if !isHubKubeconfig(path) {
		t.Error("the hub's kubeconfig is not taken for one")
	}
	got, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	user, shop := got.AuthInfos["kubelet"], got.Clusters["shop"]
	if shop.Server != "https://127.0.0.1:10270" || shop.CertificateAuthority != agentapi.PKIDir+"/node-ca.crt" ||
		user.ClientCertificate != agentapi.PKIDir+"/kubelet.crt" || user.ClientKey != agentapi.PKIDir+"/kubelet.key" || user.Token != "" {
		t.Errorf("cluster %+v, user %+v", shop, user)
	}
	got.Clusters["shop"].Server = "https://192.0.2.1:6443"
	if err := clientcmd.WriteToFile(*got, path); err != nil {
		t.Fatal(err)
	}
	if isHubKubeconfig(path) || isHubKubeconfig(path+".none") {
		t.Error("another kubeconfig is taken for the hub's")
	}
}

func TestHubKubelet(t *testing.T) {
	const head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	for extra, want := range map[string]int32{"": 100, "imageGCHighThresholdPercent: 92\n": 92} {
		parsed, err := config.ParseInit([]byte(head + extra))
		if err != nil {
			t.Fatal(err)
		}
		plain := &parsed.ClusterConfiguration
		if before := kubeletConfig(plain); !before.RotateCertificates {
			t.Fatal("upstream's default has changed: the kubelet renews no certificate")
		}
		got := kubeletConfig(hubKubelet(plain))
		if got.RotateCertificates || got.ImageGCHighThresholdPercent == nil || *got.ImageGCHighThresholdPercent != want {
			t.Errorf("%q: rotate %v, image threshold %v, want %d", extra, got.RotateCertificates, got.ImageGCHighThresholdPercent, want)
		}
		if after := kubeletConfig(plain); !after.RotateCertificates {
			t.Error("the cluster's configuration was changed")
		}
	}
}

func TestAgentFilesArePrivate(t *testing.T) {
	// The PKI and the store live below one folder that only root may read; the
	// names in the kubeconfig must be below it.
	for _, path := range []string{agentapi.PKIDir, agentapi.StoreFile, agentapi.StoreKeyFile} {
		if !strings.HasPrefix(path, agentapi.StateDir+string(os.PathSeparator)) {
			t.Errorf("%s is outside of %s", path, agentapi.StateDir)
		}
	}
}

func TestImageOfTheControllerManager(t *testing.T) {
	objects, err := cluster.Hub()
	if err != nil {
		t.Fatal(err)
	}
	image := controllerManagerImage(&kubeadmapi.ClusterConfiguration{KubernetesVersion: "v1.37.2+skerry.0"})
	found := 0
	for _, object := range objects {
		if err := setImage(object, image); err != nil {
			t.Fatal(err)
		}
		text, err := object.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), `"image":"`+cluster.ImagePlaceholder+`"`) {
			t.Errorf("%s %s keeps the placeholder", object.GetKind(), object.GetName())
		}
		found += strings.Count(string(text), `"image":"skerry.dev/skerry-controller-manager:v1.37.2_skerry.0"`)
	}
	if found != 1 {
		t.Errorf("%d containers run skerry-controller-manager, want 1", found)
	}
}
