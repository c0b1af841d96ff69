package serve

import (
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// stored reports whether the store has an answer that this caller may see.
func (x *exchange) stored() bool {
	if !x.caller.Node && !x.caller.Verified {
		return false
	}
	if x.req.Verb == "get" {
		_, found, _, err := x.lookup()
		if err != nil || found {
			return err == nil
		}
	}
	_, ok := x.Views.Cover(x.req.Query(), x.allow)
	return ok
}

// allow says which views a caller may read offline: the node those that the cloud
// has shown it; others any, since RBAC was asked about the request.
func (x *exchange) allow(v store.View) bool { return !x.caller.Node || v.Node }

// lookup finds the object that a GET names, if the caller may see it. For the
// node it must be in a view that the cloud has shown it.
func (x *exchange) lookup() (o store.Object, found bool, synced time.Time, err error) {
	o, ok, err := x.Store.Get(x.req.Key())
	if err != nil || !ok {
		return o, false, synced, err
	}
	all, err := x.Store.Views(x.req.Group, x.req.Resource)
	if err != nil {
		return o, false, synced, err
	}
	for _, v := range all {
		if v.Version != o.Version || (v.Namespace != "" && v.Namespace != o.Namespace) || !x.allow(v) || (found && !v.Synced.After(synced)) {
			continue
		}
		in, err := holds(v, o)
		if err != nil {
			return o, false, synced, err
		}
		if in {
			found, synced = true, v.Synced
		}
	}
	return o, found, synced, nil
}
