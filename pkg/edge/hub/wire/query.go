package wire

import (
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// watchAsked reads the parameter as apimachinery does: present and not false.
func watchAsked(query url.Values) bool {
	values, ok := query["watch"]
	if !ok || len(values) == 0 {
		return false
	}
	return values[0] != "0" && !strings.EqualFold(values[0], "false")
}

func (r *Request) getOptions(query url.Values) error {
	r.Options = Options{Label: labels.Everything(), Field: fields.Everything()}
	// Only this one is known to a get; other parameters are tolerated.
	r.Options.ResourceVersion = query.Get("resourceVersion")
	return checkResourceVersion(r.Options.ResourceVersion)
}

func (r *Request) listOptions(query url.Values) error {
	for _, key := range []string{"labelSelector", "fieldSelector"} {
		// What cannot be written again as it was names no view.
		if selector := query.Get(key); !utf8.ValidString(selector) {
			return badRequest("invalid %s %q: it is not UTF-8", key, selector)
		}
	}
	in := internalversion.ListOptions{}
	if err := internalscheme.ParameterCodec.DecodeParameters(query, metav1.SchemeGroupVersion, &in); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if in.LabelSelector == nil {
		in.LabelSelector = labels.Everything()
	}
	if in.FieldSelector == nil {
		in.FieldSelector = fields.Everything()
	}
	in.Watch = r.Verb == "watch"
	internalversion.SetListOptionsDefaults(&in, true)
	if errs := validation.ValidateListOptions(&in, true); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	if err := checkResourceVersion(in.ResourceVersion); err != nil {
		return err
	}
	if in.Continue != "" && in.ResourceVersion != "" && in.ResourceVersion != "0" && !in.Watch {
		return apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	selected, exact := in.FieldSelector.RequiresExactMatch("metadata.name")
	switch {
	case r.Name != "": // watch of one object in the old path form
		if in.FieldSelector.Empty() {
			in.FieldSelector = fields.OneTermEqualSelector("metadata.name", r.Name)
		} else if !exact || selected != r.Name {
			return apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
	case exact && selected != "" && len(content.IsPathSegmentName(selected)) == 0:
		r.Name = selected
	}
	r.Options = Options{
		Label:                in.LabelSelector,
		Field:                in.FieldSelector,
		ResourceVersion:      in.ResourceVersion,
		ResourceVersionMatch: in.ResourceVersionMatch,
		Limit:                max(in.Limit, 0),
		Continue:             in.Continue,
		AllowWatchBookmarks:  in.AllowWatchBookmarks,
		SendInitialEvents:    in.SendInitialEvents,
	}
	if in.TimeoutSeconds != nil {
		seconds := *in.TimeoutSeconds
		if seconds < 0 {
			return apierrors.NewBadRequest("timeoutSeconds: Invalid value: " + strconv.FormatInt(seconds, 10) + ": must be greater than or equal to 0")
		}
		r.Options.Timeout = time.Duration(min(seconds, math.MaxInt64/int64(time.Second))) * time.Second
	}
	return nil
}

func checkResourceVersion(rv string) error {
	if rv == "" {
		return nil
	}
	_, err := strconv.ParseUint(rv, 10, 64)
	if err == nil && rv[0] != '+' {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", field.ErrorList{
		field.Invalid(field.NewPath("resourceVersion"), rv, "must be a decimal number"),
	})
}

// canonicalLabels writes a selector so that equal ones are written equally.
func canonicalLabels(s labels.Selector) string {
	if s == nil {
		return ""
	}
	requirements, selectable := s.Requirements()
	if !selectable {
		// Nothing matches; no parsed selector is that.
		return s.String()
	}
	terms := make([]string, 0, len(requirements))
	for _, r := range requirements {
		op, values := r.Operator(), r.ValuesUnsorted()
		switch {
		case op == selection.DoubleEquals, op == selection.In && len(values) == 1:
			op = selection.Equals
		case op == selection.NotIn && len(values) == 1:
			op = selection.NotEquals
		}
		if same, err := labels.NewRequirement(r.Key(), op, values); err == nil {
			terms = append(terms, same.String())
		} else {
			terms = append(terms, r.String())
		}
	}
	return joinTerms(terms)
}

func canonicalFields(s fields.Selector) string {
	if s == nil {
		return ""
	}
	var terms []string
	for _, r := range s.Requirements() {
		if r.Operator == selection.NotEquals {
			terms = append(terms, fields.OneTermNotEqualSelector(r.Field, r.Value).String())
		} else {
			terms = append(terms, fields.OneTermEqualSelector(r.Field, r.Value).String())
		}
	}
	return joinTerms(terms)
}

func joinTerms(terms []string) string {
	slices.Sort(terms)
	return strings.Join(slices.Compact(terms), ",")
}
