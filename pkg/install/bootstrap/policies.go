package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	"k8s.io/utils/ptr"

	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/install/site"
)

// fieldManager owns the fields of what we apply.
const fieldManager = "skerry"

// enforceTimeout bounds how long the API server may take to enforce policies
// that it has stored; it compiles them in the background.
const enforceTimeout = 30 * time.Second

// NewPoliciesPhase installs the admission policies and roles of sites.
func NewPoliciesPhase() workflow.Phase {
	return workflow.Phase{
		Name:         "policies",
		Short:        "Install the admission policies and roles that protect sites",
		Long:         "Apply the admission policies and roles that let a bootstrap token create Nodes of its own site only and keep nodes from changing theirs, and wait until the API server enforces them.",
		InheritFlags: []string{options.CfgPath, options.KubeconfigPath, options.DryRun},
		Run:          runPolicies,
	}
}

func runPolicies(c workflow.RunData) error {
	data, err := dataOf[InitData]("policies", c)
	if err != nil {
		return err
	}
	objects, err := cluster.Policies()
	if err != nil {
		return err
	}
	if data.DryRun() {
		for _, object := range objects {
			say(data, "policies", "Would apply %s %s", object.GetKind(), object.GetName())
		}
		return nil
	}
	config, err := applyAll(data, objects)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := waitEnforced(config); err != nil {
		return err
	}
	say(data, "policies", "%d objects applied, enforced after %.1f s", len(objects), time.Since(start).Seconds())
	return nil
}

// applyAll applies objects as the administrator, in their order.
func applyAll(data InitData, objects []*unstructured.Unstructured) (*rest.Config, error) {
	// Client() also makes sure that the administrator's role is bound.
	if _, err := data.Client(); err != nil {
		return nil, err
	}
	kubeconfig, err := data.KubeConfig()
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("making a client to apply objects: %w", err)
	}
	config.Timeout = apiTimeout
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client to apply objects: %w", err)
	}
	for _, object := range objects {
		if err := applyOne(client, object); err != nil {
			return nil, fmt.Errorf("applying %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return config, nil
}

func applyOne(client dynamic.Interface, object *unstructured.Unstructured) error {
	plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
	var resource dynamic.ResourceInterface = client.Resource(plural)
	if namespace := object.GetNamespace(); namespace != "" {
		resource = client.Resource(plural).Namespace(namespace)
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	if object.GetAnnotations()[cluster.ApplyAnnotation] == cluster.IfAbsent {
		object = object.DeepCopy()
		unstructured.RemoveNestedField(object.Object, "metadata", "annotations")
		_, err := resource.Create(ctx, object, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	content, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encoding it: %w", err)
	}
	_, err = resource.Patch(ctx, object.GetName(), types.ApplyPatchType, content,
		metav1.PatchOptions{FieldManager: fieldManager, Force: ptr.To(true)})
	return err
}

// probe is the name of the Node, of the site and of the token that try the
// policies.
const probe = "skerry-policy-probe"

// waitEnforced proves that each policy works, on what it must forbid and on
// what it must not. Nothing is stored.
func waitEnforced(admin *rest.Config) error {
	as := func(user string, groups ...string) (clientset.Interface, error) {
		config := rest.CopyConfig(admin)
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append(groups, "system:authenticated")}
		return clientset.NewForConfig(config)
	}
	token, err := as("system:bootstrap:probe0", append(site.GroupsOf(probe), "system:bootstrappers")...)
	if err != nil {
		return fmt.Errorf("making a client to try the policies: %w", err)
	}
	kubelet, err := as("system:node:"+probe, "system:nodes")
	if err != nil {
		return fmt.Errorf("making a client to try the policies: %w", err)
	}
	plain := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: probe}}
	tries := []struct {
		what    string
		client  clientset.Interface
		node    *corev1.Node
		policy  string
		allowed bool
	}{
		{"a token can create a Node of its own site", token, site.NewNode(probe, probe, nil, nil), cluster.BootstrapPolicy, true},
		{"a token can create a Node of another site", token, site.NewNode(probe, "other", nil, nil), cluster.BootstrapPolicy, false},
		{"a kubelet can create its Node", kubelet, plain, cluster.NodePolicy, true},
		{"a kubelet can give itself a site", kubelet, site.NewNode(probe, probe, nil, nil), cluster.NodePolicy, false},
	}
	var last error
	err = until(enforceTimeout, func(ctx context.Context) (bool, error) {
		for _, try := range tries {
			allowed, err := tryCreate(ctx, try.client, try.node, try.policy)
			if err != nil || allowed != try.allowed {
				last = fmt.Errorf("trying whether %s: %w", try.what, cmp.Or(err, fmt.Errorf("it is %v", allowed)))
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("the admission policies of sites are stored, but not enforced %w: %w", err, last)
	}
	return nil
}

// tryCreate reports whether the policy lets the client create the Node, which
// is not stored.
func tryCreate(ctx context.Context, client clientset.Interface, node *corev1.Node, policy string) (bool, error) {
	_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || apierrors.IsAlreadyExists(err) {
		return true, nil
	}
	if (apierrors.IsForbidden(err) || apierrors.IsInvalid(err)) && strings.Contains(err.Error(), policy) {
		return false, nil
	}
	return false, err
}
