// Command kube-controller-manager is the upstream component with Skerry's hold:
// a node of a site whose heartbeat is lost keeps its pods until there is
// evidence that it is dead. With no site label on any node it behaves as
// upstream does.
package main

import (
	"os"
	_ "time/tzdata" // for CronJob time zones, as upstream

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"skerry.dev/skerry/pkg/component"
	"skerry.dev/skerry/pkg/hooks/hold"
)

func main() {
	hold.Install()
	os.Exit(component.Run(app.NewControllerManagerCommand()))
}
