package servicegroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// service is the controller of ServiceGrids.
type service struct {
	cache  cache.Cache
	writer client.Client
	apply  *applier
	events events.EventRecorder
	clock  func() time.Time
	log    *slog.Logger
	memory *memory
	*measures
}

const serviceGrid = "ServiceGrid"

func (r *service) add(mgr ctrl.Manager) error {
	c, err := controller.New(serviceGrid, mgr, controllerOptions(serviceGrid, r, r.log))
	if err != nil {
		return err
	}
	err = watch(c, r.cache, &gridv1.ServiceGrid{}, func(_ context.Context, old, now *gridv1.ServiceGrid) []reconcile.Request {
		if now == nil {
			return []reconcile.Request{requestFor(old)}
		}
		return []reconcile.Request{requestFor(now)}
	})
	if err != nil {
		return err
	}
	// A Service has the name of its grid, also one that is in the way.
	err = watch(c, r.cache, &corev1.Service{}, func(_ context.Context, old, now *corev1.Service) []reconcile.Request {
		if now != nil {
			return []reconcile.Request{requestFor(now)}
		}
		key := client.ObjectKeyFromObject(old)
		r.memory.gone(key, old.Name, old.UID)
		return []reconcile.Request{{NamespacedName: key}}
	})
	if err != nil {
		return err
	}
	return watch(c, r.cache, &gridv1.StatefulSetGrid{}, func(_ context.Context, old, now *gridv1.StatefulSetGrid) []reconcile.Request {
		var to []reconcile.Request
		for _, g := range []*gridv1.StatefulSetGrid{old, now} {
			if g != nil && (old == nil || now == nil || old.Generation != now.Generation) {
				if name := serviceNameOf(g); name != "" {
					to = append(to, requestOf(g.Namespace, name))
				}
			}
		}
		return to
	})
}

// serviceNameOf is the Service that names the pods of a StatefulSetGrid.
func serviceNameOf(g *gridv1.StatefulSetGrid) string {
	var spec struct {
		ServiceName any `json:"serviceName"`
	}
	if err := json.Unmarshal(g.Spec.Template.Raw, &spec); err != nil {
		return "" // its own controller says what is wrong with it
	}
	name, _ := spec.ServiceName.(string)
	return name
}

