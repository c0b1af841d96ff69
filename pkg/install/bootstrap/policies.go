package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	// Client() also makes sure that the administrator's role is bound.
	if _, err := data.Client(); err != nil {
		return err
	}
	kubeconfig, err := data.KubeConfig()
	if err != nil {
		return err
	}
	config, err := clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("making a client to apply policies: %w", err)
	}
	config.Timeout = apiTimeout
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client to apply policies: %w", err)
	}
	for _, object := range objects {
		resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		content, err := json.Marshal(object)
		if err != nil {
			return fmt.Errorf("encoding %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
		_, err = client.Resource(resource).Patch(ctx, object.GetName(), types.ApplyPatchType, content,
			metav1.PatchOptions{FieldManager: fieldManager, Force: ptr.To(true)})
		cancel()
		if err != nil {
			return fmt.Errorf("applying %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	start := time.Now()
	if err := waitEnforced(config); err != nil {
		return err
	}
	say(data, "policies", "%d objects applied, enforced after %.1f s", len(objects), time.Since(start).Seconds())
	return nil
}

// waitEnforced proves that the policies work: a token of one site must not be
// able to create a Node of another. Nothing is stored.
func waitEnforced(admin *rest.Config) error {
	config := rest.CopyConfig(admin)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:bootstrap:probe0",
		Groups:   append(site.GroupsOf("probe"), "system:bootstrappers", "system:authenticated"),
	}
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client to try the policies: %w", err)
	}
	var last error
	err = until(enforceTimeout, func(ctx context.Context) (bool, error) {
		mine, err := tryCreate(ctx, client, "probe")
		if err != nil {
			last = fmt.Errorf("a token cannot create a Node of its own site: %w", err)
			return false, nil
		}
		others, err := tryCreate(ctx, client, "other")
		switch {
		case err != nil:
			last = err
		case others:
			last = errors.New("a token can create a Node of another site")
		case !mine:
			last = errors.New("a token cannot create a Node of its own site")
		}
		return mine && !others && err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the admission policies of sites are stored, but not enforced %w: %w", err, last)
	}
	return nil
}

// tryCreate reports whether the policies let the client create a Node of the
// site. The Node is not stored.
func tryCreate(ctx context.Context, client clientset.Interface, siteName string) (bool, error) {
	node := site.NewNode("skerry-policy-probe", siteName, nil, []corev1.Taint{})
	_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || apierrors.IsAlreadyExists(err) {
		return true, nil
	}
	if (apierrors.IsForbidden(err) || apierrors.IsInvalid(err)) && strings.Contains(err.Error(), cluster.BootstrapPolicy) {
		return false, nil
	}
	return false, err
}
