//go:build e2e

package gridapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	appsapply "k8s.io/client-go/applyconfigurations/apps/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	gridapply "skerry.dev/api/apps/v1alpha1/applyconfiguration/apps/v1alpha1"
	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/topology"
)

// A program says what it wants with the generated apply configurations, finds
// what it said, and takes some of it back; what another says is left alone.
func TestApplyConfigurations(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	raw := func(spec *appsapply.DeploymentSpecApplyConfiguration) runtime.RawExtension {
		text, err := json.Marshal(spec)
		w.must(err)
		return runtime.RawExtension{Raw: text}
	}
	template := func(image string) runtime.RawExtension {
		labels := map[string]string{"app": "web"}
		return raw(appsapply.DeploymentSpec().WithReplicas(2).
			WithSelector(metaapply.LabelSelector().WithMatchLabels(labels)).
			WithTemplate(coreapply.PodTemplateSpec().WithLabels(labels).
				WithSpec(coreapply.PodSpec().WithContainers(coreapply.Container().WithName("web").WithImage(image)))))
	}
	said := gridapply.DeploymentGrid("web", w.ns).WithSpec(gridapply.DeploymentGridSpec().WithGridKey(w.key).WithTemplate(template("web:v1")).
		WithOverrides(gridapply.Override().WithName("small").WithSites("east").WithPatch(raw(appsapply.DeploymentSpec().WithReplicas(1)))))
	const tool = client.FieldOwner("a-tool")
	want := jsonOf(t, said) // Apply writes the answer into it
	w.must(api.Apply(t.Context(), said, tool))
	w.wantChildren("web-east")
	if n := *w.deployment("web-east").Spec.Replicas; n != 1 {
		t.Errorf("%d replicas, want the override's", n)
	}
	other := gridapply.DeploymentGrid("web", w.ns).WithSpec(gridapply.DeploymentGridSpec().WithRollout(gridapply.Rollout().WithMaxFailed(3)))
	w.must(api.Apply(t.Context(), other, client.FieldOwner("another-tool")))

	var grid gridv1.DeploymentGrid
	w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &grid))
	found, err := gridapply.ExtractDeploymentGrid(&grid, string(tool))
	w.must(err)
	if got := jsonOf(t, found); got != want {
		t.Errorf("extracted %s\nwant %s", got, want)
	}
	found.Spec.Overrides = nil
	w.must(api.Apply(t.Context(), found.WithSpec(found.Spec.WithTemplate(template("web:v2"))), tool))
	w.wantImage("web-east", "web:v2")
	w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &grid))
	if n := *w.deployment("web-east").Spec.Replicas; n != 2 || len(grid.Spec.Overrides) != 0 || *grid.Spec.Rollout.MaxFailed != 3 {
		t.Errorf("%d replicas, overrides %v, maxFailed %d", n, grid.Spec.Overrides, *grid.Spec.Rollout.MaxFailed)
	}
}

// jsonOf has its keys in order.
func jsonOf(t *testing.T, what any) string {
	t.Helper()
	text, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	if text, err = json.Marshal(tree); err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The API server takes the policy about closed Services as it is installed, and
// refuses by it; a ServiceGrid with such a key does not get that far.
func TestUnreadableTopologyKeys(t *testing.T) {
	w := newWorld(t)
	objects, err := cluster.Policies()
	w.must(err)
	for _, object := range objects {
		if object.GetName() == "skerry.dev-topology-keys" {
			w.must(api.Create(t.Context(), object))
			t.Cleanup(func() { _ = api.Delete(context.Background(), object) })
		}
	}
	service := func(name, value string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name, Annotations: map[string]string{topology.Annotation: value}},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}
	}
	const refusal = `the annotation skerry.dev/topology-keys must be a list of node label keys: "*" is none`
	w.eventually("the refusal", func() error {
		err := api.Create(t.Context(), service("bad", `["*"]`), client.DryRunAll)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), refusal) {
			return fmt.Errorf("it says %w", err)
		}
		return nil
	})
	good := service("good", `["skerry.dev/site"]`)
	w.must(api.Create(t.Context(), good))
	if err := w.tryPatch(good, map[string]any{"metadata": map[string]any{"annotations": map[string]any{topology.Annotation: "site"}}}); !apierrors.IsInvalid(err) {
		t.Errorf("changed into a bad one: %v", err)
	}
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	w.eventually("the check of its types", func() error {
		w.must(api.Get(t.Context(), client.ObjectKey{Name: "skerry.dev-topology-keys"}, &policy))
		if policy.Status.TypeChecking == nil {
			return fmt.Errorf("its status is %+v", policy.Status)
		}
		return nil
	})
	for _, warning := range policy.Status.TypeChecking.ExpressionWarnings {
		t.Errorf("%s: %s", warning.FieldRef, warning.Warning)
	}
	for _, key := range []string{"*", "a b", "a/b/c", "A/b", "-a", strings.Repeat("a", 254) + "/b"} {
		for _, kind := range []string{"ServiceGrid", "DeploymentGrid", "StatefulSetGrid"} {
			var grid unstructured.Unstructured
			grid.SetGroupVersionKind(gridv1.GroupVersion.WithKind(kind))
			grid.SetNamespace(w.ns)
			grid.SetName("web")
			w.must(unstructured.SetNestedMap(grid.Object, map[string]any{"gridKey": key, "template": map[string]any{}}, "spec"))
			if err := api.Create(t.Context(), &grid, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "spec.gridKey: Invalid value") || !strings.Contains(err.Error(), "must be the key of a label") {
				t.Errorf("%s with gridKey %.20s: %v", kind, key, err)
			}
		}
	}
}
