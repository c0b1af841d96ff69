package serve

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/outbox"
	"skerry.dev/skerry/pkg/edge/hub/tokens"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// maxWrite is the longest body that is held here; the API server's own bound.
const maxWrite = 3 << 20

// write answers a request that changes something. Nearly all of them stream
// through, and are refused while the API server is away. Those of the node that
// could be taken here are held until there is an answer.
func (x *exchange) write() {
	switch {
	case x.caller.Node && isTokenRequest(x.req):
		x.requestToken()
	case x.caller.Node && takesLocally(x.req) && !dryRun(x.r):
		x.writeOfNode()
	case x.online && x.keepsWritten():
		x.pass(pass{modify: x.keepWritten})
	default:
		x.through()
	}
}

// keepsWritten says that the answer to a write of the node tells what the store
// should know: without that, a "not found" that was kept would outlive the
// creation of the object. Events are of no use later.
func (x *exchange) keepsWritten() bool {
	if !x.caller.Node || dryRun(x.r) || (x.req.Subresource != "" && x.req.Subresource != "status") {
		return false
	}
	switch x.req.Group + "/" + x.req.Resource {
	case "/events", "events.k8s.io/events":
		return false
	case "/pods":
		return x.req.Subresource == "status"
	}
	switch x.req.Verb {
	case "create", "update", "patch", "delete":
		return true
	}
	return false
}

