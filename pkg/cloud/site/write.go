package site

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// Reasons of the events on Sites alone.
const (
	EventSiteSilent = "SiteSilent"
	EventSiteHeard  = "SiteHeard"
)

// maker is the value of MadeByAnnotation.
const maker = "skerry-controller-manager"

// siteWriter makes, updates and deletes Sites.
type siteWriter struct {
	brain      *brain
	client     client.Client
	events     record.EventRecorder
	emptyAfter time.Duration

	mu      sync.Mutex
	written map[string]time.Time // status
	empty   map[string]time.Time // since when
}

// Reconcile brings one Site to what was concluded last.
func (w *siteWriter) Reconcile(ctx context.Context, name string) (reconcile.Result, error) {
	w.brain.mu.Lock()
	r, ok := w.brain.results[name]
	w.brain.mu.Unlock()
	if !ok {
		return reconcile.Result{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	site := &v1alpha1.Site{}
	err := w.client.Get(ctx, client.ObjectKey{Name: name}, site)
	switch {
	case apierrors.IsNotFound(err):
		w.forget(name)
		return reconcile.Result{}, w.create(ctx, r)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("reading site %s: %w", name, err)
	}
	wait := w.waitForTurn(r)
	if wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if r.Changed {
		if err := w.publish(ctx, site, r); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	return w.remove(ctx, site, r)
}

func (w *siteWriter) create(ctx context.Context, r verdict.Result) error {
	if r.Status.Nodes == 0 {
		return nil
	}
	site := &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: r.Site, Annotations: map[string]string{MadeByAnnotation: maker}}}
	if err := w.client.Create(ctx, site); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making site %s: %w", r.Site, err)
	}
	return nil
}

// waitForTurn says how long a Site's status has to wait to be written: its nodes
// may be lost one after the other.
func (w *siteWriter) waitForTurn(r verdict.Result) time.Duration {
	if !r.Changed {
		return 0
	}
	every := statusEvery
	if r.Status.Connected == 0 {
		every = silentEvery
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	last, ok := w.written[r.Site]
	if now := w.brain.now(); ok && now.Sub(last) < every && !now.Before(last) {
		return every - now.Sub(last)
	}
	w.written[r.Site] = w.brain.now()
	return 0
}

func (w *siteWriter) publish(ctx context.Context, site *v1alpha1.Site, r verdict.Result) error {
	was := meta.FindStatusCondition(site.Status.Conditions, v1alpha1.ConditionConnected)
	patch, err := statusPatch(r.Status)
	if err != nil {
		return err
	}
	site = &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: r.Site}}
	if err := w.client.Status().Patch(ctx, site, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("writing the status of site %s: %w", r.Site, err)
	}
	w.brain.do(func(t *verdict.Tracker, now time.Time) {
		w.brain.wroteSite[r.Site] = site.ResourceVersion
		t.SetSite(now, site)
		if last, ok := w.brain.results[r.Site]; ok && equality.Semantic.DeepEqual(last.Status, r.Status) {
			last.Changed = false
			w.brain.results[r.Site] = last
		}
	})
	now := meta.FindStatusCondition(site.Status.Conditions, v1alpha1.ConditionConnected)
	if was == nil || now == nil || was.Status == now.Status {
		return nil
	}
	switch now.Status {
	case metav1.ConditionTrue:
		w.events.Eventf(objectReference(site, "Site"), corev1.EventTypeNormal, EventSiteHeard, "The cloud hears nodes of the site: %d of %d", r.Status.Connected, r.Status.Nodes)
	case metav1.ConditionFalse:
		w.events.Eventf(objectReference(site, "Site"), corev1.EventTypeWarning, EventSiteSilent, "The cloud hears none of the site's %d nodes: they are held, unless they were found dead before", r.Status.Nodes)
	}
	return nil
}

// statusPatch replaces the whole status; lists that are empty have to be named to
// go.
func statusPatch(status v1alpha1.SiteStatus) ([]byte, error) {
	if status.Doubts == nil {
		status.Doubts = []v1alpha1.Doubt{}
	}
	raw, err := json.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("encoding the status of a site: %w", err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("encoding the status of a site: %w", err)
	}
	if len(status.Doubts) == 0 {
		fields["doubts"] = nil
	}
	patch, err := json.Marshal(map[string]any{"status": fields})
	if err != nil {
		return nil, fmt.Errorf("encoding the status of a site: %w", err)
	}
	return patch, nil
}

// remove deletes a Site that was made for nodes which are gone for long, if nobody
// has made it their own: its spec is what it was (generation 1), and nothing was
// added to it.
func (w *siteWriter) remove(ctx context.Context, site *v1alpha1.Site, r verdict.Result) (reconcile.Result, error) {
	untouched := site.Annotations[MadeByAnnotation] == maker && len(site.Annotations) == 1 && len(site.Labels) == 0 &&
		len(site.Finalizers) == 0 && len(site.OwnerReferences) == 0 && site.Generation <= 1
	if r.Status.Nodes > 0 || !untouched {
		w.mu.Lock()
		delete(w.empty, site.Name)
		w.mu.Unlock()
		return reconcile.Result{}, nil
	}
	w.mu.Lock()
	since, ok := w.empty[site.Name]
	if !ok {
		since = w.brain.now()
		w.empty[site.Name] = since
	}
	w.mu.Unlock()
	if left := w.emptyAfter - w.brain.now().Sub(since); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	err := w.client.Delete(ctx, site, client.Preconditions{UID: &site.UID, ResourceVersion: &site.ResourceVersion})
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("deleting site %s, which has no nodes: %w", site.Name, err)
	}
	w.forget(site.Name)
	return reconcile.Result{}, nil
}

func (w *siteWriter) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.written, name)
	delete(w.empty, name)
}
