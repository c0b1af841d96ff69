package undo

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

const (
	// sandboxTimeout bounds one call: stopping a pod waits for its processes.
	sandboxTimeout = 30 * time.Second
	// parallelSandboxes are stopped at a time.
	parallelSandboxes = 4
)

// Sandboxes removes all pods of the container runtime, and returns how many.
func Sandboxes(ctx context.Context, socket string) (int, error) {
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(socket).WithConnectionTimeout(sandboxTimeout).Build(ctx)
	if err != nil {
		return 0, fmt.Errorf("connecting to the container runtime at %s: %w", socket, err)
	}
	defer func() {
		if err := runtime.Close(ctx); err != nil {
			klog.V(1).Infof("closing the connection to the container runtime: %v", err)
		}
	}()
	sandboxes, err := runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{})
	if err != nil {
		return 0, fmt.Errorf("listing the pods of the container runtime: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelSandboxes)
	for _, sandbox := range sandboxes {
		group.Go(func() error {
			name := sandbox.GetMetadata().GetNamespace() + "/" + sandbox.GetMetadata().GetName()
			if err := runtime.StopPodSandbox(ctx, sandbox.Id); err != nil {
				return fmt.Errorf("stopping pod %s: %w", name, err)
			}
			if err := runtime.RemovePodSandbox(ctx, sandbox.Id); err != nil {
				return fmt.Errorf("removing pod %s: %w", name, err)
			}
			return nil
		})
	}
	return len(sandboxes), group.Wait()
}
