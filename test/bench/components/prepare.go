package components

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	imageutils "k8s.io/kubernetes/test/utils/image"

	"skerry.dev/skerry/pkg/supervisor"
	"skerry.dev/skerry/test/bench"
)

const (
	kubelet           = "kubelet"
	kubeProxy         = "kube-proxy"
	controllerManager = "kube-controller-manager"
)

// programs is where a machine has the binaries to measure. Both kinds are
// copies, so that no other sandbox shares the pages of one of them.
const programs = "opt/bench"

// An edge node has this many pods, and the cluster this many Services of them.
const (
	pods     = 10
	services = 10
)

const (
	prepareTimeout = 3 * time.Minute
	pollEvery      = 200 * time.Millisecond
)

// prepare gives the components something to do, learns how they are run, and
// takes the real ones out of their places.
func (s *stage) prepare(ctx context.Context) error {
	machines := s.Box.Spec.Machines()
	s.cloud = machines[0].Name
	for _, m := range machines {
		if !m.Cloud() {
			s.edge = m.Name
			break
		}
	}
	if s.edge == "" {
		return fmt.Errorf("sandbox %q has no edge node to measure on", s.Box.Name())
	}
	s.components = []*component{
		{name: kubelet, machine: s.edge, health: "http://127.0.0.1:10248/healthz"},
		{name: kubeProxy, machine: s.edge, health: "http://127.0.0.1:10256/healthz"},
		{name: controllerManager, machine: s.cloud, health: "https://127.0.0.1:10257/healthz", before: s.freeLease, works: s.waitLeader},
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{fmt.Sprintf("%d pods on %s and %d Services", pods, s.edge, services), s.deploy},
		{"the components' own command lines", s.learnArguments},
		{"copies of the binaries to measure", s.copyPrograms},
		{"taking kube-proxy out of its DaemonSet", s.stopProxy},
		{"stopping kube-controller-manager and kubelet", s.stopOthers},
	} {
		ctx, cancel := context.WithTimeoutCause(ctx, prepareTimeout, fmt.Errorf("not done after %s", prepareTimeout))
		err := bench.Step(s.Out, step.name, func() error { return step.do(ctx) })
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// deploy puts pods on the edge node and Services in front of them.
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
					NodeSelector: map[string]string{corev1.LabelHostname: s.edge},
					Containers:   []corev1.Container{{Name: "pause", Image: imageutils.GetPauseImageName()}},
				},
			},
		},
	}
	if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		return err
	}
	for i := range services {
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i)},
			Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(80)}}},
		}
		if _, err := s.client.CoreV1().Services(namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return poll(ctx, func() error {
		d, err := s.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas < replicas {
			err = fmt.Errorf("%d of %d pods are ready", d.Status.ReadyReplicas, replicas)
		}
		return err
	})
}

