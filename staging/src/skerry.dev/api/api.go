// Package api holds the words that Skerry adds to the Kubernetes API: node
// labels, node conditions and their reasons. It is a module of its own, so that
// users can import it without the rest of Skerry.
//
// It must not import anything but the Go standard library. The packages of types
// below may import k8s.io/api and k8s.io/apimachinery too; only the apply
// configurations, generated beside the types, need k8s.io/client-go.
package api

// Group is the domain of every label, annotation and condition that Skerry
// owns. Nodes may not write any key under it (see cluster/policies).
const Group = "skerry.dev"

const (
	// SiteLabel names the site a node belongs to: the nodes that reach each
	// other over a local network. A node without it is a cloud node and is
	// treated exactly as upstream Kubernetes treats it.
	SiteLabel = Group + "/site"

	// AliveCondition is the Node condition that publishes what the cloud
	// concludes about a node whose heartbeat is lost: True, False (the node is
	// dead; what upstream does for an unreachable node happens) or Unknown.
	// A missing condition means Unknown.
	AliveCondition = Group + "/Alive"
)
