// Package v1alpha1 holds the objects by which a cluster knows its sites: Site,
// one for each value of the Node label skerry.dev/site, and NodeReport, what one
// node says about its neighbours.
//
// It must not import anything but the Go standard library and k8s.io/api and
// k8s.io/apimachinery.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +groupName=site.skerry.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Site is the nodes that reach each other over a local network: those whose
// label skerry.dev/site is its name. The controller makes it when the first such
// node joins; its spec is the user's.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`,description="Nodes of the site"
// +kubebuilder:printcolumn:name="Connected",type=integer,JSONPath=`.status.connected`,description="Nodes that the cloud hears"
// +kubebuilder:printcolumn:name="Held",type=integer,JSONPath=`.status.held`,description="Nodes that the cloud does not hear and that keep their pods"
// +kubebuilder:printcolumn:name="Dead",type=integer,JSONPath=`.status.dead`,description="Nodes that are known to be dead"
// +kubebuilder:printcolumn:name="Unknown",type=integer,JSONPath=`.status.unknown`,description="Held nodes that nobody can tell anything about"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Site struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec SiteSpec `json:"spec,omitempty"`
	// +optional
	Status SiteStatus `json:"status,omitempty"`
}

// Failover says what happens to the pods of a dead node that upstream leaves
// alone.
//
// +kubebuilder:validation:Enum=Off;On
type Failover string

// Values of Failover.
const (
	FailoverOff Failover = "Off"
	FailoverOn  Failover = "On"
)

// SiteSpec is the policy of a site.
type SiteSpec struct {
	// Witnesses is how many nodes of the site that the cloud hears must be
	// unable to reach a node before it is called dead. A site with fewer
	// neighbours holds its nodes for ever. Default 1.
	//
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Witnesses *int32 `json:"witnesses,omitempty"`

	// HoldTimeout bounds how long a node is held about which nobody can tell
	// anything; after it the node is treated as dead. It does not bound the hold
	// of a node that a neighbour reaches. At least 1m. Default: no bound.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="must be at least 1m; leave it out to hold without a bound"
	HoldTimeout *metav1.Duration `json:"holdTimeout,omitempty"`

	// KubeletGrace is how long the kubelet of a node that is alive may be down
	// before the node counts as dead. At least 1m. Default 5m.
	//
	// +optional
	// +kubebuilder:default="5m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="must be at least 1m"
	KubeletGrace *metav1.Duration `json:"kubeletGrace,omitempty"`

	// Failover On makes pods with volumes move too when their node is dead, by
	// upstream's taint node.kubernetes.io/out-of-service: the pod is deleted by
	// force and its volume detached. Data is damaged if the node still writes.
	// Default Off.
	//
	// +optional
	// +kubebuilder:default=Off
	Failover Failover `json:"failover,omitempty"`
}

