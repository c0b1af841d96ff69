package wire

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"skerry.dev/skerry/pkg/edge/store"
)

// paths knows the API server's rules. Importing it costs three small packages.
var paths = request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

// Parse reads what a request asks, by the API server's rules. Paths that two
// readers could understand differently (dot segments, empty segments, encoded
// slashes) are refused. The error is an apierrors.APIStatus.
func Parse(r *http.Request) (*Request, error) {
	segments, err := splitPath(r.URL)
	if err != nil {
		return nil, err
	}
	// Without the query, whose errors it would log and pass over.
	info, err := paths.NewRequestInfo(&http.Request{Method: r.Method, URL: &url.URL{Path: r.URL.Path}})
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if err := checkPath(r.URL, segments, info); err != nil {
		return nil, err
	}
	req := &Request{
		Verb: info.Verb, IsResource: info.IsResourceRequest,
		Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource, Subresource: info.Subresource,
		Namespace: info.Namespace, Name: info.Name, Path: r.URL.Path,
	}
	if !req.IsResource {
		return req, nil
	}
	query := r.URL.Query()
	if req.Verb == "list" && watchAsked(query) {
		req.Verb = "watch"
	}
	switch req.Verb {
	case "":
		return nil, apierrors.NewMethodNotSupported(schema.GroupResource{Group: req.Group, Resource: req.Resource}, strings.ToLower(r.Method))
	case "get":
		err = req.getOptions(query)
	case "list", "watch":
		err = req.listOptions(query)
	}
	if err != nil {
		return nil, err
	}
	return req, nil
}

// segment is one part of a path, with what was odd about it. Oddities are
// allowed only in what a proxy subresource passes on.
type segment struct {
	text string
	odd  string
}

func splitPath(u *url.URL) ([]segment, error) {
	escaped := u.EscapedPath()
	if u.Path == "" || u.Path[0] != '/' || u.Opaque != "" {
		return nil, badRequest("invalid request path %q: must begin with a slash", u.Path)
	}
	rest := strings.TrimSuffix(escaped[1:], "/")
	if rest == "" {
		if escaped == "//" {
			return nil, apierrors.NewBadRequest("invalid request path \"//\": empty path segment")
		}
		return nil, nil
	}
	parts := strings.Split(rest, "/")
	segments := make([]segment, 0, len(parts))
	for _, part := range parts {
		text, err := url.PathUnescape(part)
		if err != nil {
			return nil, badRequest("invalid request path %q: %v", u.Path, err)
		}
		s := segment{text: text}
		switch {
		case text == "." || text == "..":
			return nil, badRequest("invalid request path %q: dot segments are not allowed", u.Path)
		case strings.ContainsFunc(text, func(c rune) bool { return c < 0x20 || c == 0x7f }):
			return nil, badRequest("invalid request path %q: control characters are not allowed", u.Path)
		case !utf8.ValidString(text):
			return nil, badRequest("invalid request path %q: it is not UTF-8", u.Path)
		case text == "":
			s.odd = "empty path segment"
		case strings.Contains(text, "/"):
			s.odd = "encoded slashes are not allowed"
			for inner := range strings.SplitSeq(text, "/") {
				if inner == "." || inner == ".." {
					return nil, badRequest("invalid request path %q: dot segments are not allowed", u.Path)
				}
			}
		}
		segments = append(segments, s)
	}
	return segments, nil
}

// checkPath makes sure that the path can be understood in one way only, up to
// what a proxy subresource passes on.
func checkPath(u *url.URL, segments []segment, info *request.RequestInfo) error {
	checked := len(segments)
	switch {
	case info.Subresource == "proxy":
		checked = len(strings.Split(strings.Trim(u.Path, "/"), "/")) - len(info.Parts) + 3
	case info.Verb == "proxy":
		checked = len(strings.Split(strings.Trim(u.Path, "/"), "/")) - len(info.Parts) + 2
	}
	for _, s := range segments[:min(checked, len(segments))] {
		if s.odd != "" {
			return badRequest("invalid request path %q: %s", u.Path, s.odd)
		}
	}
	for _, named := range []struct{ what, value string }{
		{"Group", info.APIGroup}, {"Version", info.APIVersion}, {"Namespace", info.Namespace}, {"Resource", info.Resource},
		{"Name", info.Name}, {"Subresource", info.Subresource},
	} {
		if why := content.IsPathSegmentName(named.value); named.value != "" && len(why) > 0 {
			return badRequest("%s parameter invalid: %q: %s", named.what, named.value, strings.Join(why, ";"))
		}
	}
	return nil
}

// Key is the object that the request names.
func (r *Request) Key() store.Key {
	k := store.Key{Group: r.Group, Version: r.Version, Resource: r.Resource, Namespace: r.Namespace, Name: r.Name}
	if r.Group == "" && r.Resource == "namespaces" {
		// The path of a namespace names it twice; the object has none.
		k.Namespace = ""
	}
	return k
}

// Query is the view that answers a get, list or watch: the same one for each
// way of asking for the same objects.
func (r *Request) Query() store.Query {
	k := r.Key()
	q := store.Query{Group: k.Group, Version: k.Version, Resource: k.Resource, Namespace: k.Namespace}
	if r.Verb == "get" {
		q.FieldSelector = fields.OneTermEqualSelector("metadata.name", r.Name).String()
		return q
	}
	q.LabelSelector = canonicalLabels(r.Options.Label)
	q.FieldSelector = canonicalFields(r.Options.Field)
	return q
}
