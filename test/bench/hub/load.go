package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	imageutils "k8s.io/kubernetes/test/utils/image"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/test/bench"
)

const (
	pods     = 30
	services = 1000
	few      = 500
	listed   = 3000
	many     = 5000

	// Namespaces: one for each size of list.
	fewIn, listedIn, manyIn, watchedIn = "bench-few", "bench-listed", "bench-many", "bench-watched"

	// writersAtOnce fill the cluster.
	writersAtOnce = 16
)

// What the rows promise, in MiB.
const (
	idleGoal   = 40
	loadedGoal = 64
	listedGoal = 80
)

func (s *stage) idle(ctx context.Context) error {
	mib, err := s.memory(ctx, 15*time.Second)
	if err != nil {
		return err
	}
	s.add(bench.Alone("agent, idle: RSS", "MiB", mib, idleGoal))
	return nil
}

func (s *stage) loaded(ctx context.Context) error {
	mib, err := s.memory(ctx, 20*time.Second)
	if err != nil {
		return err
	}
	s.add(bench.Alone(fmt.Sprintf("agent, %d pods and %d Services: RSS", pods, services), "MiB", mib, loadedGoal))
	return nil
}

// fill makes what is listed, and a client that the agent keeps.
func (s *stage) fill(ctx context.Context) error {
	steps := []func(context.Context) error{s.keptClient, s.deploy, s.makeServices, s.makeConfigMaps}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// keptClient is a service account that may read, and whose reads are kept.
func (s *stage) keptClient(ctx context.Context) error {
	const name = "bench"
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault}}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"", "discovery.k8s.io"}, Resources: []string{"configmaps", "services", "endpointslices", "namespaces"}, Verbs: []string{"get", "list", "watch"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: metav1.NamespaceDefault}},
	}
	if _, err := s.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := s.client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := s.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return err
	}
	policy := fmt.Sprintf(`apiVersion: %s
kind: %s
clients:
- serviceAccount: kube-system/kube-proxy
- serviceAccount: kube-system/coredns
- serviceAccount: default/%s
`, agentv1.APIVersion, agentv1.AgentPolicyKind, name)
	patch, err := json.Marshal(map[string]any{"data": map[string]string{agentv1.PolicyKey: policy}})
	if err != nil {
		return err
	}
	_, err = s.client.CoreV1().ConfigMaps(agentv1.PolicyNamespace).Patch(ctx, agentv1.PolicyName, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("changing the agents' policy: %w", err)
	}
	s.token, err = s.tokenOf(ctx, metav1.NamespaceDefault, name)
	return err
}

func (s *stage) deploy(ctx context.Context) error {
	const namespace, name = metav1.NamespaceDefault, "bench"
	labels := map[string]string{"app": name}
	replicas := int32(pods)
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{corev1.LabelHostname: s.edge.Name},
					Containers:   []corev1.Container{{Name: "pause", Image: imageutils.GetPauseImageName()}},
				},
			},
		},
	}
	if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		return err
	}
	return poll(ctx, 3*time.Minute, func() error {
		d, err := s.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas < replicas {
			err = fmt.Errorf("%d of %d pods are ready", d.Status.ReadyReplicas, replicas)
		}
		return err
	})
}

// each calls do for 0 to n-1, several at once.
func each(ctx context.Context, n int, do func(i int) error) error {
	errs := make([]error, n)
	workqueue.ParallelizeUntil(ctx, writersAtOnce, n, func(i int) { errs[i] = do(i) })
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// writer is the administrator without a limit.
func (s *stage) writer() (kubernetes.Interface, error) {
	config, err := s.Box.RESTConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	return kubernetes.NewForConfig(config)
}

// makeServices puts three of the pods' labels before each Service: a slice of
// common size.
func (s *stage) makeServices(ctx context.Context) error {
	client, err := s.writer()
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=bench"})
	if err != nil {
		return err
	}
	for i, p := range list.Items {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"third":"t%d"}}}`, i/3)
		if _, err := client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	err = each(ctx, services, func(i int) error {
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d", i), Labels: map[string]string{"app": "bench"}},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"third": fmt.Sprintf("t%d", i%(pods/3))},
				Ports:    []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromInt32(80)}},
			},
		}
		_, err := client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, service, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return poll(ctx, 5*time.Minute, func() error {
		slices, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil && len(slices.Items) < services {
			err = fmt.Errorf("%d of %d Services have endpoints", len(slices.Items), services)
		}
		return err
	})
}

func (s *stage) makeConfigMaps(ctx context.Context) error {
	client, err := s.writer()
	if err != nil {
		return err
	}
	text := strings.Repeat("0123456789abcdef", 48) // with its metadata about 1 KiB
	for namespace, n := range map[string]int{fewIn: few, listedIn: listed, manyIn: many, watchedIn: 1} {
		object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
		if _, err := client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
		err := each(ctx, n, func(i int) error {
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("object-%d", i)}, Data: map[string]string{"text": text}}
			_, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, object, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
