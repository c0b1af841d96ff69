package bootstrap

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"

	"skerry.dev/skerry/cluster"
)

// NewHubPhase installs what the agents of nodes need of the cluster.
func NewHubPhase() workflow.Phase {
	return workflow.Phase{
		Name:         "hub",
		Short:        "Install what skerry-agent needs of the cluster: its rights, its policy, and the server that nodes rejoin at",
		Long:         "Apply the roles of skerry-agent, and ConfigMap kube-system/skerry-agent with the default policy where there is none. Neither changes anything for nodes without skerry-agent.",
		InheritFlags: []string{options.CfgPath, options.KubeconfigPath, options.DryRun},
		Run:          runHub,
	}
}

func runHub(c workflow.RunData) error {
	data, err := dataOf[InitData]("hub", c)
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
		for _, object := range objects {
			say(data, "hub", "Would apply %s %s", object.GetKind(), object.GetName())
		}
		return nil
	}
	if _, err := applyAll(data, objects); err != nil {
		return err
	}
	say(data, "hub", "%d objects applied", len(objects))
	return nil
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
