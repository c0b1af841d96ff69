package offline

import (
	"context"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/admission"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodeaffinity"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/tainttoleration"
)

// tolerated are the reasons for which a pod that was running here is not
// rejected while the cloud is away: those that come from the order in which a
// node starts, or from what the Node object says at the moment. A rejected pod
// is Failed for good, and nobody replaces it before the cloud is back.
//
// What is not here is rejected as upstream does: what the pod asks of the node's
// security or operating system (SysctlForbidden, AppArmor, PodOSNotSupported,
// SupplementalGroupsPolicyNotSupported, PodFeatureUnsupported and the like),
// what the node finds out about itself now (Evicted under pressure,
// NodeShutdown), and true conflicts (NodePorts, NodeName, SMTAlignmentError).
var tolerated = map[string]bool{
	// A device plugin that has not come back yet. Devices are allocated when
	// the container starts, which is tried until the plugin is there.
	admission.ErrorReasonUnexpected: true,
	// Alignment computed while some devices are not back yet.
	topologymanager.ErrorTopologyAffinity: true,
	// The Node could not be read: nothing is known against the pod.
	lifecycle.InvalidNodeInfo: true,
	// Labels changed since: "IgnoredDuringExecution" says the API.
	nodeaffinity.Name: true,
	// A NoExecute taint, of which the cloud draws the consequences when it is
	// back: it deletes the pod.
	tainttoleration.Name: true,
}

// toleratedReason adds the resources: capacity from a Node object of before the
// restart. The pods fitted in side by side when they ran.
func toleratedReason(reason string) bool {
	return tolerated[reason] || strings.HasPrefix(reason, lifecycle.InsufficientResourcePrefix)
}

// tolerate says whether a rejection is ignored.
func tolerate(offline func() bool) func(context.Context, *lifecycle.PodAdmitAttributes, lifecycle.PodAdmitResult) bool {
	return func(ctx context.Context, attrs *lifecycle.PodAdmitAttributes, rejection lifecycle.PodAdmitResult) bool {
		if attrs.Operation != lifecycle.AddOperation || !ranHere(attrs.Pod) || !toleratedReason(rejection.Reason) || !offline() {
			return false
		}
		toleratedRejections.WithLabelValues(rejection.Reason).Inc()
		klog.FromContext(ctx).Info("Skerry: pod was running here and the cloud is away, so it is not rejected",
			"pod", klog.KObj(attrs.Pod), "podUID", attrs.Pod.UID, "reason", rejection.Reason, "message", rejection.Message)
		return true
	}
}

// ranHere says whether a kubelet of this node has admitted the pod before: only
// the kubelet sets the start time, and a pod is bound to one node for life.
func ranHere(pod *v1.Pod) bool {
	return pod.Status.StartTime != nil && (pod.Status.Phase == v1.PodRunning || pod.Status.Phase == v1.PodPending)
}
