package serve

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// dnsUser is who answers for Services whose endpoints kube-proxy never sees: a
// closed Service has for it the endpoints alone that this node may use.
// kube-proxy takes them out itself, and needs the others when a node moves.
const dnsUser = "system:serviceaccount:kube-system:coredns"

// Closed knows closed Services; *closed.Services is one.
type Closed interface {
	Await(ctx context.Context) (generation uint64, changed <-chan struct{}, err error)
	Closed(namespace, service string) bool
	Judge(slice *discoveryv1.EndpointSlice) bool
	Listed(reader string, generation uint64)
	Current(reader string, generation uint64) bool
}

// forDNS says that endpoints are taken out of the answer.
func (x *exchange) forDNS() bool {
	return x.Closed != nil && x.caller.User.Name == dnsUser && x.req.IsResource &&
		x.req.Group == discoveryv1.GroupName && x.req.Resource == "endpointslices"
}

// closed routes a request about EndpointSlices of DNS. What a slice comes out as
// depends on labels and annotations of other objects, so a watch alone cannot
// tell all: when one of those changes, open watches end, and one that goes on
// from before is told to list again (410).
func (x *exchange) closed(route func()) {
	if !x.forDNS() {
		route()
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), x.HeaderDeadline)
	generation, changed, err := x.Closed.Await(ctx)
	cancel()
	if err != nil {
		x.fail(apierrors.NewServiceUnavailable(err.Error()))
		return
	}
	reader, options := x.reader(), x.req.Options
	switch {
	case x.req.Verb == "list" && options.Continue == "",
		x.req.Verb == "watch" && options.SendInitialEvents != nil && *options.SendInitialEvents:
		x.Closed.Listed(reader, generation)
	case x.req.Verb == "watch" && !x.Closed.Current(reader, generation):
		x.fail(apierrors.NewResourceExpired(fmt.Sprintf("closed Services changed since resourceVersion %s; list again", options.ResourceVersion)))
		return
	}
	if x.req.Verb == "watch" {
		ctx, cancel := context.WithCancel(x.r.Context())
		defer cancel()
		go func() {
			select {
			case <-changed:
				// What changes together is one change.
				time.Sleep(burst)
				cancel()
			case <-ctx.Done():
			}
		}()
		x.r = x.r.WithContext(ctx)
	}
	route()
}

// reader tells readers apart: a pod has one informer of slices.
func (x *exchange) reader() string {
	if x.caller.PodUID != "" {
		return x.caller.PodUID
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(x.caller.Token)))
}

// rewriteClosed takes out of a slice what this node may not use.
func (x *exchange) rewriteClosed(o store.Object) (store.Object, bool, error) {
	meta, err := wire.Meta(o)
	if err != nil {
		return o, false, err
	}
	if !x.Closed.Closed(o.Namespace, meta.Labels[discoveryv1.LabelServiceName]) {
		return o, false, nil
	}
	return typed(o, x.Closed.Judge)
}
