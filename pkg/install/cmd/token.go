package cmd

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	clientset "k8s.io/client-go/kubernetes"
	bootstraptokenv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/bootstraptoken/v1"
	kubeadmscheme "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/scheme"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/validation"
	outputapischeme "k8s.io/kubernetes/cmd/kubeadm/app/apis/output/scheme"
	outputapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/output/v1alpha3"
	kubeadmcmd "k8s.io/kubernetes/cmd/kubeadm/app/cmd"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/options"
	cmdutil "k8s.io/kubernetes/cmd/kubeadm/app/cmd/util"
	tokenphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/bootstraptoken/node"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/output"

	"skerry.dev/skerry/pkg/install/bootstrap"
	"skerry.dev/skerry/pkg/install/site"
)

// tokenCommand makes the subcommands of `skerry token`.
type tokenCommand struct {
	kubeconfig string
}

// NewTokenCommand returns `skerry token`.
func NewTokenCommand() *cobra.Command {
	t := &tokenCommand{}
	command := &cobra.Command{
		Use:   "token",
		Short: "Make, list and delete the tokens that machines join with",
		Long:  "Make, list and delete bootstrap tokens. A token made with --site joins machines to that site and to no other.",
	}
	cmdutil.RequireSubcommand(command)
	options.AddKubeConfigFlag(command.PersistentFlags(), &t.kubeconfig)
	command.AddCommand(t.create(), t.list(), t.delete(), t.generate())
	for _, sub := range command.Commands() {
		sub.SilenceUsage = true
	}
	return command
}

func (t *tokenCommand) client() (clientset.Interface, error) {
	t.kubeconfig = cmdutil.GetKubeConfigPath(t.kubeconfig)
	client, err := kubeconfigutil.ClientSetFromFile(t.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("tokens are made on the control plane, or with --kubeconfig: %w", err)
	}
	return client, nil
}

func (t *tokenCommand) create() *cobra.Command {
	token := options.NewBootstrapTokenOptions()
	var siteName string
	var printJoin bool
	command := &cobra.Command{
		Use:   "create [token]",
		Short: "Make a token and print it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				token.TokenStr = args[0]
			}
			made, err := newToken(token, siteName, cmd.Flags().Changed(options.TokenDescription))
			if err != nil {
				return err
			}
			client, err := t.client()
			if err != nil {
				return err
			}
			if err := tokenphase.CreateNewTokens(client, []bootstraptokenv1.BootstrapToken{made}); err != nil {
				return fmt.Errorf("storing the token in the cluster: %w", err)
			}
			line := made.Token.String()
			if printJoin {
				if line, err = bootstrap.JoinCommand(t.kubeconfig, line, false); err != nil {
					return err
				}
			}
			fmt.Fprintln(cmd.OutOrStdout(), line)
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&siteName, bootstrap.SiteFlag, "", "Site of the machines that join with this token.")
	flags.BoolVar(&printJoin, "print-join-command", false, "Print the whole command that joins a machine.")
	token.AddTTLFlagWithName(flags, "ttl")
	token.AddUsagesFlag(flags)
	token.AddGroupsFlag(flags)
	token.AddDescriptionFlag(flags)
	return command
}

