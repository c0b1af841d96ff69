package bootstrap

import (
	"fmt"
	"strings"
	"text/template"

	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	cmdutil "k8s.io/kubernetes/cmd/kubeadm/app/cmd/util"
)

var initDone = template.Must(template.New("init done").Parse(`
The control plane of your cluster runs.

To use it as root:

    export KUBECONFIG={{.Kubeconfig}}
    kubectl get nodes

To join machines of a site, make a token of that site here:

    skerry token create --site east --print-join-command

and run the command that it prints, as root, on each machine of the site.
{{- range .Commands}}

To join a machine to the cloud, without a site, run on it as root:

    {{.}}
{{- end}}
`))

// NewShowJoinCommandPhase says what to do next.
func NewShowJoinCommandPhase() workflow.Phase {
	return workflow.Phase{
		Name:         "show-join-command",
		Short:        "Show how to use the cluster and how to join machines",
		Run:          runShowJoinCommand,
		Dependencies: []string{"bootstrap-token", "upload-certs"},
	}
}

func runShowJoinCommand(c workflow.RunData) error {
	data, err := dataOf[InitData]("show-join-command", c)
	if err != nil {
		return err
	}
	if data.DryRun() {
		say(data, "show-join-command", "Would say how to use the cluster and how to join machines")
		return nil
	}
	var commands []string
	for _, token := range data.Tokens() {
		command, err := JoinCommand(data.KubeConfigPath(), token, data.SkipTokenPrint())
		if err != nil {
			return err
		}
		commands = append(commands, command)
	}
	return initDone.Execute(data.OutputWriter(), map[string]any{"Kubeconfig": data.KubeConfigPath(), "Commands": commands})
}

// JoinCommand returns the command, on one line, that joins a machine with the
// token to the cluster of the kubeconfig.
func JoinCommand(kubeconfig, token string, hideToken bool) (string, error) {
	command, err := cmdutil.GetJoinWorkerCommand(kubeconfig, token, hideToken)
	if err != nil {
		return "", fmt.Errorf("composing the join command from %s: %w", kubeconfig, err)
	}
	command = strings.Join(strings.Fields(strings.ReplaceAll(command, "\\\n", " ")), " ")
	return "skerry" + strings.TrimPrefix(command, "kubeadm"), nil
}
