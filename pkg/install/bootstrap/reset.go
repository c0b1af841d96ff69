package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	resetphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/reset"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	cmdutil "k8s.io/kubernetes/cmd/kubeadm/app/cmd/util"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	"k8s.io/kubernetes/cmd/kubeadm/app/features"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/users"

	"skerry.dev/skerry/pkg/install/cni"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
	"skerry.dev/skerry/pkg/install/undo"
)

// resetTimeout bounds one phase of reset.
const resetTimeout = 5 * time.Minute

// ResetData is the run data of reset, beside what upstream's phases need.
type ResetData interface {
	ForceReset() bool
	InputReader() io.Reader
	OutputWriter() io.Writer
	IgnorePreflightErrors() sets.Set[string]
	DryRun() bool
	CRISocketPath() string
	CertificatesDir() string
	CleanupTmpDir() bool
	Cfg() *kubeadmapi.InitConfiguration
	Supervisor() (host.Supervisor, error)
}

// ResetPhases returns the phases of reset in their order: the kubelet stops
// before the containers that it would start again, the containers before the
// runtime, and files last, so that a reset that failed can be run again.
func ResetPhases() []workflow.Phase {
	ours := func(name, short string, run func(ResetData) error) workflow.Phase {
		return workflow.Phase{
			Name:         name,
			Short:        short,
			InheritFlags: []string{options.NodeCRISocket, options.DryRun, options.CfgPath},
			Run: func(c workflow.RunData) error {
				data, err := dataOf[ResetData](name, c)
				if err != nil {
					return err
				}
				if data.DryRun() {
					say(data, "reset", "Would run phase %s: %s", name, short)
					return nil
				}
				return run(data)
			},
		}
	}
	preflightPhase := resetphases.NewPreflightPhase()
	preflightPhase.Run = runResetPreflight
	cleanup := resetphases.NewCleanupNodePhase()
	cleanup.Run = ours(cleanup.Name, "Empty "+kubeadmconstants.KubeletRunDirectory+" and "+kubeadmconstants.KubernetesDir, cleanupNode).Run
	etcd := resetphases.NewRemoveETCDMemberPhase()
	etcd.RunIf = func(workflow.RunData) (bool, error) { return hasEtcd(), nil }
	return []workflow.Phase{
		preflightPhase,
		etcd,
		ours("kubelet", "Stop the kubelet and remove its unit", removeKubelet),
		ours("pods", "Remove all pods of the container runtime", removePods),
		ours("agent", "Stop skerry-agent, and remove its unit, store, certificates and network interface", removeAgent),
		cleanup,
		ours("network", "Remove the pod network and the rules of kube-proxy", removeNetwork),
		ours("containerd", "Stop containerd and remove its unit, images and configuration", removeContainerd),
		ours("record", "Forget what this node was", removeRecord),
	}
}

