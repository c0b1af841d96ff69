package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	initphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/init"
	joinphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/join"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	kubeletphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/kubelet"
	kubeadmutil "k8s.io/kubernetes/cmd/kubeadm/app/util"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
)

// unitTimeout bounds stopping, installing and starting the kubelet's unit.
const unitTimeout = 2 * time.Minute

// NewInitKubeletStartPhase is upstream's kubelet-start with the kubelet started
// by our supervisor.
func NewInitKubeletStartPhase() workflow.Phase {
	phase := initphases.NewKubeletStartPhase()
	phase.Run = runInitKubeletStart
	return phase
}

// NewJoinKubeletStartPhase is upstream's kubelet-start with the kubelet started
// by our supervisor.
func NewJoinKubeletStartPhase() workflow.Phase {
	phase := joinphases.NewKubeletStartPhase()
	phase.Run = runJoinKubeletStart
	return phase
}

// NewKubeletFinalizePhase is upstream's kubelet-finalize with the kubelet
// restarted by our supervisor.
func NewKubeletFinalizePhase() workflow.Phase {
	phase := initphases.NewKubeletFinalizePhase()
	for i := range phase.Phases {
		if phase.Phases[i].Run != nil {
			phase.Phases[i].Run = runKubeletFinalize
		}
	}
	return phase
}

// runKubeletFinalize points kubelet.conf at the certificate that the kubelet
// renews itself, instead of the one that init made, and restarts the kubelet.
func runKubeletFinalize(c workflow.RunData) error {
	data, err := dataOf[InitData]("kubelet-finalize", c)
	if err != nil {
		return err
	}
	certificates := filepath.Join(data.KubeletDir(), "pki")
	if dir, index := kubeadmapi.GetArgValue(data.Registration().KubeletExtraArgs, "cert-dir", -1); index >= 0 {
		certificates = dir
	}
	current := filepath.Join(certificates, "kubelet-client-current.pem")
	path := filepath.Join(data.KubeConfigDir(), kubeadmconstants.KubeletKubeConfigFileName)
	if _, err := os.Stat(current); err != nil || data.DryRun() {
		return nil // rotation is off: the kubelet keeps the certificate that it has
	}
	if err := useCertificate(path, current); err != nil {
		return fmt.Errorf("making the kubelet renew its certificate: %w", err)
	}
	say(data, "kubelet-finalize", "The kubelet renews its own certificate from now on")
	supervisor, err := data.Supervisor()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
	defer cancel()
	return supervisor.Restart(ctx, host.KubeletUnit)
}

// useCertificate makes the current user of a kubeconfig authenticate with a PEM
// file that holds certificate and key.
func useCertificate(kubeconfig, pem string) error {
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return err
	}
	current, ok := config.Contexts[config.CurrentContext]
	if !ok || config.AuthInfos[current.AuthInfo] == nil {
		return fmt.Errorf("%s has no user in its current context", kubeconfig)
	}
	user := config.AuthInfos[current.AuthInfo]
	user.ClientCertificateData, user.ClientKeyData = nil, nil
	user.ClientCertificate, user.ClientKey = pem, pem
	return clientcmd.WriteToFile(*config, kubeconfig)
}

func runInitKubeletStart(c workflow.RunData) error {
	data, err := dataOf[InitData]("kubelet-start", c)
	if err != nil {
		return err
	}
	cluster := &data.Cfg().ClusterConfiguration
	if err := stopKubelet(data); err != nil {
		return err
	}
	// The control-plane taint is set by mark-control-plane, not by the kubelet.
	if err := kubeletphase.WriteKubeletDynamicEnvFile(cluster, data.Registration(), false, data.KubeletDir()); err != nil {
		return fmt.Errorf("writing the kubelet's flags: %w", err)
	}
	if err := writeKubeletConfig(data, cluster, data.PatchesDir()); err != nil {
		return err
	}
	if err := startKubelet(data); err != nil || data.DryRun() {
		return err
	}
	name, err := NodeName(data.Registration())
	if err != nil {
		return err
	}
	server, err := kubeadmutil.GetControlPlaneEndpoint(data.Cfg().ControlPlaneEndpoint, &data.Cfg().LocalAPIEndpoint)
	if err != nil {
		return fmt.Errorf("finding the API server's address: %w", err)
	}
	return recordNode(site.Record{Role: site.RoleControlPlane, NodeName: name, Server: server})
}

func runJoinKubeletStart(c workflow.RunData) error {
	data, err := dataOf[JoinData]("kubelet-start", c)
	if err != nil {
		return err
	}
	initCfg, err := data.InitCfg()
	if err != nil {
		return err
	}
	if err := refuseReadyNode(data); err != nil {
		return err
	}
	if err := stopKubelet(data); err != nil {
		return err
	}
	cluster, err := kubeletOfNode(data, &initCfg.ClusterConfiguration)
	if err != nil {
		return err
	}
	if err := writeKubeletConfig(data, cluster, data.PatchesDir()); err != nil {
		return err
	}
	registration := RegistrationOf(data.Registration(), data.Site())
	if err := kubeletphase.WriteKubeletDynamicEnvFile(cluster, registration, true, data.KubeletDir()); err != nil {
		return fmt.Errorf("writing the kubelet's flags: %w", err)
	}
	return startKubelet(data)
}

// kubeletOfNode gives the kubelet its credentials: those for the hub are there
// already, or it gets a certificate of its own. It returns the cluster's
// configuration with the kubelet's as it is on such a node.
func kubeletOfNode(data JoinData, cluster *kubeadmapi.ClusterConfiguration) (*kubeadmapi.ClusterConfiguration, error) {
	if hasHub() {
		return hubKubelet(cluster), nil
	}
	if !data.DryRun() && isHubKubeconfig(kubeadmconstants.GetKubeletKubeConfigPath()) {
		return nil, fmt.Errorf("%s leads to %s, which this join leaves out: run `skerry reset` first", kubeadmconstants.GetKubeletKubeConfigPath(), host.AgentUnit)
	}
	path := filepath.Join(data.KubeConfigDir(), kubeadmconstants.KubeletBootstrapKubeConfigFileName)
	return cluster, writeBootstrapCredentials(data, path)
}

