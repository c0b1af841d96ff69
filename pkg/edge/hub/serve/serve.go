// Package serve is the hub's face: an HTTP handler that speaks as the API server
// does, and the listeners that it stands behind. While the API server can be
// reached it passes requests on as a stream and keeps what passes; reads that may
// be answered by a shared watch are; and when the API server is away, it answers
// from the store, and says so in the header Skerry-Source.
//
// It decides who is asked for each request, and nothing else: it must not know
// how the store writes, how views follow the cloud, how local writes are merged,
// or which credential goes upstream.
//
// # Who answers
//
//	request                           online                    offline, or no answer in time
//	GET, kept client                  cloud, kept               store; 404 only if the cloud said so
//	GET own Node at version 0         shared view               store
//	LIST of the newest, kept client   cloud, kept               store
//	LIST at a version, kept client    shared view               store
//	WATCH, kept client                shared view               store, and local changes
//	the same, other clients           cloud                     store, if RBAC allows and it is there
//	discovery, OpenAPI, version       cloud, kept               store
//	the node's statuses, Lease,       cloud                     outbox
//	events
//	TokenRequest of the node          cloud, kept               the last good token
//	/healthz, /livez, /readyz         cloud                     hub: ok, since it can answer
//	exec and the like, other writes   cloud                     503
//
// An answer of 502, 503 or 504 to a kept client's read counts as none, whoever
// gave it (a load balancer, or an API server without its etcd), if the store has
// one; but not the 504 that tells a client that its resourceVersion is too new.
// Any other answer is the API server's own and goes through. No answer within the
// deadline counts only if the store has one: slow is not down.
//
// What is not known is 503 without Retry-After: client-go would try ten times
// over inside of one call.
package serve

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Headers of answers that do not come from the API server.
const (
	HeaderSource = "Skerry-Source" // store, or hub
	HeaderAge    = "Skerry-Age"    // seconds since the cloud last confirmed the answer

	sourceCloud = "cloud"
	sourceStore = "store"
	sourceHub   = "hub"
)

// Upstream is the way to the API server; *upstream.Upstream is one.
type Upstream interface {
	Online() bool
	State() upstream.State
	Changes() <-chan struct{}
	Transport(c identity.Caller) http.RoundTripper
	UpgradeTransport(c identity.Caller) http.RoundTripper
	Do(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error)
}

// Authenticator says who sent a request; *identity.Authenticator is one.
type Authenticator interface {
	Authenticate(r *http.Request, online bool) (identity.Caller, error)
}

// Authorizer says what a caller may do; *identity.Authorizer is one.
type Authorizer interface {
	Offline(ctx context.Context, c identity.Caller, a identity.Attributes) error
	Online(ctx context.Context, c identity.Caller, a identity.Attributes) error
}

// Store is what is read from the store directly; *store.Store is one.
type Store interface {
	Get(k store.Key) (store.Object, bool, error)
	Views(group, resource string) ([]store.View, error)
	Document(name string) ([]byte, bool, error)
	Apply(b *store.Batch, d store.Durability) error
	// Raise notes a resourceVersion that a client is about to see.
	Raise(rv uint64) error
}

// Views are the shared views of the cloud; *views.Views is one.
type Views interface {
	Acquire(ctx context.Context, c identity.Caller, q store.Query) (*views.View, error)
	Cover(q store.Query, allow func(store.View) bool) (store.View, bool)
	Keep(ctx context.Context, q store.Query, kind string, node bool, rv uint64, items []store.Object) error
	NewKeeper(q store.Query, kind string, node bool) *views.Keeper
	// Saw takes an object that a client is about to see.
	Saw(o store.Object, d store.Durability) error
}

// Writer takes the writes that a node must be able to make while the cloud is
// away; *outbox.Outbox is one.
type Writer interface {
	// Write takes a write of the node, or answers outbox.ErrNotOffline.
	Write(ctx context.Context, c identity.Caller, req *wire.Request, contentType string, body []byte) (store.Object, int, error)
	// Holds says that the cloud lacks a status of the object that was written
	// here; Rebase puts that status into what the cloud says.
	Holds(k store.Key) bool
	Rebase(o store.Object) (store.Object, error)
}

// Tokens keeps the answers to TokenRequests; *tokens.Tokens is one.
type Tokens interface {
	Keep(namespace, serviceAccount, reqType string, req []byte, code int, respType string, resp []byte) error
	Lookup(namespace, serviceAccount, reqType string, req []byte, accept string) (resp []byte, respType string, ok bool, err error)
}

