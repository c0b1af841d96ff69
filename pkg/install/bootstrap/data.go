// Package bootstrap holds Skerry's own phases of init, join and reset: what
// kubeadm leaves to the user (container runtime, images, pod network) and what
// it does not know (sites, admission policies), plus those phases of kubeadm
// that have to start the kubelet through our supervisor.
//
// Phases take their run data as interfaces, as upstream's do. The package must
// not know flags or configuration files; pkg/install/cmd does.
package bootstrap

import (
	"context"
	"fmt"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	clientset "k8s.io/client-go/kubernetes"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	initphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/init"
	joinphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/join"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	"k8s.io/kubernetes/cmd/kubeadm/app/componentconfigs"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"

	"skerry.dev/skerry/pkg/install/host"
)

// Flags of our own that init and join share.
const (
	ImagesDirFlag = "images-dir"
	SiteFlag      = "site"
)

// poll is how often we look for what we wait for.
const poll = 250 * time.Millisecond

// apiTimeout bounds one conversation with the API server.
const apiTimeout = 30 * time.Second

// NodeData is what the phases that init and join share need to know.
type NodeData interface {
	// Registration is how this node registers itself.
	Registration() *kubeadmapi.NodeRegistrationOptions
	// Cluster is the cluster's configuration; join has to fetch it.
	Cluster() (*kubeadmapi.ClusterConfiguration, error)
	// HostsControlPlane says whether the control plane runs on this node.
	HostsControlPlane() bool
	// NodeClient is a client that may read this node's Node.
	NodeClient() (clientset.Interface, error)
	Supervisor() (host.Supervisor, error)
	ImagesDir() string
	IgnorePreflightErrors() sets.Set[string]
	KubeletDir() string
	DryRun() bool
	OutputWriter() io.Writer
}

// InitData is the run data of init.
type InitData interface {
	NodeData
	initphases.InitData
}

// JoinData is the run data of join.
type JoinData interface {
	NodeData
	joinphases.JoinData
	// RequestedSite is the value of --site.
	RequestedSite() string
	// Site is the site that the site phase found; "" is the cloud.
	Site() string
	SetSite(string)
}

// dataOf asserts that the run data of a phase has a type.
func dataOf[T any](phase string, c workflow.RunData) (T, error) {
	data, ok := c.(T)
	if !ok {
		var none T
		return none, fmt.Errorf("phase %s was run with data of another command (%T)", phase, c)
	}
	return data, nil
}

// say prints one line of progress.
func say(data interface{ OutputWriter() io.Writer }, phase, format string, args ...any) {
	fmt.Fprintf(data.OutputWriter(), "["+phase+"] "+format+"\n", args...)
}

func kubeletConfig(cluster *kubeadmapi.ClusterConfiguration) *kubeletconfig.KubeletConfiguration {
	if component, ok := cluster.ComponentConfigs[componentconfigs.KubeletGroup]; ok {
		if config, ok := component.Get().(*kubeletconfig.KubeletConfiguration); ok {
			return config
		}
	}
	return &kubeletconfig.KubeletConfiguration{}
}

// ownsContainerd reports whether the runtime at this address is the containerd
// that we configure and start, and not one of the user's at another socket.
// kubeadm knows the same socket by its older path.
func ownsContainerd(socket string) bool {
	return socket == kubeadmconstants.CRISocketContainerd || socket == "unix://"+host.ContainerdSocket
}

// serverOf returns the API server's address in a kubeconfig.
func serverOf(config *clientcmdapi.Config) string {
	if current, ok := config.Contexts[config.CurrentContext]; ok && current != nil {
		if cluster, ok := config.Clusters[current.Cluster]; ok && cluster != nil {
			return cluster.Server
		}
	}
	return ""
}

// until polls done until it says so, fails, or the time is up.
func until(timeout time.Duration, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		ok, err := done(ctx)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s", timeout)
		case <-time.After(poll):
		}
	}
}
