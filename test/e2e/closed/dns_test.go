//go:build e2e

package closed

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/test/sandbox"
)

const headless = `
apiVersion: v1
kind: Service
metadata: {name: db, annotations: {skerry.dev/topology-keys: '["skerry.dev/site"]'}}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec: {clusterIP: None, selector: {app: web}}
`

// dns: CoreDNS on each node, reached at the cluster's address, names the own
// site's pods of a closed headless Service; also without the cloud.
func (s *subject) dns() {
	s.Apply(headless)
	for _, n := range s.siteNodes() {
		s.names(n, "db", "web-"+siteOf(n))
		s.names(n, "everywhere", "web-west", "web-east", "web-cloud")
	}
	s.Step("west-2 goes to site east")
	s.label("west-2", "east")
	s.names(s.Node("west-1"), "db", "web-west/west-1")
	s.names(s.Node("east-1"), "db", "web-west/west-2", "web-east")
	s.label("west-2", "west")
	s.names(s.Node("west-1"), "db", "web-west")
	s.Site("west").Cut()
	n := s.Node("west-1")
	s.Step("west-1 loses its power, and gets it back")
	n.Reboot()
	s.names(n, "db", "web-west")
	s.names(n, "everywhere", "web-west", "web-east", "web-cloud")
	s.Site("west").Heal()
	s.names(n, "db", "web-west")
}

func siteOf(n *sandbox.Node) string { return n.Name()[:4] } // west, east

// names waits until a node's DNS names exactly these pods.
func (s *subject) names(n *sandbox.Node, service string, what ...string) {
	s.t.Helper()
	svc, err := s.Kube().CoreV1().Services("kube-system").Get(s.Context(), "kube-dns", metav1.GetOptions{})
	s.must(err)
	want := s.allTargets(what)
	resolver := net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return s.dial(n, network, net.JoinHostPort(svc.Spec.ClusterIP, "53"))
	}}
	s.Eventually(time.Minute, fmt.Sprintf("%s resolves %s to %v", n.Name(), service, want), func() error {
		ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
		defer cancel()
		got, err := resolver.LookupHost(ctx, service+".default.svc.cluster.local.")
		slices.Sort(got)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it resolves to %v", got)
		}
		return err
	})
}
