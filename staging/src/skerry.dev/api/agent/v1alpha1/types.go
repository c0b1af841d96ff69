// Package v1alpha1 holds the configuration of skerry-agent, the process that
// stands between an edge node and its API server: AgentConfiguration, a file on
// each node, and AgentPolicy, one object for all nodes of a cluster.
//
// It must not import anything but the Go standard library.
package v1alpha1

import (
	"encoding/json"
	"fmt"
	"time"
)

// APIVersion and the kinds of this package.
const (
	APIVersion             = "agent.skerry.dev/v1alpha1"
	AgentConfigurationKind = "AgentConfiguration"
	AgentPolicyKind        = "AgentPolicy"
)

// Where the policy of a cluster is: in this ConfigMap, under this key.
const (
	PolicyNamespace = "kube-system"
	PolicyName      = "skerry-agent"
	PolicyKey       = "config.yaml"
)

// TypeMeta says what a document is.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// AgentConfiguration is what an agent must know of its own node before it has
// spoken to anybody. `skerry join` writes it to /etc/skerry/agent.yaml; it is
// read at start.
type AgentConfiguration struct {
	TypeMeta `json:",inline"`

	// NodeName is this node's name in the cluster. Required.
	NodeName string `json:"nodeName"`
	// Servers are the API servers as https URLs, tried in this order. Required.
	Servers []string `json:"servers"`
	// RejoinPort is the port, on the hosts of Servers, that serves nodes whose
	// certificate ran out. Default: 10272.
	RejoinPort int `json:"rejoinPort,omitempty"`
	// ClusterDomain is the cluster's DNS domain. Default: cluster.local.
	ClusterDomain string `json:"clusterDomain,omitempty"`
	// ServiceAddresses are the addresses of Service default/kubernetes, to
	// which pods speak. Default: 10.96.0.1.
	ServiceAddresses []string `json:"serviceAddresses,omitempty"`
	// Listen says where the agent listens.
	Listen Listen `json:"listen,omitzero"`
	// Files says where the agent keeps and finds things.
	Files Files `json:"files,omitzero"`
	// Memory bounds the agent's memory.
	Memory Memory `json:"memory,omitzero"`
	// LogLevel is debug, info, warn or error. Default: info.
	LogLevel string `json:"logLevel,omitempty"`
}

// Listen holds addresses of the form HOST:PORT.
type Listen struct {
	// Hub serves the components of the node. Default: 127.0.0.1:10270.
	Hub string `json:"hub,omitempty"`
	// Pods serves pods; "none" switches it off. Default: 169.254.20.10:10270.
	Pods string `json:"pods,omitempty"`
	// PodInterface is made, with the address of Pods, unless it is there;
	// "none" leaves the address to somebody else. Default: skerry0.
	PodInterface string `json:"podInterface,omitempty"`
	// Health serves /healthz, /readyz, /livez and /metrics as plain HTTP.
	// Default: 127.0.0.1:10271.
	Health string `json:"health,omitempty"`
	// Observer is where the node and the others of its site watch over each
	// other, by UDP; all must have the same port. "none" switches that off: then
	// this node is no witness, and others cannot tell that it is alive. Default:
	// [::]:10274.
	Observer string `json:"observer,omitempty"`
	// Socket is a Unix socket that only root can use. Default:
	// /run/skerry/agent.sock.
	Socket string `json:"socket,omitempty"`
}

// None switches off what has an address or a name.
const None = "none"

// Files holds absolute paths.
type Files struct {
	// StateDir holds the store, its key and pki/. Default:
	// /var/lib/skerry/agent.
	StateDir string `json:"stateDir,omitempty"`
	// Journal is the part of the store that need not survive a reboot; on a
	// tmpfs. Default: /run/skerry/agent.journal.
	Journal string `json:"journal,omitempty"`
	// ClusterCA is the authority of the API server's certificate. Default:
	// /etc/kubernetes/pki/ca.crt.
	ClusterCA string `json:"clusterCA,omitempty"`
	// BootstrapKubeconfig is what the agent gets its first certificate with.
	// Default: /etc/kubernetes/bootstrap-agent.conf.
	BootstrapKubeconfig string `json:"bootstrapKubeconfig,omitempty"`
}

// Memory bounds the agent's memory.
type Memory struct {
	// SoftLimitBytes is where the garbage collector begins to work hard;
	// nothing fails there. Default: 64 MiB.
	SoftLimitBytes int64 `json:"softLimitBytes,omitempty"`
	// GCPercent is Go's GOGC. Default: 50.
	GCPercent int `json:"gcPercent,omitempty"`
}

// AgentPolicy is what the agents of a cluster keep, and for how long. It is in
// ConfigMap kube-system/skerry-agent under config.yaml; agents follow changes,
// and keep the last good one while the new one is wrong.
type AgentPolicy struct {
	TypeMeta `json:",inline"`

	// Clients are kept beside the node itself: what they list and watch is in
	// the store, and answered from it while the cloud is away. Default:
	// service accounts kube-system/kube-proxy and kube-system/coredns, all
	// resources.
	Clients []KeptClient `json:"clients,omitempty"`
	// WholeResources are mirrored whole, whatever selectors clients use, once
	// for all of them: "services", "endpointslices.discovery.k8s.io". Default:
	// these two.
	WholeResources []string `json:"wholeResources,omitempty"`
	// Quota bounds what is kept for each client that has no quota of its own.
	// The node itself is not bounded.
	Quota Quota `json:"quota,omitzero"`
	// OfflineTokenGrace is for how long after its expiry a token is accepted
	// while the cloud is away. Default: 720h; at most 8760h.
	OfflineTokenGrace *Duration `json:"offlineTokenGrace,omitempty"`
	// Store bounds the store on each node.
	Store StorePolicy `json:"store,omitzero"`
}

// KeptClient names clients and what is kept for them. One of ServiceAccount and
// User must be set.
type KeptClient struct {
	// ServiceAccount is NAMESPACE/NAME; NAME may be "*".
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// User is the name of a user that is no service account.
	User string `json:"user,omitempty"`
	// Resources are kept, as RESOURCE or RESOURCE.GROUP; "*" are all.
	// Default: all.
	Resources []string `json:"resources,omitempty"`
	// Quota bounds what is kept for this client. Default: the policy's.
	Quota Quota `json:"quota,omitzero"`
}

// Quota bounds what is kept for one client.
type Quota struct {
	// Objects is the number of objects. Default: 20000.
	Objects int `json:"objects,omitempty"`
	// Bytes is the sum of their sizes. Default: 64 MiB.
	Bytes int64 `json:"bytes,omitempty"`
}

// StorePolicy bounds the store.
type StorePolicy struct {
	// MaxBytes is the size of the file at which nothing more is kept. It is
	// read at the start of an agent. Default: 512 MiB.
	MaxBytes int64 `json:"maxBytes,omitempty"`
}

// Duration is a duration in Go's notation: 90s, 15m, 720h.
type Duration struct{ time.Duration }

// MarshalJSON writes a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a string.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("%s is not a duration in quotes, such as \"720h\"", data)
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 720h", text)
	}
	d.Duration = parsed
	return nil
}
