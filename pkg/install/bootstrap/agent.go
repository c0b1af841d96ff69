package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	"k8s.io/kubernetes/cmd/kubeadm/app/componentconfigs"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
)

// agentTimeout bounds how long the agent may take to get its certificate and to
// reach the API server: on a weak link it needs a few tries.
const agentTimeout = 3 * time.Minute

// NewAgentPhase installs skerry-agent on a node of a site.
func NewAgentPhase(args string) workflow.Phase {
	return workflow.Phase{
		Name:  "agent" + args,
		Short: "Install and start skerry-agent, through which a node of a site goes on without its cloud",
		Long: "On a node of a site: write " + agentapi.ConfigFile + ", install and start the unit " + host.AgentUnit + ", wait until it has its certificate and reaches the API server, and write a kubeconfig with which the kubelet speaks to it alone.\n" +
			"Left out, or on a cloud node, the kubelet speaks to the API server itself, as upstream's does.",
		InheritFlags: append([]string{SiteFlag}, discoveryFlags...),
		Run:          runAgent,
	}
}

func runAgent(c workflow.RunData) error {
	data, err := dataOf[JoinData]("agent", c)
	if err != nil {
		return err
	}
	if data.DryRun() {
		say(data, "agent", "Would install and start unit %s if this is a node of a site", host.AgentUnit)
		return nil
	}
	if data.Site() == "" {
		say(data, "agent", "A cloud node needs no %s", host.AgentUnit)
		return nil
	}
	if err := preflight.RunRootCheckOnly(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	supervisor, err := data.Supervisor()
	if err != nil {
		return err
	}
	// One that runs with older settings would hold the ports.
	if err := stopUnit(supervisor, host.AgentUnit); err != nil {
		return err
	}
	if err := checkAgentPorts(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	if err := writeAgentFiles(data); err != nil {
		return err
	}
	if err := startAgent(data, supervisor); err != nil {
		return err
	}
	if err := writeHubKubeconfig(data); err != nil {
		return err
	}
	return setHub(true)
}

// checkAgentPorts fails if somebody else listens where the agent will.
func checkAgentPorts(ignored sets.Set[string]) error {
	return preflight.RunChecks([]preflight.Checker{host.AgentPorts(agentapi.HubAddress, agentapi.HealthAddress)}, os.Stderr, ignored)
}

// writeAgentFiles writes the agent's configuration, and what it gets its
// certificate with.
func writeAgentFiles(data JoinData) error {
	cluster, err := data.Cluster()
	if err != nil {
		return err
	}
	bootstrap, err := data.TLSBootstrapCfg()
	if err != nil {
		return err
	}
	name, err := NodeName(data.Registration())
	if err != nil {
		return err
	}
	config, err := agentConfiguration(cluster, name, serverOf(bootstrap), data.Cfg().CACertPath)
	if err != nil {
		return err
	}
	content, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("encoding the agent's configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(agentapi.ConfigFile), 0o755); err != nil {
		return fmt.Errorf("making the folder of the agent's configuration: %w", err)
	}
	if err := os.WriteFile(agentapi.ConfigFile, append([]byte(agentHeader), content...), 0o644); err != nil {
		return fmt.Errorf("writing the agent's configuration: %w", err)
	}
	return writeBootstrapCredentials(data, agentapi.BootstrapKubeconfig)
}

const agentHeader = "# Written by `skerry join`. What agents keep is in ConfigMap kube-system/skerry-agent.\n"

// agentConfiguration is what an agent must know of its node; the rest has
// defaults, which are the agent's business.
func agentConfiguration(cluster *kubeadmapi.ClusterConfiguration, node, server, ca string) (*agentv1.AgentConfiguration, error) {
	service, err := kubeadmconstants.GetAPIServerVirtualIP(cluster.Networking.ServiceSubnet)
	if err != nil {
		return nil, fmt.Errorf("finding the address of Service kubernetes in networking.serviceSubnet %q: %w", cluster.Networking.ServiceSubnet, err)
	}
	return &agentv1.AgentConfiguration{
		TypeMeta:         agentv1.TypeMeta{APIVersion: agentv1.APIVersion, Kind: agentv1.AgentConfigurationKind},
		NodeName:         node,
		Servers:          []string{server},
		ClusterDomain:    cluster.Networking.DNSDomain,
		ServiceAddresses: []string{service.String()},
		Files:            agentv1.Files{ClusterCA: ca},
	}, nil
}

// startAgent starts the agent and waits until it has its certificate and hears
// the API server.
func startAgent(data JoinData, supervisor host.Supervisor) error {
	unit, err := host.NewAgentUnit(agentapi.ConfigFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
	defer cancel()
	say(data, "agent", "Starting unit %s, and waiting for its certificate for up to %s", unit.Name, agentTimeout)
	start := time.Now()
	if err := supervisor.Install(ctx, unit); err != nil {
		return err
	}
	if err := supervisor.Start(ctx, unit.Name); err != nil {
		return err
	}
	last := errors.New("it has not answered yet")
	err = until(agentTimeout, func(ctx context.Context) (bool, error) {
		status, err := agentapi.Get(ctx, agentapi.Socket)
		switch {
		case err != nil:
			last = err
		case status.CertificateExpires.IsZero():
			last = errors.New("it has no certificate yet: the cluster has to sign one (`kubectl get csr` on the control plane)")
		case !status.Online:
			last = fmt.Errorf("it does not reach the API server: %s", status.Reason)
		default:
			return true, nil
		}
		if len(status.Problems) > 0 {
			last = fmt.Errorf("%w (%s)", last, strings.Join(status.Problems, "; "))
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("%s is not ready %w: %w; the unit's log says more; `--skip-phases agent` joins without it", unit.Name, err, last)
	}
	if err := os.Remove(agentapi.BootstrapKubeconfig); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the agent's bootstrap credentials: %w", err)
	}
	say(data, "agent", "%s has its certificate and reaches the API server after %.1f s", unit.Name, time.Since(start).Seconds())
	return nil
}

// writeHubKubeconfig writes the kubelet's kubeconfig, for the hub and nothing
// else: what the kubelet holds is good on this node only, and never runs out.
func writeHubKubeconfig(data JoinData) error {
	cluster, err := data.Cluster()
	if err != nil {
		return err
	}
	path := filepath.Join(data.KubeConfigDir(), kubeadmconstants.KubeletKubeConfigFileName)
	if err := kubeconfigutil.WriteToDisk(path, hubKubeconfig(cluster.ClusterName)); err != nil {
		return fmt.Errorf("writing the kubelet's kubeconfig: %w", err)
	}
	return nil
}

func hubKubeconfig(cluster string) *clientcmdapi.Config {
	const user = "kubelet"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{
		Server:               "https://" + agentapi.HubAddress,
		CertificateAuthority: filepath.Join(agentapi.PKIDir, "node-ca.crt"),
	}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{
		ClientCertificate: filepath.Join(agentapi.PKIDir, "kubelet.crt"),
		ClientKey:         filepath.Join(agentapi.PKIDir, "kubelet.key"),
	}
	config.Contexts["default"] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = "default"
	return config
}

// isHubKubeconfig reports whether a kubeconfig leads to the hub.
func isHubKubeconfig(path string) bool {
	config, err := clientcmd.LoadFromFile(path)
	return err == nil && serverOf(config) == "https://"+agentapi.HubAddress
}

// hubKubelet changes what the kubelet of a node with a hub does otherwise. The
// user's patches come after it.
func hubKubelet(cluster *kubeadmapi.ClusterConfiguration) *kubeadmapi.ClusterConfiguration {
	copied := cluster.DeepCopy()
	component, ok := copied.ComponentConfigs[componentconfigs.KubeletGroup]
	if !ok {
		return cluster
	}
	config, ok := component.Get().(*kubeletconfig.KubeletConfiguration)
	if !ok {
		return cluster
	}
	// The hub renews the node's certificate; the kubelet's own never runs out.
	config.RotateCertificates = false
	if config.ImageGCHighThresholdPercent == nil {
		// An image that is removed may not come back: the registry is behind
		// the link.
		config.ImageGCHighThresholdPercent = ptr.To[int32](100)
	}
	return copied
}

// setHub notes in the record whether this node has a hub.
func setHub(hub bool) error {
	record, err := site.ReadRecord(site.RecordPath)
	if err != nil {
		return err
	}
	record.Hub = hub
	return site.WriteRecord(site.RecordPath, record)
}

// hasHub reports whether the kubelet is to speak to the hub.
func hasHub() bool {
	record, err := site.ReadRecord(site.RecordPath)
	return err == nil && record.Hub
}
