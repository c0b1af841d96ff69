package site

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// CacheOptions keep the caches lean: of a Node and its lease only what verdicts
// depend on, some hundred bytes each. There may be 100,000 of them.
func CacheOptions() cache.Options {
	yes := true
	return cache.Options{ByObject: map[client.Object]cache.ByObject{
		&corev1.Node{}:          {Transform: leanNode, UnsafeDisableDeepCopy: &yes},
		&coordinationv1.Lease{}: {Transform: leanLease, UnsafeDisableDeepCopy: &yes, Namespaces: map[string]cache.Config{corev1.NamespaceNodeLease: {}}},
		&v1alpha1.Site{}:        {Transform: leanObject},
		&v1alpha1.NodeReport{}:  {Transform: leanObject},
	}}
}

// leanNode keeps the site, the verdict, and whether a taint is ours.
func leanNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil // the cache's word that it was deleted
	}
	lean := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion}}
	if site, ok := node.Labels[api.SiteLabel]; ok {
		lean.Labels = map[string]string{api.SiteLabel: site}
	}
	if value, ok := node.Annotations[OutOfServiceAnnotation]; ok {
		lean.Annotations = map[string]string{OutOfServiceAnnotation: value}
	}
	if alive := condition(node); alive.Status != "" {
		lean.Status.Conditions = []corev1.NodeCondition{{Type: api.AliveCondition, Status: alive.Status, Reason: alive.Reason, Message: alive.Message}}
	}
	return lean, nil
}

func leanLease(object any) (any, error) {
	lease, ok := object.(*coordinationv1.Lease)
	if !ok {
		return object, nil
	}
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: lease.Namespace, Name: lease.Name, ResourceVersion: lease.ResourceVersion},
		Spec:       coordinationv1.LeaseSpec{RenewTime: lease.Spec.RenewTime},
	}, nil
}

func leanObject(object any) (any, error) {
	if o, ok := object.(client.Object); ok {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// condition reads a Node's condition skerry.dev/Alive.
func condition(node *corev1.Node) verdict.Condition {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == api.AliveCondition {
			return verdict.Condition{Status: c.Status, Reason: c.Reason, Message: c.Message}
		}
	}
	return verdict.Condition{}
}

// factsOf is what a verdict depends on in a Node.
func factsOf(node *corev1.Node) verdict.Node {
	site, inSite := node.Labels[api.SiteLabel]
	return verdict.Node{Name: node.Name, UID: node.UID, Site: site, InSite: inSite, Alive: condition(node)}
}

// renewed is when a node says that it renewed its lease. Without that, the zero
// time, which is as good: only whether it changes is looked at.
func renewed(lease *coordinationv1.Lease) metav1.MicroTime {
	if lease.Spec.RenewTime == nil {
		return metav1.MicroTime{}
	}
	return *lease.Spec.RenewTime
}
