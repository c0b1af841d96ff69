package cmd

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/sets"
	clientset "k8s.io/client-go/kubernetes"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/validation"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	"k8s.io/kubernetes/cmd/kubeadm/app/discovery"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/apiclient"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/output"

	"skerry.dev/skerry/pkg/install/bootstrap"
	"skerry.dev/skerry/pkg/install/config"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
)

// joinData is what the phases of join share.
type joinData struct {
	*joinOptions
	cfg             *kubeadmapi.JoinConfiguration
	ignorePreflight sets.Set[string]
	dryRunDir       string
	out             io.Writer
	supervisor      func() (host.Supervisor, error)

	initCfg   *kubeadmapi.InitConfiguration
	bootstrap *clientcmdapi.Config
	// joined is the site that the site phase found, nil if it did not run.
	joined *string
}

var _ bootstrap.JoinData = (*joinData)(nil)

// newJoinData turns flags, arguments and configuration file into the data of
// the phases.
func newJoinData(cmd *cobra.Command, args []string, opts *joinOptions, out io.Writer) (*joinData, error) {
	own := append([]string{bootstrap.ImagesDirFlag, bootstrap.SiteFlag, options.ControlPlane}, discoveryFlags...)
	if err := config.CheckMixed(cmd.Flags(), own...); err != nil {
		return nil, err
	}
	if opts.controlPlane {
		return nil, errControlPlane
	}
	if opts.site != "" {
		if err := site.ValidateName(opts.site); err != nil {
			return nil, fmt.Errorf("--%s: %w", bootstrap.SiteFlag, err)
		}
	}
	opts.setDiscovery(args)
	if cmd.Flags().Lookup(options.FileDiscovery) == nil && opts.external.Discovery.BootstrapToken == nil && opts.configPath == "" {
		// A phase on its own that does not talk to the cluster with the
		// token: the configuration must be valid, nobody reads this part.
		opts.external.Discovery.File = &opts.file
		opts.file.KubeConfigPath = kubeadmconstants.GetKubeletKubeConfigPath()
	}
	cfg, err := config.LoadJoin(opts.configPath, opts.external)
	if err != nil {
		return nil, err
	}
	if cfg.ControlPlane != nil {
		return nil, errControlPlane
	}
	if name := opts.external.NodeRegistration.Name; name != "" {
		cfg.NodeRegistration.Name = name
	}
	if _, err := bootstrap.UserLabels(&cfg.NodeRegistration); err != nil {
		return nil, err
	}
	ignore, err := validation.ValidateIgnorePreflightErrors(opts.ignorePreflight, cfg.NodeRegistration.IgnorePreflightErrors)
	if err != nil {
		return nil, err
	}
	cfg.NodeRegistration.IgnorePreflightErrors = sets.List(ignore)
	data := &joinData{joinOptions: opts, cfg: cfg, ignorePreflight: ignore, out: out, supervisor: sync.OnceValues(host.Detect)}
	if !cmd.Flags().Changed(options.DryRun) {
		opts.dryRun = cfg.DryRun
	}
	if opts.dryRun {
		if data.dryRunDir, err = kubeadmconstants.GetDryRunDir(kubeadmconstants.EnvVarJoinDryRunDir, "skerry-join-dryrun", klog.Warningf); err != nil {
			return nil, fmt.Errorf("making a folder for the dry run: %w", err)
		}
	}
	return data, nil
}

// dirOr is the folder for files of the dry run, or the real one.
func (d *joinData) dirOr(real string) string {
	if d.dryRun {
		return d.dryRunDir
	}
	return real
}

func (d *joinData) Cfg() *kubeadmapi.JoinConfiguration      { return d.cfg }
func (d *joinData) CertificateKey() string                  { return "" }
func (d *joinData) DryRun() bool                            { return d.dryRun }
func (d *joinData) IgnorePreflightErrors() sets.Set[string] { return d.ignorePreflight }
func (d *joinData) OutputWriter() io.Writer                 { return d.out }
func (d *joinData) KubeConfigDir() string                   { return d.dirOr(kubeadmconstants.KubernetesDir) }
func (d *joinData) KubeletDir() string                      { return d.dirOr(kubeadmconstants.KubeletRunDirectory) }
func (d *joinData) ManifestDir() string                     { return d.dirOr(kubeadmconstants.GetStaticPodDirectory()) }
func (d *joinData) ImagesDir() string                       { return d.imagesDir }
func (d *joinData) HostsControlPlane() bool                 { return false }
func (d *joinData) Supervisor() (host.Supervisor, error)    { return d.supervisor() }
func (d *joinData) RequestedSite() string                   { return d.site }
func (d *joinData) SetSite(name string)                     { d.joined = &name }