// Options configure a Handler. Zero durations and numbers have the defaults that
// stand beside them.
type Options struct {
	NodeName      string
	Upstream      Upstream
	Authenticator Authenticator
	Authorizer    Authorizer
	Store         Store
	Views         Views
	Writer        Writer
	Tokens        Tokens
	// Keep says whether answers are kept for a user, within which bounds. The
	// node is always kept and not asked for.
	Keep func(user, group, resource string) (objects int, bytes int64, ok bool)

	// Closed takes endpoints out of closed Services for DNS. Default: nothing
	// does.
	Closed Closed
	// NodeCA is the PEM of the authority of the hub's serving certificate.
	NodeCA func() []byte
	// HubURL is where the node's components find the hub; default
	// https://127.0.0.1:10270. PodAddress and PodPort are where pods do; default
	// 169.254.20.10 and 10270.
	HubURL     string
	PodAddress string
	PodPort    int32

	HeaderDeadline time.Duration // for the answer to a kept read to begin; 4 s
	StallDeadline  time.Duration // between two pieces of it; 10 s
	WriteDeadline  time.Duration // for the answer to a write that could be taken here; 10 s
	WriteStall     time.Duration // for a client to take a piece of an answer; 1 min
	Limits         Limits

	Registry prometheus.Registerer
	Logger   *slog.Logger
	Now      func() time.Time
}

// Handler is the hub's http.Handler. Safe for concurrent use.
type Handler struct {
	Options
	limiter   *limiter
	metrics   *metrics
	audit     *audit
	continues *continues
	documents *documents
	link      *link
	shelf     *shelf
	recent    *recent
	room      *room
	pending   *pending
}

// New returns a Handler. Run must run beside it.
func New(o Options) (*Handler, error) {
	if o.Upstream == nil || o.Authenticator == nil || o.Authorizer == nil || o.Store == nil || o.Views == nil || o.Writer == nil || o.Tokens == nil {
		return nil, errors.New("the hub's handler lacks a part")
	}
	if o.Keep == nil {
		o.Keep = func(string, string, string) (int, int64, bool) { return 0, 0, false }
	}
	if o.NodeCA == nil {
		o.NodeCA = func() []byte { return nil }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	setDefault(&o.HubURL, "https://127.0.0.1:10270")
	setDefault(&o.PodAddress, "169.254.20.10")
	setDefault(&o.PodPort, 10270)
	setDefault(&o.HeaderDeadline, 4*time.Second)
	setDefault(&o.StallDeadline, 10*time.Second)
	setDefault(&o.WriteDeadline, 10*time.Second)
	setDefault(&o.WriteStall, time.Minute)
	o.Limits.setDefaults()
	h := &Handler{Options: o}
	h.limiter = newLimiter(o.Limits)
	h.metrics = newMetrics(o.Registry, h.limiter)
	h.audit = newAudit(o.Logger, o.Now)
	h.continues = newContinues()
	h.documents = newDocuments(o.Store, o.Now, o.Logger)
	h.link = newLink(o.Upstream.Online)
	h.shelf = newShelf()
	h.recent = newRecent(time.Now)
	h.room = newRoom(maxHeldLists)
	h.pending = newPending()
	return h, nil
}

func setDefault[T comparable](value *T, byDefault T) {
	var zero T
	if *value == zero {
		*value = byDefault
	}
}

// Run follows the link, and fetches the documents that clients need, until ctx
// ends.
func (h *Handler) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { h.prefetch(ctx) })
	defer group.Wait()
	for {
		changes := h.Upstream.Changes()
		h.link.current()
		h.shelf.clear()
		h.recent.forget()
		select {
		case <-ctx.Done():
			return
		case <-changes:
		}
	}
}

// exchange is one request and what the hub knows of it.
type exchange struct {
	*Handler
	w      *recorder
	r      *http.Request
	caller identity.Caller
	req    *wire.Request
	online bool // when the request came
	began  time.Time
	source string // of the answer
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := h.Now()
	x := &exchange{Handler: h, w: &recorder{ResponseWriter: w, stall: h.WriteStall}, r: r, online: h.Upstream.Online(), began: time.Now(), source: sourceHub}
	defer func() {
		failure := recover()
		if err, _ := failure.(error); failure != nil && !errors.Is(err, http.ErrAbortHandler) {
			h.Logger.Error("a request made the hub panic", "method", r.Method, "path", r.URL.Path, "panic", failure, "stack", string(debug.Stack()))
			if !x.w.wrote() {
				x.fail(apierrors.NewInternalError(errors.New("the hub failed on this request")))
				failure = nil
			} else {
				failure = http.ErrAbortHandler
			}
		}
		h.metrics.done(x, h.Now().Sub(started))
		if failure != nil {
			panic(failure)
		}
	}()
	x.serve()
}

