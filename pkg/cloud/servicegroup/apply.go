package servicegroup

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

const (
	// leftManager owns the mark of a child whose site left, so that the mark can
	// be set without telling the child anything else.
	leftManager = gridv1.FieldManager + "-left"
	// handoverManager owns replicas between the grid, which does not say them
	// any more, and whoever sets them next; without it they would be 1 for a
	// moment.
	handoverManager = gridv1.FieldManager + "-handover"
)

// applier writes children. Of what it wrote it reads back the metadata only.
type applier struct {
	client metadata.Interface
	slots  chan struct{}
}

func (a *applier) patch(ctx context.Context, kind shape.Kind, namespace, name string, body map[string]any, o metav1.PatchOptions) (*metav1.PartialObjectMetadata, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %s/%s: %w", kind.Kind, namespace, name, err)
	}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return a.client.Resource(kind.GroupVersion().WithResource(kind.Resource)).Namespace(namespace).Patch(ctx, name, types.ApplyPatchType, text, o)
}

// Apply makes a child what the body says, or with dryRun says what would come of
// it. Fields of ours that the body does not have are removed.
func (a *applier) Apply(ctx context.Context, kind shape.Kind, namespace, name string, body map[string]any, dryRun bool) (*metav1.PartialObjectMetadata, error) {
	o := metav1.PatchOptions{FieldManager: gridv1.FieldManager, Force: ptr.To(true), FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	return a.patch(ctx, kind, namespace, name, body, o)
}

// handOver keeps the replicas of a child as they are when the grid does not say
// them any more.
func (a *applier) handOver(ctx context.Context, kind shape.Kind, namespace, name string, uid types.UID, replicas int32) error {
	body := stub(kind, namespace, name, uid)
	body["spec"] = map[string]any{"replicas": replicas}
	_, err := a.patch(ctx, kind, namespace, name, body, metav1.PatchOptions{FieldManager: handoverManager})
	return err
}

// markLeft notes since when the site of a child is gone; "" takes the note away.
func (a *applier) markLeft(ctx context.Context, kind shape.Kind, namespace, name string, uid types.UID, since string) error {
	body := stub(kind, namespace, name, uid)
	if since != "" {
		body["metadata"].(map[string]any)["annotations"] = map[string]any{gridv1.SiteLeftAnnotation: since}
	}
	_, err := a.patch(ctx, kind, namespace, name, body, metav1.PatchOptions{FieldManager: leftManager, Force: ptr.To(true)})
	return err
}

func (a *applier) remove(ctx context.Context, kind shape.Kind, namespace, name string, uid types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := a.client.Resource(kind.GroupVersion().WithResource(kind.Resource)).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// stub is an object by its name. With the UID, another one of that name is left
// alone.
func stub(kind shape.Kind, namespace, name string, uid types.UID) map[string]any {
	return map[string]any{
		"apiVersion": kind.GroupVersion().String(), "kind": kind.Kind,
		"metadata": map[string]any{"namespace": namespace, "name": name, "uid": string(uid)},
	}
}

// final says that an error will come again until somebody changes something.
func final(err error) bool {
	switch {
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsTooManyRequests(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsConflict(err), apierrors.HasStatusCause(err, "NamespaceTerminating"):
		return false
	}
	code := 0
	if status, ok := err.(apierrors.APIStatus); ok {
		code = int(status.Status().Code)
	}
	return code >= 400 && code < 500
}
