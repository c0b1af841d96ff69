package views

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/store"
)

// Do sends a request with the node's identity; upstream.Upstream.Do is one.
type Do func(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error)

const (
	// maxBehind bounds how many revisions are made up for.
	maxBehind = 10_000
	// atOnce is how many renewals are sent at a time.
	atOnce = 10
	// catchUpAnswer bounds what is read of an answer.
	catchUpAnswer = 1 << 20
)

// CatchUp makes sure that the cloud's revision is beyond shown, the highest one
// that any client of this node has seen: it reads the current one and, while it
// is behind, renews the node's own Lease, which costs one revision each. So no
// client sees resourceVersions go back after an outage. It returns the cloud's
// revision, and ErrRestored if that is more than 10,000 behind, or behind cloud,
// the highest one that is known to be the cloud's.
func CatchUp(ctx context.Context, do Do, nodeName string, shown, cloud uint64) (revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for turn := 0; ; turn++ {
		if revision, err = currentRevision(ctx, do, nodeName); err != nil {
			return 0, fmt.Errorf("reading the cloud's revision: %w", err)
		}
		switch {
		case revision < cloud, revision < shown && shown-revision > maxBehind:
			return revision, &RestoredError{Revision: revision, Shown: max(shown, cloud)}
		case revision > shown:
			return revision, nil
		case turn >= 10:
			return revision, fmt.Errorf("the cloud's revision stays at %d, and clients of this node have seen %d", revision, shown)
		}
		if err := renew(ctx, do, nodeName, shown-revision+1); err != nil {
			return revision, fmt.Errorf("raising the cloud's revision by renewing the node's lease: %w", err)
		}
	}
}

// currentRevision lists the node itself, which its identity may do, and of which
// there is one.
func currentRevision(ctx context.Context, do Do, nodeName string) (uint64, error) {
	query := url.Values{"limit": {"1"}, "fieldSelector": {"metadata.name=" + nodeName}}
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := ask(ctx, do, http.MethodGet, "/api/v1/nodes", query, "", nil, &list); err != nil {
		return 0, err
	}
	rv, err := strconv.ParseUint(list.Metadata.ResourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the list of nodes has no resourceVersion: %w", err)
	}
	return rv, nil
}

const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

func microTime(t time.Time) string { return t.Format("2006-01-02T15:04:05.000000Z07:00") }

// ensureLease makes the lease as the kubelet would, should it be missing.
func ensureLease(ctx context.Context, do Do, path, nodeName string, now time.Time) error {
	err := ask(ctx, do, http.MethodGet, path, nil, "", nil, nil)
	if !apierrors.IsNotFound(err) {
		return err
	}
	body := fmt.Appendf(nil, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q,"namespace":"kube-node-lease"},"spec":{"holderIdentity":%q,"leaseDurationSeconds":40,"renewTime":%q}}`,
		nodeName, nodeName, microTime(now))
	if err = ask(ctx, do, http.MethodPost, leases, nil, "application/json", body, nil); apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// renew patches the lease n times. Each has a new time, or it would be no write.
func renew(ctx context.Context, do Do, nodeName string, n uint64) error {
	path := leases + "/" + url.PathEscape(nodeName)
	base := time.Now().UTC()
	if err := ensureLease(ctx, do, path, nodeName, base); err != nil {
		return err
	}
	var wg sync.WaitGroup
	work := make(chan uint64)
	failed := make(chan error, atOnce)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range min(n, atOnce) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range work {
				at := microTime(base.Add(time.Duration(i+1) * time.Microsecond))
				body := fmt.Appendf(nil, `{"spec":{"renewTime":%q}}`, at)
				err := ask(ctx, do, http.MethodPatch, path, nil, "application/merge-patch+json", body, nil)
				if err != nil {
					failed <- err
					cancel()
					return
				}
			}
		}()
	}
	for i := uint64(0); i < n && ctx.Err() == nil; i++ {
		select {
		case work <- i:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

func ask(ctx context.Context, do Do, method, path string, query url.Values, contentType string, body []byte, into any) error {
	resp, err := do(ctx, method, path, query, contentType, "application/json", body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return refusal(resp, store.Query{})
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, catchUpAnswer))
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(data, into)
}
