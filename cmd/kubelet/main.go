// Command kubelet is the upstream component, built from Skerry's patched tree.
package main

import (
	"context"
	"os"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kubelet/app"

	"skerry.dev/skerry/pkg/component"
)

func main() {
	os.Exit(component.Run(app.NewKubeletCommand(context.Background())))
}
