// Command kubelet is the upstream component with Skerry's offline hooks: while
// the cloud is away, what is on the node is enough. Without the environment
// variable SKERRY_AGENT_SOCKET it behaves as upstream does.
package main

import (
	"context"
	"fmt"
	"os"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kubelet/app"

	"skerry.dev/skerry/pkg/component"
	"skerry.dev/skerry/pkg/hooks/offline"
)

func main() {
	if err := offline.Install(os.Getenv); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
	os.Exit(component.Run(app.NewKubeletCommand(context.Background())))
}
