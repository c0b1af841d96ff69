package servicegroup

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/rollout"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// workload is the controller of DeploymentGrids or StatefulSetGrids.
type workload struct {
	kind   kind
	cache  cache.Cache
	writer client.Client
	apply  *applier
	events events.EventRecorder
	clock  func() time.Time
	log    *slog.Logger
	memory *memory
	*measures
}

const (
	// batch is how many children are written before the grid is looked at again.
	batch = 128
	// refusedAgain is when a child that was refused is tried again.
	refusedAgain = time.Minute
)

// look is one look at a grid.
type look struct {
	*gridMemory
	grid     client.Object
	parts    parts
	owner    shape.Owner
	now      time.Time
	sites    map[string]*site // selected ones
	children map[string]child // by name
	variants map[string]*shape.Variant
	states   map[string]state // by site
	leaving  []gridv1.SiteStatus
	next     time.Time
	errs     []error
}

// Reconcile looks at one grid.
func (r *workload) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	cached := r.kind.newGrid()
	if err := r.cache.Get(ctx, request.NamespacedName, cached); err != nil {
		if apierrors.IsNotFound(err) {
			r.memory.forget(request.NamespacedName)
			r.forget(r.kind.name, request.Namespace, request.Name)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("getting %s %s: %w", r.kind.name, request, err)
	}
	if cached.GetDeletionTimestamp() != nil {
		// The garbage collector takes the children.
		return reconcile.Result{}, nil
	}
	grid := cached.DeepCopyObject().(client.Object)
	l := &look{
		gridMemory: r.memory.of(request.NamespacedName, grid.GetUID()), grid: grid, parts: r.kind.open(grid), now: r.clock(),
		owner: shape.Owner{Namespace: grid.GetNamespace(), Name: grid.GetName(), Reference: metav1.OwnerReference{
			APIVersion: gridv1.GroupVersion.String(), Kind: r.kind.name, Name: grid.GetName(), UID: grid.GetUID(),
		}},
		variants: map[string]*shape.Variant{}, states: map[string]state{},
	}
	if l.shape == nil || l.generation != grid.GetGeneration() {
		made, errs := shape.New(r.kind.shape, shape.Grid{
			Key: l.parts.spec.GridKey, Template: *l.parts.template, Overrides: l.parts.spec.Overrides, Metadata: l.parts.spec.Metadata,
		})
		if errs != nil {
			return r.writeStatus(ctx, l, nil, errs)
		}
		l.shape, l.generation = made, grid.GetGeneration()
		l.refused = map[string]refusal{}
	}
	errs, err := r.read(ctx, l)
	if err != nil {
		return reconcile.Result{}, err
	}
	if errs != nil {
		return r.writeStatus(ctx, l, nil, errs)
	}
	plan, errs := r.plan(l)
	if errs != nil {
		return r.writeStatus(ctx, l, nil, errs)
	}
	r.leave(ctx, l)
	more := r.change(ctx, l, &plan)
	result, err := r.writeStatus(ctx, l, &plan, nil)
	if err == nil && more {
		result.RequeueAfter = time.Millisecond
	}
	return result, err
}

// read finds the sites that the grid selects and the children that it has.
func (r *workload) read(ctx context.Context, l *look) (field.ErrorList, error) {
	selector, bad := shape.Selector(field.NewPath("spec", "selector"), l.parts.spec.Selector)
	if bad != nil {
		return field.ErrorList{bad}, nil
	}
	if l.parts.spec.Selector == nil {
		selector = labels.Everything()
	}
	all, err := readSites(ctx, r.cache, l.parts.spec.GridKey)
	if err != nil {
		return nil, err
	}
	l.sites = map[string]*site{}
	for name, s := range all {
		if selector.Matches(s.labels) {
			l.sites[name] = s
		}
	}
	list := r.kind.newChildren()
	if err := r.cache.List(ctx, list, client.InNamespace(l.owner.Namespace), client.MatchingFields{byGrid: l.owner.Name}); err != nil {
		return nil, fmt.Errorf("listing the children of %s %s/%s: %w", r.kind.name, l.owner.Namespace, l.owner.Name, err)
	}
	l.children = map[string]child{}
	r.kind.each(list, func(o client.Object) { l.children[o.GetName()] = l.known(o.GetName(), o) })
	for name := range l.sites {
		childName := l.owner.Child(name)
		if _, ok := l.children[childName]; ok {
			continue
		}
		// One of that name may be there and not be ours.
		object := r.kind.newChild()
		err := r.cache.Get(ctx, client.ObjectKey{Namespace: l.owner.Namespace, Name: childName}, object)
		switch {
		case apierrors.IsNotFound(err):
			l.children[childName] = l.known(childName, nil)
		case err != nil:
			return nil, fmt.Errorf("getting %s %s/%s: %w", r.kind.shape.Kind, l.owner.Namespace, childName, err)
		default:
			l.children[childName] = l.known(childName, object)
		}
	}
	return nil, nil
}

