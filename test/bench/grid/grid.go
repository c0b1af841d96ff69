// Package grid measures the controller of grids: many grids over many sites, with
// a real API server and etcd, and no nodes that run anything. The controller runs
// in a process of its own, so that its memory can be read.
//
// It must not know how the controller works: it counts what the controller asks
// of the API server.
package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup"
	"skerry.dev/skerry/test/bench"
	"skerry.dev/skerry/test/controlplane"
)

// Options of Measure.
type Options struct {
	// Dist is the folder of the built Skerry, Logs the one for what the programs
	// print, CRDs the one with the definitions of the grids.
	Dist, Logs, CRDs string
	// Self is the program that runs RunController when its first argument is
	// ControllerArgument.
	Self         string
	Grids, Sites int
	// Steady is how long the steady state is watched.
	Steady time.Duration
	Out    io.Writer
}

// Goals: what 2 processors do that run the API server and etcd as well.
const (
	convergeGoal = 300 // seconds
	requestsGoal = 1.1 // per child: the write, and its share of statuses and events
	memoryGoal   = 256 // MiB
)

type measurement struct {
	o          Options
	cloud      *controlplane.ControlPlane
	client     client.Client
	controller *controller
	children   int
	rows       []bench.Row
}

// Measure makes a control plane, the sites and the grids, and measures until all
// children are there, while nothing happens, while all change, and after a
// restart.
func Measure(ctx context.Context, o Options) (rows []bench.Row, err error) {
	dir, err := os.MkdirTemp("", "skerry-bench-grid-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the control plane: %w", err)
	}
	defer os.RemoveAll(dir)
	m := &measurement{o: o, children: o.Grids * o.Sites}
	err = bench.Step(o.Out, "control plane", func() (err error) {
		m.cloud, err = controlplane.Start(ctx, controlplane.Options{Dir: dir, Bin: filepath.Join(o.Dist, "bin"), Controllers: "garbage-collector-controller"})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer m.cloud.Stop()
	scheme := runtime.NewScheme()
	if err := errors.Join(servicegroup.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	if m.client, err = client.New(m.cloud.Config(), client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	defer func() {
		if m.controller != nil {
			m.controller.stop()
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{fmt.Sprintf("definitions, and %d sites", o.Sites), m.fill},
		{"controller", m.start},
		{fmt.Sprintf("%d grids, %d children", o.Grids, m.children), m.converge},
		{fmt.Sprintf("steady state, %s", o.Steady), m.steady},
		{"a change in all children", m.change},
		{"controller again", m.restart},
	} {
		if err := bench.Step(o.Out, step.name, func() error { return step.do(ctx) }); err != nil {
			return m.rows, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return m.rows, nil
}

func (m *measurement) row(name, unit string, value, goal float64) {
	m.rows = append(m.rows, bench.Alone(fmt.Sprintf("%d grids × %d sites, %s", m.o.Grids, m.o.Sites, name), unit, value, goal))
}

func (m *measurement) fill(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(m.o.CRDs, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no definitions in %s: %w", m.o.CRDs, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := m.client.Create(ctx, &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	for i := range m.o.Sites {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%04d", i), Labels: map[string]string{gridv1.DefaultGridKey: fmt.Sprintf("s%04d", i)}}}
		if err := m.client.Create(ctx, node); err != nil {
			return err
		}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(), LastHeartbeatTime: metav1.Now()}}
		if err := m.client.Status().Update(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

func (m *measurement) start(ctx context.Context) (err error) {
	m.controller, err = startController(ctx, m.o, m.cloud.Kubeconfig())
	return err
}

func (m *measurement) converge(ctx context.Context) error {
	before, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	for i := range m.o.Grids {
		if err := m.client.Create(ctx, grid(i)); err != nil {
			return err
		}
	}
	if err := m.told(ctx); err != nil {
		return err
	}
	m.row("time until all children are there", "s", time.Since(began).Seconds(), convergeGoal)
	if err := m.requests(ctx, before, "requests per child"); err != nil {
		return err
	}
	return m.memory("controller RSS with all children")
}

// grid is a small workload.
func grid(i int) *gridv1.DeploymentGrid {
	g := &gridv1.DeploymentGrid{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("app-%02d", i)}}
	g.Spec.Template = template("v1")
	g.Spec.Rollout.MaxUnavailable = ptr.To(intstr.FromString("100%"))
	return g
}

func template(version string) runtime.RawExtension {
	return runtime.RawExtension{Raw: fmt.Appendf(nil, `{"replicas":2,"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{
"containers":[{"name":"web","image":"web:%s","ports":[{"containerPort":8080,"name":"http"}],"env":[{"name":"A","value":"1"}],
"readinessProbe":{"httpGet":{"path":"/healthz","port":8080}},"resources":{"requests":{"cpu":"100m","memory":"64Mi"}}}]}}}`, version)}
}

// told waits until all sites of all grids have been told what the grids say.
func (m *measurement) told(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	for {
		var list gridv1.DeploymentGridList
		// A busy API server may not answer in time.
		failure := m.client.List(ctx, &list)
		done := 0
		for _, g := range list.Items {
			if g.Status.ObservedGeneration == g.Generation {
				done += int(g.Status.UpdatedSites)
			}
		}
		if done == m.children {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d children: %w", done, m.children, errors.Join(context.Cause(ctx), failure))
		}
	}
}

func (m *measurement) requests(ctx context.Context, before float64, name string) error {
	// Events are sent after the fact.
	if _, err := m.controller.quiet(ctx); err != nil {
		return err
	}
	after, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	m.row(name, "", (after-before)/float64(m.children), requestsGoal)
	return nil
}

func (m *measurement) memory(name string) error {
	memory, err := bench.ReadMemory(m.controller.pid())
	if err != nil {
		return err
	}
	m.row(name, "MiB", memory.RSS, memoryGoal)
	return nil
}

func (m *measurement) steady(ctx context.Context) error {
	before, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	select {
	case <-time.After(m.o.Steady):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	m.row(fmt.Sprintf("requests in %s of steady state", m.o.Steady), "", after-before, 0)
	return nil
}

func (m *measurement) change(ctx context.Context) error {
	before, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	for i := range m.o.Grids {
		g := grid(i)
		if err := m.client.Get(ctx, client.ObjectKeyFromObject(g), g); err != nil {
			return err
		}
		g.Spec.Template = template("v2")
		if err := m.client.Update(ctx, g); err != nil {
			return err
		}
	}
	if err := m.told(ctx); err != nil {
		return err
	}
	m.row("time until all children have a change", "s", time.Since(began).Seconds(), convergeGoal)
	if err := m.requests(ctx, before, "requests per changed child"); err != nil {
		return err
	}
	return m.memory("controller RSS after the change")
}

func (m *measurement) restart(ctx context.Context) error {
	m.controller.stop()
	began := time.Now()
	if err := m.start(ctx); err != nil {
		return err
	}
	last, err := m.controller.quiet(ctx)
	if err != nil {
		return err
	}
	m.row("time until a restarted controller is quiet", "s", last.Sub(began).Seconds(), 60)
	all, err := m.controller.requests(ctx)
	if err != nil {
		return err
	}
	m.row("requests of a restarted controller", "", all, 100)
	return m.memory("RSS of a restarted controller")
}
