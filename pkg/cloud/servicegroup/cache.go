package servicegroup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
)

// What the cache keeps of a child's record of fields, as annotations that exist
// nowhere else: a hash of the fields that are ours, when we changed them last,
// and whether replicas is one of them.
const (
	ownedKey    = "owned"
	changedKey  = "changed"
	replicasKey = "replicas"
)

// byGrid is the index of children by the name of their grid.
const byGrid = "grid"

// newCache makes a cache that keeps no more than the controllers read.
func newCache(config *rest.Config, scheme *runtime.Scheme, http *http.Client, mapper meta.RESTMapper) (cache.Cache, error) {
	shared := true // readers change nothing
	slim := func(t func(any) (any, error)) cache.ByObject {
		return cache.ByObject{Transform: t, UnsafeDisableDeepCopy: &shared}
	}
	kept, err := cache.New(config, cache.Options{
		Scheme: scheme, HTTPClient: http, Mapper: mapper, DefaultUnsafeDisableDeepCopy: &shared,
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:        slim(slimNode),
			&sitev1.Site{}:        slim(slimSite),
			&appsv1.Deployment{}:  slim(slimDeployment),
			&appsv1.StatefulSet{}: slim(slimStatefulSet),
			&corev1.Service{}:     slim(slimService),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the cache of grids: %w", err)
	}
	for _, child := range []client.Object{&appsv1.Deployment{}, &appsv1.StatefulSet{}} {
		err := kept.IndexField(context.Background(), child, byGrid, func(o client.Object) []string {
			if name := gridOf(o); name != "" {
				return []string{name}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("indexing the children of grids: %w", err)
		}
	}
	return kept, nil
}

// gridOf is the name of the grid that an object is a child of, by its controller
// or, when it has none, its label.
func gridOf(o metav1.Object) string {
	owner := metav1.GetControllerOfNoCopy(o)
	switch {
	case owner == nil:
		return o.GetLabels()[gridv1.GridLabel]
	case strings.HasPrefix(owner.APIVersion, gridv1.GroupVersion.Group+"/"):
		return owner.Name
	}
	return ""
}

func slimNode(object any) (any, error) {
	n, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	slim := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels}}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			slim.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return slim, nil
}

func slimSite(object any) (any, error) {
	s, ok := object.(*sitev1.Site)
	if !ok {
		return object, nil
	}
	return &sitev1.Site{ObjectMeta: metav1.ObjectMeta{Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion, Labels: s.Labels}}, nil
}

func slimDeployment(object any) (any, error) {
	d, ok := object.(*appsv1.Deployment)
	if !ok {
		return object, nil
	}
	slim := &appsv1.Deployment{ObjectMeta: slimMeta(&d.ObjectMeta)}
	if slim.Annotations != nil {
		slim.Spec.Replicas = d.Spec.Replicas
		slim.Status = d.Status
		slim.Status.Conditions = nil
		for _, c := range d.Status.Conditions {
			slim.Status.Conditions = append(slim.Status.Conditions, appsv1.DeploymentCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: cut(c.Message, 160)})
		}
	}
	return slim, nil
}

func slimStatefulSet(object any) (any, error) {
	s, ok := object.(*appsv1.StatefulSet)
	if !ok {
		return object, nil
	}
	slim := &appsv1.StatefulSet{ObjectMeta: slimMeta(&s.ObjectMeta)}
	if slim.Annotations != nil {
		slim.Spec.Replicas = s.Spec.Replicas
		slim.Spec.UpdateStrategy = s.Spec.UpdateStrategy
		slim.Status = s.Status
		slim.Status.Conditions = nil
	}
	return slim, nil
}

func slimService(object any) (any, error) {
	s, ok := object.(*corev1.Service)
	if !ok {
		return object, nil
	}
	slim := &corev1.Service{ObjectMeta: slimMeta(&s.ObjectMeta)}
	if slim.Annotations != nil {
		slim.Spec.ClusterIP, slim.Spec.Ports = s.Spec.ClusterIP, s.Spec.Ports
	}
	return slim, nil
}

// slimMeta keeps what tells whose an object is, and of a child what we did to
// it. It may be given its own result again. Only children have annotations then.
func slimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	slim := metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		DeletionTimestamp: m.DeletionTimestamp, OwnerReferences: m.OwnerReferences,
	}
	for _, key := range []string{gridv1.GridLabel, gridv1.SiteLabel} {
		if value, ok := m.Labels[key]; ok {
			if slim.Labels == nil {
				slim.Labels = map[string]string{}
			}
			slim.Labels[key] = value
		}
	}
	if gridOf(&slim) == "" {
		return slim
	}
	slim.Annotations = map[string]string{}
	for _, key := range []string{gridv1.HashAnnotation, gridv1.SiteLeftAnnotation} {
		if value, ok := m.Annotations[key]; ok {
			slim.Annotations[key] = value
		}
	}
	if len(m.ManagedFields) == 0 {
		for _, key := range []string{ownedKey, changedKey, replicasKey} {
			if value, ok := m.Annotations[key]; ok {
				slim.Annotations[key] = value
			}
		}
		return slim
	}
	if fields, changed := ours(m); fields != "" {
		slim.Annotations[ownedKey] = hashOf(fields)
		slim.Annotations[changedKey] = changed.UTC().Format(time.RFC3339)
		if strings.Contains(fields, `"f:replicas":{}`) {
			slim.Annotations[replicasKey] = "ours"
		}
	}
	return slim
}

// ours is the API server's record of the fields that are ours, as JSON, and when
// we changed one last.
func ours(m *metav1.ObjectMeta) (fields string, changed time.Time) {
	for _, entry := range m.ManagedFields {
		if entry.Manager == gridv1.FieldManager && entry.Operation == metav1.ManagedFieldsOperationApply && entry.Subresource == "" && entry.FieldsV1 != nil {
			if entry.Time != nil {
				changed = entry.Time.Time
			}
			return entry.FieldsV1.GetRawString(), changed
		}
	}
	return "", time.Time{}
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// cut shortens a text to at most so many bytes, at the border of a character.
func cut(text string, atMost int) string {
	if len(text) <= atMost {
		return text
	}
	return strings.ToValidUTF8(text[:atMost-len("…")], "") + "…"
}
