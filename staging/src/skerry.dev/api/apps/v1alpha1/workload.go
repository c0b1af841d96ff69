package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// WorkloadGridSpec is what DeploymentGrids and StatefulSetGrids have in common.
type WorkloadGridSpec struct {
	// GridKey is the label of nodes whose values are the sites: each value that
	// some node has gets a child of its own. It cannot be changed.
	// Default skerry.dev/site.
	//
	// +optional
	// +kubebuilder:default="skerry.dev/site"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=316
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed: make another grid"
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && self.indexOf('/') <= 253",message="must be the key of a label, such as skerry.dev/site"
	GridKey string `json:"gridKey,omitempty"`

	// Selector says which sites get a child. It is matched against the labels of
	// the object Site of that name, if there is one, and the label that gridKey
	// names, whose value is the site's name. Empty: every site.
	//
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// Metadata is added to the children's labels and annotations. They get
	// nothing of the grid's own, so that a tool that finds what it has made by a
	// label does not take a child for its own.
	//
	// +optional
	Metadata *ChildMetadata `json:"metadata,omitempty"`

	// Overrides change the template for some sites. All that match a site apply,
	// in their order.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Overrides []Override `json:"overrides,omitempty"`

	// Rollout says how a change reaches the sites.
	//
	// +optional
	// +kubebuilder:default={}
	Rollout Rollout `json:"rollout,omitempty"`

	// DeletionPolicy says what happens to the child of a site that has no node
	// any more, or is not selected any more.
	//
	// +optional
	// +kubebuilder:default={}
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// ChildMetadata is what is added to the metadata of children.
type ChildMetadata struct {
	// Labels to add. Keys under skerry.dev are not allowed.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('skerry.dev/'))",message="skerry.dev/ is taken"
	Labels map[string]string `json:"labels,omitempty"`
	// Annotations to add. Keys under skerry.dev are not allowed.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('skerry.dev/'))",message="skerry.dev/ is taken"
	Annotations map[string]string `json:"annotations,omitempty"`
}

// SiteSelection names sites. A site is selected when it is in the list or the
// selector matches it.
//
// +kubebuilder:validation:XValidation:rule="has(self.sites) || has(self.selector)",message="sites or selector is required"
type SiteSelection struct {
	// Sites are names of sites: values of the label that gridKey names.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Sites []string `json:"sites,omitempty"`
	// Selector matches sites as the selector of the grid does.
	//
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// Override changes the template for some sites.
type Override struct {
	// Name tells overrides apart, also in messages.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	SiteSelection `json:",inline"`

	// Patch is a strategic merge patch of the template, as `kubectl patch` takes
	// it: objects are merged, containers are found by name, null removes a field.
	// For example: {template: {spec: {containers: [{name: web, image: web:v2}]}}}
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Patch runtime.RawExtension `json:"patch"`
}

// Rollout says how a change reaches the sites. A new site gets its child as soon
// as the canary sites, if there are any, are ready; changes go from site to
// site. Sites out of reach (no node of theirs is Ready) are left out, and get the
// change when they are back.
type Rollout struct {
	// Paused stops the roll-out before the next site.
	//
	// +optional
	Paused bool `json:"paused,omitempty"`

	// MaxUnavailable is how many sites may be changing at once, as a number or as
	// a percentage of the sites, rounded down, at least one. Default 25%.
	//
	// +optional
	// +kubebuilder:default="25%"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 : self.matches('^(100|[1-9]?[0-9])%$')",message="must be a number of at least 1 or a percentage from 0% to 100%"
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`

	// MaxFailed is how many sites may fail before the roll-out stops. It goes on
	// when the template or the overrides change, or when a failed site recovers.
	// Default 0: the first failure stops it.
	//
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	MaxFailed *int32 `json:"maxFailed,omitempty"`

	// ProgressDeadlineSeconds is how long a site that can be reached may take to
	// become ready after a change before it counts as failed. A Deployment that
	// exceeds its own progressDeadlineSeconds has failed too. Default 600.
	//
	// +optional
	// +kubebuilder:default=600
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	ProgressDeadlineSeconds *int32 `json:"progressDeadlineSeconds,omitempty"`

	// Canary sites get a change first; the others when all of them are ready. How
	// long a pod must have been ready for that is the template's minReadySeconds.
	//
	// +optional
	Canary *SiteSelection `json:"canary,omitempty"`
}

// SiteLeaves is what happens to the child of a site that leaves.
//
// +kubebuilder:validation:Enum=Delete;Retain
type SiteLeaves string

// Values of SiteLeaves.
const (
	SiteLeavesDelete SiteLeaves = "Delete"
	SiteLeavesRetain SiteLeaves = "Retain"
)

// DeletionPolicy says what happens to children whose site leaves.
type DeletionPolicy struct {
	// WhenSiteLeaves is Delete or Retain. Retained children stay as they are, and
	// are the grid's again when their site is back. Default Delete.
	//
	// +optional
	// +kubebuilder:default=Delete
	WhenSiteLeaves SiteLeaves `json:"whenSiteLeaves,omitempty"`

	// GracePeriodSeconds is how long a child stays after its site left: nodes
	// that are labelled by mistake or join again find it as it was.
	// Default 3600.
	//
	// +optional
	// +kubebuilder:default=3600
	// +kubebuilder:validation:Minimum=0
	GracePeriodSeconds *int64 `json:"gracePeriodSeconds,omitempty"`
}

// Phase says in a word how a grid or a site of it is doing.
type Phase string

// Phases of a site, the first of them also of grids.
const (
	// PhaseReady: it runs what the grid says, and all its pods are ready.
	PhaseReady Phase = "Ready"
	// PhaseProgressing: it was changed and is not ready yet.
	PhaseProgressing Phase = "Progressing"
	// PhaseNotReady: it was ready and is not any more.
	PhaseNotReady Phase = "NotReady"
	// PhaseFailed: it did not become ready in time, or was refused.
	PhaseFailed Phase = "Failed"

	// PhasePending: it waits for its turn.
	PhasePending Phase = "Pending"
	// PhaseOffline: no node of the site is Ready.
	PhaseOffline Phase = "Offline"
	// PhaseLeaving: the site has left, and the child stays for the grace period.
	PhaseLeaving Phase = "Leaving"
	// PhaseRetained: the site has left, and the child stays.
	PhaseRetained Phase = "Retained"

	// PhasePaused, PhaseStopped and PhaseRefused are of grids only: the roll-out
	// is paused; it has stopped because sites failed; the grid is not Accepted.
	PhasePaused  Phase = "Paused"
	PhaseStopped Phase = "Stopped"
	PhaseRefused Phase = "Refused"
)

// WorkloadGridStatus is how a grid is doing.
type WorkloadGridStatus struct {
	// ObservedGeneration is the generation that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase says it in a word: Ready, Progressing, NotReady, Paused, Stopped or
	// Refused.
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// DesiredSites is how many sites the grid has.
	// +optional
	// +kubebuilder:default=0
	DesiredSites int32 `json:"desiredSites"`
	// UpdatedSites is how many of them have been told what the grid says now.
	// +optional
	// +kubebuilder:default=0
	UpdatedSites int32 `json:"updatedSites"`
	// ReadySites is how many of them run it, with all pods ready.
	// +optional
	// +kubebuilder:default=0
	ReadySites int32 `json:"readySites"`
	// FailedSites is how many of them have failed.
	// +optional
	// +kubebuilder:default=0
	FailedSites int32 `json:"failedSites"`
	// OfflineSites is how many of them have no node that is Ready.
	// +optional
	// +kubebuilder:default=0
	OfflineSites int32 `json:"offlineSites"`
	// LeavingSites is how many sites have left and still have a child.
	// +optional
	// +kubebuilder:default=0
	LeavingSites int32 `json:"leavingSites"`
	// Replicas is how many pods the sites have together; ReadyReplicas is how
	// many of them are ready.
	// +optional
	// +kubebuilder:default=0
	Replicas int32 `json:"replicas"`
	// +optional
	// +kubebuilder:default=0
	ReadyReplicas int32 `json:"readyReplicas"`
	// Attention names the sites that are not Ready, as far as they fit.
	// +optional
	Attention string `json:"attention,omitempty"`

	// Sites is each site, by name. Of more than 2000, those that are Ready are
	// left out first; the counts above are complete.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2000
	Sites []SiteStatus `json:"sites,omitempty"`

	// Conditions are Ready, Progressing and Accepted.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SiteStatus is how a site of a grid is doing.
type SiteStatus struct {
	// Name of the site.
	Name string `json:"name"`
	// Phase says it in a word.
	Phase Phase `json:"phase"`
	// Updated says whether the site has been told what the grid says now.
	// +optional
	Updated bool `json:"updated"`
	// Desired is how many pods the site is to have.
	// +optional
	Desired int32 `json:"desired"`
	// Ready is how many pods are ready.
	// +optional
	Ready int32 `json:"ready"`
	// Message says why the site is not Ready.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Message string `json:"message,omitempty"`
}