func (x *exchange) serve() {
	if err := checkPath(x.r); err != nil {
		x.refuse(err, "path")
		return
	}
	if err := checkHeaders(x.r); err != nil {
		x.refuse(err, "header")
		return
	}
	caller, err := x.Authenticator.Authenticate(x.r, x.online)
	if err != nil {
		x.refuse(err, "credential")
		return
	}
	x.caller = caller
	if err := x.checkImpersonation(); err != nil {
		x.refuse(err, "impersonation")
		return
	}
	req, err := wire.Parse(x.r)
	if err != nil {
		x.refuse(err, "request")
		return
	}
	x.req = req
	done, err := x.limiter.enter(caller, longRunning(req, x.r))
	if err != nil {
		x.metrics.refused.WithLabelValues("busy").Inc()
		x.fail(err)
		return
	}
	defer done()
	x.closed(x.route)
}

func (x *exchange) route() {
	req := x.req
	switch {
	case !req.IsResource:
		x.document()
	case isUpgrade(x.r):
		x.upgrade()
	case req.Subresource != "" && !isLocalSubresource(req):
		x.through()
	case req.Verb == "get" && req.Subresource == "":
		x.get()
	case req.Verb == "list":
		x.list()
	case req.Verb == "watch":
		x.watch()
	case req.Verb == "get":
		x.through()
	default:
		x.write()
	}
}

// isLocalSubresource says that a write to it may be taken while offline.
func isLocalSubresource(req *wire.Request) bool {
	return req.Subresource == "status" || req.Subresource == "token"
}

// query reports whether answers to this caller are kept, with which bounds.
func (x *exchange) kept() (objects int, bytes int64, ok bool) {
	if x.caller.Node {
		return maxKeepObjects, maxKeepBytes, true
	}
	if !x.caller.Verified || impersonates(x.r) {
		return 0, 0, false
	}
	objects, bytes, ok = x.Keep(x.caller.User.Name, x.req.Group, x.req.Resource)
	return min(objects, maxKeepObjects), min(bytes, maxKeepBytes), ok
}

func (x *exchange) attributes() identity.Attributes {
	at := identity.Attributes{
		Verb: x.req.Verb, Group: x.req.Group, Version: x.req.Version, Resource: x.req.Resource,
		Subresource: x.req.Subresource, Namespace: x.req.Namespace, Name: x.req.Name, Path: x.r.URL.Path,
	}
	switch x.req.Verb {
	case "list", "watch":
		at.LabelSelector, at.FieldSelector = x.req.Options.Label.String(), x.req.Options.Field.String()
	}
	return at
}

// fail answers with a Status.
//
// That trying again later would help is said for 429 only: client-go tries ten
// times over, inside of one call, when it is told when, and a kubelet does other
// things meanwhile than wait for an API server that is away.
func (x *exchange) fail(err error) {
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Code >= 500 && status.ErrStatus.Details != nil && status.ErrStatus.Details.RetryAfterSeconds > 0 {
		soon := status.ErrStatus.DeepCopy()
		soon.Details.RetryAfterSeconds = 0
		err = &apierrors.StatusError{ErrStatus: *soon}
	}
	x.w.Header().Set(HeaderSource, x.source)
	wire.WriteStatus(x.w, x.r, err)
}

// refuse answers a request that is not allowed, and says so in the audit.
func (x *exchange) refuse(err error, why string) {
	x.metrics.refused.WithLabelValues(why).Inc()
	x.audit.refused(x, err, why)
	x.fail(err)
}

// away is the answer to what only the cloud can do.
func (x *exchange) away(what string) error {
	return awayError(x.Upstream.State(), what)
}

func awayError(state upstream.State, what string) error {
	message := what + ": the API server does not answer at the moment"
	if !state.Online {
		message = what + ": the API server cannot be reached"
		if !state.Since.IsZero() {
			message += " since " + state.Since.UTC().Format(time.RFC3339)
		}
		if state.Reason != "" {
			message += " (" + strings.TrimSpace(state.Reason) + ")"
		}
	}
	return apierrors.NewServiceUnavailable(message)
}
