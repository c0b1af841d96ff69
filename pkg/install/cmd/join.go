package cmd

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	kubeadmscheme "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/scheme"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	phases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/join"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	cmdutil "k8s.io/kubernetes/cmd/kubeadm/app/cmd/util"

	"skerry.dev/skerry/pkg/install/bootstrap"
	"skerry.dev/skerry/pkg/install/images"
)

// joinOptions are the flags of join.
type joinOptions struct {
	external  *kubeadmapiv1.JoinConfiguration
	token     string
	discovery kubeadmapiv1.BootstrapTokenDiscovery
	file      kubeadmapiv1.FileDiscovery

	configPath      string
	ignorePreflight []string
	patchesDir      string
	imagesDir       string
	site            string
	dryRun          bool
	controlPlane    bool
}

// discoveryFlags say how to find and trust the cluster. They may be mixed with
// a configuration file that does not say it.
var discoveryFlags = []string{
	options.TokenStr, options.TokenDiscovery, options.TokenDiscoveryCAHash, options.TokenDiscoverySkipCAHash,
	options.TLSBootstrapToken, options.FileDiscovery,
}

// NewJoinCommand returns `skerry join`: kubeadm's for workers, with phases of
// ours between.
func NewJoinCommand() *cobra.Command {
	opts := &joinOptions{external: &kubeadmapiv1.JoinConfiguration{}, imagesDir: images.DefaultDir}
	runner := workflow.NewRunner()
	command := &cobra.Command{
		Use:   "join [api-server-endpoint]",
		Short: "Join this machine to a cluster, to the site of its token",
		Long: "Join this machine to a cluster. A token made with `skerry token create --site NAME` joins it to that site; a token without a site makes it a cloud node.\n" +
			"Flags, configuration file and phases are kubeadm's where they mean the same; server and token may also come from flags when --config is given and does not hold them.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := runner.InitData(args)
			if err != nil {
				return err
			}
			if err := untilInterrupted(cmd.Context(), func() error { return runner.Run(args) }); err != nil {
				return err
			}
			c.(*joinData).sayDone()
			return nil
		},
		SilenceUsage: true,
	}
	opts.addFlags(command.Flags())
	const endpoint = " [api-server-endpoint]"
	for _, phase := range []workflow.Phase{
		bootstrap.NewDiscoverPhase(endpoint),
		bootstrap.NewHostPhase(endpoint),
		bootstrap.NewImagesPhase(endpoint),
		bootstrap.NewJoinPreflightPhase(),
		bootstrap.NewSitePhase(endpoint),
		bootstrap.NewAgentPhase(endpoint),
		bootstrap.NewJoinKubeletStartPhase(),
		phases.NewKubeletWaitBootstrapPhase(),
		bootstrap.NewCNIPhase(),
	} {
		runner.AppendPhase(phase)
	}
	runner.SetDataInitializer(func(cmd *cobra.Command, args []string) (workflow.RunData, error) {
		data, err := newJoinData(cmd, args, opts, cmd.OutOrStdout())
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

func (o *joinOptions) addFlags(flags *pflag.FlagSet) {
	kubeadmscheme.Scheme.Default(o.external)
	flags.StringVar(&o.external.NodeRegistration.Name, options.NodeName, "", "Name of this node; the host name unless given.")
	flags.StringVar(&o.token, options.TokenStr, "", "Token for both --discovery-token and --tls-bootstrap-token, where those are not given.")
	flags.StringVar(&o.discovery.Token, options.TokenDiscovery, "", "Token that proves what the API server says about the cluster.")
	flags.StringSliceVar(&o.discovery.CACertHashes, options.TokenDiscoveryCAHash, nil, "Accept only a cluster whose CA has this public key hash (\"sha256:<hex>\"); may be given several times.")
	flags.BoolVar(&o.discovery.UnsafeSkipCAVerification, options.TokenDiscoverySkipCAHash, false, "Trust the token alone, without --discovery-token-ca-cert-hash: whoever has a token can then pretend to be the cluster.")
	flags.StringVar(&o.external.Discovery.TLSBootstrapToken, options.TLSBootstrapToken, "", "Token to authenticate with while joining.")
	flags.StringVar(&o.file.KubeConfigPath, options.FileDiscovery, "", "File or https URL with the cluster's address and CA, instead of the server's address.")
	flags.BoolVar(&o.controlPlane, options.ControlPlane, false, "Not supported: skerry joins workers only.")
	flags.BoolVar(&o.dryRun, options.DryRun, false, "Change nothing; print what would be done.")
	flags.StringVar(&o.site, bootstrap.SiteFlag, "", "Join this site only: fail if the token does not belong to it.")
	cmdutil.AddCRISocketFlag(flags, &o.external.NodeRegistration.CRISocket)
	options.AddConfigFlag(flags, &o.configPath)
	options.AddIgnorePreflightErrorsFlag(flags, &o.ignorePreflight)
	options.AddPatchesFlag(flags, &o.patchesDir)
	addImagesDirFlag(flags, &o.imagesDir)
}

// errControlPlane refuses what would need more than a worker's phases.
var errControlPlane = errors.New("skerry joins workers only: further control-plane nodes are not supported; leave --control-plane (or controlPlane in the JoinConfiguration) out")

// setDiscovery completes what flags and arguments say about finding the cluster.
func (o *joinOptions) setDiscovery(args []string) {
	discovery := &o.external.Discovery
	if discovery.TLSBootstrapToken == "" {
		discovery.TLSBootstrapToken = o.token
	}
	if o.discovery.Token == "" {
		o.discovery.Token = o.token
	}
	if o.file.KubeConfigPath != "" {
		discovery.File = &o.file
	}
	if len(args) > 0 {
		o.discovery.APIServerEndpoint = args[0]
		discovery.BootstrapToken = &o.discovery
	}
}

// sayDone tells the user what he has now.
func (d *joinData) sayDone() {
	if d.DryRun() {
		return
	}
	place := "as a cloud node"
	if name := d.Site(); name != "" {
		place = "in site " + name
	}
	fmt.Fprintf(d.out, "\nThis machine is a node of the cluster, %s.\nSee it with `kubectl get nodes` on the control plane, and with `skerry status` here.\n", place)
}
