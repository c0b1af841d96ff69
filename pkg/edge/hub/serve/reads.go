package serve

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	maxKeepObjects = 100_000  // of one list
	maxKeepBytes   = 64 << 20 // of one list
	maxObject      = 3 << 20  // of one object; etcd takes 1.5 MiB
	keepTimeout    = 30 * time.Second
)

// get answers a GET of one object.
func (x *exchange) get() {
	if !x.online {
		x.fromStore()
		return
	}
	_, _, kept := x.kept()
	if kept && x.isOwnNode() && x.req.Options.ResourceVersion == "0" && x.getView() {
		return
	}
	concerned := x.rewrites()
	unsent := x.caller.Node && isStatusHolder(x.req) && x.Writer.Holds(x.req.Key())
	if !kept && !concerned {
		x.through()
		return
	}
	p := pass{buffered: true, modify: func(resp *http.Response) error { return x.gotObject(resp, kept, concerned, unsent) }}
	if kept {
		p.transport = x.keptTransport()
		p.failed = x.unansweredKept
	}
	x.pass(p)
}

// isOwnNode says that the kubelet asks for its own Node.
func (x *exchange) isOwnNode() bool {
	return x.caller.Node && x.req.Group == "" && x.req.Resource == "nodes" && x.req.Name == x.NodeName
}