func (d *joinData) Registration() *kubeadmapi.NodeRegistrationOptions {
	return &d.cfg.NodeRegistration
}

// CertificateWriteDir is where the cluster's CA goes.
func (d *joinData) CertificateWriteDir() string {
	if d.dryRun || d.initCfg == nil {
		return d.dryRunDir
	}
	return d.initCfg.CertificatesDir
}

// PatchesDir is the folder of patches; the flag comes before the file.
func (d *joinData) PatchesDir() string {
	if d.patchesDir == "" && d.cfg.Patches != nil {
		return d.cfg.Patches.Directory
	}
	return d.patchesDir
}

// Site is the site of this node: what the site phase found, now or in an
// earlier run of its own.
func (d *joinData) Site() string {
	if d.joined != nil {
		return *d.joined
	}
	record, err := site.ReadRecord(site.RecordPath)
	if err != nil {
		return ""
	}
	return record.Site
}

// TLSBootstrapCfg finds the cluster, checks that it is the right one, and
// returns a kubeconfig with the credentials to join it.
func (d *joinData) TLSBootstrapCfg() (*clientcmdapi.Config, error) {
	if d.bootstrap == nil {
		found, err := discovery.For(nil, d.cfg)
		if err != nil {
			return nil, fmt.Errorf("finding the cluster: %w; check the address, and the token: one that is mistyped, deleted or expired fails here, and `skerry token create` on the control plane makes another", err)
		}
		d.bootstrap = found
	}
	return d.bootstrap, nil
}

// silentPrinter drops what upstream prints about its own commands.
type silentPrinter struct{ output.TextPrinter }

func (silentPrinter) Printf(string, ...any) (int, error) { return 0, nil }

// InitCfg fetches the cluster's configuration with the bootstrap credentials.
func (d *joinData) InitCfg() (*kubeadmapi.InitConfiguration, error) {
	if d.initCfg != nil {
		return d.initCfg, nil
	}
	kubeconfig, err := d.TLSBootstrapCfg()
	if err != nil {
		return nil, err
	}
	client, err := kubeconfigutil.ToClientSet(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("making a client of the bootstrap credentials: %w", err)
	}
	initCfg, err := configutil.FetchInitConfigurationFromCluster(client, &silentPrinter{}, "preflight", false, false, true, false)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's configuration with the token's identity: %w", err)
	}
	if err := renameCluster(kubeconfig, initCfg.ClusterName); err != nil {
		return nil, err
	}
	initCfg.NodeRegistration = d.cfg.NodeRegistration
	d.initCfg = initCfg
	return initCfg, nil
}

// renameCluster gives the only cluster of a kubeconfig its real name, which
// discovery could not know.
func renameCluster(kubeconfig *clientcmdapi.Config, name string) error {
	_, cluster, err := kubeconfigutil.GetClusterFromKubeConfig(kubeconfig)
	if err != nil {
		return fmt.Errorf("the bootstrap kubeconfig is malformed: %w", err)
	}
	kubeconfig.Clusters = map[string]*clientcmdapi.Cluster{name: cluster}
	kubeconfig.Contexts[kubeconfig.CurrentContext].Cluster = name
	return nil
}

// Cluster is the cluster's configuration.
func (d *joinData) Cluster() (*kubeadmapi.ClusterConfiguration, error) {
	initCfg, err := d.InitCfg()
	if err != nil {
		return nil, err
	}
	return &initCfg.ClusterConfiguration, nil
}

// Client is a client with the bootstrap credentials; join of a worker has no
// others before its kubelet has a certificate.
func (d *joinData) Client() (clientset.Interface, error) {
	kubeconfig, err := d.TLSBootstrapCfg()
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
	return dry.WithDefaultMarshalFunction().WithWriter(os.Stdout).FakeClient(), nil
}

// WaitControlPlaneClient is asked for on control-plane nodes only.
func (d *joinData) WaitControlPlaneClient() (clientset.Interface, error) {
	return nil, errControlPlane
}

// NodeClient is a client with the kubelet's certificate.
func (d *joinData) NodeClient() (clientset.Interface, error) {
	return kubeconfigutil.ClientSetFromFile(kubeadmconstants.GetKubeletKubeConfigPath())
}
