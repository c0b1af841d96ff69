// Package agentapi is what skerry-agent and the other programs of its node
// agree on: where its sockets and files are, and the status that it tells. It is
// a leaf: install, hooks and the agent import it, and it must not know how any
// of them works.
package agentapi

import "time"

// Addresses and files of the agent. They are the same on each node.
const (
	// HubAddress is the hub's listener for the components of the node.
	HubAddress = "127.0.0.1:10270"
	// PodAddress is the hub's listener for pods, on a link-local address of the
	// interface PodInterface. No router leads there; a neighbour on the same
	// network that goes out of its way must authenticate like anybody else.
	PodAddress   = "169.254.20.10:10270"
	PodInterface = "skerry0"
	// HealthAddress serves /healthz, /readyz and /metrics as plain HTTP.
	HealthAddress = "127.0.0.1:10271"
	// RejoinPort is where control-plane nodes serve nodes whose certificate ran
	// out.
	RejoinPort = 10272

	// Socket serves Status (and what `skerry store` asks) to root.
	Socket = "/run/skerry/agent.sock"
	// ConfigFile is the agent's configuration on this node.
	ConfigFile = "/etc/skerry/agent.yaml"
	// StateDir has the store, the sealing key and pki/.
	StateDir = "/var/lib/skerry/agent"
	// StoreFile, StoreKeyFile and JournalFile are the store's.
	StoreFile    = StateDir + "/store.db"
	StoreKeyFile = StateDir + "/store.key"
	JournalFile  = "/run/skerry/agent.journal"
	// PKIDir has node-ca.crt and node-ca.key, hub.crt and hub.key (serving),
	// kubelet.crt and kubelet.key (the kubelet's credential at the hub), and
	// the node's own client certificate, node-client-current.pem.
	PKIDir = StateDir + "/pki"
	// BootstrapKubeconfig is what the agent gets its first certificate with;
	// removed when it has one.
	BootstrapKubeconfig = "/etc/kubernetes/bootstrap-agent.conf"
	// ClusterCA is the cluster's certificate authority, as kubeadm leaves it.
	ClusterCA = "/etc/kubernetes/pki/ca.crt"
)

// Status is what the agent knows about itself and its link. GET /status on
// Socket answers it as JSON.
type Status struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	// Online says whether the API server answers; Since when that began.
	Online bool      `json:"online"`
	Since  time.Time `json:"since"`
	// LastContact is the last answer from the API server.
	LastContact time.Time `json:"lastContact"`
	Server      string    `json:"server"` // the API server in use
	Reason      string    `json:"reason,omitempty"`
	// Views is what the store keeps; Stale those that are behind.
	Views []ViewStatus `json:"views"`
	// Unsent is the queue of writes that the cloud does not know.
	Unsent       int       `json:"unsent"`
	OldestUnsent time.Time `json:"oldestUnsent,omitzero"`
	// CertificateExpires is when the node's client certificate runs out.
	CertificateExpires time.Time   `json:"certificateExpires,omitzero"`
	Store              StoreStatus `json:"store"`
	// Neighbours is what the observer knows; nil if it is switched off.
	Neighbours *Neighbours `json:"neighbours,omitempty"`
	Problems   []string    `json:"problems,omitempty"`
}

// ViewStatus is one view.
type ViewStatus struct {
	Resource  string    `json:"resource"` // pods, endpointslices.discovery.k8s.io
	Namespace string    `json:"namespace,omitempty"`
	Selector  string    `json:"selector,omitempty"`
	Objects   int       `json:"objects"`
	Synced    time.Time `json:"synced"`
	Live      bool      `json:"live"` // followed by a watch right now
}

// StoreStatus is the store's size and health.
type StoreStatus struct {
	Bytes       int64 `json:"bytes"`
	MaxBytes    int64 `json:"maxBytes"`
	Objects     int   `json:"objects"`
	Quarantined int   `json:"quarantined"`
	Full        bool  `json:"full"`
}

// ObserverPort is where the observers of a site speak to each other, over UDP.
const ObserverPort = 10274

// NeighbourState is what a node knows about another node of its site.
type NeighbourState string

// States of a neighbour.
const (
	// NeighbourUnknown: nothing has been found out yet.
	NeighbourUnknown NeighbourState = "Unknown"
	// NeighbourAlive: it gives signs of life.
	NeighbourAlive NeighbourState = "Alive"
	// NeighbourSuspect: it did not answer just now; some seconds tell.
	NeighbourSuspect NeighbourState = "Suspect"
	// NeighbourUnreachable: it gives no sign of life, to this node or through
	// the others.
	NeighbourUnreachable NeighbourState = "Unreachable"
)

// Neighbour is what a node knows about another node of its site.
type Neighbour struct {
	Name  string         `json:"name"`
	State NeighbourState `json:"state"`
	// Since is when the state began, and Heard the last sign of life that this
	// node had itself.
	Since time.Time `json:"since"`
	Heard time.Time `json:"heard,omitzero"`
	// KubeletDown and RuntimeDown are what the neighbour says of itself.
	KubeletDown bool `json:"kubeletDown,omitempty"`
	RuntimeDown bool `json:"runtimeDown,omitempty"`
}

// Neighbours is what a node knows about its site, also while the cloud is away.
// GET /neighbours on Socket answers it as JSON.
type Neighbours struct {
	// Site is the node's site; empty: it has none, and observes nobody.
	Site string `json:"site,omitempty"`
	// Blind says that this node's own network is down, so that it cannot tell
	// anything about the others; Isolated that it reaches none of at least two.
	Blind    bool `json:"blind,omitempty"`
	Isolated bool `json:"isolated,omitempty"`
	// KubeletDown and RuntimeDown are what this node finds at home.
	KubeletDown bool `json:"kubeletDown,omitempty"`
	RuntimeDown bool `json:"runtimeDown,omitempty"`
	// Members are the other nodes of the site, by name.
	Members []Neighbour `json:"members"`
}