// newToken completes and checks a token: random unless it was given, with the
// groups of its site.
func newToken(opts *options.BootstrapTokenOptions, siteName string, described bool) (bootstraptokenv1.BootstrapToken, error) {
	none := bootstraptokenv1.BootstrapToken{}
	if siteName != "" {
		if err := site.ValidateName(siteName); err != nil {
			return none, fmt.Errorf("--%s: %w", bootstrap.SiteFlag, err)
		}
		if given := site.FromGroups(opts.Groups); len(given) > 0 && !slices.Equal(given, []string{siteName}) {
			return none, fmt.Errorf("--%s %s: --%s names site %s", bootstrap.SiteFlag, siteName, options.TokenGroups, strings.Join(given, ", "))
		}
		for _, group := range site.GroupsOf(siteName) {
			if !slices.Contains(opts.Groups, group) {
				opts.Groups = append(opts.Groups, group)
			}
		}
		if !described {
			opts.Description = "Joins machines to site " + siteName
		}
	}
	holder := &kubeadmapiv1.InitConfiguration{}
	if err := opts.ApplyTo(holder); err != nil {
		return none, err
	}
	kubeadmscheme.Scheme.Default(holder)
	if err := configutil.SetBootstrapTokensDynamicDefaults(&holder.BootstrapTokens); err != nil {
		return none, err
	}
	if err := validation.ValidateBootstrapTokens(holder.BootstrapTokens, field.NewPath("token")).ToAggregate(); err != nil {
		return none, err
	}
	return holder.BootstrapTokens[0], nil
}

func (t *tokenCommand) list() *cobra.Command {
	flags := output.NewOutputFlags(tokenTextFlags{}).WithTypeSetter(outputapischeme.Scheme).WithDefaultOutput(output.TextOutput)
	command := &cobra.Command{
		Use:   "list",
		Short: "List the tokens and their sites",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := t.client()
			if err != nil {
				return err
			}
			printer, err := flags.ToPrinter()
			if err != nil {
				return err
			}
			if err := kubeadmcmd.RunListTokens(cmd.OutOrStdout(), cmd.ErrOrStderr(), client, printer); err != nil {
				return err
			}
			if text, ok := printer.(*tokenTextPrinter); ok && text.table != nil {
				return text.table.Flush()
			}
			return nil
		},
	}
	flags.AddFlags(command)
	return command
}

func (t *tokenCommand) delete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete TOKEN-OR-ID...",
		Short: "Delete tokens; machines that joined with them stay",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := t.client()
			if err != nil {
				return err
			}
			return kubeadmcmd.RunDeleteTokens(cmd.OutOrStdout(), client, args)
		},
	}
}

func (t *tokenCommand) generate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate",
		Short: "Print a random token without making it in the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return kubeadmcmd.RunGenerateToken(cmd.OutOrStdout())
		},
	}
}

// tokenTextFlags makes the printer of `skerry token list` for people.
type tokenTextFlags struct{}

func (tokenTextFlags) ToPrinter(format string) (output.Printer, error) {
	if format != output.TextOutput {
		return nil, genericclioptions.NoCompatiblePrinterError{OutputFormat: &format, AllowedFormats: []string{output.TextOutput}}
	}
	return &tokenTextPrinter{}, nil
}

// tokenTextPrinter prints tokens as one table.
type tokenTextPrinter struct {
	output.TextPrinter
	table *tabwriter.Writer
}

// PrintObj adds a row to the table.
func (p *tokenTextPrinter) PrintObj(object runtime.Object, out io.Writer) error {
	token, ok := object.(*outputapi.BootstrapToken)
	if !ok {
		return fmt.Errorf("cannot print a %T as a token", object)
	}
	if p.table == nil {
		p.table = tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
		fmt.Fprintln(p.table, "TOKEN\tSITE\tTTL\tEXPIRES\tUSAGES\tDESCRIPTION")
	}
	fmt.Fprintln(p.table, strings.Join(tokenRow(token, time.Now()), "\t"))
	return nil
}

func tokenRow(token *outputapi.BootstrapToken, now time.Time) []string {
	or := func(value, instead string) string {
		if value == "" {
			return instead
		}
		return value
	}
	ttl, expires := "<forever>", "<never>"
	if token.Expires != nil {
		ttl, expires = duration.ShortHumanDuration(token.Expires.Sub(now)), token.Expires.Format(time.RFC3339)
	}
	return []string{
		token.Token.String(),
		or(strings.Join(site.FromGroups(token.Groups), ","), "<cloud>"),
		ttl, expires,
		or(strings.Join(token.Usages, ","), "<none>"),
		or(token.Description, "<none>"),
	}
}