// known is what is known about a child. It is looked at again when the cache does
// not show it in time.
func (l *look) known(name string, object client.Object) child {
	c := l.child(name, object, l.now)
	if c.fresh {
		l.soon(c.changed.Add(unseen))
	}
	return c
}

// stranger says whose an object is that has a child's name and is not ours; ""
// when it is ours, or nobody's and labelled for us.
func (l *look) stranger(o client.Object) string {
	if o == nil {
		return ""
	}
	return stranger(o, l.owner)
}

func stranger(o client.Object, owner shape.Owner) string {
	controller := metav1.GetControllerOfNoCopy(o)
	switch {
	case controller != nil && controller.UID == owner.Reference.UID:
		return ""
	case controller != nil:
		return fmt.Sprintf("%s %s controls it", controller.Kind, controller.Name)
	case o.GetLabels()[gridv1.GridLabel] == owner.Name:
		return ""
	}
	return fmt.Sprintf("label it %s=%s for the grid to take it over", gridv1.GridLabel, owner.Name)
}

// adopted says whether an object has the grid as its controller.
func (l *look) adopted(o client.Object) bool {
	if o == nil {
		return true
	}
	owner := metav1.GetControllerOfNoCopy(o)
	return owner != nil && owner.UID == l.owner.Reference.UID && o.GetLabels()[gridv1.GridLabel] == l.owner.Name
}

// plan decides which sites are to be changed.
func (r *workload) plan(l *look) (rollout.Plan, field.ErrorList) {
	canary, hasCanary, bad := canaries(l.parts.spec.Rollout.Canary)
	if bad != nil {
		return rollout.Plan{}, field.ErrorList{bad}
	}
	var sites []rollout.Site
	for name, s := range l.sites {
		variant, errs := l.shape.In(name, s.labels)
		if errs != nil {
			return rollout.Plan{}, errs
		}
		l.variants[name] = variant
		c := l.children[l.owner.Child(name)]
		site := rollout.Site{Name: name, Online: s.online, OnlineSince: s.since, Canary: canary(name, s.labels)}
		if why := l.stranger(c.object); why != "" {
			r.memory.waits(types.NamespacedName{Namespace: l.owner.Namespace, Name: l.owner.Child(name)}, l.key())
			site.Refused = fmt.Sprintf("%s %s exists and is not the grid's: %s", r.kind.shape.Kind, l.owner.Child(name), why)
		} else if c.exists {
			site.Exists, site.ChangedAt, site.Updated = true, c.changed, c.hash == variant.Hash
			if c.object != nil && !c.fresh {
				observed := r.kind.observe(c.object)
				l.states[name] = observed
				site.Ready, site.Finished, site.Failed, site.Detail = observed.complete && !c.deleting, observed.finished, observed.failed, observed.detail
			}
		}
		if why, ok := l.refused[l.owner.Child(name)]; ok && why.hash == variant.Hash {
			if again := why.at.Add(refusedAgain); l.now.Before(again) {
				site.Refused = why.message
				l.soon(again)
			}
		}
		sites = append(sites, site)
	}
	policy := rollout.Policy{
		Paused:         l.parts.spec.Rollout.Paused,
		MaxUnavailable: maxUnavailable(l.parts.spec.Rollout.MaxUnavailable, len(sites)),
		MaxFailed:      int(ptr.Deref(l.parts.spec.Rollout.MaxFailed, 0)),
		Deadline:       time.Duration(ptr.Deref(l.parts.spec.Rollout.ProgressDeadlineSeconds, 600)) * time.Second,
		HasCanary:      hasCanary,
	}
	plan := rollout.Decide(l.now, sites, policy)
	if !plan.Next.IsZero() {
		l.soon(plan.Next)
	}
	return plan, nil
}