// hasEtcd reports whether a member of etcd runs on this machine, or left data.
func hasEtcd() bool {
	for _, path := range []string{
		kubeadmconstants.GetStaticPodFilepath(kubeadmconstants.Etcd, kubeadmconstants.GetStaticPodDirectory()),
		kubeadmapiv1.DefaultEtcdDataDir,
	} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

func runResetPreflight(c workflow.RunData) error {
	data, err := dataOf[ResetData]("preflight", c)
	if err != nil {
		return err
	}
	warnOfUnsent()
	if !data.ForceReset() && !data.DryRun() {
		say(data, "reset", "This removes the node's part of the cluster from this machine: its pods, images, certificates, and on a control plane the cluster's data.")
		if err := cmdutil.InteractivelyConfirmAction("reset", "Are you sure you want to proceed?", data.InputReader()); err != nil {
			return err
		}
	}
	return preflight.RunRootCheckOnly(data.IgnorePreflightErrors())
}

func removeKubelet(data ResetData) error {
	return removeUnit(data, host.KubeletUnit)
}

func removeUnit(data ResetData, name string) error {
	supervisor, err := data.Supervisor()
	if err != nil {
		// Nothing can have been started by a supervisor that never was.
		say(data, "reset", "Not stopping %s: %v", name, err)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	if err := supervisor.Remove(ctx, name); err != nil {
		return err
	}
	say(data, "reset", "Unit %s is stopped and removed", name)
	return nil
}

// removePods removes pods while containerd runs, starting it again if need be:
// nothing else can end what its shims keep alive.
func removePods(data ResetData) error {
	socket := data.CRISocketPath()
	if ownsContainerd(socket) && runtimeAnswers(socket) != nil {
		if !host.IsOurs(host.ContainerdConfig) {
			say(data, "reset", "No container runtime answers at %s: no pods to remove", socket)
			return nil
		}
		if err := reviveContainerd(data, socket); err != nil {
			klog.Warningf("[reset] containerd cannot be started to remove pods, processes of theirs may stay until the next boot: %v", err)
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	start := time.Now()
	count, err := undo.Sandboxes(ctx, socket)
	if err != nil {
		return fmt.Errorf("%w; run reset again", err)
	}
	say(data, "reset", "%d pods removed in %.1f s", count, time.Since(start).Seconds())
	return errors.Join(undo.UnmountBelow(kubeadmconstants.KubeletRunDirectory), undo.PodCgroups(ctx))
}

func reviveContainerd(data ResetData, socket string) error {
	supervisor, err := data.Supervisor()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), runtimeTimeout)
	defer cancel()
	if err := supervisor.Start(ctx, host.ContainerdUnit); err != nil {
		return err
	}
	return waitForRuntime(socket, runtimeTimeout)
}

// kubeletPlugins is a folder that the kubelet makes for volume plugins of users.
const kubeletPlugins = "/usr/libexec/kubernetes/kubelet-plugins"

// cleanupNode removes what kubeadm's phases wrote. Upstream's own phase also
// looks for a kubelet's service, in an init system that need not be there.
func cleanupNode(data ResetData) error {
	in := func(names ...string) string {
		return filepath.Join(append([]string{kubeadmconstants.KubernetesDir}, names...)...)
	}
	// A kubelet counts the restarts of a container by the logs it finds.
	for _, dir := range []string{kubeadmconstants.KubeletRunDirectory, "/var/log/pods", "/var/log/containers"} {
		if err := undo.Tree(dir); err != nil {
			return err
		}
	}
	dirs := []string{in(kubeadmconstants.ManifestsSubDirName), data.CertificatesDir()}
	if data.CleanupTmpDir() {
		dirs = append(dirs, in(kubeadmconstants.TempDir))
	}
	for _, dir := range dirs {
		if err := resetphases.CleanDir(dir); err != nil {
			return fmt.Errorf("emptying %s: %w", dir, err)
		}
	}
	for _, name := range []string{
		kubeadmconstants.AdminKubeConfigFileName, kubeadmconstants.SuperAdminKubeConfigFileName,
		kubeadmconstants.KubeletKubeConfigFileName, kubeadmconstants.KubeletBootstrapKubeConfigFileName,
		kubeadmconstants.ControllerManagerKubeConfigFileName, kubeadmconstants.SchedulerKubeConfigFileName,
	} {
		if err := os.RemoveAll(in(name)); err != nil {
			return fmt.Errorf("removing a kubeconfig: %w", err)
		}
	}
	say(data, "reset", "Emptied %s; removed the kubeconfigs of %s and the logs of pods", strings.Join(append(dirs, kubeadmconstants.KubeletRunDirectory), ", "), kubeadmconstants.KubernetesDir)
	undo.EmptyDirs(
		in(kubeadmconstants.ManifestsSubDirName), in("pki"), in(), kubeadmapiv1.DefaultEtcdDataDir,
		kubeletPlugins+"/volume/exec", kubeletPlugins+"/volume", kubeletPlugins, filepath.Dir(kubeletPlugins),
	)
	if cfg := data.Cfg(); cfg != nil && features.Enabled(cfg.FeatureGates, features.RootlessControlPlane) {
		if err := users.RemoveUsersAndGroups(); err != nil {
			return fmt.Errorf("removing the users of the rootless control plane: %w", err)
		}
	}
	return nil
}

func removeNetwork(data ResetData) error {
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	problems := []error{undo.Netfilter(ctx), undo.Links(), undo.PodNamespaces()}
	for _, path := range []string{
		filepath.Join(cni.ConfDir, cni.FileName),
		filepath.Join(cni.DataDir, cni.NetworkName),
		filepath.Join(cni.DataDir, cni.NetworkName+cni.PodsSuffix),
		"/var/lib/cni/results",
		"/var/lib/cni/cache",
	} {
		problems = append(problems, os.RemoveAll(path))
	}
	// Another plugin may keep its files beside ours.
	undo.EmptyDirs(cni.DataDir, filepath.Dir(cni.DataDir), cni.ConfDir, filepath.Dir(cni.ConfDir))
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("removing the pod network: %w", err)
	}
	say(data, "reset", "The pod network and the rules of kube-proxy are removed")
	return nil
}

// What containerd makes outside of its root and state: a socket for plugins of
// users, and folders for more programs.
const (
	nriSocket        = "/run/nri/nri.sock"
	containerdExtras = "/opt/containerd"
)

func removeContainerd(data ResetData) error {
	if !ownsContainerd(data.CRISocketPath()) {
		say(data, "reset", "The container runtime at %s is yours: leaving it as it is", data.CRISocketPath())
		return nil
	}
	if _, err := os.Stat(host.ContainerdConfig); err == nil && !host.IsOurs(host.ContainerdConfig) {
		say(data, "reset", "%s was not written by skerry: leaving containerd as it is", host.ContainerdConfig)
		return nil
	}
	if err := removeUnit(data, host.ContainerdUnit); err != nil {
		return err
	}
	for _, dir := range []string{host.ContainerdStateDir, host.ContainerdRoot} {
		if err := undo.Tree(dir); err != nil {
			return err
		}
	}
	for _, file := range []string{host.ContainerdConfig, nriSocket} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a file of containerd: %w", err)
		}
	}
	undo.EmptyDirs(
		host.ContainerdDropIns, filepath.Dir(host.ContainerdConfig), filepath.Dir(nriSocket),
		containerdExtras+"/bin", containerdExtras+"/lib", containerdExtras,
	)
	say(data, "reset", "containerd's images, containers and configuration are removed")
	return nil
}

func removeRecord(data ResetData) error {
	if err := os.Remove(site.RecordPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forgetting what this node was: %w", err)
	}
	return nil
}
