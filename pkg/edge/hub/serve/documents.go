package serve

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Bounds of the documents that are kept.
const (
	maxDocuments     = 300
	maxDocument      = 2 << 20  // of one, compressed
	maxDocumentBytes = 24 << 20 // of all, compressed
	maxAbsent        = 64       // documents that the cloud said do not exist
	maxAbsentBody    = 2 << 10

	documentPrefix = "api:"
	documentIndex  = "api-index"
)

// isDocument says that a path is of a document, and which.
func isDocument(path string) (string, bool) {
	path = strings.TrimSuffix(path, "/")
	switch path {
	case "/version", "/api", "/apis", "/openapi/v2", "/openapi/v3", "/.well-known/openid-configuration", "/openid/v1/jwks":
		return path, true
	}
	for _, prefix := range []string{"/api/", "/apis/", "/openapi/v3/"} {
		if strings.HasPrefix(path, prefix) {
			return path, true
		}
	}
	return path, false
}

// isHealth says that a path asks whether the API server is well.
func isHealth(path string) bool {
	for _, name := range []string{"/healthz", "/livez", "/readyz"} {
		if path == name || strings.HasPrefix(path, name+"/") {
			return true
		}
	}
	return false
}

// document answers a request that is about no resource.
func (x *exchange) document() {
	path, ok := isDocument(x.r.URL.Path)
	reading := x.r.Method == http.MethodGet || x.r.Method == http.MethodHead
	switch {
	case reading && isHealth(x.r.URL.Path):
		x.health()
	case !ok || !reading:
		x.through()
	case !x.online:
		x.storedDocument(path, nil)
	default:
		x.pass(pass{
			transport: &bounded{
				RoundTripper: x.Upstream.Transport(x.caller), link: x.link.current(),
				header: x.HeaderDeadline, stall: x.StallDeadline,
				wait: func() bool { _, ok := x.documents.find(path, x.r.Header.Get("Accept")); return !ok },
			},
			modify: func(resp *http.Response) error { return x.gotDocument(path, resp) },
			failed: func(err error) { x.storedDocument(path, err) },
		})
	}
}

// health answers for the API server: while it can be reached, itself; else the
// hub, since what a client wants to know is whether its requests are answered.
func (x *exchange) health() {
	answer := func(err error) {
		if err == nil || isNetwork(err) {
			x.source = sourceHub
			x.answer(http.StatusOK, "text/plain; charset=utf-8", []byte("ok"))
			return
		}
		x.noAnswer(err)
	}
	if !x.online {
		answer(nil)
		return
	}
	x.pass(pass{
		transport: &bounded{RoundTripper: x.Upstream.Transport(x.caller), link: x.link.current(), header: x.HeaderDeadline},
		buffered:  true, failed: answer,
	})
}

// gotDocument keeps a document on its way.
func (x *exchange) gotDocument(path string, resp *http.Response) error {
	if err := gatewayFailure(resp); err != nil {
		return err
	}
	if x.r.Method != http.MethodGet || !plainQuery(x.r) {
		return nil
	}
	_, _, kept := x.keptDocuments()
	switch resp.StatusCode {
	case http.StatusOK:
		capture, err := newCapture(resp)
		if err != nil {
			return nil
		}
		contentType, etag := resp.Header.Get("Content-Type"), resp.Header.Get("ETag")
		capture.done = func(packed []byte, sum string) {
			if err := x.documents.put(path, contentType, etag, sum, packed); err != nil {
				x.Logger.Warn("a document could not be kept", "path", path, "err", err)
			}
		}
		resp.Body = capture
	case http.StatusNotFound:
		// A client that is not kept could ask for any name.
		if !kept || resp.Header.Get("Content-Encoding") != "" {
			return nil
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAbsentBody+1))
		if err != nil {
			return err
		}
		if len(body) > maxAbsentBody {
			resp.Body = &joined{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body}
			return nil
		}
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
		if err := x.documents.putAbsent(path, x.r.Header.Get("Accept"), resp.Header.Get("Content-Type"), body); err != nil {
			x.Logger.Warn("a document could not be kept", "path", path, "err", err)
		}
	}
	return nil
}

// keptDocuments asks the policy whether this client is kept at all; it knows
// resources only, and services are what all kept clients have in common.
func (x *exchange) keptDocuments() (int, int64, bool) {
	if x.caller.Node {
		return 0, 0, true
	}
	if !x.caller.Verified || impersonates(x.r) {
		return 0, 0, false
	}
	return x.Keep(x.caller.User.Name, "", "services")
}

// plainQuery says that the answer does not depend on the query.
func plainQuery(r *http.Request) bool {
	if r.URL.RawQuery == "" {
		return true
	}
	for name := range r.URL.Query() {
		if name != "timeout" && name != "hash" {
			return false
		}
	}
	return true
}

// storedDocument answers from the store. cause is why the API server did not.
func (x *exchange) storedDocument(path string, cause error) {
	if !x.knownOffline() {
		return
	}
	key, ok := x.documents.find(path, x.r.Header.Get("Accept"))
	if !ok {
		if cause != nil && !isNetwork(cause) {
			var failure *gateway
			if !errors.As(cause, &failure) {
				x.noAnswer(cause)
				return
			}
		}
		x.fail(x.away("the document " + path + " is not kept on this node"))
		return
	}
	about, packed, err := x.documents.get(key)
	if err != nil {
		x.fail(x.unreadable(err))
		return
	}
	x.source = sourceStore
	x.age(about.Fetched)
	header := x.w.Header()
	if about.Absent {
		x.answer(http.StatusNotFound, about.ContentType, about.Body)
		return
	}
	header.Set("Vary", "Accept")
	header.Set("Cache-Control", "public")
	if about.ETag != "" {
		header.Set("ETag", about.ETag)
		for _, asked := range strings.Split(x.r.Header.Get("If-None-Match"), ",") {
			if asked = strings.TrimSpace(asked); asked == "*" || strings.TrimPrefix(asked, "W/") == strings.TrimPrefix(about.ETag, "W/") {
				header.Set(HeaderSource, x.source)
				x.w.WriteHeader(http.StatusNotModified)
				return
			}
		}
	}
	header.Set("Content-Type", about.ContentType)
	header.Set(HeaderSource, x.source)
	if strings.Contains(x.r.Header.Get("Accept-Encoding"), "gzip") {
		header.Set("Content-Encoding", "gzip")
		header.Set("Content-Length", strconv.Itoa(len(packed)))
		x.w.WriteHeader(http.StatusOK)
		_, _ = x.w.Write(packed)
		return
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		x.fail(x.unreadable(err))
		return
	}
	x.w.WriteHeader(http.StatusOK)
	buffer := buffers.Get()
	defer buffers.Put(buffer)
	if _, err := io.CopyBuffer(struct{ io.Writer }{x.w}, plain, buffer); err != nil {
		panic(http.ErrAbortHandler)
	}
}
