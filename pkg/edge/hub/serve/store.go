package serve

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// fromStore answers a GET, LIST or WATCH without the API server.
func (x *exchange) fromStore() {
	if !x.authorizedOffline() {
		return
	}
	x.pending.wait(x.r.Context(), x.groupResource())
	if x.req.Verb == "get" {
		x.getStored()
		return
	}
	known, ok := x.Views.Cover(x.req.Query(), x.allow)
	if !ok {
		// Never an empty list: nobody knows that it is empty.
		x.fail(x.away("the list of " + x.groupResource().String() + " is not kept on this node"))
		return
	}
	view, err := x.Views.Acquire(x.r.Context(), x.caller, x.req.Query())
	if err != nil {
		x.fail(asStatus(err))
		return
	}
	defer view.Release()
	x.source = sourceStore
	if x.req.Verb == "watch" {
		x.streamWatch(view, known.Synced)
		return
	}
	after, revision, err := x.continues.open(x.req)
	if err != nil {
		x.fail(err)
		return
	}
	snapshot, err := view.Snapshot(x.r.Context(), x.snapshotOptions())
	if err != nil {
		x.fail(asStatus(err))
		return
	}
	defer snapshot.Close()
	if revision != 0 && revision != snapshot.ResourceVersion() {
		x.fail(errMovedOn())
		return
	}
	limit := x.req.Options.Limit
	if x.req.Options.Continue == "" && x.cacheable() {
		limit = 0 // as upstream's watch cache
	}
	x.writeList(snapshot, after, limit, known.Synced, false)
}

// authorizedOffline asks the cached RBAC; if it says no, it has answered.
func (x *exchange) authorizedOffline() bool {
	if !x.knownOffline() {
		return false
	}
	err := x.Authorizer.Offline(x.r.Context(), x.caller, x.attributes())
	if err == nil {
		return true
	}
	if apierrors.IsForbidden(err) {
		x.refuse(err, "authorization")
	} else {
		x.fail(asStatus(err))
	}
	return false
}

// knownOffline checks who asks, for an answer that the API server does not see. A
// request that came while the cloud was there was checked only so far as to be
// passed on; whether the token's pod still is, and who may be impersonated, was
// left to the API server.
func (x *exchange) knownOffline() bool {
	if impersonates(x.r) {
		x.refuse(apierrors.NewForbidden(schema.GroupResource{}, "", errImpersonateOffline), "impersonation")
		return false
	}
	if x.online && !x.caller.Node {
		caller, err := x.Authenticator.Authenticate(x.r, false)
		if err != nil {
			x.refuse(err, "authentication")
			return false
		}
		x.caller = caller
	}
	if !x.caller.Node && !x.caller.Verified {
		// The API server might know who this is. It is not there to say.
		x.fail(x.away("checking who you are"))
		return false
	}
	return true
}

func (x *exchange) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: x.req.Group, Resource: x.req.Resource}
}

// getStored answers a GET of one object. That there is none is said only if a
// whole list proves it.
func (x *exchange) getStored() {
	object, found, synced, err := x.lookup()
	if err != nil {
		x.fail(x.unreadable(err))
		return
	}
	if !found {
		known, ok := x.Views.Cover(x.req.Query(), x.allow)
		if !ok {
			x.fail(x.away(x.groupResource().String() + " " + strconv.Quote(x.req.Name) + " is not kept on this node"))
			return
		}
		x.source = sourceStore
		x.age(known.Synced)
		x.fail(apierrors.NewNotFound(x.groupResource(), x.req.Name))
		return
	}
	if want, _ := strconv.ParseUint(x.req.Options.ResourceVersion, 10, 64); want > object.ResourceVersion {
		// A newer one may have been shown in a list; the object is then as new.
		if known, ok := x.Views.Cover(x.req.Query(), x.allow); !ok || want > known.ResourceVersion {
			x.fail(tooLarge(want, max(object.ResourceVersion, known.ResourceVersion)))
			return
		}
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	if err != nil {
		x.fail(err)
		return
	}
	object, _, err = x.rewrite(object, !x.Upstream.Online())
	if err != nil {
		x.fail(x.unreadable(err))
		return
	}
	body, err := wire.EncodeObject(media, object)
	if err != nil {
		x.fail(x.unreadable(err))
		return
	}
	x.source = sourceStore
	x.age(synced)
	x.answer(http.StatusOK, media.ContentType(false), body)
}

// unreadable is the answer when the store fails: never that there is nothing.
func (x *exchange) unreadable(err error) error {
	x.Logger.Error("the store could not be read", "path", x.r.URL.Path, "err", err)
	return apierrors.NewServiceUnavailable("the store of this node could not be read: " + err.Error())
}

func (x *exchange) answer(code int, contentType string, body []byte) {
	header := x.w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Cache-Control", "no-cache, private")
	header.Set(HeaderSource, x.source)
	x.w.WriteHeader(code)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(body)
	}
}

// age says how old an answer of the store is.
func (x *exchange) age(synced time.Time) {
	if synced.IsZero() {
		return
	}
	x.w.Header().Set(HeaderAge, strconv.FormatInt(int64(max(0, x.Now().Sub(synced)).Seconds()), 10))
}

// holds evaluates the selectors of a view over an object.
func holds(v store.View, o store.Object) (bool, error) {
	label, err := labels.Parse(v.LabelSelector)
	if err != nil {
		return false, err
	}
	field, err := fields.ParseSelector(v.FieldSelector)
	if err != nil {
		return false, err
	}
	if label.Empty() && field.Empty() {
		return true, nil
	}
	return wire.Matches(o, label, field)
}

// asStatus leaves errors of the API as they are, and hides no other one behind
// an empty answer.
func asStatus(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return apierrors.NewServiceUnavailable(err.Error())
}

// tooLarge is upstream's answer to a client that has seen what the server has
// not.
func tooLarge(want, have uint64) error {
	err := apierrors.NewTimeoutError("Too large resource version: "+strconv.FormatUint(want, 10)+", current: "+strconv.FormatUint(have, 10), 0)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}
