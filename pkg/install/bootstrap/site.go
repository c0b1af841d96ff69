package bootstrap

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientset "k8s.io/client-go/kubernetes"
	componentversion "k8s.io/component-base/version"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"
	kubeconfigutil "k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/install/site"
)

// NewDiscoverPhase finds the cluster, which may refuse this machine before
// anything is changed on it.
func NewDiscoverPhase(args string) workflow.Phase {
	return workflow.Phase{
		Name:         "discover" + args,
		Short:        "Find the cluster and ask whether it takes this machine",
		Long:         "Find the cluster and check that it is the right one; ask it which site the token belongs to, and whether another machine has this node's name. What stops a join for one of these reasons has changed nothing on this machine.",
		InheritFlags: append([]string{SiteFlag}, discoveryFlags...),
		Run:          runDiscover,
	}
}

func runDiscover(c workflow.RunData) error {
	data, err := dataOf[JoinData]("discover", c)
	if err != nil {
		return err
	}
	if err := preflight.RunRootCheckOnly(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	if data.DryRun() {
		say(data, "discover", "Would ask the cluster whether it takes this machine")
		return nil
	}
	say(data, "discover", "Looking for the cluster, for up to %s", data.Cfg().Timeouts.Discovery.Duration)
	one, err := newCandidate(data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	if err := site.CheckExisting(ctx, one.client, one.name, one.site); err != nil {
		return err
	}
	return refuseReadyNode(data)
}

// candidate is this machine as the cluster sees it before it joins.
type candidate struct {
	client clientset.Interface // with the bootstrap credentials
	server string
	name   string
	site   string // "" is the cloud
}

// newCandidate asks the API server which site this machine would join.
func newCandidate(data JoinData) (candidate, error) {
	var one candidate
	var err error
	if one.name, err = NodeName(data.Registration()); err != nil {
		return one, err
	}
	bootstrap, err := data.TLSBootstrapCfg()
	if err != nil {
		return one, err
	}
	one.server = serverOf(bootstrap)
	if one.client, err = kubeconfigutil.ToClientSet(bootstrap); err != nil {
		return one, fmt.Errorf("making a client of the bootstrap credentials: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	groups, err := site.Groups(ctx, one.client)
	if err != nil {
		return one, err
	}
	one.site, err = site.Decide(groups, data.RequestedSite())
	return one, err
}

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
	if data.DryRun() {
		say(data, "site", "Would ask the API server for the token's site and create this machine's Node in it")
		return nil
	}
	one, err := newCandidate(data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	if one.site == "" {
		if err := site.CheckExisting(ctx, one.client, one.name, ""); err != nil {
			return err
		}
		say(data, "site", "The token has no site: %s joins as a cloud node", one.name)
	} else {
		created, err := site.EnsureNode(ctx, one.client, site.NewNode(one.name, one.site, userLabels, data.Registration().Taints))
		if err != nil {
			return err
		}
		if created {
			say(data, "site", "Created Node %s in site %s", one.name, one.site)
		} else {
			say(data, "site", "Node %s is in site %s already", one.name, one.site)
		}
	}
	data.SetSite(one.site)
	return recordNode(site.Record{Role: site.RoleWorker, NodeName: one.name, Site: one.site, Server: one.server})
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