// Reconcile looks at one ServiceGrid.
func (r *service) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var grid gridv1.ServiceGrid
	if err := r.cache.Get(ctx, request.NamespacedName, &grid); err != nil {
		if apierrors.IsNotFound(err) {
			r.memory.forget(request.NamespacedName)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("getting ServiceGrid %s: %w", request, err)
	}
	if grid.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	grid = *grid.DeepCopy()
	before := grid.DeepCopy()
	now := r.clock()
	again, err := r.carryOut(ctx, &grid, now)
	grid.Status.ObservedGeneration = grid.Generation
	if !equality.Semantic.DeepEqual(before.Status, grid.Status) {
		if c := meta.FindStatusCondition(grid.Status.Conditions, gridv1.ConditionReady); c != nil && c.Status == metav1.ConditionFalse {
			r.events.Eventf(&grid, nil, corev1.EventTypeWarning, c.Reason, "Apply", "%s", cut(c.Message, 900))
		}
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		if failure := r.writer.Status().Patch(ctx, &grid, client.MergeFrom(before)); failure != nil && !apierrors.IsNotFound(failure) {
			err = errors.Join(err, fmt.Errorf("writing the status of ServiceGrid %s: %w", request, failure))
		}
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// carryOut makes the Service what the grid says, and the status say what came of
// it. An error is one that may go away by itself.
func (r *service) carryOut(ctx context.Context, grid *gridv1.ServiceGrid, now time.Time) (again time.Duration, err error) {
	key := client.ObjectKeyFromObject(grid)
	set := func(ok bool, reason, message string) {
		status := metav1.ConditionFalse
		if ok {
			status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&grid.Status.Conditions, metav1.Condition{
			Type: gridv1.ConditionReady, Status: status, Reason: reason, Message: cut(message, 8192), ObservedGeneration: grid.Generation,
		})
	}
	names, err := r.statefulSetGrids(ctx, grid)
	if err != nil {
		return 0, err
	}
	annotations := shape.TopologyAnnotations(grid.Spec.GridKey, names)
	g := r.memory.of(key, grid.UID)
	if extra := fmt.Sprint(annotations); g.shape == nil || g.generation != grid.Generation || g.extra != extra {
		made, errs := shape.New(shape.Service, shape.Grid{Key: grid.Spec.GridKey, Template: grid.Spec.Template, Metadata: grid.Spec.Metadata, Annotations: annotations})
		if errs != nil {
			set(false, gridv1.ReasonInvalid, errs.ToAggregate().Error())
			return 0, nil
		}
		g.shape, g.generation, g.extra = made, grid.Generation, extra
		g.refused = map[string]refusal{}
	}
	variant, errs := g.shape.In("", nil)
	if errs != nil {
		set(false, gridv1.ReasonInvalid, errs.ToAggregate().Error())
		return 0, nil
	}
	l := &look{gridMemory: g, now: now, owner: shape.Owner{Namespace: grid.Namespace, Name: grid.Name, Reference: metav1.OwnerReference{
		APIVersion: gridv1.GroupVersion.String(), Kind: serviceGrid, Name: grid.Name, UID: grid.UID,
	}}}
	object := &corev1.Service{}
	if err := r.cache.Get(ctx, key, object); apierrors.IsNotFound(err) {
		object = nil
	} else if err != nil {
		return 0, fmt.Errorf("getting Service %s: %w", key, err)
	}
	var c child
	if object == nil {
		c = l.known(grid.Name, nil)
	} else {
		if why := l.stranger(object); why != "" {
			set(false, gridv1.ReasonConflict, fmt.Sprintf("Service %s exists and is not the grid's: %s", grid.Name, why))
			grid.Status.ClusterIP, grid.Status.Ports = "", ""
			return 0, nil
		}
		c = l.known(grid.Name, object)
		grid.Status.ClusterIP, grid.Status.Ports = object.Spec.ClusterIP, ports(object.Spec.Ports)
	}
	if c.deleting {
		set(false, gridv1.ReasonRollingOut, "the Service is being deleted")
		return 0, nil
	}
	if !c.exists || c.hash != variant.Hash || !c.fresh && (!c.known || !c.untouched || object != nil && !l.adopted(object)) {
		again, err := r.write(ctx, l, grid, c, variant, set)
		if again > 0 || err != nil {
			return again, err
		}
	}
	set(true, gridv1.ReasonServiceApplied, "")
	if !l.next.IsZero() {
		again = max(l.next.Sub(now), time.Millisecond)
	}
	return again, nil
}

func (r *service) write(ctx context.Context, l *look, grid *gridv1.ServiceGrid, c child, variant *shape.Variant, set func(bool, string, string)) (time.Duration, error) {
	if why, ok := l.refused[grid.Name]; ok && why.hash == variant.Hash && l.now.Before(why.at.Add(refusedAgain)) {
		set(false, gridv1.ReasonServiceRejected, why.message)
		return why.at.Add(refusedAgain).Sub(l.now), nil
	}
	body := variant.ApplyService(l.owner)
	if c.exists && !c.fresh {
		body["metadata"].(map[string]any)["uid"] = string(c.uid)
	}
	result, err := r.apply.Apply(ctx, shape.Service, grid.Namespace, grid.Name, body, false)
	r.wroteChild(shape.Service.Kind, err)
	if err != nil {
		if !final(err) {
			return 0, fmt.Errorf("applying Service %s/%s: %w", grid.Namespace, grid.Name, err)
		}
		message := explain(err, variant)
		l.refused[grid.Name] = refusal{hash: variant.Hash, message: message, at: l.now}
		set(false, gridv1.ReasonServiceRejected, message)
		return refusedAgain, nil
	}
	l.applied(grid.Name, variant.Hash, result, l.now)
	if c.exists && c.known && !c.untouched && c.hash == variant.Hash {
		r.events.Eventf(grid, nil, corev1.EventTypeNormal, "Corrected", "Apply", "Service %s: %s", grid.Name, becauseChanged)
	}
	return 0, nil
}

// statefulSetGrids are the names of those whose pods the Service of a grid names.
func (r *service) statefulSetGrids(ctx context.Context, grid *gridv1.ServiceGrid) ([]string, error) {
	var list gridv1.StatefulSetGridList
	if err := r.cache.List(ctx, &list, client.InNamespace(grid.Namespace)); err != nil {
		return nil, fmt.Errorf("listing StatefulSetGrids of %s: %w", grid.Namespace, err)
	}
	var names []string
	for i := range list.Items {
		g := &list.Items[i]
		if g.Spec.GridKey == grid.Spec.GridKey && serviceNameOf(g) == grid.Name {
			names = append(names, g.Name)
		}
	}
	return names, nil
}

// ports as kubectl shows them.
func ports(list []corev1.ServicePort) string {
	var texts []string
	for _, p := range list {
		text := strconv.Itoa(int(p.Port))
		if p.NodePort != 0 {
			text += ":" + strconv.Itoa(int(p.NodePort))
		}
		texts = append(texts, text+"/"+string(p.Protocol))
	}
	return strings.Join(texts, ",")
}
