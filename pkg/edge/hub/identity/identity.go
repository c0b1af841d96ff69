// Package identity says who a client of the hub is and what it may read while
// the cloud is away. It owns the certificate authority of the node, verifies
// service account tokens with the cluster's public keys, evaluates RBAC over the
// stored objects and asks the API server while it can be asked. It must not know
// how requests are served or forwarded, and it never makes up a credential.
package identity

import (
	"strings"
)

// NodeID is the ID of the node's own components.
const NodeID = "node"

// Names that Kubernetes gives to nodes, service accounts and their groups.
const (
	nodeUserPrefix           = "system:node:"
	nodesGroup               = "system:nodes"
	serviceAccountUserPrefix = "system:serviceaccount:"
	serviceAccountsGroup     = "system:serviceaccounts"
	authenticatedGroup       = "system:authenticated"
)

// User is who somebody is, as the API server understands it.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// Caller is a client of the hub.
type Caller struct {
	User User
	// Node says that the caller is a component of this node (the kubelet): it
	// has a certificate of the node's own authority.
	Node bool
	// Token is the bearer token, which goes upstream as it is; "" for Node.
	Token string
	// PodUID is the pod that the token is bound to; "" if none, or if the token
	// was not verified here.
	PodUID string
	// Verified says that the hub itself proved who the caller is. A caller that
	// is not verified may be known to the API server (webhook, OIDC, a new key):
	// its User is empty, its requests go upstream, and nothing else is done for
	// it.
	Verified bool
}

// ID names the caller in metrics, in the policy and in audit lines: "node", the
// user name, or "unverified".
func (c Caller) ID() string {
	switch {
	case c.Node:
		return NodeID
	case c.User.Name != "":
		return c.User.Name
	default:
		return "unverified"
	}
}

// ServiceAccount returns the namespace and the name of a service account.
func (c Caller) ServiceAccount() (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(c.User.Name, serviceAccountUserPrefix)
	if !ok || !c.Verified {
		return "", "", false
	}
	return strings.Cut(rest, ":")
}

// Attributes are what a request wants to do. Resource is "" for a request that
// is about no resource; Path says what it is about then.
type Attributes struct {
	Verb                     string
	Group, Version, Resource string
	Subresource              string
	Namespace, Name          string
	Path                     string
	// Selectors of a list, watch or deletecollection, as text; "" for none. An
	// authorizer of the API server may allow a part of a collection only.
	LabelSelector, FieldSelector string
}