// getView answers from the shared view what the kubelet asks before each of its
// heartbeats, and would take from the API server's watch cache: its own Node,
// which it watches anyway. false if it cannot, and nothing is written.
func (x *exchange) getView() bool {
	view, err := x.Views.Acquire(x.r.Context(), x.caller, x.req.Query())
	if err != nil {
		return false
	}
	defer view.Release()
	if !view.Live() {
		return false
	}
	var object store.Object
	_, err = view.List(x.r.Context(), x.snapshotOptions(), store.Key{}, func(o store.Object) error {
		object = o
		object.Data = bytes.Clone(o.Data)
		return nil
	})
	if err != nil || object.Name != x.req.Name {
		return false // that it is gone is the API server's to say
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	if err != nil {
		return false
	}
	body, err := wire.EncodeObject(media, object)
	if err != nil {
		return false
	}
	x.source = sourceStore
	x.answer(http.StatusOK, media.ContentType(false), body)
	return true
}

// keptTransport gives up on an API server that does not answer, if the store can.
func (x *exchange) keptTransport() http.RoundTripper {
	return &bounded{
		RoundTripper: x.Upstream.Transport(x.caller), link: x.link.current(),
		// What a shared view has taken of the time is gone.
		header: max(x.HeaderDeadline-time.Since(x.began), x.HeaderDeadline/8), stall: x.StallDeadline,
		wait: func() bool { return !x.stored() },
	}
}

// gateway is an answer of something that stands before an API server that is not
// there (502, 503 and 504), or of an API server that cannot reach its etcd.
type gateway struct {
	code   int
	header http.Header
	body   []byte
}

func (g *gateway) Error() string { return fmt.Sprintf("the API server answered %d", g.code) }

// gatewayFailure reads an answer that says that there is no API server that
// works. That the client asked for a future resourceVersion (504 with a cause)
// is none, nor is any other code: those are the API server's answers.
func gatewayFailure(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	if err != nil {
		return err
	}
	if status, ok := readStatus(resp, body); ok && apierrors.HasStatusCause(&apierrors.StatusError{ErrStatus: status}, metav1.CauseTypeResourceVersionTooLarge) {
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	}
	return &gateway{code: resp.StatusCode, header: resp.Header, body: body}
}

// unansweredKept answers a kept client's read that got no answer, or a gateway's.
func (x *exchange) unansweredKept(err error) {
	var failure *gateway
	if errors.As(err, &failure) && !x.stored() {
		x.source = sourceCloud
		for _, name := range []string{"Content-Type", "Content-Encoding", "Retry-After", "Audit-Id"} {
			if value := failure.header.Get(name); value != "" {
				x.w.Header().Set(name, value)
			}
		}
		x.w.WriteHeader(failure.code)
		_, _ = x.w.Write(failure.body)
		return
	}
	x.unanswered(err)
}

// gotObject looks at the answer to a GET on its way: keeps the object, or the
// cloud's word that there is none, and rewrites the few that are.
func (x *exchange) gotObject(resp *http.Response, kept, concerned, unsent bool) error {
	if kept {
		if err := gatewayFailure(resp); err != nil {
			return err
		}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		return nil
	}
	contentType := resp.Header.Get("Content-Type")
	if !wholeObjects(contentType) || x.r.Method != http.MethodGet {
		return nil
	}
	// Small answers are read before anything is sent on, so that one that breaks
	// off can still be answered from the store. Long ones have no such luck.
	raw, err := readObject(resp)
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	if len(raw) > maxObject {
		resp.Body = &joined{io.MultiReader(bytes.NewReader(raw), resp.Body), resp.Body}
		return nil
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	encoding := resp.Header.Get("Content-Encoding")
	answer, sum := recentKey{x.req.Query(), x.caller.Node}, x.recent.sum(resp.StatusCode, contentType, encoding, raw)
	again := kept && x.recent.has(answer, sum)
	if again && !concerned && !unsent {
		return nil
	}
	plain, err := inflate(encoding, raw)
	if err != nil {
		return nil // the client may understand what the hub does not
	}
	if resp.StatusCode == http.StatusNotFound {
		if kept && !again && x.saysNotFound(resp, plain) && x.keep(answer.query, "", 0, nil) {
			x.recent.add(answer, sum)
		}
		return nil
	}
	object, err := wire.Decode(contentType, plain, x.req.Key())
	if err != nil || object.Name != x.req.Name {
		x.Logger.Debug("an answer cannot be kept", "path", x.r.URL.Path, "err", err)
		return nil
	}
	if kept && !again && x.keep(answer.query, object.Kind, object.ResourceVersion, []store.Object{object}) {
		x.recent.add(answer, sum)
	}
	if !concerned && !unsent {
		return nil
	}
	if unsent {
		if object, err = x.Writer.Rebase(object); err != nil {
			return err
		}
	}
	rewritten, changed, err := x.rewrite(object, false)
	if err != nil || !changed && !unsent {
		return err
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	if err != nil || media.As != wire.AsIs {
		return nil
	}
	body, err := wire.EncodeObject(media, rewritten)
	if err != nil {
		return err
	}
	resp.Header.Set("Content-Type", media.ContentType(false))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	resp.Header.Del("Content-Encoding")
	resp.ContentLength = int64(len(body))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// readObject reads a body of at most one byte more than an object may have.
func readObject(resp *http.Response) ([]byte, error) {
	if n := resp.ContentLength; n >= 0 && n <= maxObject {
		raw := make([]byte, n)
		_, err := io.ReadFull(resp.Body, raw)
		return raw, err
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
}

type joined struct {
	io.Reader
	io.Closer
}

// wholeObjects says that a body has the objects themselves, in an encoding that
// is read here: not a Table or a part of them.
func wholeObjects(contentType string) bool {
	base, params, _ := strings.Cut(strings.ReplaceAll(contentType, " ", ""), ";")
	if strings.Contains(params, "as=") {
		return false
	}
	switch base {
	case "application/json", "application/vnd.kubernetes.protobuf", "application/cbor":
		return true
	}
	return false
}

// inflate undoes the encoding of a body that fits in memory.
func inflate(encoding string, body []byte) ([]byte, error) {
	switch encoding {
	case "", "identity":
		return body, nil
	case "gzip":
		reader, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		plain, err := io.ReadAll(io.LimitReader(reader, 4*maxObject+1))
		if err == nil && len(plain) > 4*maxObject {
			err = errors.New("the body is too long")
		}
		return plain, err
	}
	return nil, fmt.Errorf("unknown encoding %q", encoding)
}

// saysNotFound tells the API server's word that this very object does not exist
// from any other 404: an unknown resource, a webhook's or a gateway's page.
func (x *exchange) saysNotFound(resp *http.Response, body []byte) bool {
	status, ok := readStatus(resp, body)
	return ok && status.Reason == metav1.StatusReasonNotFound && status.Details != nil &&
		status.Details.Name == x.req.Name && status.Details.Group == x.req.Group && status.Details.Kind == x.req.Resource
}

// keep stores what the cloud answered, and reports whether it could.
func (x *exchange) keep(q store.Query, kind string, rv uint64, items []store.Object) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), keepTimeout)
	defer cancel()
	if err := x.Views.Keep(ctx, q, kind, x.caller.Node, rv, items); err != nil {
		x.Logger.Warn("an answer could not be kept", "path", x.r.URL.Path, "err", err)
		return false
	}
	return true
}
