package bootstrap

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeadmimages "k8s.io/kubernetes/cmd/kubeadm/app/images"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"
	utilruntime "k8s.io/kubernetes/cmd/kubeadm/app/util/runtime"

	"skerry.dev/skerry/pkg/install/cni"
	"skerry.dev/skerry/pkg/install/host"
)

// runtimeTimeout bounds the start of containerd, which recovers its containers
// before it answers.
const runtimeTimeout = 60 * time.Second

// nodeFlags are the flags of phases that need the node's configuration only.
var nodeFlags = []string{
	options.CfgPath, options.NodeCRISocket, options.NodeName, options.ImageRepository, options.KubernetesVersion,
	options.IgnorePreflightErrors, options.DryRun, ImagesDirFlag,
}

// discoveryFlags are the flags of phases of join that talk to the cluster.
var discoveryFlags = append([]string{
	options.FileDiscovery, options.TokenDiscovery, options.TokenDiscoveryCAHash, options.TokenDiscoverySkipCAHash,
	options.TLSBootstrapToken, options.TokenStr,
}, nodeFlags...)

// NewHostPhase checks this machine, and configures and starts containerd. args
// follow the phase's name in its usage (join's server address).
func NewHostPhase(args string) workflow.Phase {
	return workflow.Phase{
		Name:         "host" + args,
		Short:        "Check this machine, configure and start containerd",
		Long:         "Check that this machine has what a node needs, write " + host.ContainerdConfig + ", and install and start containerd's unit.",
		InheritFlags: discoveryFlags,
		Run:          runHost,
	}
}

func runHost(c workflow.RunData) error {
	data, err := dataOf[NodeData]("host", c)
	if err != nil {
		return err
	}
	if err := preflight.RunRootCheckOnly(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	cluster, err := data.Cluster()
	if err != nil {
		return err
	}
	config := kubeletConfig(cluster)
	supervisor, supervisorError := data.Supervisor()
	own := ownsContainerd(data.Registration().CRISocket)
	var checks []preflight.Checker
	for _, check := range host.Checks(host.Needs{
		FailSwapOn:      config.FailSwapOn == nil || *config.FailSwapOn,
		CNIBinDir:       cni.BinDir,
		CNIPlugins:      cni.Plugins,
		Supervisor:      supervisor,
		SupervisorError: supervisorError,
		OwnContainerd:   own,
	}) {
		checks = append(checks, check)
	}
	say(data, "host", "Checking this machine")
	if err := preflight.RunChecks(checks, os.Stderr, data.IgnorePreflightErrors()); err != nil {
		return err
	}
	if !own {
		say(data, "host", "The container runtime at %s is yours: leaving it as it is", data.Registration().CRISocket)
		return nil
	}
	if data.DryRun() {
		say(data, "host", "Would write %s and start unit %s", host.ContainerdConfig, host.ContainerdUnit)
		return nil
	}
	if supervisorError != nil {
		return supervisorError
	}
	start := time.Now()
	if err := startContainerd(supervisor, host.ContainerdOptions{
		PauseImage:    kubeadmimages.GetPauseImage(cluster),
		SystemdCgroup: host.UnderSystemd() && config.CgroupDriver != "cgroupfs",
		CNIBinDir:     cni.BinDir,
		CNIConfDir:    cni.ConfDir,
	}); err != nil {
		return err
	}
	say(data, "host", "containerd answers after %.1f s", time.Since(start).Seconds())
	return nil
}

func startContainerd(supervisor host.Supervisor, settings host.ContainerdOptions) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*runtimeTimeout)
	defer cancel()
	changed, err := host.WriteContainerdConfig(host.ContainerdConfig, settings)
	if err != nil {
		return err
	}
	unit, err := host.NewContainerdUnit()
	if err != nil {
		return err
	}
	if err := supervisor.Install(ctx, unit); err != nil {
		return err
	}
	status, err := supervisor.Status(ctx, unit.Name)
	switch {
	case err != nil:
		return err
	case status.Active && changed:
		err = supervisor.Restart(ctx, unit.Name)
	case !status.Active:
		err = supervisor.Start(ctx, unit.Name)
	}
	if err != nil {
		return err
	}
	return waitForRuntime("unix://"+host.ContainerdSocket, runtimeTimeout)
}

// waitForRuntime waits until the container runtime answers.
func waitForRuntime(socket string, timeout time.Duration) error {
	var last error
	err := until(timeout, func(context.Context) (bool, error) {
		last = runtimeAnswers(socket)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the container runtime at %s does not answer %w: %w; `skerry status` shows its unit, and the unit's log says why", socket, err, last)
	}
	return nil
}

func runtimeAnswers(socket string) error {
	runtime := utilruntime.NewContainerRuntime(socket)
	if err := runtime.Connect(); err != nil {
		return err
	}
	defer runtime.Close(context.Background())
	return runtime.IsRunning()
}
