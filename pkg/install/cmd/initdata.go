package cmd

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/sets"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	kubeadmscheme "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/scheme"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/validation"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	"k8s.io/kubernetes/cmd/kubeadm/app/features"
	certsphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/certs"
	kubeconfigphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/kubeconfig"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/apiclient"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"

	"skerry.dev/skerry/pkg/install/bootstrap"
	"skerry.dev/skerry/pkg/install/config"
	"skerry.dev/skerry/pkg/install/host"
)

// initData is what the phases of init share.
type initData struct {
	*initOptions
	cfg             *kubeadmapi.InitConfiguration
	ignorePreflight sets.Set[string]
	dryRunDir       string
	externalCA      bool
	out             io.Writer
	supervisor      func() (host.Supervisor, error)

	kubeconfig, kubeconfigOriginal *clientcmdapi.Config
	client                         clientset.Interface
}

var _ bootstrap.InitData = (*initData)(nil)

// newInitData turns flags and configuration file into the data of the phases.
func newInitData(cmd *cobra.Command, opts *initOptions, out io.Writer) (*initData, error) {
	kubeadmscheme.Scheme.Default(opts.external)
	var err error
	if opts.externalCluster.FeatureGates, err = features.NewFeatureGate(&features.InitFeatureGates, opts.featureGates); err != nil {
		return nil, fmt.Errorf("--%s: %w", options.FeatureGatesString, err)
	}
	if err := config.CheckMixed(cmd.Flags(), bootstrap.ImagesDirFlag); err != nil {
		return nil, err
	}
	if err := opts.token.ApplyTo(opts.external); err != nil {
		return nil, fmt.Errorf("--%s: %w", options.TokenStr, err)
	}
	cfg, err := config.LoadInit(opts.configPath, opts.external, opts.externalCluster)
	if err != nil {
		return nil, err
	}
	if name := opts.external.NodeRegistration.Name; name != "" {
		cfg.NodeRegistration.Name = name
	}
	ignore, err := validation.ValidateIgnorePreflightErrors(opts.ignorePreflight, cfg.NodeRegistration.IgnorePreflightErrors)
	if err != nil {
		return nil, err
	}
	cfg.NodeRegistration.IgnorePreflightErrors = sets.List(ignore)
	if err := configutil.VerifyAPIServerBindAddress(cfg.LocalAPIEndpoint.AdvertiseAddress); err != nil {
		return nil, err
	}
	if err := features.ValidateVersion(features.InitFeatureGates, cfg.FeatureGates, cfg.KubernetesVersion); err != nil {
		return nil, err
	}
	data := &initData{initOptions: opts, cfg: cfg, ignorePreflight: ignore, out: out, supervisor: sync.OnceValues(host.Detect)}
	if !cmd.Flags().Changed(options.DryRun) {
		opts.dryRun = cfg.DryRun
	}
	if opts.dryRun {
		if data.dryRunDir, err = kubeadmconstants.GetDryRunDir(kubeadmconstants.EnvVarInitDryRunDir, "skerry-init-dryrun", klog.Warningf); err != nil {
			return nil, fmt.Errorf("making a folder for the dry run: %w", err)
		}
	}
	return data, data.checkExternalCA()
}

// checkExternalCA finds CAs whose keys are elsewhere; then what they must have
// signed has to be there already.
func (d *initData) checkExternalCA() (err error) {
	d.externalCA, err = certsphase.UsingExternalCA(&d.cfg.ClusterConfiguration)
	if d.externalCA {
		if err != nil {
			return fmt.Errorf("the cluster's CA has no key here, and what it should have signed is missing or invalid: %w", err)
		}
		if err := kubeconfigphase.ValidateKubeconfigsForExternalCA(d.kubeconfigDir, d.cfg); err != nil {
			return err
		}
	}
	frontProxy, err := certsphase.UsingExternalFrontProxyCA(&d.cfg.ClusterConfiguration)
	if frontProxy && err != nil {
		return fmt.Errorf("the front proxy's CA has no key here, and what it should have signed is missing or invalid: %w", err)
	}
	if d.uploadCerts && (d.externalCA || frontProxy) {
		return fmt.Errorf("--%s: a CA whose key is not here cannot be uploaded", options.UploadCerts)
	}
	return nil
}

// dirOr is the folder for files of the dry run, or the real one.
func (d *initData) dirOr(real string) string {
	if d.dryRun {
		return d.dryRunDir
	}
	return real
}