// SiteStatus is what the cloud knows about a site.
type SiteStatus struct {
	// Nodes is how many nodes have the site's label.
	// +optional
	Nodes int32 `json:"nodes"`
	// Connected is how many of them the cloud hears.
	// +optional
	Connected int32 `json:"connected"`
	// Held is how many the cloud does not hear and does not evict. Nodes,
	// Connected, Held and Dead add up.
	// +optional
	Held int32 `json:"held"`
	// Dead is how many are known to be dead.
	// +optional
	Dead int32 `json:"dead"`
	// Unknown is how many of the held nobody can tell for sure to live.
	// +optional
	Unknown int32 `json:"unknown"`

	// Doubts are the nodes that the cloud does not hear. Each node of the site
	// that the cloud does hear is asked here whether it reaches them, and
	// answers in its NodeReport.
	//
	// +optional
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=1000
	Doubts []Doubt `json:"doubts,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// Doubt is the question whether a node is alive.
type Doubt struct {
	// Node is the name of the node in question.
	Node string `json:"node"`
	// UID is that of its Node object.
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Since is when the cloud last heard it, by the cloud's clock.
	Since metav1.Time `json:"since"`
	// RenewTime is what the node's lease says since then, by the node's clock. It
	// is only compared for equality: if the lease says anything else, the node
	// was heard after Since.
	// +optional
	RenewTime *metav1.MicroTime `json:"renewTime,omitempty"`
	// Reachable and Unreachable count the answers so far. Enough of them, and
	// the others need not answer.
	// +optional
	Reachable int32 `json:"reachable"`
	// +optional
	Unreachable int32 `json:"unreachable"`
}

// NodeReport is what one node says about itself and its neighbours. Its name is
// the node's, and only that node may write it. It is there while there is
// something to say: in steady state there are none.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:validation:XValidation:rule="!has(self.spec.neighbours) || self.spec.neighbours.all(n, n.node != self.metadata.name)",message="a node says about itself in spec.self, not in spec.neighbours"
// +kubebuilder:printcolumn:name="Kubelet",type=string,JSONPath=`.spec.self.kubelet`
// +kubebuilder:printcolumn:name="Runtime",type=string,JSONPath=`.spec.self.runtime`
// +kubebuilder:printcolumn:name="Neighbours",type=string,JSONPath=`.spec.neighbours[*].node`,description="Neighbours in doubt"
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.spec.neighbours[*].state`
// +kubebuilder:printcolumn:name="Renewed",type=date,JSONPath=`.spec.renewTime`
type NodeReport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NodeReportSpec `json:"spec"`
}

// NodeReportSpec is the report.
type NodeReportSpec struct {
	// RenewTime is when the report was written, by the reporter's clock. The
	// cloud does not trust that clock: it measures a report's age from the
	// moment it saw it change.
	RenewTime metav1.MicroTime `json:"renewTime"`

	// Self is what the reporter says about itself. Empty: all is well.
	// +optional
	Self SelfReport `json:"self,omitempty"`

	// Neighbours are the nodes of the reporter's site that are in doubt.
	//
	// +optional
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=256
	Neighbours []NeighbourReport `json:"neighbours,omitempty"`
}

// ComponentState is the state of a program that a node needs.
//
// +kubebuilder:validation:Enum=Working;Down
type ComponentState string

// Values of ComponentState.
const (
	ComponentWorking ComponentState = "Working"
	ComponentDown    ComponentState = "Down"
)

// SelfReport is what a node says about itself.
type SelfReport struct {
	// Kubelet is Down when it does not answer on its health port.
	// +optional
	Kubelet ComponentState `json:"kubelet,omitempty"`
	// Runtime is Down when the container runtime does not answer.
	// +optional
	Runtime ComponentState `json:"runtime,omitempty"`
	// DownSeconds is for how long the first of them has been down.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DownSeconds int64 `json:"downSeconds,omitempty"`
}

// NeighbourState is what a node knows about a neighbour.
//
// +kubebuilder:validation:Enum=Reachable;Unreachable;KubeletDown
type NeighbourState string

// Values of NeighbourState.
const (
	// NeighbourReachable: it answered, directly or through another neighbour.
	NeighbourReachable NeighbourState = "Reachable"
	// NeighbourUnreachable: it answered neither directly nor through others.
	NeighbourUnreachable NeighbourState = "Unreachable"
	// NeighbourKubeletDown: it answered, and says that its kubelet is down.
	NeighbourKubeletDown NeighbourState = "KubeletDown"
)

// NeighbourReport is what a node says about one neighbour.
type NeighbourReport struct {
	// Node is the neighbour's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// UID is that of the neighbour's Node object, as the reporter knows it. That
	// a node is Unreachable counts only with it.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid,omitempty"`
	// State is what the reporter found.
	State NeighbourState `json:"state"`
	// Seconds is for how long it has been so.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Seconds int64 `json:"seconds,omitempty"`
}

// SiteList is a list of sites.
//
// +kubebuilder:object:root=true
type SiteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Site `json:"items"`
}

// NodeReportList is a list of reports.
//
// +kubebuilder:object:root=true
type NodeReportList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeReport `json:"items"`
}
