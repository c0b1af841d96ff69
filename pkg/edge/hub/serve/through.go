package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/shown"
	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/store"
)

// buffers are what bodies are copied with.
var buffers = bufferPool{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}

type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) Get() []byte { return *p.pool.Get().(*[]byte) }

func (p *bufferPool) Put(b []byte) {
	if cap(b) == 32<<10 {
		b = b[:32<<10]
		p.pool.Put(&b)
	}
}

// pass says how one request is passed on.
type pass struct {
	transport http.RoundTripper
	body      []byte // replaces the request's body
	modify    func(*http.Response) error
	failed    func(error) // answers when there was no answer; default x.unanswered
	buffered  bool        // the answer need not be flushed piece by piece
	plain     bool        // the answer is read: it must not be compressed, and 1.37 compresses watches
	packed    bool        // the answer is held: it had better be compressed
}

// through passes a request on, and its answer back, as they come.
func (x *exchange) through() {
	if !x.online {
		x.unreachable()
		return
	}
	x.pass(pass{})
}

// pass sends the request upstream and copies the answer.
func (x *exchange) pass(p pass) {
	if p.transport == nil {
		p.transport = &bounded{RoundTripper: x.Upstream.Transport(x.caller), link: x.link.current()}
	}
	if p.failed == nil {
		p.failed = x.unanswered
	}
	proxy := &httputil.ReverseProxy{
		Transport:     p.transport,
		FlushInterval: -1,
		BufferPool:    &buffers,
		ErrorLog:      slog.NewLogLogger(x.Logger.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			// Transport puts in the server in use; a URL needs something.
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "https", "kubernetes.default.svc", ""
			x.cleanHeaders(pr.Out.Header)
			if p.plain {
				pr.Out.Header.Set("Accept-Encoding", "identity")
			}
			if p.packed {
				pr.Out.Header.Set("Accept-Encoding", "gzip")
			}
			if p.body != nil {
				body := p.body
				pr.Out.Body = io.NopCloser(bytes.NewReader(body))
				pr.Out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
				pr.Out.ContentLength = int64(len(body))
				pr.Out.TransferEncoding = nil
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			x.source = sourceCloud
			resp.Header.Del(HeaderSource)
			resp.Header.Del(HeaderAge)
			x.noteShown(resp)
			if p.modify != nil && resp.StatusCode != http.StatusSwitchingProtocols {
				return p.modify(resp)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			x.source = sourceHub
			if x.r.Context().Err() != nil {
				panic(http.ErrAbortHandler) // nobody waits for an answer
			}
			if errors.As(err, &unusable{}) {
				x.noAnswer(err)
				return
			}
			p.failed(err)
		},
	}
	if p.buffered {
		proxy.FlushInterval = 0
	}
	proxy.ServeHTTP(x.w, x.r)
}

// noteShown sees to it that the store knows, before the client does, how far the
// cloud is: what is written here during an outage counts on from there. Answers
// that say nothing (the lease of ten seconds ago) cost a comparison.
func (x *exchange) noteShown(resp *http.Response) {
	if !x.req.IsResource || resp.Body == nil || resp.StatusCode < 200 || resp.StatusCode > 299 {
		return
	}
	if x.req.Subresource == "log" || x.req.Subresource == "proxy" {
		return // not the API's own
	}
	key := x.req.Key()
	resp.Body = shown.Reader(resp.Body, shown.Answer{
		ContentType: resp.Header.Get("Content-Type"), Encoding: resp.Header.Get("Content-Encoding"),
		Watch: x.req.Verb == "watch", List: x.req.Verb == "list" || x.req.Verb == "deletecollection",
		Key: store.Key{Group: key.Group, Version: key.Version, Resource: key.Resource},
	}, func(rv uint64) {
		if err := x.Store.Raise(rv); err != nil {
			x.Logger.Warn("how far the cloud is could not be kept", "resourceVersion", rv, "err", err)
		}
	})
}

// bearerProtocol is how a browser sends a token with a websocket.
const bearerProtocol = "base64url.bearer.authorization.k8s.io."

// cleanHeaders leaves one credential in a request: the caller's own token, or
// none for the node, whose certificate the transport has.
func (x *exchange) cleanHeaders(header http.Header) {
	header.Del("Authorization")
	if !x.caller.Node && x.caller.Token != "" {
		header.Set("Authorization", "Bearer "+x.caller.Token)
	}
	for name := range header {
		if strings.HasPrefix(name, "X-Remote-") || strings.HasPrefix(name, "Skerry-") {
			delete(header, name)
		}
	}
	if lines := header["Sec-Websocket-Protocol"]; len(lines) > 0 {
		var kept []string
		for _, line := range lines {
			for _, protocol := range strings.Split(line, ",") {
				if protocol = strings.TrimSpace(protocol); !strings.HasPrefix(protocol, bearerProtocol) {
					kept = append(kept, protocol)
				}
			}
		}
		if header.Del("Sec-Websocket-Protocol"); len(kept) > 0 {
			header.Set("Sec-Websocket-Protocol", strings.Join(kept, ", "))
		}
	}
}

// upgrade passes on a request that switches protocols: exec, attach,
// port-forward, and watches over a websocket.
func (x *exchange) upgrade() {
	if !x.online {
		x.unreachable()
		return
	}
	x.pass(pass{transport: &bounded{RoundTripper: x.Upstream.UpgradeTransport(x.caller), link: x.link.current()}})
}

// unreachable answers what only the API server can do, while it is away.
func (x *exchange) unreachable() {
	what := strings.TrimSpace(x.req.Verb + " " + x.req.Resource)
	if x.req.Subresource != "" {
		what += "/" + x.req.Subresource
	}
	if !x.req.IsResource {
		what = x.r.URL.Path
	}
	x.fail(x.away(what))
}

// unanswered answers a request that got no answer: reads from the store, if it
// can, everything else with an error that says that trying again is right.
func (x *exchange) unanswered(err error) {
	x.Logger.Debug("no answer from the API server", "method", x.r.Method, "path", x.r.URL.Path, "err", err)
	if x.req.IsResource && x.req.Subresource == "" && !isUpgrade(x.r) {
		switch x.req.Verb {
		case "get", "list", "watch":
			x.fromStore()
			return
		}
	}
	x.noAnswer(err)
}

func (x *exchange) noAnswer(err error) {
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		x.fail(err) // the transport's own words, such as a certificate that ran out
	case errors.Is(err, context.DeadlineExceeded) && x.Upstream.Online():
		x.fail(apierrors.NewTimeoutError("the API server did not answer in time", 0))
	case errors.Is(err, upstream.ErrOffline), errors.Is(err, errCut), isNetwork(err):
		x.unreachable()
	default:
		x.fail(&apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusBadGateway, Reason: metav1.StatusReasonInternalError,
			Message: "the answer of the API server could not be read: " + err.Error(),
		}})
	}
}

// isNetwork tells a link that fails from an answer that is wrong.
func isNetwork(err error) bool {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) {
		return true // every error of package net is one
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled) || errors.Is(err, errCut)
}
