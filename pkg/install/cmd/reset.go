package cmd

import (
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/sets"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	kubeadmscheme "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/scheme"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/validation"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	cmdutil "k8s.io/kubernetes/cmd/kubeadm/app/cmd/util"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"
	staticpodutil "k8s.io/kubernetes/cmd/kubeadm/app/util/staticpod"

	"skerry.dev/skerry/pkg/install/bootstrap"
	"skerry.dev/skerry/pkg/install/config"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/site"
)

// resetOptions are the flags of reset.
type resetOptions struct {
	external        *kubeadmapiv1.ResetConfiguration
	configPath      string
	kubeconfig      string
	ignorePreflight []string
	dryRun, force   bool
	cleanupTmp      bool
}

// resetData is what the phases of reset share.
type resetData struct {
	*resetOptions
	cfg             *kubeadmapi.ResetConfiguration
	initCfg         *kubeadmapi.InitConfiguration
	client          clientset.Interface
	certificatesDir string
	ignorePreflight sets.Set[string]
	in              io.Reader
	out             io.Writer
	supervisor      func() (host.Supervisor, error)
}

var _ bootstrap.ResetData = (*resetData)(nil)

// NewResetCommand returns `skerry reset`: kubeadm's, and all that it leaves to
// the user.
func NewResetCommand() *cobra.Command {
	opts := &resetOptions{external: &kubeadmapiv1.ResetConfiguration{}, kubeconfig: kubeadmconstants.GetAdminKubeConfigPath()}
	kubeadmscheme.Scheme.Default(opts.external)
	runner := workflow.NewRunner()
	command := &cobra.Command{
		Use:   "reset",
		Short: "Undo init or join on this machine",
		Long:  "Undo init or join on this machine: pods, units, container runtime, pod network, rules, certificates and state. Works on half of an installation, and again. Image archives stay, and so does the Node object: `kubectl delete node` removes it.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			// The record goes with the reset.
			record, err := site.ReadRecord(site.RecordPath)
			if err != nil {
				record.NodeName = "NAME"
			}
			err = untilInterrupted(cmd.Context(), func() error { return runner.Run(args) })
			if err != nil || opts.dryRun {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "This machine is not a node any more. Its Node object may still be in the cluster: `kubectl delete node %s` removes it.\n", record.NodeName)
			return nil
		},
		SilenceUsage: true,
	}
	opts.addFlags(command.Flags())
	for _, phase := range bootstrap.ResetPhases() {
		runner.AppendPhase(phase)
	}
	runner.SetDataInitializer(func(cmd *cobra.Command, _ []string) (workflow.RunData, error) {
		data, err := newResetData(cmd, opts)
		if err != nil {
			return nil, err
		}
		if len(runner.Options.SkipPhases) == 0 {
			runner.Options.SkipPhases = data.cfg.SkipPhases
		}
		return data, nil
	})
	runner.BindToCommand(command)
	return command
}

func (o *resetOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.external.CertificatesDir, options.CertificatesDir, kubeadmapiv1.DefaultCertificatesDir, "Folder of the cluster's certificates; it is emptied.")
	flags.BoolVarP(&o.force, options.Force, "f", false, "Do not ask.")
	flags.BoolVar(&o.dryRun, options.DryRun, false, "Change nothing; print what would be done.")
	flags.BoolVar(&o.cleanupTmp, options.CleanupTmpDir, false, "Remove kubeadm's temporary files too.")
	options.AddKubeConfigFlag(flags, &o.kubeconfig)
	options.AddConfigFlag(flags, &o.configPath)
	options.AddIgnorePreflightErrorsFlag(flags, &o.ignorePreflight)
	cmdutil.AddCRISocketFlag(flags, &o.external.CRISocket)
}

func newResetData(cmd *cobra.Command, opts *resetOptions) (*resetData, error) {
	flags := cmd.Flags()
	if err := config.CheckMixed(flags, options.Force); err != nil {
		return nil, err
	}
	cfg, err := configutil.LoadOrDefaultResetConfiguration(opts.configPath, opts.external, configutil.LoadOrDefaultConfigurationOptions{
		AllowExperimental: true,
		SkipCRIDetect:     true,
	})
	if err != nil {
		return nil, err
	}
	ignore, err := validation.ValidateIgnorePreflightErrors(opts.ignorePreflight, cfg.IgnorePreflightErrors)
	if err != nil {
		return nil, err
	}
	data := &resetData{
		resetOptions: opts, cfg: cfg, ignorePreflight: ignore,
		in: cmd.InOrStdin(), out: cmd.OutOrStdout(), supervisor: sync.OnceValues(host.Detect),
	}
	for _, flag := range []struct {
		name      string
		value     *bool
		inTheFile bool
	}{
		{options.DryRun, &opts.dryRun, cfg.DryRun},
		{options.Force, &opts.force, cfg.Force},
		{options.CleanupTmpDir, &opts.cleanupTmp, cfg.CleanupTmpDir},
	} {
		if !flags.Changed(flag.name) {
			*flag.value = flag.inTheFile
		}
	}
	data.readCluster()
	data.certificatesDir = cfg.CertificatesDir
	if !flags.Changed(options.CertificatesDir) && data.initCfg != nil && data.initCfg.CertificatesDir != "" {
		data.certificatesDir = data.initCfg.CertificatesDir
	}
	return data, nil
}

// readCluster reads the cluster's configuration if this is a control plane that
// answers. It tells where etcd keeps its data; without it the defaults are used.
func (d *resetData) readCluster() {
	if !exists(d.kubeconfig) || !staticpodutil.IsControlPlaneNode() {
		return
	}
	client, err := kubeconfigutil.ClientSetFromFile(d.kubeconfig)
	if err == nil {
		d.client = client
		d.initCfg, err = configutil.FetchInitConfigurationFromCluster(client, &silentPrinter{}, "reset", true, true, true, true)
	}
	if err != nil {
		klog.Warningf("[reset] The cluster's configuration cannot be read (%v): using the files of this machine", err)
	}
}

func (d *resetData) ForceReset() bool                         { return d.force }
func (d *resetData) InputReader() io.Reader                   { return d.in }
func (d *resetData) OutputWriter() io.Writer                  { return d.out }
func (d *resetData) IgnorePreflightErrors() sets.Set[string]  { return d.ignorePreflight }
func (d *resetData) Cfg() *kubeadmapi.InitConfiguration       { return d.initCfg }
func (d *resetData) ResetCfg() *kubeadmapi.ResetConfiguration { return d.cfg }
func (d *resetData) DryRun() bool                             { return d.dryRun }
func (d *resetData) Client() clientset.Interface              { return d.client }
func (d *resetData) CertificatesDir() string                  { return d.certificatesDir }
func (d *resetData) CRISocketPath() string                    { return d.cfg.CRISocket }
func (d *resetData) CleanupTmpDir() bool                      { return d.cleanupTmp }
func (d *resetData) Supervisor() (host.Supervisor, error)     { return d.supervisor() }