// RegistrationOf returns how the kubelet registers a Node itself. The Node of a
// site exists before its kubelet, so that happens only after somebody deleted
// it; then the taint keeps pods away from a node whose site is lost.
func RegistrationOf(registration *kubeadmapi.NodeRegistrationOptions, siteName string) *kubeadmapi.NodeRegistrationOptions {
	if siteName == "" {
		return registration
	}
	copied := *registration
	copied.Taints = append(slices.Clone(registration.Taints), corev1.Taint{Key: site.UnknownTaint, Effect: corev1.TaintEffectNoSchedule})
	return &copied
}

// refuseReadyNode fails if a live node of this node's name is in the cluster:
// two machines with one name would overwrite each other's status.
func refuseReadyNode(data JoinData) error {
	if data.DryRun() {
		return nil
	}
	bootstrap, err := data.TLSBootstrapCfg()
	if err != nil {
		return err
	}
	client, err := kubeconfigutil.ToClientSet(bootstrap)
	if err != nil {
		return fmt.Errorf("making a client of the bootstrap credentials: %w", err)
	}
	name, err := NodeName(data.Registration())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for a Node of the name %s: %w", name, err)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
			return fmt.Errorf("Node %s exists and is Ready: if another machine has this name, join with another --node-name; if this machine was it a minute ago, wait until it is NotReady or run `kubectl delete node %s`", name, name)
		}
	}
	return nil
}

// NodeName returns the name that this node gets in the cluster.
func NodeName(registration *kubeadmapi.NodeRegistrationOptions) (string, error) {
	name, _, err := kubeletphase.GetNodeNameAndHostname(registration)
	if name == "" {
		return "", fmt.Errorf("finding this node's name: %w; give one with --node-name", err)
	}
	return name, nil
}

// writeBootstrapCredentials writes what a certificate of the node is got with:
// the bootstrap kubeconfig, and the cluster's CA.
func writeBootstrapCredentials(data JoinData, path string) error {
	bootstrap, err := data.TLSBootstrapCfg()
	if err != nil {
		return err
	}
	if err := kubeconfigutil.WriteToDisk(path, bootstrap); err != nil {
		return fmt.Errorf("writing the bootstrap kubeconfig: %w", err)
	}
	caPath := data.Cfg().CACertPath
	if data.DryRun() {
		caPath = filepath.Join(data.CertificateWriteDir(), kubeadmconstants.CACertName)
	}
	if _, err := os.Stat(caPath); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking for the cluster's CA certificate: %w", err)
	}
	_, cluster, err := kubeconfigutil.GetClusterFromKubeConfig(bootstrap)
	if err != nil {
		return fmt.Errorf("the bootstrap kubeconfig is malformed: %w", err)
	}
	if err := certutil.WriteCert(caPath, cluster.CertificateAuthorityData); err != nil {
		return fmt.Errorf("writing the cluster's CA certificate: %w", err)
	}
	return nil
}

func writeKubeletConfig(data NodeData, cluster *kubeadmapi.ClusterConfiguration, patches string) error {
	instance := &kubeletconfig.KubeletConfiguration{ContainerRuntimeEndpoint: data.Registration().CRISocket}
	if err := kubeletphase.WriteInstanceConfigToDisk(instance, data.KubeletDir()); err != nil {
		return fmt.Errorf("writing the kubelet's instance configuration: %w", err)
	}
	if err := kubeletphase.WriteConfigToDisk(cluster, data.KubeletDir(), patches, data.OutputWriter()); err != nil {
		return fmt.Errorf("writing the kubelet's configuration: %w", err)
	}
	return nil
}

// stopKubelet stops a kubelet that runs while its files are written.
func stopKubelet(data NodeData) error {
	if data.DryRun() {
		return nil
	}
	supervisor, err := data.Supervisor()
	if err != nil {
		return err
	}
	return stopUnit(supervisor, host.KubeletUnit)
}

// stopUnit stops a unit if it is installed and runs.
func stopUnit(supervisor host.Supervisor, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
	defer cancel()
	if status, err := supervisor.Status(ctx, name); err != nil || !status.Active {
		return nil
	}
	return supervisor.Stop(ctx, name)
}

func startKubelet(data NodeData) error {
	if data.DryRun() {
		say(data, "kubelet-start", "Would install and start unit %s", host.KubeletUnit)
		return nil
	}
	supervisor, err := data.Supervisor()
	if err != nil {
		return err
	}
	files := host.KubeletFiles{
		Kubeconfig: kubeadmconstants.GetKubeletKubeConfigPath(),
		Config:     filepath.Join(data.KubeletDir(), kubeadmconstants.KubeletConfigurationFileName),
		FlagsEnv:   filepath.Join(data.KubeletDir(), kubeadmconstants.KubeletEnvFileName),
	}
	if hasHub() {
		files.AgentSocket = agentapi.Socket
	} else {
		files.BootstrapKubeconfig = filepath.Join(kubeadmconstants.KubernetesDir, kubeadmconstants.KubeletBootstrapKubeConfigFileName)
	}
	unit, err := host.NewKubeletUnit(files)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
	defer cancel()
	say(data, "kubelet-start", "Starting unit %s", unit.Name)
	if err := supervisor.Install(ctx, unit); err != nil {
		return err
	}
	return supervisor.Start(ctx, unit.Name)
}
