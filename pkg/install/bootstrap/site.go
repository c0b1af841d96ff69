package bootstrap

import (
	"context"
	"fmt"
	"strings"
	"time"

	componentversion "k8s.io/component-base/version"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/install/site"
)

// NewSitePhase learns the site from the token and creates the Node of a site's
// node before its kubelet does.
func NewSitePhase(args string) workflow.Phase {
	return workflow.Phase{
		Name:         "site" + args,
		Short:        "Learn this node's site from the token and create its Node with it",
		Long:         "Ask the API server which site the token belongs to, and create this node's Node object with that site. The kubelet finds the object there; it may not set or change the site itself.",
		InheritFlags: append([]string{SiteFlag}, discoveryFlags...),
		Run:          runSite,
	}
}

func runSite(c workflow.RunData) error {
	data, err := dataOf[JoinData]("site", c)
	if err != nil {
		return err
	}
	userLabels, err := UserLabels(data.Registration())
	if err != nil {
		return err
	}
	name, err := NodeName(data.Registration())
	if err != nil {
		return err
	}
	bootstrap, err := data.TLSBootstrapCfg()
	if err != nil {
		return err
	}
	if data.DryRun() {
		say(data, "site", "Would ask the API server for the token's site and create Node %s in it", name)
		return nil
	}
	client, err := kubeconfigutil.ToClientSet(bootstrap)
	if err != nil {
		return fmt.Errorf("making a client of the bootstrap credentials: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	groups, err := site.Groups(ctx, client)
	if err != nil {
		return err
	}
	mine, err := site.Decide(groups, data.RequestedSite())
	if err != nil {
		return err
	}
	if mine == "" {
		if err := site.CheckExisting(ctx, client, name, ""); err != nil {
			return err
		}
		say(data, "site", "The token has no site: %s joins as a cloud node", name)
	} else {
		created, err := site.EnsureNode(ctx, client, site.NewNode(name, mine, userLabels, data.Registration().Taints))
		if err != nil {
			return err
		}
		if created {
			say(data, "site", "Created Node %s in site %s", name, mine)
		} else {
			say(data, "site", "Node %s is in site %s already", name, mine)
		}
	}
	data.SetSite(mine)
	return recordNode(site.Record{Role: site.RoleWorker, NodeName: name, Site: mine, Server: serverOf(bootstrap)})
}

// UserLabels returns the labels that the user gives the node through the
// kubelet's flags. Labels of ours among them would make the API server refuse
// the kubelet for ever, so they are refused here.
func UserLabels(registration *kubeadmapi.NodeRegistrationOptions) (map[string]string, error) {
	flag, _ := kubeadmapi.GetArgValue(registration.KubeletExtraArgs, "node-labels", -1)
	labels, err := site.NodeLabels(flag)
	if err != nil {
		return nil, err
	}
	for key := range labels {
		if domain, _, _ := strings.Cut(key, "/"); domain == api.Group || strings.HasSuffix(domain, "."+api.Group) {
			return nil, fmt.Errorf("nodeRegistration.kubeletExtraArgs: node-labels has %s: a node cannot give itself labels of %s; its site comes with the token (`skerry token create --site NAME`)", key, api.Group)
		}
	}
	return labels, nil
}

// recordNode writes down what this machine is, for `skerry status`.
func recordNode(record site.Record) error {
	record.Version = componentversion.Get().GitVersion
	record.Since = time.Now().UTC().Truncate(time.Second)
	record.LastReached = record.Since
	return site.WriteRecord(site.RecordPath, record)
}
