package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// DeploymentGrid makes a Deployment in each site: one for each value that nodes
// have for the label gridKey, named <grid>-<site>, whose pods run on nodes with
// that value only. Sites may come and go. The Deployments are ordinary ones:
// what the template does not say (replicas, for an autoscaler) is left alone.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=dg,categories=grids
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Sites",type=integer,JSONPath=`.status.desiredSites`,description="Sites of the grid"
// +kubebuilder:printcolumn:name="Updated",type=integer,JSONPath=`.status.updatedSites`,description="Sites that have been told what the grid says now"
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readySites`,description="Sites that run it, with all pods ready"
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.readyReplicas`,description="Pods that are ready, in all sites"
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Attention",type=string,JSONPath=`.status.attention`,description="Sites that are not ready"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Progressing")].message`,priority=1
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && !self.metadata.name.contains('--')",message="the name must be at most 52 characters of a-z, 0-9 and -, begin with a letter and have no -- in it: children and their pods are named after it"
type DeploymentGrid struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DeploymentGridSpec `json:"spec"`
	// +optional
	Status WorkloadGridStatus `json:"status,omitempty"`
}

// DeploymentGridSpec says what runs in the sites.
type DeploymentGridSpec struct {
	// Template is the spec of the Deployment of each site: all that spec of
	// apps/v1 Deployment has (see `kubectl explain deployment.spec`). The grid
	// adds the labels skerry.dev/grid and skerry.dev/grid-site to the selector and
	// the pods, and the site to the pods' nodeSelector. Leave replicas out for an
	// autoscaler to own it.
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Template runtime.RawExtension `json:"template"`

	WorkloadGridSpec `json:",inline"`
}

// DeploymentGridList is a list of DeploymentGrids.
//
// +kubebuilder:object:root=true
type DeploymentGridList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DeploymentGrid `json:"items"`
}

// StatefulSetGrid makes a StatefulSet in each site: one for each value that
// nodes have for the label gridKey, named <grid>-<site>, whose pods run on nodes
// with that value only. When a ServiceGrid has the name of the template's
// serviceName, the pod <grid>-<site>-0 is <grid>-0.<serviceName> inside its site.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ssg,categories=grids
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Sites",type=integer,JSONPath=`.status.desiredSites`,description="Sites of the grid"
// +kubebuilder:printcolumn:name="Updated",type=integer,JSONPath=`.status.updatedSites`,description="Sites that have been told what the grid says now"
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readySites`,description="Sites that run it, with all pods ready"
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.readyReplicas`,description="Pods that are ready, in all sites"
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Attention",type=string,JSONPath=`.status.attention`,description="Sites that are not ready"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Progressing")].message`,priority=1
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && !self.metadata.name.contains('--')",message="the name must be at most 52 characters of a-z, 0-9 and -, begin with a letter and have no -- in it: children and their pods are named after it"
type StatefulSetGrid struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec StatefulSetGridSpec `json:"spec"`
	// +optional
	Status WorkloadGridStatus `json:"status,omitempty"`
}

// StatefulSetGridSpec says what runs in the sites.
type StatefulSetGridSpec struct {
	// Template is the spec of the StatefulSet of each site: all that spec of
	// apps/v1 StatefulSet has (see `kubectl explain statefulset.spec`). The grid
	// adds the labels skerry.dev/grid and skerry.dev/grid-site to the selector and
	// the pods, and the site to the pods' nodeSelector. Leave replicas out for an
	// autoscaler to own it.
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Template runtime.RawExtension `json:"template"`

	WorkloadGridSpec `json:",inline"`
}

// StatefulSetGridList is a list of StatefulSetGrids.
//
// +kubebuilder:object:root=true
type StatefulSetGridList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []StatefulSetGrid `json:"items"`
}

// ServiceGrid makes a closed Service of its own name: a caller reaches only
// endpoints in the caller's own site, and none when the site has none.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=sg,categories=grids
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.spec.gridKey`,description="Label of nodes that tells sites apart"
// +kubebuilder:printcolumn:name="Cluster-IP",type=string,JSONPath=`.status.clusterIP`
// +kubebuilder:printcolumn:name="Ports",type=string,JSONPath=`.status.ports`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
type ServiceGrid struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ServiceGridSpec `json:"spec"`
	// +optional
	Status ServiceGridStatus `json:"status,omitempty"`
}

// ServiceGridSpec says what the Service is.
type ServiceGridSpec struct {
	// GridKey is the label of nodes that tells sites apart.
	// Default skerry.dev/site.
	//
	// +optional
	// +kubebuilder:default="skerry.dev/site"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=316
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && self.indexOf('/') <= 253",message="must be the key of a label, such as skerry.dev/site"
	GridKey string `json:"gridKey,omitempty"`

	// Template is the spec of the Service: all that spec of a v1 Service has (see
	// `kubectl explain service.spec`).
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Template runtime.RawExtension `json:"template"`

	// Metadata is added to the Service's labels and annotations. It gets nothing
	// of the grid's own.
	//
	// +optional
	Metadata *ChildMetadata `json:"metadata,omitempty"`
}

// ServiceGridStatus is how a ServiceGrid is doing.
type ServiceGridStatus struct {
	// ObservedGeneration is the generation that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// ClusterIP is the Service's first address, or None.
	// +optional
	ClusterIP string `json:"clusterIP,omitempty"`
	// Ports is the Service's ports, as kubectl shows them.
	// +optional
	Ports string `json:"ports,omitempty"`

	// Conditions is Ready: True when the Service is what the grid says.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ServiceGridList is a list of ServiceGrids.
//
// +kubebuilder:object:root=true
type ServiceGridList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ServiceGrid `json:"items"`
}
