package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	initphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/init"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	dnsaddon "k8s.io/kubernetes/cmd/kubeadm/app/phases/addons/dns"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/patches"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/topology"
)

// dnsPhase is the name of the phase in what it prints.
const dnsPhase = "addons"

// ownNodeOnly closes a Service so that each node uses what runs on it.
const ownNodeOnly = `["` + corev1.LabelHostname + `"]`

// NewAddonPhase is kubeadm's, but for where CoreDNS runs: on every node, so that
// the pods of a node have names without the cloud.
func NewAddonPhase() workflow.Phase {
	phase := initphases.NewAddonPhase()
	for i := range phase.Phases {
		one := &phase.Phases[i]
		if one.Name != "coredns" {
			continue
		}
		one.Short = "Install CoreDNS on every node"
		one.Long = "Install CoreDNS as a DaemonSet, and let each node's pods ask the one on their node, at the cluster DNS address: it works without the cloud. " +
			"All else is kubeadm's: the roles, the Service kube-dns, the Corefile in ConfigMap kube-system/coredns (kept where there is one), patches of the target \"corednsdeployment\"."
		one.Run = func(c workflow.RunData) error {
			print, err := one.LocalFlags.GetBool(options.PrintManifest)
			if err != nil {
				return err
			}
			return runCoreDNS(c, print)
		}
	}
	return phase
}

func runCoreDNS(c workflow.RunData, print bool) error {
	data, err := dataOf[InitData]("addon coredns", c)
	if err != nil {
		return err
	}
	objects, err := coreDNS(&data.Cfg().ClusterConfiguration, data.PatchesDir(), data.OutputWriter())
	if err != nil {
		return err
	}
	if print {
		for _, object := range objects {
			content, err := yaml.Marshal(object)
			if err != nil {
				return fmt.Errorf("encoding %s %s: %w", object.GetKind(), object.GetName(), err)
			}
			fmt.Fprintf(data.OutputWriter(), "---\n%s", content)
		}
		return nil
	}
	if data.DryRun() {
		for _, object := range objects {
			say(data, dnsPhase, "Would apply %s %s", object.GetKind(), object.GetName())
		}
		return nil
	}
	if _, err := applyAll(data, objects); err != nil {
		return err
	}
	if err := removeDNSDeployment(data); err != nil {
		return err
	}
	say(data, dnsPhase, "Applied essential addon: CoreDNS, on every node")
	return nil
}

// removeDNSDeployment removes what kubeadm installs, and what a DaemonSet has
// taken the place of.
func removeDNSDeployment(data InitData) error {
	client, err := data.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	err = client.AppsV1().Deployments(metav1.NamespaceSystem).Delete(ctx, kubeadmconstants.CoreDNSDeploymentName, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing Deployment %s/%s, which a DaemonSet replaces: %w", metav1.NamespaceSystem, kubeadmconstants.CoreDNSDeploymentName, err)
	}
	return nil
}

// coreDNS returns kubeadm's objects of CoreDNS, with a DaemonSet instead of the
// Deployment, in the order in which they are to be applied.
func coreDNS(cfg *kubeadmapi.ClusterConfiguration, patchesDir string, out io.Writer) ([]*unstructured.Unstructured, error) {
	var manifests bytes.Buffer
	// Without a client it only prints. Patches are applied below: it would print
	// what it says about them between the manifests.
	if err := dnsaddon.EnsureDNSAddon(cfg, nil, "", &manifests, true); err != nil {
		return nil, fmt.Errorf("composing the manifests of CoreDNS: %w", err)
	}
	var objects []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(&manifests, 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("decoding kubeadm's manifests of CoreDNS: %w", err)
		}
		if len(object.Object) == 0 {
			continue
		}
		// It asks for an update whatever is stored; applying does.
		unstructured.RemoveNestedField(object.Object, "metadata", "resourceVersion")
		switch object.GetKind() {
		case "Deployment":
			if object, err = onEveryNode(object, patchesDir, out); err != nil {
				return nil, err
			}
		case "ConfigMap":
			annotate(object, cluster.ApplyAnnotation, cluster.IfAbsent)
		case "Service":
			annotate(object, topology.Annotation, ownNodeOnly)
		}
		objects = append(objects, object)
	}
	return objects, nil
}

func annotate(object *unstructured.Unstructured, key, value string) {
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	object.SetAnnotations(annotations)
}

// onEveryNode makes a DaemonSet of kubeadm's Deployment, with the user's patches
// of the Deployment.
func onEveryNode(object *unstructured.Unstructured, patchesDir string, out io.Writer) (*unstructured.Unstructured, error) {
	content, err := object.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding the Deployment of CoreDNS: %w", err)
	}
	if patchesDir != "" {
		if content, err = patchDNS(content, patchesDir, out); err != nil {
			return nil, err
		}
	}
	var deployment appsv1.Deployment
	if err := yaml.Unmarshal(content, &deployment); err != nil {
		return nil, fmt.Errorf("decoding the Deployment of CoreDNS: %w", err)
	}
	set := &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: deployment.Name, Namespace: deployment.Namespace, Labels: deployment.Labels, Annotations: deployment.Annotations},
		Spec: appsv1.DaemonSetSpec{
			Selector: deployment.Spec.Selector,
			Template: deployment.Spec.Template,
			// The new one is there before the old one goes. One node at a time
			// would stop at the first node that is away.
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{
					MaxUnavailable: ptr.To(intstr.FromInt32(0)),
					MaxSurge:       ptr.To(intstr.FromString("25%")),
				},
			},
		},
	}
	pod := &set.Spec.Template.Spec
	pod.PriorityClassName = "system-node-critical"
	pod.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	// Where its replicas go was the Deployment's question.
	pod.Affinity, pod.TopologySpreadConstraints = nil, nil
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(set)
	if err != nil {
		return nil, fmt.Errorf("encoding the DaemonSet of CoreDNS: %w", err)
	}
	delete(fields, "status")
	return &unstructured.Unstructured{Object: fields}, nil
}

// patchDNS applies the user's patches of kubeadm's target "corednsdeployment".
func patchDNS(deployment []byte, dir string, out io.Writer) ([]byte, error) {
	manager, err := patches.GetPatchManagerForPath(dir, patches.KnownTargets(), out)
	if err != nil {
		return nil, fmt.Errorf("reading patches from %s: %w", dir, err)
	}
	target := &patches.PatchTarget{Name: patches.CoreDNSDeployment, StrategicMergePatchObject: appsv1.Deployment{}, Data: deployment}
	if err := manager.ApplyPatchesToTarget(target); err != nil {
		return nil, fmt.Errorf("patching CoreDNS with what %s says: %w", dir, err)
	}
	return target.Data, nil
}
