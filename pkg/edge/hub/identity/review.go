package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

const (
	reviewPath    = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
	reviewTimeout = 4 * time.Second
	maxReview     = 64 << 10
)

type answerKey struct {
	token [sha256.Size]byte
	at    Attributes
}

// errMayNotAsk is the API server's 403 to the question itself.
var errMayNotAsk = errors.New("the API server does not let the caller ask what it may do")

type answer struct {
	denial error // nil: allowed; errMayNotAsk: not known
	until  time.Time
}

// Online asks the API server with the caller's own token and remembers the
// answer. For the node it says yes: upstream itself decides on its requests.
// Errors: 403 for no, 401 if the token is refused, else what went wrong. A caller
// that may not ask gets an error that is neither: nobody has said no.
func (a *Authorizer) Online(ctx context.Context, c Caller, at Attributes) error {
	if c.Node && c.Verified {
		return nil
	}
	if c.Token == "" {
		return forbidden(c, at, "there is no token to ask the API server with")
	}
	key := answerKey{sha256.Sum256([]byte(c.Token)), at}
	now := a.o.Now()
	if found, ok := a.answers.Get(key); ok {
		if known := found.(answer); now.Before(known.until) {
			return known.denial
		}
	}
	allowed, reason, err := a.review(ctx, c, at)
	if errors.Is(err, errMayNotAsk) {
		a.answers.Add(key, answer{denial: err, until: now.Add(a.o.DeniedFor)})
	}
	if err != nil {
		return err
	}
	result := answer{until: now.Add(a.o.AllowedFor)}
	if !allowed {
		result = answer{denial: forbidden(c, at, reason), until: now.Add(a.o.DeniedFor)}
	}
	a.answers.Add(key, result)
	return result.denial
}

func (a *Authorizer) review(ctx context.Context, c Caller, at Attributes) (allowed bool, reason string, err error) {
	review := authorizationv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
	}
	if at.Resource == "" {
		review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: at.Path, Verb: at.Verb}
	} else {
		review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
			Namespace: at.Namespace, Verb: at.Verb, Group: at.Group, Version: at.Version,
			Resource: at.Resource, Subresource: at.Subresource, Name: at.Name,
			LabelSelector: labelRequirements(at.LabelSelector), FieldSelector: fieldRequirements(at.FieldSelector),
		}
	}
	body, err := json.Marshal(review)
	if err != nil {
		return false, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api"+reviewPath, bytes.NewReader(body))
	if err != nil {
		return false, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "skerry-agent")
	resp, err := a.o.Transport(c).RoundTrip(req)
	if err != nil {
		return false, "", fmt.Errorf("asking the API server what %s may do: %w", c.ID(), err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReview))
	if err != nil {
		return false, "", fmt.Errorf("asking the API server what %s may do: %w", c.ID(), err)
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return false, "", unauthorized("the API server does not accept the token")
	case resp.StatusCode == http.StatusForbidden:
		return false, "", errMayNotAsk
	case resp.StatusCode >= 300:
		return false, "", apierrors.NewServiceUnavailable(fmt.Sprintf("asking the API server what %s may do: it answers %s", c.ID(), resp.Status))
	}
	review = authorizationv1.SelfSubjectAccessReview{}
	if err := json.Unmarshal(data, &review); err != nil {
		return false, "", fmt.Errorf("asking the API server what %s may do: %w", c.ID(), err)
	}
	return review.Status.Allowed && !review.Status.Denied, review.Status.Reason, nil
}

// labelRequirements writes a selector as the API server's own authorizers get
// it. What cannot be written is left out: requirements are all to be met, so the
// question is about more then, and a yes is still one.
func labelRequirements(selector string) *authorizationv1.LabelSelectorAttributes {
	parsed, err := labels.Parse(selector)
	if err != nil || selector == "" {
		return nil
	}
	requirements, _ := parsed.Requirements()
	var out []metav1.LabelSelectorRequirement
	for _, r := range requirements {
		to := metav1.LabelSelectorRequirement{Key: r.Key(), Values: r.ValuesUnsorted()}
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			to.Operator = metav1.LabelSelectorOpIn
		case selection.NotEquals, selection.NotIn:
			to.Operator = metav1.LabelSelectorOpNotIn
		case selection.Exists:
			to.Operator = metav1.LabelSelectorOpExists
		case selection.DoesNotExist:
			to.Operator = metav1.LabelSelectorOpDoesNotExist
		default:
			continue
		}
		out = append(out, to)
	}
	if len(out) == 0 {
		return nil
	}
	return &authorizationv1.LabelSelectorAttributes{Requirements: out}
}

func fieldRequirements(selector string) *authorizationv1.FieldSelectorAttributes {
	parsed, err := fields.ParseSelector(selector)
	if err != nil || selector == "" {
		return nil
	}
	var out []metav1.FieldSelectorRequirement
	for _, r := range parsed.Requirements() {
		to := metav1.FieldSelectorRequirement{Key: r.Field, Values: []string{r.Value}}
		switch r.Operator {
		case selection.Equals, selection.DoubleEquals:
			to.Operator = metav1.FieldSelectorOpIn
		case selection.NotEquals:
			to.Operator = metav1.FieldSelectorOpNotIn
		default:
			continue
		}
		out = append(out, to)
	}
	if len(out) == 0 {
		return nil
	}
	return &authorizationv1.FieldSelectorAttributes{Requirements: out}
}
