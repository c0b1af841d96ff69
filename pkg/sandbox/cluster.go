package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// RESTConfig is how a Go program on the host reaches the API server.
func (s *Sandbox) RESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", s.Name(), err)
	}
	config.QPS, config.Burst = 100, 200
	return config, nil
}

// Client makes a client of the API server.
func (s *Sandbox) Client() (kubernetes.Interface, error) {
	config, err := s.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// Adopt makes the cluster that `skerry init` made in the first machine the
// sandbox's own: the host gets a kubeconfig, and Status and Repair know of it.
func (s *Sandbox) Adopt() error {
	s.meta.Cluster = true
	return errors.Join(s.writeKubeconfig(), s.save())
}

// writeKubeconfig turns the administrator's file of the control plane into one
// for the host.
func (s *Sandbox) writeKubeconfig() error {
	m := s.machineConfig(s.Spec.Machines()[0])
	config, err := clientcmd.LoadFromFile(filepath.Join(m.Disk(), "etc/kubernetes/admin.conf"))
	if err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig of %s: %w", m.Name, err)
	}
	for _, cluster := range config.Clusters {
		cluster.Server = fmt.Sprintf("https://127.0.0.1:%d", s.meta.APIPort)
	}
	// A file left by nobody else: it holds a key.
	if err := os.Remove(s.Kubeconfig()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return clientcmd.WriteToFile(*config, s.Kubeconfig())
}

// RoutePods tells the routers where the pods of every Node are.
func (s *Sandbox) RoutePods(ctx context.Context) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	ranges := map[string][]netip.Prefix{}
	for _, n := range nodes.Items {
		for _, cidr := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				return fmt.Errorf("node %s: pod range %q: %w", n.Name, cidr, err)
			}
			if p.Addr().Is4() {
				ranges[n.Name] = append(ranges[n.Name], p)
			}
		}
	}
	return s.Fabric().SetPodRanges(ctx, ranges)
}

// Repair starts a network that has ended, plugs the machines in again, and
// routes the pods.
func (s *Sandbox) Repair(ctx context.Context) error {
	unlock, err := lock(filepath.Dir(s.dir), s.Name())
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.ensureFabric(ctx); err != nil {
		return err
	}
	if !s.meta.Cluster {
		return nil
	}
	if err := s.writeKubeconfig(); err != nil {
		return err
	}
	// Without the API server the routes stay what they were.
	if err := s.RoutePods(ctx); err != nil && !strings.Contains(err.Error(), "listing nodes") {
		return err
	}
	return nil
}
