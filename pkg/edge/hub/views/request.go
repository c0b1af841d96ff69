package views

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// stall is how long an answer may stand still in the middle of its body.
	stall = 30 * time.Second
	// maxStatus bounds the body of an error.
	maxStatus = 64 << 10
)

// path is the collection's.
func path(q store.Query) string {
	p := "/apis/" + url.PathEscape(q.Group) + "/" + url.PathEscape(q.Version)
	if q.Group == "" {
		p = "/api/" + url.PathEscape(q.Version)
	}
	if q.Namespace != "" {
		p += "/namespaces/" + url.PathEscape(q.Namespace)
	}
	return p + "/" + url.PathEscape(q.Resource)
}

func parameters(q store.Query) url.Values {
	p := url.Values{}
	if q.LabelSelector != "" {
		p.Set("labelSelector", q.LabelSelector)
	}
	if q.FieldSelector != "" {
		p.Set("fieldSelector", q.FieldSelector)
	}
	return p
}

// request sends a GET upstream as the caller. The error is upstream's Status, or
// what went wrong on the way. ctx bounds the body, too.
func (vs *Views) request(ctx context.Context, c identity.Caller, q store.Query, p url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "https", Host: "kubernetes.default.svc", Path: path(q), RawQuery: p.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking for %s: %w", q, err)
	}
	accept := "application/json"
	if wire.BuiltIn(q.Group, q.Version) {
		accept = "application/vnd.kubernetes.protobuf,application/json"
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "skerry-agent/views")
	resp, err := vs.o.Upstream.Transport(c).RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("asking for %s: %w", q, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		return nil, refusal(resp, q)
	}
	return resp, nil
}

// refusal reads the Status of an error.
func refusal(resp *http.Response, q store.Query) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	var s metav1.Status
	ok := false
	if raw, isProto := bytes.CutPrefix(body, []byte("k8s\x00")); isProto {
		var u runtime.Unknown
		ok = u.Unmarshal(raw) == nil && u.Kind == "Status" && s.Unmarshal(u.Raw) == nil
	} else {
		ok = json.Unmarshal(body, &s) == nil && s.Status == metav1.StatusFailure
	}
	if ok && s.Code != 0 {
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
			if s.Details == nil {
				s.Details = &metav1.StatusDetails{}
			}
			s.Details.RetryAfterSeconds = int32(min(seconds, 3600))
		}
		return &apierrors.StatusError{ErrStatus: s}
	}
	retry, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(resp.StatusCode, "list", schema.GroupResource{Group: q.Group, Resource: q.Resource}, "", string(body), retry, true)
}

// lively cancels a request whose body stands still.
type lively struct {
	io.Reader
	timer *time.Timer
}

func (l *lively) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.timer.Reset(stall)
	}
	return n, err
}

// listPage reads one page of a collection.
func (vs *Views) listPage(ctx context.Context, c identity.Caller, q store.Query, p url.Values, fn func(store.Object) error) (metav1.ListMeta, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing came for %s: %w", stall, context.DeadlineExceeded)) })
	defer timer.Stop()
	resp, err := vs.request(ctx, c, q, p)
	if err != nil {
		return metav1.ListMeta{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	timer.Reset(stall)
	key := store.Key{Group: q.Group, Version: q.Version, Resource: q.Resource}
	meta, err := wire.ReadList(resp.Header.Get("Content-Type"), &lively{resp.Body, timer}, key, vs.o.MaxItem, fn)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		return meta, fmt.Errorf("reading the list of %s: %w", q, err)
	}
	return meta, nil
}

// revision asks for the revision that the cloud has now.
func (vs *Views) revision(ctx context.Context, c identity.Caller, q store.Query) (uint64, error) {
	p := parameters(q)
	p.Set("limit", "1")
	meta, err := vs.listPage(ctx, c, q, p, func(store.Object) error { return nil })
	if err != nil {
		return 0, err
	}
	rv, err := strconv.ParseUint(meta.ResourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the list of %s has no resourceVersion: %w", q, err)
	}
	return rv, nil
}