func (d *initData) Cfg() *kubeadmapi.InitConfiguration       { return d.cfg }
func (d *initData) UploadCerts() bool                        { return d.uploadCerts }
func (d *initData) CertificateKey() string                   { return d.cfg.CertificateKey }
func (d *initData) SetCertificateKey(key string)             { d.cfg.CertificateKey = key }
func (d *initData) SkipCertificateKeyPrint() bool            { return d.skipCertificateKeyPrint }
func (d *initData) DryRun() bool                             { return d.dryRun }
func (d *initData) SkipTokenPrint() bool                     { return d.skipTokenPrint }
func (d *initData) IgnorePreflightErrors() sets.Set[string]  { return d.ignorePreflight }
func (d *initData) CertificateWriteDir() string              { return d.dirOr(d.cfg.CertificatesDir) }
func (d *initData) CertificateDir() string                   { return d.cfg.CertificatesDir }
func (d *initData) KubeConfigDir() string                    { return d.dirOr(d.kubeconfigDir) }
func (d *initData) ManifestDir() string                      { return d.dirOr(kubeadmconstants.GetStaticPodDirectory()) }
func (d *initData) KubeletDir() string                       { return d.dirOr(kubeadmconstants.KubeletRunDirectory) }
func (d *initData) ExternalCA() bool                         { return d.externalCA }
func (d *initData) OutputWriter() io.Writer                  { return d.out }
func (d *initData) ImagesDir() string                        { return d.imagesDir }
func (d *initData) HostsControlPlane() bool                  { return true }
func (d *initData) NodeClient() (clientset.Interface, error) { return d.Client() }
func (d *initData) Supervisor() (host.Supervisor, error)     { return d.supervisor() }
func (d *initData) Cluster() (*kubeadmapi.ClusterConfiguration, error) {
	return &d.cfg.ClusterConfiguration, nil
}

func (d *initData) Registration() *kubeadmapi.NodeRegistrationOptions {
	return &d.cfg.NodeRegistration
}

// KubeConfigPath is the kubeconfig that phases talk to the cluster with.
func (d *initData) KubeConfigPath() string {
	if d.dryRun {
		return filepath.Join(d.dryRunDir, kubeadmconstants.AdminKubeConfigFileName)
	}
	return d.kubeconfigPath
}

// PatchesDir is the folder of patches; the flag comes before the file.
func (d *initData) PatchesDir() string {
	if d.patchesDir == "" && d.cfg.Patches != nil {
		return d.cfg.Patches.Directory
	}
	return d.patchesDir
}

// Tokens are the bootstrap tokens that init makes.
func (d *initData) Tokens() []string {
	var tokens []string
	for _, token := range d.cfg.BootstrapTokens {
		tokens = append(tokens, token.Token.String())
	}
	return tokens
}

// usesAdminConf says whether phases use the kubeconfig that init itself makes.
func (d *initData) usesAdminConf() bool {
	return d.KubeConfigPath() == kubeadmconstants.GetAdminKubeConfigPath()
}

// KubeConfigOriginal is the kubeconfig as it is in its file.
func (d *initData) KubeConfigOriginal() (*clientcmdapi.Config, error) {
	if d.kubeconfigOriginal == nil {
		loaded, err := clientcmd.LoadFromFile(d.KubeConfigPath())
		if err != nil {
			return nil, fmt.Errorf("loading kubeconfig %s: %w", d.KubeConfigPath(), err)
		}
		d.kubeconfigOriginal = loaded
	}
	return d.kubeconfigOriginal, nil
}

// KubeConfig is the kubeconfig, pointed at the API server of this machine if it
// is init's own: a load balancer in front may not know it yet.
func (d *initData) KubeConfig() (*clientcmdapi.Config, error) {
	if d.kubeconfig == nil {
		original, err := d.KubeConfigOriginal()
		if err != nil {
			return nil, err
		}
		local := original.DeepCopy()
		if d.usesAdminConf() {
			kubeconfigutil.PointKubeConfigToLocalAPIEndpoint(local, &d.cfg.LocalAPIEndpoint)
		}
		d.kubeconfig = local
	}
	return d.kubeconfig, nil
}

// Client is a client of the new cluster. The first call binds the administrator
// of admin.conf to its role.
func (d *initData) Client() (clientset.Interface, error) {
	if d.client != nil {
		return d.client, nil
	}
	client, err := d.newClient()
	if err != nil {
		return nil, fmt.Errorf("making a client of the new cluster: %w", err)
	}
	d.client = client
	return client, nil
}

func (d *initData) newClient() (clientset.Interface, error) {
	if !d.dryRun && d.usesAdminConf() {
		return kubeconfigphase.EnsureAdminClusterRoleBinding(kubeadmconstants.KubernetesDir, &d.cfg.LocalAPIEndpoint, nil)
	}
	kubeconfig, err := d.KubeConfig()
	if err != nil {
		return nil, err
	}
	if !d.dryRun {
		return kubeconfigutil.ToClientSet(kubeconfig)
	}
	dry := apiclient.NewDryRun()
	if err := dry.WithKubeConfig(kubeconfig); err != nil {
		return nil, err
	}
	dry.WithDefaultMarshalFunction().WithWriter(os.Stdout).
		PrependReactor(dry.GetNodeReactor()).PrependReactor(dry.PatchNodeReactor())
	return dry.FakeClient(), nil
}

// Phases of add-ons, by their names in --skip-phases.
const (
	addonPhase     = "addon"
	coreDNSPhase   = "addon/coredns"
	kubeProxyPhase = "addon/kube-proxy"
)

// skipAddons makes the two ways of leaving an add-on out agree: "disabled" in
// the configuration, and the phase in --skip-phases.
func skipAddons(cfg *kubeadmapi.InitConfiguration, skip []string) []string {
	for _, addon := range []struct {
		phase    string
		disabled *bool
	}{{coreDNSPhase, &cfg.DNS.Disabled}, {kubeProxyPhase, &cfg.Proxy.Disabled}} {
		skipped := slices.Contains(skip, addonPhase) || slices.Contains(skip, addon.phase)
		if *addon.disabled && !skipped {
			skip = append(skip, addon.phase)
		}
		*addon.disabled = *addon.disabled || skipped
	}
	return skip
}
