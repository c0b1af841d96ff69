package bootstrap

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"

	"skerry.dev/skerry/pkg/install/images"
	"skerry.dev/skerry/pkg/install/site"
)

func TestRegistrationOf(t *testing.T) {
	mine := corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}
	lost := corev1.Taint{Key: site.UnknownTaint, Effect: corev1.TaintEffectNoSchedule}
	for _, test := range []struct {
		site string
		want []corev1.Taint
	}{
		{"", []corev1.Taint{mine}},
		{"east", []corev1.Taint{mine, lost}},
	} {
		registration := &kubeadmapi.NodeRegistrationOptions{Name: "n", Taints: []corev1.Taint{mine}}
		got := RegistrationOf(registration, test.site)
		if !reflect.DeepEqual(got.Taints, test.want) || got.Name != "n" {
			t.Errorf("site %q: got %+v", test.site, got)
		}
		if len(registration.Taints) != 1 {
			t.Error("the configuration was changed")
		}
	}
}

func TestUserLabels(t *testing.T) {
	with := func(value string) *kubeadmapi.NodeRegistrationOptions {
		return &kubeadmapi.NodeRegistrationOptions{KubeletExtraArgs: []kubeadmapi.Arg{{Name: "v", Value: "2"}, {Name: "node-labels", Value: value}}}
	}
	if got, err := UserLabels(with("a=b")); err != nil || !reflect.DeepEqual(got, map[string]string{"a": "b"}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, value := range []string{"skerry.dev/site=east", "a=b,grid.skerry.dev/x=y"} {
		if _, err := UserLabels(with(value)); err == nil || !strings.Contains(err.Error(), "kubeletExtraArgs") {
			t.Errorf("%s: %v", value, err)
		}
	}
	if got, err := UserLabels(&kubeadmapi.NodeRegistrationOptions{}); err != nil || len(got) != 0 {
		t.Errorf("no labels: %v, %v", got, err)
	}
}

func TestWantedImages(t *testing.T) {
	cluster := &kubeadmapi.ClusterConfiguration{KubernetesVersion: "v1.37.2+skerry.0", ImageRepository: "example.com/k"}
	cluster.Etcd.Local = &kubeadmapi.LocalEtcd{}
	components := func(names []string) (all []string) {
		for _, name := range names {
			all = append(all, images.Component(name))
		}
		slices.Sort(all)
		return all
	}
	worker := wantedImages(cluster, false)
	if got, want := components(worker), []string{"coredns", "kube-proxy", "pause"}; !reflect.DeepEqual(got, want) {
		t.Errorf("worker wants %q", got)
	}
	if !slices.Contains(worker, "example.com/k/kube-proxy:v1.37.2_skerry.0") {
		t.Errorf("worker wants %q", worker)
	}
	if got := components(wantedImages(cluster, true)); len(got) != 8 {
		t.Errorf("control plane wants %q", got)
	}
}

func TestApplicable(t *testing.T) {
	for _, test := range []struct {
		ignored string
		dryRun  bool
		want    []string
	}{
		{"", false, []string{"Swap", "SystemVerification", "CRI"}},
		{"systemverification", false, []string{"Swap", "CRI"}},
		{"all", false, []string{"Swap", "CRI"}},
		{"", true, []string{"Swap", "SystemVerification"}},
	} {
		checks := []preflight.Checker{preflight.ServiceCheck{Service: "kubelet"}, preflight.HostnameCheck{}, preflight.SwapCheck{},
			preflight.SystemVerificationCheck{}, preflight.ContainerRuntimeCheck{}}
		var got []string
		for _, check := range applicable(checks, sets.New(test.ignored), test.dryRun) {
			got = append(got, check.Name())
		}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%+v: left are %q", test, got)
		}
	}
}

func TestUseCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubelet.conf")
	config := clientcmdapi.NewConfig()
	config.AuthInfos["me"] = &clientcmdapi.AuthInfo{ClientCertificateData: []byte("a"), ClientKeyData: []byte("b")}
	config.Contexts["c"] = &clientcmdapi.Context{AuthInfo: "me"}
	config.CurrentContext = "c"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := useCertificate(path, "/var/x.pem"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if user := got.AuthInfos["me"]; user.ClientCertificate != "/var/x.pem" || user.ClientKey != "/var/x.pem" || len(user.ClientKeyData)+len(user.ClientCertificateData) != 0 {
		t.Errorf("got %+v", user)
	}
	config.CurrentContext = "other"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	if err := useCertificate(path, "/var/x.pem"); err == nil {
		t.Error("a kubeconfig without a current user was accepted")
	}
}

// A phase must not run with the data of another command, nor panic on it.
func TestPhasesRefuseForeignData(t *testing.T) {
	phases := []workflow.Phase{
		NewHostPhase(""), NewImagesPhase(""), NewInitPreflightPhase(), NewInitKubeletStartPhase(), NewKubeletFinalizePhase(), NewCNIPhase(), NewPoliciesPhase(), NewHubPhase(), NewAgentPhase(""),
		NewShowJoinCommandPhase(), NewJoinPreflightPhase(), NewSitePhase(""), NewJoinKubeletStartPhase(),
	}
	for _, phase := range append(phases, ResetPhases()...) {
		if phase.Run == nil {
			continue
		}
		if err := phase.Run(struct{}{}); err == nil {
			t.Errorf("phase %s ran with foreign data", phase.Name)
		}
	}
}

func TestOwnsContainerd(t *testing.T) {
	for socket, want := range map[string]bool{
		kubeadmconstants.CRISocketContainerd: true, "unix:///run/containerd/containerd.sock": true,
		kubeadmconstants.CRISocketCRIO: false, "unix:///run/other/containerd.sock": false,
	} {
		if got := ownsContainerd(socket); got != want {
			t.Errorf("%s: %v", socket, got)
		}
	}
}