// keepWritten keeps the object that a write answered with, or that it is gone.
func (x *exchange) keepWritten(resp *http.Response) error {
	contentType := resp.Header.Get("Content-Type")
	if (resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated) || !wholeObjects(contentType) {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
	if err != nil {
		return err
	}
	if len(raw) > maxObject {
		resp.Body = &joined{io.MultiReader(bytes.NewReader(raw), resp.Body), resp.Body}
		return nil
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	plain, err := inflate(resp.Header.Get("Content-Encoding"), raw)
	if err != nil {
		return nil
	}
	named := *x.req
	named.Verb = "get"
	if status, ok := decodeStatus(contentType, plain); ok {
		if x.req.Verb == "delete" && status.Status == metav1.StatusSuccess {
			x.keep(named.Query(), "", 0, nil)
		}
		return nil
	}
	object, err := wire.Decode(contentType, plain, x.req.Key())
	if err != nil || object.Name == "" {
		x.Logger.Debug("the answer to a write cannot be kept", "path", x.r.URL.Path, "err", err)
		return nil
	}
	if x.req.Group == "" && (x.req.Resource == "pods" || x.req.Resource == "nodes" && x.req.Subresource == "status") {
		x.keepStatus(object)
		return nil
	}
	if x.req.Resource == "leases" {
		// Renewed every few seconds; that it exists is what matters.
		if _, ok, err := x.Store.Get(object.Key); ok && err == nil {
			return nil
		}
	}
	named.Name = object.Name
	x.keep(named.Query(), object.Kind, object.ResourceVersion, []store.Object{object})
	return nil
}

// keepStatus keeps what the cloud made of a status, though a watch will tell it,
// too: what the kubelet has been answered it does not say again. That a pod is
// over must outlive a power cut of this moment, or it would run once more.
func (x *exchange) keepStatus(object store.Object) {
	durability := store.Soon
	if x.req.Resource == "pods" {
		if typed, err := wire.Typed(object); err == nil {
			if pod, ok := typed.(*corev1.Pod); ok && isOver(pod) {
				durability = store.Durable
			}
		}
	}
	if err := x.Views.Saw(object, durability); err != nil {
		x.Logger.Warn("a status that the cloud has could not be kept", "path", x.r.URL.Path, "err", err)
	}
}

// isOver says that a pod has ended, or one of its containers for good.
func isOver(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return true
	}
	if pod.Spec.RestartPolicy == corev1.RestartPolicyAlways || pod.Spec.RestartPolicy == "" {
		return false
	}
	ended := func(s corev1.ContainerStatus) bool {
		t := s.State.Terminated
		return t != nil && (t.ExitCode == 0 || pod.Spec.RestartPolicy == corev1.RestartPolicyNever)
	}
	return slices.ContainsFunc(pod.Status.ContainerStatuses, ended) || slices.ContainsFunc(pod.Status.InitContainerStatuses, ended)
}

func isTokenRequest(req *wire.Request) bool {
	return req.Verb == "create" && req.Group == "" && req.Resource == "serviceaccounts" && req.Subresource == "token"
}

// isStatusHolder says that the outbox may have an unsent status of the object.
func isStatusHolder(req *wire.Request) bool {
	return req.Group == "" && (req.Resource == "pods" || req.Resource == "nodes")
}

// takesLocally says which writes are worth holding; the outbox decides.
func takesLocally(req *wire.Request) bool {
	switch req.Group + "/" + req.Resource + "/" + req.Subresource {
	case "/pods/status", "/nodes/status":
		return req.Verb == "update" || req.Verb == "patch"
	case "/nodes/":
		return req.Verb == "create"
	case "/events/", "events.k8s.io/events/", "coordination.k8s.io/leases/":
		return req.Verb == "create" || req.Verb == "update" || req.Verb == "patch"
	}
	return false
}

// dryRun says that nothing is to be written; only the API server can play that.
func dryRun(r *http.Request) bool { return r.URL.Query().Has("dryRun") }

// readBody reads a body of at most limit bytes; if it cannot, it has answered.
func (x *exchange) readBody(limit int64) ([]byte, bool) {
	if x.r.ContentLength > limit {
		x.fail(apierrors.NewRequestEntityTooLargeError("limit is " + strconv.FormatInt(limit, 10)))
		return nil, false
	}
	var buffer bytes.Buffer
	buffer.Grow(int(max(0, x.r.ContentLength)) + bytes.MinRead)
	_, err := buffer.ReadFrom(io.LimitReader(x.r.Body, limit+1))
	if err == nil && int64(buffer.Len()) > limit {
		err = apierrors.NewRequestEntityTooLargeError("limit is " + strconv.FormatInt(limit, 10))
	} else if err != nil {
		err = apierrors.NewBadRequest("reading the body: " + err.Error())
	}
	if err != nil {
		x.fail(err)
		return nil, false
	}
	return buffer.Bytes(), true
}

// writeTransport gives up in time for the caller to be answered from here.
func (x *exchange) writeTransport() http.RoundTripper {
	return &bounded{
		RoundTripper: x.Upstream.Transport(x.caller), link: x.link.current(),
		header: x.WriteDeadline, stall: x.StallDeadline,
	}
}

// writeOfNode passes on a write of the node that the outbox could take, and lets
// it take it when the API server is away.
func (x *exchange) writeOfNode() {
	body, ok := x.readBody(maxWrite)
	if !ok {
		return
	}
	held := x.req.Subresource == "status" && x.Writer.Holds(x.req.Key())
	if !x.online || held {
		if x.writeHere(body, nil) {
			return
		}
	}
	var modify func(*http.Response) error
	if x.keepsWritten() {
		modify = x.keepWritten
	}
	x.pass(pass{
		transport: x.writeTransport(),
		body:      body,
		buffered:  true,
		modify:    modify,
		failed: func(err error) {
			// The write may have been made: it is one that may be made twice.
			if x.Upstream.Online() || !x.writeHere(body, err) {
				x.noAnswer(err)
			}
		},
	})
}

// writeHere gives a write to the outbox and answers it; false if it does not take
// it while the cloud is there.
func (x *exchange) writeHere(body []byte, cause error) bool {
	object, code, err := x.Writer.Write(x.r.Context(), x.caller, x.req, x.r.Header.Get("Content-Type"), body)
	if errors.Is(err, outbox.ErrNotOffline) {
		if cause == nil && x.Upstream.Online() {
			return false
		}
		x.unreachable()
		return true
	}
	if err != nil {
		x.fail(asStatus(err))
		return true
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	if err != nil {
		x.fail(err)
		return true
	}
	answer, err := wire.EncodeObject(media, object)
	if err != nil {
		x.fail(apierrors.NewInternalError(err))
		return true
	}
	x.source = sourceStore
	x.answer(code, media.ContentType(false), answer)
	return true
}

// requestToken passes on a TokenRequest of the kubelet and keeps the answer, or
// gives the last good one while the API server is away. Only the node asks so: a
// pod's own token must not make others while nobody can check it.
func (x *exchange) requestToken() {
	body, ok := x.readBody(tokens.MaxBody)
	if !ok {
		return
	}
	if !x.online {
		x.tokenKept(body, nil)
		return
	}
	x.pass(pass{
		transport: x.writeTransport(),
		body:      body,
		buffered:  true,
		modify: func(resp *http.Response) error {
			if err := gatewayFailure(resp); err != nil {
				return err
			}
			if resp.StatusCode != http.StatusCreated {
				return nil
			}
			raw, err := io.ReadAll(io.LimitReader(resp.Body, tokens.MaxBody+1))
			if err != nil {
				return err
			}
			if len(raw) > tokens.MaxBody {
				resp.Body = &joined{io.MultiReader(bytes.NewReader(raw), resp.Body), resp.Body}
				return nil
			}
			_ = resp.Body.Close()
			resp.Body = io.NopCloser(bytes.NewReader(raw))
			plain, err := inflate(resp.Header.Get("Content-Encoding"), raw)
			if err == nil {
				err = x.Tokens.Keep(x.req.Namespace, x.req.Name, x.r.Header.Get("Content-Type"), body, resp.StatusCode, resp.Header.Get("Content-Type"), plain)
			}
			if err != nil {
				x.Logger.Warn("a token could not be kept", "namespace", x.req.Namespace, "serviceAccount", x.req.Name, "err", err)
			}
			return nil
		},
		failed: func(err error) { x.tokenKept(body, err) },
	})
}

func (x *exchange) tokenKept(body []byte, cause error) {
	answer, contentType, ok, err := x.Tokens.Lookup(x.req.Namespace, x.req.Name, x.r.Header.Get("Content-Type"), body, x.r.Header.Get("Accept"))
	switch {
	case err != nil:
		x.fail(asStatus(err))
	case !ok && cause != nil:
		x.noAnswer(cause)
	case !ok:
		x.fail(x.away("no token for service account " + x.req.Namespace + "/" + x.req.Name + " is kept on this node"))
	default:
		x.source = sourceStore
		x.answer(http.StatusCreated, contentType, answer)
	}
}
