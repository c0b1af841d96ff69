package observer

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/cluster"
	cloudsite "skerry.dev/skerry/pkg/cloud/site"
	"skerry.dev/skerry/test/bench"
	"skerry.dev/skerry/test/controlplane"
)

// ManagerOptions are those of MeasureManager.
type ManagerOptions struct {
	Dist         string // the folder of the built Skerry
	Dir          string // for what the control plane writes
	Nodes, Sites int
	Out          io.Writer
}

const (
	// writersAtOnce make the nodes.
	writersAtOnce = 16
	// images of each Node, which make most of its size, as they do in life.
	images = 30
	// explainFor bounds the wait until all is written.
	explainFor = 10 * time.Minute
)

// MeasureManager measures the memory of skerry-controller-manager beside a real
// API server, in a cluster of nodes with leases that nobody renews: it has to read
// all of them, to make their Sites, and to say of each that its site is silent.
func MeasureManager(ctx context.Context, o ManagerOptions) ([]bench.Row, error) {
	var plane *controlplane.ControlPlane
	var admin client.Client
	err := bench.Step(o.Out, fmt.Sprintf("control plane with %d nodes in %d sites", o.Nodes, o.Sites), func() (err error) {
		if plane, err = controlplane.Start(ctx, controlplane.Options{Dir: o.Dir, Bin: filepath.Join(o.Dist, "bin")}); err != nil {
			return fmt.Errorf("starting the control plane: %w", err)
		}
		if admin, err = newAdmin(plane.Config()); err != nil {
			return err
		}
		return populate(ctx, admin, o)
	})
	if plane != nil {
		defer plane.Stop()
	}
	if err != nil {
		return nil, err
	}
	var start, end bench.Memory
	var peak float64
	err = bench.Step(o.Out, "skerry-controller-manager, until it has told of each node", func() (err error) {
		start, end, peak, err = manage(ctx, plane, admin, o)
		return err
	})
	name := fmt.Sprintf("skerry-controller-manager RSS, %d nodes in %d sites", o.Nodes, o.Sites)
	return []bench.Row{
		bench.Alone(name+", all read", "MiB", start.RSS, bench.NoGoal),
		bench.Alone(name+", all written", "MiB", end.RSS, bench.NoGoal),
		bench.Alone(name+", peak", "MiB", peak, bench.NoGoal),
	}, err
}

func newAdmin(config *rest.Config) (client.Client, error) {
	c, err := client.New(config, client.Options{Scheme: cloudsite.Scheme()})
	if err != nil {
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	return c, nil
}

// populate makes the types, the Nodes and their leases.
func populate(ctx context.Context, c client.Client, o ManagerOptions) error {
	crds, err := cluster.CRDs()
	if err != nil {
		return err
	}
	for _, crd := range crds {
		if err := c.Create(ctx, crd.DeepCopy()); err != nil {
			return fmt.Errorf("making type %s: %w", crd.GetName(), err)
		}
	}
	for _, list := range []string{"SiteList", "NodeReportList"} {
		u := &unstructured.UnstructuredList{}
		u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(list))
		for began := time.Now(); ; {
			err := c.List(ctx, u)
			if err == nil {
				break
			}
			if time.Since(began) > time.Minute {
				return fmt.Errorf("waiting for the types: %w", err)
			}
			if err := wait(ctx, time.Second); err != nil {
				return err
			}
		}
	}
	var group sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for w := range writersAtOnce {
		group.Go(func() {
			for i := w; i < o.Nodes && ctx.Err() == nil; i += writersAtOnce {
				if err := join(ctx, c, i, o.Sites); err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

func join(ctx context.Context, c client.Client, i, sites int) error {
	name := fmt.Sprintf("edge-node-%06d", i)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{api.SiteLabel: fmt.Sprintf("site-%05d", i%sites)}}}
	for image := range images {
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{SizeBytes: 1 << 20, Names: []string{fmt.Sprintf("registry.example.com/team/application-%d@sha256:%064d", image, i)}})
	}
	if err := c.Create(ctx, node); err != nil {
		return fmt.Errorf("making node %s: %w", name, err)
	}
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}}
	if err := c.Create(ctx, lease); err != nil {
		return fmt.Errorf("making the lease of node %s: %w", name, err)
	}
	return nil
}

