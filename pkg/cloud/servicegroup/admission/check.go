package admission

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

const (
	// nowhere is the site for which an override is tried that matches none.
	nowhere = "skerry-dry-run"
	// nobody is the UID of a grid that has none yet.
	nobody = types.UID("00000000-0000-0000-0000-000000000000")
)

// checker answers the API server.
type checker struct {
	children Children
	existing Existing
}

// grid is what the three kinds have in common here.
type grid struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Template                runtime.RawExtension `json:"template"`
		gridv1.WorkloadGridSpec `json:",inline"`
	} `json:"spec"`
}

// kinds of children by the kind of grids.
var kinds = map[string]shape.Kind{"DeploymentGrid": shape.Deployment, "StatefulSetGrid": shape.StatefulSet, "ServiceGrid": shape.Service}

// Handle answers whether a grid may be stored.
func (c *checker) Handle(ctx context.Context, request admission.Request) admission.Response {
	kind, ok := kinds[request.Kind.Kind]
	if !ok || request.SubResource != "" {
		return admission.Allowed("")
	}
	var now, old grid
	if err := json.Unmarshal(request.Object.Raw, &now); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("reading the grid: %w", err))
	}
	if now.DeletionTimestamp != nil {
		return admission.Allowed("")
	}
	if request.Operation == admissionv1.Update {
		if err := json.Unmarshal(request.OldObject.Raw, &old); err == nil && equality.Semantic.DeepEqual(old.Spec, now.Spec) {
			return admission.Allowed("")
		}
	}
	errs, warnings := c.check(ctx, kind, request.Kind.Kind, &now)
	if len(errs) == 0 {
		return admission.Allowed("").WithWarnings(warnings...)
	}
	group := schema.GroupKind{Group: request.Kind.Group, Kind: request.Kind.Kind}
	status := apierrors.NewInvalid(group, now.Name, errs).Status()
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Allowed: false, Result: &status}}
}

// check says what is wrong with a grid, and what could not be found out.
func (c *checker) check(ctx context.Context, kind shape.Kind, gridKind string, g *grid) (field.ErrorList, []string) {
	var annotations map[string]string
	key := cmp.Or(g.Spec.GridKey, gridv1.DefaultGridKey)
	if kind.Resource == shape.Service.Resource {
		annotations = shape.TopologyAnnotations(key, nil)
	}
	made, errs := shape.New(kind, shape.Grid{Key: key, Template: g.Spec.Template, Overrides: g.Spec.Overrides, Metadata: g.Spec.Metadata, Annotations: annotations})
	for _, s := range []struct {
		path *field.Path
		from *metav1.LabelSelector
	}{
		{field.NewPath("spec", "selector"), g.Spec.Selector},
		{field.NewPath("spec", "rollout", "canary", "selector"), canarySelector(g.Spec.Rollout.Canary)},
	} {
		if _, bad := shape.Selector(s.path, s.from); bad != nil {
			errs = append(errs, bad)
		}
	}
	if len(errs) > 0 {
		return errs, nil
	}
	owner := shape.Owner{Namespace: g.Namespace, Name: g.Name, Reference: metav1.OwnerReference{
		APIVersion: gridv1.GroupVersion.String(), Kind: gridKind, Name: g.Name, UID: cmp.Or(g.UID, nobody),
	}}
	tries, errs, err := c.tries(ctx, made, key, kind, owner)
	if err != nil {
		return nil, []string{"not all of it could be checked: " + err.Error()}
	}
	var warnings []string
	for _, try := range tries {
		name, body := owner.Child(try.site), map[string]any(nil)
		if kind.Resource == shape.Service.Resource {
			name, body = g.Name, try.variant.ApplyService(owner)
		} else {
			body = try.variant.Apply(owner, try.site)
		}
		_, err := c.children.Apply(ctx, kind, g.Namespace, name, body, true)
		bad, unknown := translate(err, try)
		errs = append(errs, bad...)
		if unknown != nil {
			warnings = append(warnings, fmt.Sprintf("not all of it could be checked: %v", unknown))
		}
		if len(errs) >= 10 || len(warnings) > 0 {
			break
		}
	}
	return errs, warnings
}

func canarySelector(s *gridv1.SiteSelection) *metav1.LabelSelector {
	if s == nil {
		return nil
	}
	return s.Selector
}

// try is a variant and a site that it is tried in.
type try struct {
	variant *shape.Variant
	site    string
}

// tries finds a site for each variant: one that it is for, if there is any, so
// that changes that its child cannot take show.
func (c *checker) tries(ctx context.Context, made *shape.Shape, key string, kind shape.Kind, owner shape.Owner) ([]try, field.ErrorList, error) {
	alone, errs := made.Each()
	if errs != nil {
		return nil, errs, nil
	}
	if kind.Resource == shape.Service.Resource {
		// A Service that is not the grid's is the controller's to tell of.
		stranger, err := c.existing.Stranger(ctx, kind, owner.Name, owner)
		if stranger || err != nil {
			return nil, nil, err
		}
		return []try{{alone[0], ""}}, nil, nil
	}
	sites, err := c.existing.Sites(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	const enough = 128
	tried := map[string]bool{}
	var all []try
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		variant, errs := made.In(name, sites[name])
		if errs != nil {
			return nil, errs, nil
		}
		if tried[variant.Hash] || len(all) >= enough {
			continue
		}
		stranger, err := c.existing.Stranger(ctx, kind, owner.Child(name), owner)
		if err != nil {
			return nil, nil, err
		}
		if !stranger {
			tried[variant.Hash] = true
			all = append(all, try{variant, name})
		}
	}
	for _, variant := range alone {
		if !tried[variant.Hash] && len(all) < enough {
			tried[variant.Hash] = true
			all = append(all, try{variant, nowhere})
		}
	}
	return all, nil, nil
}

// translate makes errors of a child errors of the grid. What is not about the
// child's spec is not the grid's fault.
func translate(err error, t try) (bad field.ErrorList, unknown error) {
	if err == nil {
		return nil, nil
	}
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		return nil, err
	}
	switch s := status.Status(); {
	case s.Reason == metav1.StatusReasonInvalid && s.Details != nil:
		for _, cause := range s.Details.Causes {
			if strings.HasPrefix(cause.Field, "spec") || strings.HasPrefix(cause.Field, ".spec") {
				bad = append(bad, &field.Error{Type: field.ErrorTypeInvalid, Field: t.variant.Path(cause.Field), BadValue: field.OmitValueType{}, Detail: detail(cause.Message)})
			}
		}
	case s.Reason == metav1.StatusReasonBadRequest, strings.Contains(s.Message, "failed to create typed patch object"):
		bad = append(bad, &field.Error{Type: field.ErrorTypeInvalid, Field: t.variant.Path(""), BadValue: field.OmitValueType{}, Detail: s.Message})
	case s.Code == http.StatusForbidden, s.Code == http.StatusNotFound:
		// A quota, another admission policy, a namespace that is not there: the
		// controller tells when it is so then.
	default:
		unknown = err
	}
	return bad, unknown
}

// detail is a cause's message without its type, which the API server says again.
func detail(message string) string { return strings.TrimPrefix(message, "Invalid value: ") }
