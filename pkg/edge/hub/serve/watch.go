package serve

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/views"
)

type permission int

const (
	granted permission = iota
	answered
	unknown
)

// permitted asks the API server whether a client may see a shared view. When it
// cannot be asked, the store answers, if it can; else the API server is to judge
// the request itself.
func (x *exchange) permitted() permission {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	timer := time.AfterFunc(x.HeaderDeadline/2, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	err := x.Authorizer.Online(ctx, x.caller, x.attributes())
	switch {
	case err == nil:
		return granted
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		x.refuse(err, "authorization")
		return answered
	case ctx.Err() == nil || x.r.Context().Err() != nil:
	case x.stored():
		x.fromStore()
		return answered
	}
	x.Logger.Debug("the API server could not be asked for a permission", "path", x.r.URL.Path, "err", err)
	return unknown
}

// watch answers a WATCH.
func (x *exchange) watch() {
	if !x.online {
		x.fromStore()
		return
	}
	if _, _, kept := x.kept(); !kept {
		x.passWatch()
		return
	}
	switch x.permitted() {
	case answered:
		return
	case unknown:
		x.passWatch()
		return
	}
	view, err := x.Views.Acquire(x.r.Context(), x.caller, x.req.Query())
	part := !x.caller.Node && (!x.req.Options.Label.Empty() || !x.req.Options.Field.Empty())
	if apierrors.IsForbidden(err) && part {
		// It may see what it asks for, and not the whole that is shared.
		x.passWatch()
		return
	}
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		// As the API server says. Passed on, a watch that it allows a moment
		// later (the node authorizer learns of a pod's objects with a delay)
		// would go by the store for minutes.
		x.fail(err)
		return
	}
	if err != nil {
		// Too many views for this client, or no answer: the API server itself
		// answers, as it would without a hub.
		x.Logger.Debug("no shared view", "path", x.r.URL.Path, "err", err)
		x.passWatch()
		return
	}
	defer view.Release()
	options := x.req.Options
	if options.SendInitialEvents != nil && *options.SendInitialEvents && options.ResourceVersion == "" && view.Live() {
		if err := x.fresh(view); err != nil && !isNetwork(err) && x.r.Context().Err() == nil {
			// The API server is there, and did not say what is newest.
			x.Logger.Debug("a view could not be proved fresh", "path", x.r.URL.Path, "err", err)
			x.passWatch()
			return
		}
	}
	x.source = sourceStore
	x.streamWatch(view, view.Synced())
}

// fresh proves that a view has all that the cloud has, within the deadline of a
// kept read.
func (x *exchange) fresh(view *views.View) error {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	timer := time.AfterFunc(x.HeaderDeadline, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	err := view.Fresh(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func (x *exchange) passWatch() {
	if !x.rewrites() {
		x.through()
		return
	}
	x.pass(pass{plain: true, modify: x.rewriteWatch})
}