// manage runs the program until all nodes are held and all Sites say that they are
// silent.
func manage(ctx context.Context, plane *controlplane.ControlPlane, c client.Client, o ManagerOptions) (start, end bench.Memory, peak float64, err error) {
	var addresses [2]string
	for i := range addresses {
		if addresses[i], err = controlplane.FreeAddress(); err != nil {
			return start, end, 0, err
		}
	}
	file := func(name string) string { return filepath.Join(o.Dir, name) }
	p := plane.Program("skerry-controller-manager", "skerry-controller-manager", "--kubeconfig", plane.Kubeconfig(), "--listen", addresses[0], "--health-address", addresses[1],
		"--tls-cert-file", file("server.crt"), "--tls-private-key-file", file("server.key"), "--client-ca-file", file("ca.crt"), "--grid-webhook-address", "")
	if err := p.Start(); err != nil {
		return start, end, 0, err
	}
	pid := p.PID()
	for began := time.Now(); ; {
		if err := wait(ctx, time.Second); err != nil {
			return start, end, 0, err
		}
		if !p.Alive() {
			return start, end, 0, fmt.Errorf("skerry-controller-manager ended:\n%s", p.Tail(20))
		}
		sites := &v1alpha1.SiteList{}
		if err := c.List(ctx, sites, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: "0"}}); err != nil {
			return start, end, 0, fmt.Errorf("listing sites: %w", err)
		}
		if len(sites.Items) > 0 && start.RSS == 0 {
			// It makes Sites when it has read everything.
			if start, err = bench.ReadMemory(pid); err != nil {
				return start, end, 0, err
			}
		}
		silent := 0
		for i := range sites.Items {
			s := &sites.Items[i].Status
			if meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionConnected) {
				silent += int(s.Held)
			}
		}
		if silent == o.Nodes {
			break
		}
		if time.Since(began) > explainFor {
			return start, end, 0, fmt.Errorf("after %s: %d of %d nodes are held in %d of %d sites\n%s", explainFor, silent, o.Nodes, len(sites.Items), o.Sites, p.Tail(20))
		}
	}
	// The conditions of Nodes come after the statuses of Sites.
	if err := explained(ctx, c, o.Nodes); err != nil {
		return start, end, 0, err
	}
	if end, err = bench.ReadMemory(pid); err != nil {
		return start, end, 0, err
	}
	peak, err = highWater(pid)
	return start, end, peak, err
}

// explained waits until each Node has its condition.
func explained(ctx context.Context, c client.Client, nodes int) error {
	for began := time.Now(); ; {
		list := &corev1.NodeList{}
		if err := c.List(ctx, list, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: "0"}}); err != nil {
			return fmt.Errorf("listing nodes: %w", err)
		}
		have := 0
		for i := range list.Items {
			for j := range list.Items[i].Status.Conditions {
				if list.Items[i].Status.Conditions[j].Type == api.AliveCondition {
					have++
				}
			}
		}
		if have == nodes {
			return nil
		}
		if time.Since(began) > explainFor {
			return fmt.Errorf("after %s: %d of %d nodes have a verdict", explainFor, have, nodes)
		}
		if err := wait(ctx, 10*time.Second); err != nil {
			return err
		}
	}
}

// highWater is the most memory that a process has had, in MiB.
func highWater(pid int) (float64, error) {
	text, err := field(pid, "VmHWM")
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64)
	if err != nil {
		return 0, fmt.Errorf("reading the peak of process %d: %w", pid, err)
	}
	return kib / 1024, nil
}

// field reads one line of /proc/PID/status.
func field(pid int, name string) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", fmt.Errorf("reading the status of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("the status of process %d has no %s", pid, name)
}
