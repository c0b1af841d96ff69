// Command kube-proxy is the upstream component with Skerry's closed Services:
// of a Service annotated skerry.dev/topology-keys it uses the endpoints on nodes
// that share this node's value of the labels, and no other. With no Service
// annotated it behaves as upstream does.
package main

import (
	"os"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-proxy/app"

	"skerry.dev/skerry/pkg/component"
	"skerry.dev/skerry/pkg/hooks/closed"
)

func main() {
	closed.Install()
	os.Exit(component.Run(app.NewProxyCommand()))
}
