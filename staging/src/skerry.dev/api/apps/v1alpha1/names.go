package v1alpha1

const (
	// GridLabel is the name of the grid that an object belongs to. It is on the
	// children of a grid and on their pods.
	GridLabel = "skerry.dev/grid"
	// SiteLabel is the site of a child and of its pods: the value that their
	// nodes have for the grid's key, whichever key that is.
	SiteLabel = "skerry.dev/grid-site"

	// HashAnnotation is on a child: of what the grid wants it to be. It is the
	// same as long as the grid wants the same.
	HashAnnotation = "skerry.dev/grid-hash"
	// SiteLeftAnnotation is on a child whose site has no node any more, or is
	// not selected any more: since when, as RFC 3339.
	SiteLeftAnnotation = "skerry.dev/site-left"
	// StatefulSetGridsAnnotation is on the Service of a ServiceGrid: a JSON list
	// of the names of the StatefulSetGrids with the same key whose serviceName
	// it is. Inside a site, the pod <grid>-<site>-0 of such a grid is found as
	// <grid>-0 in that Service.
	StatefulSetGridsAnnotation = "skerry.dev/statefulset-grids"

	// FieldManager owns the fields that a grid sets in its children.
	FieldManager = "skerry-grid"

	// DefaultGridKey is the label of nodes that tells sites apart.
	DefaultGridKey = "skerry.dev/site"
)

// Types of the conditions of grids.
const (
	// ConditionReady of a grid is True when all its sites run what it says and
	// all their pods are ready.
	ConditionReady = "Ready"
	// ConditionProgressing is True while sites are being brought to what the
	// grid says, and False when that is done, is paused, has stopped, or waits
	// for sites that are out of reach.
	ConditionProgressing = "Progressing"
	// ConditionAccepted is False when the grid cannot be carried out as it is
	// written; then nothing is changed.
	ConditionAccepted = "Accepted"
)

// Reasons of the conditions of grids.
const (
	ReasonReady           = "AllSitesReady"
	ReasonNotReady        = "SitesNotReady"
	ReasonNoSites         = "NoSites"
	ReasonRollingOut      = "RollingOut"
	ReasonCanary          = "CanarySites"
	ReasonComplete        = "Complete"
	ReasonPaused          = "Paused"
	ReasonStopped         = "SitesFailed"
	ReasonSitesOffline    = "SitesOffline"
	ReasonConflict        = "Conflict"
	ReasonAccepted        = "Accepted"
	ReasonInvalid         = "Invalid"
	ReasonServiceApplied  = "Applied"
	ReasonServiceRejected = "Rejected"
)
