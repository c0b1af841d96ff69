// Package site is the controllers of sites, run by skerry-controller-manager: they
// feed package verdict with what changes in the cluster, and write what it
// concludes. That is condition skerry.dev/Alive of Nodes, the status of Sites, the
// Site objects themselves, and, where a site's policy wants it, the taint
// node.kubernetes.io/out-of-service.
//
// Every replica watches; only the leader evaluates and writes. So a replica that
// becomes the leader knows already who was heard when.
//
// What a verdict is, is package verdict's business, and what follows from it, that
// of kube-controller-manager (pkg/hooks/hold): this package must know neither.
package site

import (
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

const (
	// MadeByAnnotation is on Sites that were made because a Node had their label.
	// As long as nobody changes such a Site, it goes when its nodes are gone.
	MadeByAnnotation = "site.skerry.dev/made-by"
	// OutOfServiceAnnotation is on Nodes whose taint node.kubernetes.io/out-of-service
	// is ours to take off.
	OutOfServiceAnnotation = api.Group + "/out-of-service"
	// outOfServiceValue is the taint's value, as upstream documents it.
	outOfServiceValue = "nodeshutdown"
)

const (
	// tick is how often the leader looks for what is due.
	tick = 200 * time.Millisecond
	// statusEvery is how often a Site's status is written at most, and
	// silentEvery if nobody is there to read its questions.
	statusEvery = time.Second
	silentEvery = 5 * time.Second
	// reportKept is how long a report is kept that nobody renews.
	reportKept = 5 * time.Minute
	// sweepEvery is how often such reports are looked for.
	sweepEvery = 30 * time.Second
	// writeTimeout bounds one write. What was decided is decided anew after it.
	writeTimeout = 10 * time.Second
	// workers is how many writes of each kind are on their way at once.
	workers = 8
)

// Options is what the controllers need.
type Options struct {
	Events   record.EventRecorder
	Registry prometheus.Registerer
	// EmptyAfter is how long a Site without nodes that nobody ever changed is
	// kept. 0: an hour. A machine that is replaced must not lose its Site's
	// history of events at once.
	EmptyAfter time.Duration
	// Now replaces the clock in tests.
	Now func() time.Time
}

// Scheme returns the types that the manager of the controllers needs.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	return scheme
}

// Mapper knows the types of Scheme that the controllers ask for, so that nothing
// has to be discovered: the process starts while the API server is away.
func Mapper(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(coordinationv1.SchemeGroupVersion.WithKind("Lease"), meta.RESTScopeNamespace)
	m.Add(v1alpha1.GroupVersion.WithKind("Site"), meta.RESTScopeRoot)
	m.Add(v1alpha1.GroupVersion.WithKind("NodeReport"), meta.RESTScopeRoot)
	return m, nil
}

// Add adds the controllers to a manager, which must have Scheme, Mapper and
// CacheOptions.
func Add(m manager.Manager, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.EmptyAfter == 0 {
		o.EmptyAfter = time.Hour
	}
	b := &brain{
		now: o.Now, tracker: verdict.New(), synced: make(chan struct{}), results: map[string]verdict.Result{},
		tainted: map[string]bool{}, wroteNode: map[string]string{}, wroteSite: map[string]string{},
	}
	metrics, err := newMetrics(b, o.Registry)
	if err != nil {
		return err
	}
	if err := m.Add(&watcher{cache: m.GetCache(), brain: b, log: m.GetLogger().WithName("watch")}); err != nil {
		return fmt.Errorf("adding the watches: %w", err)
	}
	loop := &loop{brain: b, metrics: metrics}
	nodes := &nodeWriter{brain: b, client: m.GetClient(), live: m.GetAPIReader(), confirm: newConfirmer(b, m.GetClient(), m.GetAPIReader()), events: o.Events, metrics: metrics}
	sites := &siteWriter{brain: b, client: m.GetClient(), events: o.Events, emptyAfter: o.EmptyAfter, written: map[string]time.Time{}, empty: map[string]time.Time{}}
	if err := addWriter(m, "verdict-node", nodes, &loop.nodes); err != nil {
		return err
	}
	if err := addWriter(m, "verdict-site", sites, &loop.sites); err != nil {
		return err
	}
	if err := m.Add(loop); err != nil {
		return fmt.Errorf("adding the evaluation: %w", err)
	}
	if err := m.Add(manager.RunnableFunc(loop.lead)); err != nil {
		return fmt.Errorf("adding the leadership: %w", err)
	}
	if err := m.Add(&sweeper{brain: b, client: m.GetClient(), log: m.GetLogger().WithName("sweep")}); err != nil {
		return fmt.Errorf("adding the sweep of reports: %w", err)
	}
	return nil
}

// addWriter adds a controller whose queue is filled by the loop.
func addWriter(m manager.Manager, name string, r reconcile.TypedReconciler[string], into *queue) error {
	into.ready = make(chan struct{})
	skip := true
	c, err := controller.NewTyped(name, m, controller.TypedOptions[string]{
		Reconciler: r, MaxConcurrentReconciles: workers, SkipNameValidation: &skip,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 5*time.Second),
	})
	if err != nil {
		return fmt.Errorf("making controller %s: %w", name, err)
	}
	if err := c.Watch(source.TypedFunc[string](into.set)); err != nil {
		return fmt.Errorf("filling the queue of controller %s: %w", name, err)
	}
	return nil
}

// nodeReference is what events about a Node refer to.
func nodeReference(c verdict.Change) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: c.Node, UID: c.UID}
}

// objectReference refers to an object of ours.
func objectReference(o client.Object, kind string) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: o.GetName(), UID: o.GetUID()}
}
