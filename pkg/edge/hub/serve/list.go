package serve

import (
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// list answers a LIST.
func (x *exchange) list() {
	options := x.req.Options
	if !x.online || ownContinue(options.Continue) {
		x.fromStore()
		return
	}
	objects, bytes, kept := x.kept()
	if kept && options.Continue == "" && x.cacheable() {
		if x.listView() {
			return
		}
	}
	whole := options.Continue == "" && options.Limit == 0 && options.ResourceVersion == ""
	concerned := x.rewrites()
	p := pass{modify: func(resp *http.Response) error {
		if kept {
			if err := gatewayFailure(resp); err != nil {
				return err
			}
		}
		if resp.StatusCode != http.StatusOK || !wholeObjects(resp.Header.Get("Content-Type")) || x.r.Method != http.MethodGet {
			return x.unpack(resp)
		}
		if concerned {
			return x.rewriteList(resp, kept, kept && whole, objects, bytes)
		}
		if kept && whole {
			x.keepList(resp, objects, bytes)
		}
		return nil
	}}
	p.packed = concerned
	if kept {
		p.transport = x.keptTransport()
		p.failed = x.unansweredKept
	}
	x.pass(p)
}

// cacheable says that the client does not ask for the newest state: the API
// server would answer from its watch cache, and the hub may from its own.
func (x *exchange) cacheable() bool {
	o := x.req.Options
	return o.ResourceVersion != "" && o.ResourceVersionMatch != metav1.ResourceVersionMatchExact
}

// listView answers from the shared view; false if it cannot, and nothing is
// written.
func (x *exchange) listView() bool {
	switch x.permitted() {
	case answered:
		return true
	case unknown:
		return false
	}
	view, err := x.Views.Acquire(x.r.Context(), x.caller, x.req.Query())
	if err != nil {
		x.Logger.Debug("no shared view", "path", x.r.URL.Path, "err", err)
		return false
	}
	defer view.Release()
	if !view.Live() {
		return false
	}
	snapshot, err := view.Snapshot(x.r.Context(), x.snapshotOptions())
	if err != nil {
		return false // a resourceVersion that only the API server knows
	}
	defer snapshot.Close()
	x.source = sourceStore
	// As upstream's watch cache, which does not honour limit for any version.
	x.writeList(snapshot, store.Key{}, 0, view.Synced(), true)
	return true
}

// snapshotOptions leaves out what is the hub's own business.
func (x *exchange) snapshotOptions() wire.Options {
	o := x.req.Options
	o.Limit, o.Continue = 0, ""
	return o
}
