package v1alpha1

// Reasons of the condition skerry.dev/Alive as the controller sets it. With any
// other reason the condition is a person's word, which the controller leaves
// alone until the node is heard again.
const (
	// ReasonHeartbeat (True): the cloud hears the node.
	ReasonHeartbeat = "Heartbeat"
	// ReasonNodeSpeaks (True): the heartbeat is lost, but the node's own
	// observer reports to the cloud, and finds nothing wrong.
	ReasonNodeSpeaks = "NodeSpeaks"
	// ReasonNeighboursReachIt (True): the heartbeat is lost, and connected
	// neighbours reach the node.
	ReasonNeighboursReachIt = "NeighboursReachIt"

	// ReasonUnreachable (False): the heartbeat is lost, enough connected
	// neighbours cannot reach the node, and none can.
	ReasonUnreachable = "NeighboursCannotReachIt"
	// ReasonKubeletDown (False, and Unknown before the grace of its site is
	// over): the machine lives, its kubelet or container runtime does not.
	ReasonKubeletDown = "KubeletDown"
	// ReasonHoldTimeout (False): nobody can tell, for longer than the site's
	// holdTimeout.
	ReasonHoldTimeout = "HoldTimeout"

	// ReasonAsking (Unknown): connected neighbours still have time to answer.
	ReasonAsking = "Asking"
	// ReasonDisagreement (Unknown): some connected neighbours reach the node
	// and some do not.
	ReasonDisagreement = "Disagreement"
	// ReasonNoWitness (Unknown): the node is alone in its site.
	ReasonNoWitness = "NoWitness"
	// ReasonSiteSilent (Unknown): the cloud hears no other node of the site.
	ReasonSiteSilent = "SiteSilent"
	// ReasonNoAnswer (Unknown): connected neighbours say nothing.
	ReasonNoAnswer = "NoAnswer"
	// ReasonTooFewWitnesses (Unknown): fewer neighbours than the site's
	// witnesses say that they cannot reach the node.
	ReasonTooFewWitnesses = "TooFewWitnesses"
	// ReasonNeverHeard (Unknown): the node has not had a heartbeat yet.
	ReasonNeverHeard = "NeverHeard"
	// ReasonInvalidSite (Unknown): the value of the label skerry.dev/site cannot
	// be the name of a site, so there is nobody to ask.
	ReasonInvalidSite = "InvalidSite"
)

// ConditionConnected is the condition of a Site that says whether the cloud
// hears any of its nodes.
const ConditionConnected = "Connected"

// Reasons of ConditionConnected.
const (
	ReasonConnected = "NodesHeard"
	ReasonSilent    = "NoNodeHeard"
	ReasonNoNodes   = "NoNodes"
)
