package views

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// heartbeat reports whether a change says only that somebody lives. Such changes
// come for ever and are worth no write of their own.
func heartbeat(old, new *store.Object) bool {
	if new.Resource == "leases" && new.Group == "coordination.k8s.io" {
		return true
	}
	if new.Resource != "nodes" || new.Group != "" || old == nil {
		return false
	}
	a, okA := quiet(old)
	b, okB := quiet(new)
	return okA && okB && equality.Semantic.DeepEqual(a, b)
}

// quiet is a node without what each heartbeat changes.
func quiet(o *store.Object) (*corev1.Node, bool) {
	typed, err := wire.Typed(*o)
	if err != nil {
		return nil, false
	}
	n, ok := typed.(*corev1.Node)
	if !ok {
		return nil, false
	}
	n.ResourceVersion, n.ManagedFields = "", nil
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return n, true
}
