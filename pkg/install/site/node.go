package site

import (
	"context"
	"fmt"
	"maps"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	clientset "k8s.io/client-go/kubernetes"

	"skerry.dev/api"
)

// Groups asks the API server which groups the client's identity has.
func Groups(ctx context.Context, client clientset.Interface) ([]string, error) {
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("asking the API server for the groups of this token: %w", err)
	}
	return review.Status.UserInfo.Groups, nil
}

// NodeLabels reads the value of the kubelet's --node-labels. Labels of a Node
// that exists before its kubelet have to be written by whoever creates it.
func NodeLabels(flag string) (map[string]string, error) {
	if flag == "" {
		return nil, nil
	}
	set, err := labels.ConvertSelectorToLabelsMap(flag)
	if err != nil {
		return nil, fmt.Errorf("nodeRegistration.kubeletExtraArgs: node-labels %q: %w", flag, err)
	}
	return set, nil
}

// NewNode is the Node object of a node of the site. The zone is the site, so
// that upstream's topology features see sites, unless the user gave a zone.
func NewNode(name, site string, userLabels map[string]string, taints []corev1.Taint) *corev1.Node {
	nodeLabels := map[string]string{corev1.LabelTopologyZone: site}
	maps.Copy(nodeLabels, userLabels)
	nodeLabels[api.SiteLabel] = site
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: nodeLabels},
		Spec:       corev1.NodeSpec{Taints: taints},
	}
}

// EnsureNode creates the node's object with its site, or proves that the one
// that exists is of the same site. It reports whether it was created now.
func EnsureNode(ctx context.Context, client clientset.Interface, node *corev1.Node) (bool, error) {
	_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err == nil {
		return true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("creating Node %s of site %s with the token's identity: %w", node.Name, node.Labels[api.SiteLabel], err)
	}
	return false, CheckExisting(ctx, client, node.Name, node.Labels[api.SiteLabel])
}

// CheckExisting fails if a Node of this name exists and belongs to another site
// than the given one ("" is the cloud). No such Node is fine.
func CheckExisting(ctx context.Context, client clientset.Interface, name, site string) error {
	existing, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading Node %s: %w", name, err)
	}
	if has := existing.Labels[api.SiteLabel]; has != site {
		return fmt.Errorf("Node %s already exists and belongs to %s, but this token joins it to %s: if it is an old object of this machine, delete it with `kubectl delete node %s`; if another machine has this name, join with another --node-name",
			name, describe(has), describe(site), name)
	}
	return nil
}

func describe(site string) string {
	if site == "" {
		return "the cloud (it has no site)"
	}
	return "site " + site
}
