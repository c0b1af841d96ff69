package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"

	"skerry.dev/skerry/cluster"
)

// NewHubPhase installs what the agents of nodes need of the cluster.
func NewHubPhase() workflow.Phase {
	return workflow.Phase{
		Name:         "hub",
		Short:        "Install Skerry's types, what skerry-agent needs of the cluster, and skerry-controller-manager",
		Long:         "Apply the CustomResourceDefinitions and wait until they are served; then the roles of skerry-agent, ConfigMap kube-system/skerry-agent with the default policy where there is none, and skerry-controller-manager. None of it changes anything for nodes without a site.",
		InheritFlags: []string{options.CfgPath, options.KubeconfigPath, options.DryRun},
		Run:          runHub,
	}
}

func runHub(c workflow.RunData) error {
	data, err := dataOf[InitData]("hub", c)
	if err != nil {
		return err
	}
	crds, err := cluster.CRDs()
	if err != nil {
		return err
	}
	objects, err := cluster.Hub()
	if err != nil {
		return err
	}
	for _, object := range objects {
		if err := setImage(object, controllerManagerImage(&data.Cfg().ClusterConfiguration)); err != nil {
			return err
		}
	}
	if data.DryRun() {
		for _, object := range append(crds, objects...) {
			say(data, "hub", "Would apply %s %s", object.GetKind(), object.GetName())
		}
		return nil
	}
	config, err := applyAll(data, crds)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := waitEstablished(config, crds); err != nil {
		return err
	}
	say(data, "hub", "%d types applied, served after %.1f s", len(crds), time.Since(start).Seconds())
	if _, err := applyAll(data, objects); err != nil {
		return err
	}
	say(data, "hub", "%d objects applied", len(objects))
	return nil
}

// waitEstablished waits until the API server serves the types.
func waitEstablished(config *rest.Config, crds []*unstructured.Unstructured) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client to wait for types: %w", err)
	}
	for _, crd := range crds {
		plural, _ := meta.UnsafeGuessKindToResource(crd.GroupVersionKind())
		var last error
		err := until(enforceTimeout, func(ctx context.Context) (bool, error) {
			object, err := client.Resource(plural).Get(ctx, crd.GetName(), metav1.GetOptions{})
			if err != nil {
				last = err
				return false, nil
			}
			last = established(object)
			return last == nil, nil
		})
		if err != nil {
			return fmt.Errorf("waiting until %s is served: %w: %w", crd.GetName(), err, last)
		}
	}
	return nil
}

// established returns an error that says why a type is not served yet.
func established(crd *unstructured.Unstructured) error {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return fmt.Errorf("reading its conditions: %w", err)
	}
	said := "it has no condition Established"
	for _, one := range conditions {
		condition, ok := one.(map[string]any)
		if !ok {
			continue
		}
		if condition["type"] == "Established" && condition["status"] == "True" {
			return nil
		}
		if condition["status"] == "False" {
			said = fmt.Sprintf("condition %v is False: %v", condition["type"], condition["message"])
		}
	}
	return errors.New(said)
}

// setImage puts the image of skerry-controller-manager into what runs it.
func setImage(object *unstructured.Unstructured, image string) error {
	containers, ok, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "containers")
	if err != nil || !ok {
		return err
	}
	for _, container := range containers {
		if fields, ok := container.(map[string]any); ok && fields["image"] == cluster.ImagePlaceholder {
			fields["image"] = image
		}
	}
	return unstructured.SetNestedSlice(object.Object, containers, "spec", "template", "spec", "containers")
}
