// Package servicegroup is the controller of grids: it makes a Deployment or
// StatefulSet in each site for a DeploymentGrid or StatefulSetGrid, and a closed
// Service for a ServiceGrid, and keeps them so.
//
// Children are applied (server-side apply, one field manager): what a grid does
// not say is left to whoever says it. What a child is to be is in the package
// shape, which site is next in rollout; this one has the cluster around them. It
// must not know who runs it, nor how a closed Service is carried out on a node.
//
// In steady state it asks the API server nothing: a child carries a hash of what
// it was told, and the record that the API server keeps of our fields tells
// whether somebody changed one since.
package servicegroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	eventsclient "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/admission"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// Options of the controller.
type Options struct {
	Logger *slog.Logger
	// WebhookAddress is where grids are checked before they are stored, on a
	// loopback address that each API server reaches at itself. Empty: they are
	// not; the controller then says in their status what is wrong with them.
	WebhookAddress string
	// Registry takes the metrics, if there is one.
	Registry prometheus.Registerer
	// Namespace has the Secret with the authority of that webhook.
	// Default kube-system.
	Namespace string
}

// DefaultWebhookAddress is where the webhook listens unless told otherwise.
const DefaultWebhookAddress = "127.0.0.1:10275"

const (
	// workers reconcile grids of one kind at the same time; requests is how many
	// writes are under way at the same time for all of them.
	workers  = 4
	requests = 16
	// gather is how long events of one grid are gathered into one look at it.
	gather = 100 * time.Millisecond
	// writeTimeout bounds one write.
	writeTimeout = 15 * time.Second
)

// AddToScheme adds the types that the controller uses to a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	return errors.Join(appsv1.AddToScheme(scheme), corev1.AddToScheme(scheme), gridv1.AddToScheme(scheme), sitev1.AddToScheme(scheme))
}

// Add adds the controllers of grids to a manager. They have a cache and clients
// of their own: what is kept of a child is a few hundred bytes.
func Add(mgr ctrl.Manager, o Options) error {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Namespace == "" {
		o.Namespace = "kube-system"
	}
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		return fmt.Errorf("adding the types of grids: %w", err)
	}
	config := rest.CopyConfig(mgr.GetConfig())
	// The API server's priority and fairness is the limit, and `requests`.
	config.QPS, config.Burst = -1, 0
	config.UserAgent += "/grids"
	config.Timeout = 0
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("making a client for grids: %w", err)
	}
	kept, err := newCache(config, scheme, http, mapper())
	if err != nil {
		return err
	}
	if err := mgr.Add(kept); err != nil {
		return fmt.Errorf("adding the cache of grids: %w", err)
	}
	writer, err := client.New(config, client.Options{Scheme: scheme, HTTPClient: http, Mapper: mapper()})
	if err != nil {
		return fmt.Errorf("making a client for grids: %w", err)
	}
	children, err := metadata.NewForConfigAndClient(config, http)
	if err != nil {
		return fmt.Errorf("making a client for the children of grids: %w", err)
	}
	sink, err := eventsclient.NewForConfigAndClient(config, http)
	if err != nil {
		return fmt.Errorf("making a client for events of grids: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: sink})
	recorder := broadcaster.NewRecorder(scheme, gridv1.FieldManager)
	err = mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		defer broadcaster.Shutdown()
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			return fmt.Errorf("starting to send events of grids: %w", err)
		}
		<-ctx.Done()
		return nil
	}))
	if err != nil {
		return fmt.Errorf("adding the sender of events of grids: %w", err)
	}
	apply := &applier{client: children, slots: make(chan struct{}, requests)}
	counts, err := newMeasures(o.Registry)
	if err != nil {
		return fmt.Errorf("registering the metrics of grids: %w", err)
	}
	for _, k := range []kind{deployments, statefulSets} {
		r := &workload{
			measures: counts, kind: k, cache: kept, writer: writer, apply: apply, clock: time.Now, log: o.Logger,
			events: recorder, memory: newMemory(),
		}
		if err := r.add(mgr); err != nil {
			return fmt.Errorf("adding the controller of %s: %w", k.name, err)
		}
	}
	s := &service{measures: counts, cache: kept, writer: writer, apply: apply, clock: time.Now, log: o.Logger, events: recorder, memory: newMemory()}
	if err := s.add(mgr); err != nil {
		return fmt.Errorf("adding the controller of ServiceGrids: %w", err)
	}
	if o.WebhookAddress == "" {
		return nil
	}
	webhook, err := admission.New(admission.Options{
		Address: o.WebhookAddress, Namespace: o.Namespace, Config: config, Children: apply, Existing: existing{kept}, Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	return mgr.Add(webhook)
}

// mapper knows the types that the controllers use, without asking.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	for _, t := range []struct {
		version schema.GroupVersion
		kind    string
		scope   meta.RESTScope
	}{
		{corev1.SchemeGroupVersion, "Node", meta.RESTScopeRoot},
		{sitev1.GroupVersion, "Site", meta.RESTScopeRoot},
		{corev1.SchemeGroupVersion, "Service", meta.RESTScopeNamespace},
		{appsv1.SchemeGroupVersion, "Deployment", meta.RESTScopeNamespace},
		{appsv1.SchemeGroupVersion, "StatefulSet", meta.RESTScopeNamespace},
		{gridv1.GroupVersion, "DeploymentGrid", meta.RESTScopeNamespace},
		{gridv1.GroupVersion, "StatefulSetGrid", meta.RESTScopeNamespace},
		{gridv1.GroupVersion, "ServiceGrid", meta.RESTScopeNamespace},
	} {
		m.Add(t.version.WithKind(t.kind), t.scope)
	}
	return m
}

// existing finds what there is, for the webhook.
type existing struct{ cache cache.Cache }

// Sites returns the values that nodes have for a key, with the labels of the
// sites.
func (e existing) Sites(ctx context.Context, key string) (map[string]labels.Set, error) {
	sites, err := readSites(ctx, e.cache, key)
	if err != nil {
		return nil, err
	}
	all := map[string]labels.Set{}
	for name, s := range sites {
		all[name] = s.labels
	}
	return all, nil
}

// controllerOptions are the same for all kinds.
func controllerOptions(name string, r reconcile.Reconciler, log *slog.Logger) controller.Options {
	logger := logr.FromSlogHandler(log.With("controller", name).Handler())
	// Tests run more than one manager in a process.
	again := true
	return controller.Options{
		SkipNameValidation: &again, Reconciler: r, MaxConcurrentReconciles: workers, CacheSyncTimeout: 10 * time.Minute,
		LogConstructor: func(request *reconcile.Request) logr.Logger {
			if request == nil {
				return logger
			}
			return logger.WithValues("grid", request.NamespacedName.String())
		},
	}
}

// watch sends events about objects, gathered, to a controller.
func watch[T client.Object](c controller.Controller, from cache.Cache, object T, to concerns[T]) error {
	return c.Watch(source.Kind(from, object, handlerOf(to)))
}

// Stranger says whether an object of that name is there that is not the owner's
// and would not become it.
func (e existing) Stranger(ctx context.Context, k shape.Kind, name string, owner shape.Owner) (bool, error) {
	var object client.Object = new(corev1.Service)
	for _, workload := range []kind{deployments, statefulSets} {
		if workload.shape.Resource == k.Resource {
			object = workload.newChild()
		}
	}
	err := e.cache.Get(ctx, client.ObjectKey{Namespace: owner.Namespace, Name: name}, object)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("getting %s %s/%s: %w", k.Kind, owner.Namespace, name, err)
	}
	return stranger(object, owner) != "", nil
}
