package bootstrap

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"

	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/topology"
)

func dnsConfig() *kubeadmapi.ClusterConfiguration {
	return &kubeadmapi.ClusterConfiguration{
		ImageRepository: "registry.example",
		Networking:      kubeadmapi.Networking{ServiceSubnet: "10.96.0.0/12", DNSDomain: "sites.local"},
	}
}

func TestCoreDNSRunsOnEveryNode(t *testing.T) {
	objects, err := coreDNS(dnsConfig(), "", &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	byKind := map[string]*unstructured.Unstructured{}
	for _, object := range objects {
		byKind[object.GetKind()] = object
		if object.GetResourceVersion() != "" {
			t.Errorf("%s %s asks for resourceVersion %s", object.GetKind(), object.GetName(), object.GetResourceVersion())
		}
	}
	for _, kind := range []string{"ConfigMap", "ClusterRole", "ClusterRoleBinding", "ServiceAccount", "Service", "DaemonSet"} {
		if byKind[kind] == nil {
			t.Fatalf("there is no %s", kind)
		}
	}
	if len(objects) != len(byKind) {
		t.Errorf("%d objects of %d kinds", len(objects), len(byKind))
	}
	if rule := topology.RuleOf(byKind["Service"].GetAnnotations()); !slices.Equal(rule.Keys, []string{corev1.LabelHostname}) {
		t.Errorf("kube-dns is closed by %v, want each node its own", rule)
	}
	if byKind["ConfigMap"].GetAnnotations()[cluster.ApplyAnnotation] != cluster.IfAbsent {
		t.Error("a Corefile that the user changed would be overwritten")
	}
	if corefile, _, _ := unstructured.NestedString(byKind["ConfigMap"].Object, "data", "Corefile"); !strings.Contains(corefile, "sites.local") {
		t.Errorf("the Corefile does not name the cluster's domain:\n%s", corefile)
	}
	set := daemonSet(t, byKind["DaemonSet"])
	if image := set.Spec.Template.Spec.Containers[0].Image; !strings.HasPrefix(image, "registry.example/coredns:") {
		t.Errorf("image %s", image)
	}
	if got := set.Spec.Template.Spec.Tolerations; len(got) != 1 || got[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations %v, want all", got)
	}
	if update := set.Spec.UpdateStrategy.RollingUpdate; update == nil || update.MaxUnavailable.String() != "0" || update.MaxSurge.String() != "25%" {
		t.Errorf("update strategy %+v: a node would be without DNS while it is updated", set.Spec.UpdateStrategy)
	}
	if set.Spec.Selector.MatchLabels["k8s-app"] != "kube-dns" || set.Spec.Template.Labels["k8s-app"] != "kube-dns" {
		t.Error("the Service does not select the pods")
	}
}

func TestPatchesOfCoreDNSStillApply(t *testing.T) {
	dir := t.TempDir()
	patch := `{"spec":{"template":{"spec":{"containers":[{"name":"coredns","resources":{"requests":{"memory":"30Mi"}}}]}}}}`
	if err := os.WriteFile(filepath.Join(dir, "corednsdeployment+strategic.json"), []byte(patch), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, err := coreDNS(dnsConfig(), dir, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if object.GetKind() != "DaemonSet" {
			continue
		}
		request := daemonSet(t, object).Spec.Template.Spec.Containers[0].Resources.Requests[corev1.ResourceMemory]
		if request.String() != "30Mi" {
			t.Errorf("memory request %s, want the patch's", request.String())
		}
		return
	}
	t.Fatal("there is no DaemonSet")
}

func TestBadPatchOfCoreDNSIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "corednsdeployment+json.json"), []byte(`[{"op":"remove","path":"/spec/none"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := coreDNS(dnsConfig(), dir, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v, want one that names %s", err, dir)
	}
}

func daemonSet(t *testing.T, object *unstructured.Unstructured) *appsv1.DaemonSet {
	t.Helper()
	var set appsv1.DaemonSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &set); err != nil {
		t.Fatal(err)
	}
	return &set
}
