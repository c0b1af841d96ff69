package servicegroup

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
)

// concerns says which grids an event about an object concerns: old is nil for a
// new one, now for one that is gone.
type concerns[T client.Object] func(ctx context.Context, old, now T) []reconcile.Request

// handlerOf gathers events for a moment: many nodes join, and many pods become
// ready, at a time.
func handlerOf[T client.Object](to concerns[T]) handler.TypedEventHandler[T, reconcile.Request] {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	add := func(q queue, requests []reconcile.Request) {
		for _, r := range requests {
			q.AddAfter(r, gather)
		}
	}
	var none T
	return handler.TypedFuncs[T, reconcile.Request]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[T], q queue) { add(q, to(ctx, none, e.Object)) },
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[T], q queue) {
			add(q, to(ctx, e.ObjectOld, e.ObjectNew))
		},
		DeleteFunc:  func(ctx context.Context, e event.TypedDeleteEvent[T], q queue) { add(q, to(ctx, e.Object, none)) },
		GenericFunc: func(context.Context, event.TypedGenericEvent[T], queue) {},
	}
}

func (r *workload) add(mgr ctrl.Manager) error {
	c, err := controller.New(r.kind.name, mgr, controllerOptions(r.kind.name, r, r.log))
	if err != nil {
		return err
	}
	// Also when only the status changed: what was worked out from an older one may
	// not have been written.
	err = watch(c, r.cache, r.kind.newGrid(), func(_ context.Context, old, now client.Object) []reconcile.Request {
		return []reconcile.Request{requestFor(either(old, now))}
	})
	if err != nil {
		return err
	}
	err = watch(c, r.cache, r.kind.newChild(), func(_ context.Context, old, now client.Object) []reconcile.Request {
		var to []reconcile.Request
		for _, o := range []client.Object{old, now} {
			if o == nil {
				continue
			}
			if name := gridOf(o); name != "" {
				to = append(to, requestOf(o.GetNamespace(), name))
				if now == nil {
					r.memory.gone(to[len(to)-1].NamespacedName, o.GetName(), o.GetUID())
				}
			}
		}
		if now == nil {
			if grid, ok := r.memory.cleared(client.ObjectKeyFromObject(old)); ok {
				to = append(to, reconcile.Request{NamespacedName: grid})
			}
		}
		return to
	})
	if err != nil {
		return err
	}
	err = watch(c, r.cache, &corev1.Node{}, func(ctx context.Context, old, now *corev1.Node) []reconcile.Request {
		return r.gridsWhere(ctx, func(p parts) bool { return nodeConcerns(old, now, p.spec.GridKey) })
	})
	if err != nil {
		return err
	}
	return watch(c, r.cache, &sitev1.Site{}, func(ctx context.Context, old, now *sitev1.Site) []reconcile.Request {
		if old != nil && now != nil && labels.Equals(old.Labels, now.Labels) {
			return nil
		}
		return r.gridsWhere(ctx, func(p parts) bool { return p.spec.GridKey == gridv1.DefaultGridKey })
	})
}

func (r *workload) gridsWhere(ctx context.Context, which func(parts) bool) []reconcile.Request {
	list := r.kind.newGrids()
	if err := r.cache.List(ctx, list); err != nil {
		return nil // the cache ends
	}
	var to []reconcile.Request
	r.kind.each(list, func(grid client.Object) {
		if which(r.kind.open(grid)) {
			to = append(to, requestFor(grid))
		}
	})
	return to
}

func either(old, now client.Object) client.Object {
	if now != nil {
		return now
	}
	return old
}

func requestFor(o client.Object) reconcile.Request { return requestOf(o.GetNamespace(), o.GetName()) }

func requestOf(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}
}
