package closed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/topology"
	"skerry.dev/skerry/test/controlplane"
)

// control is a control plane of two processes.
type control struct {
	*controlplane.ControlPlane
	dir   string
	proxy *rest.Config // what kube-proxy connects with
	admin *kubernetes.Clientset
}

func startControl(ctx context.Context, o Options, dir, host string) (*control, error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{Dir: dir, Bin: filepath.Join(o.Dist, "bin"), APIServer: []string{"--bind-address", "0.0.0.0"}})
	if err != nil {
		return nil, err
	}
	c := &control{ControlPlane: plane, dir: dir}
	if c.admin, err = kubernetes.NewForConfig(c.Config()); err != nil {
		c.Stop()
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	// The name that Kubernetes' own roles know.
	if c.proxy, err = c.User("system:kube-proxy"); err != nil {
		c.Stop()
		return nil, fmt.Errorf("making kube-proxy's certificate: %w", err)
	}
	// It comes by another address than the one in the server's certificate.
	local, port, _ := net.SplitHostPort(c.Address)
	c.proxy.Host, c.proxy.ServerName = "https://"+net.JoinHostPort(host, port), local
	return c, nil
}

func until(ctx context.Context, limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func site(i int) string       { return fmt.Sprintf("site-%d", i) }
func node(i, n int) string    { return fmt.Sprintf("site-%d-node-%d", i, n) }
func service(i int) string    { return fmt.Sprintf("service-%d", i) }
func address(i, n int) string { return fmt.Sprintf("10.%d.%d.%d", i+1, n/250, n%250+1) }

func (c *control) fillNodes(ctx context.Context, o Options) error {
	err := parallel(o.Sites*o.SiteNodes, func(k int) error {
		i, n := k/o.SiteNodes, k%o.SiteNodes
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node(i, n), Labels: map[string]string{api.SiteLabel: site(i)}}}
		made, err := c.admin.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.%d.%d.%d", 16+i/250, i%250, n+1)}}
		_, err = c.admin.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("making nodes: %w", err)
	}
	return nil
}

// fill makes Services and, as their controller would, EndpointSlices.
func (c *control) fill(ctx context.Context, o Options, from, to int) error {
	err := parallel(to-from, func(k int) error {
		k += from
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: service(k), Annotations: map[string]string{topology.Annotation: `["` + api.SiteLabel + `"]`}},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
		if _, err := c.admin.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return err
		}
		// Slices hold at most a hundred endpoints, as the controller's do.
		for from := 0; from < o.Sites; from += 100 {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service(k), from), Labels: map[string]string{discoveryv1.LabelServiceName: service(k)}},
				AddressType: discoveryv1.AddressTypeIPv4,
				Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
			}
			for i := from; i < min(from+100, o.Sites); i++ {
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
					Addresses:  []string{address(i, k)},
					Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
					NodeName:   ptr.To(node(i, k%o.SiteNodes)),
					Zone:       ptr.To(site(i)),
					TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-6d4cf56db6-%05d", service(k), i),
						UID: "3a7c8a4e-6a3c-4f0e-9c0e-0123456789ab"},
				})
			}
			if _, err := c.admin.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("making Services: %w", err)
	}
	return nil
}

func parallel(count int, do func(int) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := 0
	for range 8 {
		wg.Go(func() {
			for {
				mu.Lock()
				k := next
				next++
				ended := first != nil || k >= count
				mu.Unlock()
				if ended {
					return
				}
				if err := do(k); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