func (s *stage) learnArguments(context.Context) error {
	for _, c := range s.components {
		m, err := s.Box.Machine(c.machine)
		if err != nil {
			return err
		}
		if c.args, err = arguments(m, c.name); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) copyPrograms(context.Context) error {
	for _, c := range s.components {
		m, err := s.Box.Machine(c.machine)
		if err != nil {
			return err
		}
		for _, k := range []kind{patched, pristine} {
			to := filepath.Join(m.Disk(), programs, string(k), c.name)
			if err := copyProgram(filepath.Join(s.Dist, string(k), c.name), to); err != nil {
				return fmt.Errorf("copying the %s %s (build it with `make build pristine`): %w", k, c.name, err)
			}
		}
	}
	return nil
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// stopProxy keeps the DaemonSet off the edge node and gives the node the files
// that the pod had.
func (s *stage) stopProxy(ctx context.Context) error {
	m, err := s.Box.Machine(s.edge)
	if err != nil {
		return err
	}
	if err := s.writeProxyFiles(ctx, m.Disk()); err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{%q:%q}}}}}`, corev1.LabelHostname, s.cloud)
	_, err = s.client.AppsV1().DaemonSets(metav1.NamespaceSystem).Patch(ctx, kubeProxy, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	return poll(ctx, func() error {
		// Kubelet must have finished with the pod: it is stopped next.
		list, err := s.client.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
			LabelSelector: "k8s-app=" + kubeProxy, FieldSelector: "spec.nodeName=" + s.edge,
		})
		if err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("pod %s is still there", list.Items[0].Name)
		}
		return s.gone(s.edge, kubeProxy)
	})
}

// writeProxyFiles writes kube-proxy's configuration, and a token of its own:
// that of the pod ends with the pod.
func (s *stage) writeProxyFiles(ctx context.Context, disk string) error {
	const account = "run/secrets/kubernetes.io/serviceaccount"
	core := s.client.CoreV1()
	config, err := core.ConfigMaps(metav1.NamespaceSystem).Get(ctx, kubeProxy, metav1.GetOptions{})
	if err != nil {
		return err
	}
	roots, err := core.ConfigMaps(metav1.NamespaceSystem).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return err
	}
	hours := int64(6 * 3600)
	token, err := core.ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, kubeProxy,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hours}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	m, err := s.Box.Machine(s.edge)
	if err != nil {
		return err
	}
	first, on := m.Process()
	if !on {
		return fmt.Errorf("machine %s is off", s.edge)
	}
	// /run is not on the disk but in the machine's memory.
	memory := fmt.Sprintf("/proc/%d/root", first.PID)
	files := map[string]string{
		filepath.Join(memory, account, "token"):  token.Status.Token,
		filepath.Join(memory, account, "ca.crt"): roots.Data["ca.crt"],
	}
	for name, text := range config.Data {
		files[filepath.Join(disk, "var/lib/kube-proxy", name)] = text
	}
	for file, text := range files {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// stopOthers moves the static pod's manifest away and stops kubelet's unit.
func (s *stage) stopOthers(ctx context.Context) error {
	cloud, err := s.Box.Machine(s.cloud)
	if err != nil {
		return err
	}
	dir := filepath.Join(cloud.Disk(), "etc/kubernetes")
	if err := os.Rename(filepath.Join(dir, "manifests", controllerManager+".yaml"), filepath.Join(dir, controllerManager+".yaml")); err != nil {
		return err
	}
	if err := poll(ctx, func() error { return s.gone(s.cloud, controllerManager) }); err != nil {
		return err
	}
	edge, err := s.Box.Machine(s.edge)
	if err != nil {
		return err
	}
	first, on := edge.Process()
	if !on {
		return fmt.Errorf("machine %s is off", s.edge)
	}
	return supervisor.NewClient(fmt.Sprintf("/proc/%d/root%s", first.PID, supervisor.DefaultSocket)).Stop(ctx, kubelet)
}

// gone is nil when the program does not run on the machine.
func (s *stage) gone(name, program string) error {
	m, err := s.Box.Machine(name)
	if err != nil {
		return err
	}
	_, err = arguments(m, program)
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s on %s still runs", program, name)
	}
	return err
}

// freeLease forgets who led last: the next kube-controller-manager would wait
// until that lease ends.
func (s *stage) freeLease(ctx context.Context) error {
	err := s.client.CoordinationV1().Leases(metav1.NamespaceSystem).Delete(ctx, controllerManager, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// waitLeader returns when kube-controller-manager leads: before, no controller
// runs.
func (s *stage) waitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it does not lead after a minute"))
	defer cancel()
	return poll(ctx, func() error {
		lease, err := s.client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, controllerManager, metav1.GetOptions{})
		if err == nil && (lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "") {
			err = errors.New("nobody leads")
		}
		return err
	})
}

// poll calls do until it succeeds or ctx ends; then the error is of both.
func poll(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		if sleepErr := sleep(ctx, pollEvery); sleepErr != nil {
			return fmt.Errorf("%w: %w", sleepErr, err)
		}
	}
}
