// Package site decides which site a joining node belongs to, and makes the Node
// object that says so before the kubelet exists.
//
// A bootstrap token carries its site as an authentication group, so the API
// server knows it and a node cannot choose another (cluster/policies holds the
// admission policy). This package must not know how a token is made durable,
// how a kubelet is started or what a site means to the rest of Skerry.
package site

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"skerry.dev/api"
)

const (
	// Group is the group of every bootstrap token that has a site. RBAC grants
	// it, and no other bootstrap token, the right to create Nodes.
	Group = "system:bootstrappers:skerry:site"

	// groupPrefix precedes the site's name in the group that names the site.
	groupPrefix = Group + ":"

	// bootstrappers is the group of every bootstrap token.
	bootstrappers = "system:bootstrappers"

	// UnknownTaint is registered by the kubelet of a site's node when it has to
	// create its Node object itself: somebody deleted the Node, so its site
	// label is gone. It keeps pods away until an administrator labels the node.
	UnknownTaint = api.Group + "/site-unknown"
)

// ValidateName says whether a name can be the name of a site: an RFC 1123
// label, because it is a label value and a part of group and object names.
func ValidateName(name string) error {
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return fmt.Errorf("site name %q is invalid: %s", name, strings.Join(problems, "; "))
	}
	return nil
}

// GroupsOf returns the groups that a bootstrap token of the site carries.
func GroupsOf(name string) []string {
	return []string{Group, groupPrefix + name}
}

// FromGroups returns the sites that authentication groups name, sorted.
// Malformed names are left out: they cannot be the name of a site.
func FromGroups(groups []string) []string {
	var sites []string
	for _, group := range groups {
		name, ok := strings.CutPrefix(group, groupPrefix)
		if ok && ValidateName(name) == nil && !slices.Contains(sites, name) {
			sites = append(sites, name)
		}
	}
	slices.Sort(sites)
	return sites
}

// Decide returns the site of a joining node ("" for a cloud node) from the
// groups of the identity that it joins with and from what the user asked for.
func Decide(groups []string, requested string) (string, error) {
	if requested != "" {
		if err := ValidateName(requested); err != nil {
			return "", err
		}
	}
	sites := FromGroups(groups)
	if !slices.ContainsFunc(groups, isBootstrapper) {
		// Not a bootstrap token (a discovery file with an administrator's
		// credentials, say): the API server decides what it may do.
		return requested, nil
	}
	switch {
	case requested == "" && len(sites) == 0:
		return "", nil
	case requested == "" && len(sites) == 1:
		return sites[0], nil
	case requested == "":
		return "", fmt.Errorf("the token is good for several sites (%s): choose one with --site", strings.Join(sites, ", "))
	case slices.Contains(sites, requested):
		return requested, nil
	case len(sites) == 0:
		return "", fmt.Errorf("--site %s: the token has no site; make one with `skerry token create --site %s`, or leave --site out to join as a cloud node", requested, requested)
	default:
		return "", fmt.Errorf("--site %s: the token belongs to site %s; make another with `skerry token create --site %s`", requested, strings.Join(sites, ", "), requested)
	}
}

func isBootstrapper(group string) bool {
	return group == bootstrappers || strings.HasPrefix(group, bootstrappers+":")
}