// soon has the grid looked at again at a time, or earlier.
func (l *look) soon(at time.Time) {
	if l.next.IsZero() || at.Before(l.next) {
		l.next = at
	}
}

func canaries(selection *gridv1.SiteSelection) (match func(string, labels.Set) bool, has bool, bad *field.Error) {
	if selection == nil {
		return func(string, labels.Set) bool { return false }, false, nil
	}
	selector, bad := shape.Selector(field.NewPath("spec", "rollout", "canary", "selector"), selection.Selector)
	if bad != nil {
		return nil, true, bad
	}
	named := map[string]bool{}
	for _, name := range selection.Sites {
		named[name] = true
	}
	return func(name string, l labels.Set) bool { return named[name] || selector.Matches(l) }, true, nil
}

func maxUnavailable(value *intstr.IntOrString, sites int) int {
	n, err := intstr.GetScaledValueFromIntOrPercent(ptr.To(ptr.Deref(value, intstr.FromString("25%"))), sites, false)
	if err != nil {
		n = 1 // the API lets no such value in
	}
	return max(1, n)
}

// leave deals with children whose site is not the grid's any more, and with
// those whose site is back.
func (r *workload) leave(ctx context.Context, l *look) {
	wanted := map[string]bool{}
	for name := range l.sites {
		wanted[l.owner.Child(name)] = true
	}
	policy := l.parts.spec.DeletionPolicy
	grace := time.Duration(ptr.Deref(policy.GracePeriodSeconds, 3600)) * time.Second
	for name, c := range l.children {
		if wanted[name] || !c.exists || c.object == nil || c.deleting || l.stranger(c.object) != "" {
			if wanted[name] && c.left != "" && !c.deleting {
				l.note(r.apply.markLeft(ctx, r.kind.shape, l.owner.Namespace, name, c.uid, ""), "taking the mark off", name)
			}
			continue
		}
		status := gridv1.SiteStatus{Name: c.object.GetLabels()[gridv1.SiteLabel], Phase: gridv1.PhaseLeaving}
		since, err := time.Parse(time.RFC3339, c.left)
		if err != nil {
			since = l.now
			if policy.WhenSiteLeaves == gridv1.SiteLeavesRetain || grace > 0 {
				l.note(r.apply.markLeft(ctx, r.kind.shape, l.owner.Namespace, name, c.uid, since.UTC().Format(time.RFC3339)), "marking", name)
				r.event(l, name, corev1.EventTypeNormal, "SiteLeft", "Keep", "site %s has no node that is selected any more; %s %s stays for now", status.Name, r.kind.shape.Kind, name)
			}
		}
		end := since.Add(grace)
		switch {
		case policy.WhenSiteLeaves == gridv1.SiteLeavesRetain:
			status.Phase, status.Message = gridv1.PhaseRetained, "the site has left since "+since.UTC().Format(time.RFC3339)
		case l.now.Before(end):
			status.Message = "the site has left; its child is deleted at " + end.UTC().Format(time.RFC3339)
			l.soon(end)
		default:
			status.Message = "the site has left; its child is being deleted"
			if err := r.apply.remove(ctx, r.kind.shape, l.owner.Namespace, name, c.uid); err != nil {
				l.note(err, "deleting", name)
			} else {
				r.event(l, name, corev1.EventTypeNormal, "Deleted", "Delete", "deleted %s %s: its site left %s ago", r.kind.shape.Kind, name, l.now.Sub(since).Round(time.Second))
			}
		}
		observed := r.kind.observe(c.object)
		status.Desired, status.Ready = observed.desired, observed.ready
		l.leaving = append(l.leaving, status)
	}
}

// note keeps an error, for the queue to try again.
func (l *look) note(err error, what, name string) {
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s %s/%s: %w", what, l.owner.Namespace, name, err))
	}
}

// event tells of the grid. Equal ones become one with a count; those about a
// child, if it is named, only with others about the same child.
func (r *workload) event(l *look, child, kind, reason, action, note string, args ...any) {
	var related runtime.Object
	if child != "" {
		related = &corev1.ObjectReference{
			APIVersion: r.kind.shape.GroupVersion().String(), Kind: r.kind.shape.Kind, Namespace: l.owner.Namespace, Name: child,
		}
	}
	r.events.Eventf(l.grid, related, kind, reason, action, note, args...)
}

// key of the grid.
func (l *look) key() types.NamespacedName {
	return types.NamespacedName{Namespace: l.owner.Namespace, Name: l.owner.Name}
}
