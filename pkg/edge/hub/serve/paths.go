package serve

import (
	"net/http"
	"net/textproto"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/wire"
)

// checkPath refuses requests that are not simply for a path. What paths may look
// like is wire.Parse's to judge.
func checkPath(r *http.Request) error {
	switch {
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace:
		return apierrors.NewBadRequest("the method " + r.Method + " is not served")
	case r.URL.Host != "", r.URL.Scheme != "", r.URL.Opaque != "", !strings.HasPrefix(r.URL.Path, "/"):
		return apierrors.NewBadRequest("the request must name a path, and nothing but a path")
	case strings.Contains(r.URL.Path, "\\"):
		return apierrors.NewBadRequest("the path has a backslash")
	}
	return nil
}

// single are headers that say who the caller is or which bytes are its: two of
// them are two answers to one question.
var single = []string{"Authorization", "Impersonate-User", "Impersonate-Uid", "Content-Type", "Content-Length", "Host"}

func checkHeaders(r *http.Request) error {
	for _, name := range single {
		if len(r.Header[name]) > 1 {
			return apierrors.NewBadRequest("the header " + name + " is there more than once")
		}
	}
	// A client must not have its credentials, or those of the hub, dropped on
	// the way as hop-by-hop headers.
	for _, line := range r.Header["Connection"] {
		for _, name := range strings.Split(line, ",") {
			name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
			if name == "Authorization" || strings.HasPrefix(name, "Impersonate-") || strings.HasPrefix(name, "X-Remote-") {
				return apierrors.NewBadRequest("the header Connection names " + name)
			}
		}
	}
	return nil
}

func impersonates(r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			return true
		}
	}
	return false
}

// checkImpersonation lets only a token ask for it, and only where the API server
// decides.
func (x *exchange) checkImpersonation() error {
	if !impersonates(x.r) {
		return nil
	}
	nothing := schema.GroupResource{}
	if x.caller.Node {
		return apierrors.NewForbidden(nothing, "", errImpersonateNode)
	}
	if !x.online {
		return apierrors.NewForbidden(nothing, "", errImpersonateOffline)
	}
	return nil
}

type constError string

func (e constError) Error() string { return string(e) }

const (
	errImpersonateNode    = constError("the node's components may not impersonate")
	errImpersonateOffline = constError("nobody may impersonate while the API server is away")
)

// isUpgrade says that the request wants to switch protocols.
func isUpgrade(r *http.Request) bool {
	if r.Header.Get("Upgrade") == "" {
		return false
	}
	for _, line := range r.Header["Connection"] {
		for _, name := range strings.Split(line, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "upgrade") {
				return true
			}
		}
	}
	return false
}

// longRunning says that a request may stay open for hours.
func longRunning(req *wire.Request, r *http.Request) bool {
	if isUpgrade(r) || req.Verb == "watch" {
		return true
	}
	switch req.Subresource {
	case "log", "proxy", "exec", "attach", "portforward":
		return true
	}
	return false
}
