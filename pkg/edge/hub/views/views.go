// Package views follows the cloud on behalf of the clients of one node. For each
// query that clients ask there is one view: one LIST and one WATCH upstream,
// whoever and however many ask, its objects in the store, its events handed to
// every watcher. While the cloud is away the same views answer from the store.
//
// It must not know how requests are parsed or answers written, who may see what
// (its callers decide that before they acquire a view), or what a local write
// means (it is told the result).
package views

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// Upstream is the way to the API server; *upstream.Upstream is one.
type Upstream interface {
	Online() bool
	// Subscribe calls fn with each change of Online, one call at a time.
	Subscribe(fn func(online bool)) (cancel func())
	// Transport sends requests as the caller, to whatever server is in use.
	Transport(c identity.Caller) http.RoundTripper
}

// Options configure Views. Store and Upstream are required; a zero value of the
// others is the default.
type Options struct {
	Store    *store.Store
	Upstream Upstream
	// Rebase returns what clients see of an object that arrives from the cloud:
	// with the local writes applied that the cloud does not know yet. It may be
	// called for objects that have none, and returns them as they are.
	Rebase func(store.Object) (store.Object, error)
	// BeforeLive is called once after each reconnect (and once at the start,
	// when the cloud is there first), before anything of the cloud is presented.
	// While it fails, views stay as they are, and it is tried again.
	// CatchUp is made for it.
	BeforeLive func(ctx context.Context) error
	// Whole are the resources that are followed as whole collections, whatever
	// selectors and namespaces clients ask for. Asked again for each new view.
	Whole func() []schema.GroupResource
	// Permanent are followed with the node's identity from the start, whether a
	// client asks or not, and are never forgotten.
	Permanent []store.Query
	// MaxViews is how many views one caller may cause. Default: 500 for the
	// node, 50 for anybody else.
	MaxViews func(c identity.Caller) int
	// FirstSync is how long Acquire waits for the cloud when the store has an
	// older, complete copy. Default 5 s.
	FirstSync time.Duration
	// Grace is how long a view is followed after its last client left. Default
	// 10 min.
	Grace time.Duration
	// Forget is for how much time online a view stays in the store that nobody
	// asks for. Default 7 days.
	Forget time.Duration
	// BookmarkEvery is how often watchers that allow bookmarks get one. Default
	// 1 min.
	BookmarkEvery time.Duration
	// WatchTimeout is how long a watch lasts at least, upstream and for clients
	// that ask for nothing; at most it lasts twice as long. Default 5 min.
	WatchTimeout time.Duration
	// Freshness is how long Fresh waits for events on their way. Default 100 ms.
	Freshness time.Duration
	// RetryMin and RetryMax bound the pause before a failed request upstream is
	// sent again. Default 200 ms and 15 s.
	RetryMin, RetryMax time.Duration
	// WindowEvents and WindowBytes bound the events that one view remembers for
	// watches that resume; AllWindowBytes bounds those of all views. Default
	// 1000, 512 KiB and 6 MiB.
	WindowEvents                int
	WindowBytes, AllWindowBytes int64
	// QueueEvents and QueueBytes bound what waits for one slow watcher; a
	// watcher that is further behind is ended. Default 1000 and 4 MiB.
	QueueEvents int
	QueueBytes  int64
	// MaxItem bounds one object that arrives from the cloud. Default 8 MiB.
	MaxItem  int64
	Registry prometheus.Registerer
	Logger   *slog.Logger
}

func (o *Options) defaults() error {
	if o.Store == nil || o.Upstream == nil {
		return errors.New("views: store and upstream are required")
	}
	if o.Rebase == nil {
		o.Rebase = func(obj store.Object) (store.Object, error) { return obj, nil }
	}
	if o.BeforeLive == nil {
		o.BeforeLive = func(context.Context) error { return nil }
	}
	if o.Whole == nil {
		o.Whole = func() []schema.GroupResource { return nil }
	}
	if o.MaxViews == nil {
		o.MaxViews = func(c identity.Caller) int {
			if c.Node {
				return 500
			}
			return 50
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.FirstSync, 5 * time.Second}, {&o.Grace, 10 * time.Minute}, {&o.Forget, 7 * 24 * time.Hour},
		{&o.BookmarkEvery, time.Minute}, {&o.WatchTimeout, 5 * time.Minute}, {&o.Freshness, 100 * time.Millisecond},
		{&o.RetryMin, 200 * time.Millisecond}, {&o.RetryMax, 15 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *int64
		value int64
	}{{&o.WindowBytes, 512 << 10}, {&o.AllWindowBytes, 6 << 20}, {&o.QueueBytes, 4 << 20}, {&o.MaxItem, 8 << 20}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.WindowEvents <= 0 {
		o.WindowEvents = 1000
	}
	if o.QueueEvents <= 0 {
		o.QueueEvents = 1000
	}
	return nil
}

// Views are the shared views of one node. Safe for concurrent use.
type Views struct {
	o   Options
	st  *store.Store
	log *slog.Logger
	m   *metrics

	windowBytes atomic.Int64 // of all windows

	// mu guards the table. It may be taken under a view's mu, never the other
	// way round.
	mu      sync.Mutex
	table   map[store.Query]*view
	gate    *gate
	changed chan struct{}        // a gate may be opened
	up      bool                 // the link, as Upstream told it last
	asked   map[store.Query]bool // since the last turn of forget
	running context.Context      // of Run; nil before
	checked time.Time            // see sameHistory
	wg      sync.WaitGroup

	// writeMu makes one of looking at a stored object and replacing it: views
	// share objects, and one that is behind must not undo what another wrote.
	// It may be taken under a view's mu.
	writeMu sync.Mutex
	former  map[store.Key][]former // see noteFormer
	formers int                    // how many they are
	forgot  bool                   // some of them

	// keepMu is held while a kept answer becomes a view, and while the follower
	// of a view reads what it has. A view's mu may be taken under it.
	keepMu sync.Mutex

	// snapMu guards the open snapshots. It may be taken under a view's mu.
	snapMu sync.Mutex
	snaps  map[*Snapshot]struct{}

	// localMu guards the objects whose stored copy has a resourceVersion that
	// was made here.
	localMu sync.Mutex
	local   map[store.Key]uint64
	// localTop is what a resourceVersion that was made here is at most.
	localTop uint64
}

// New returns Views over a store. Nothing is followed before Run.
func New(o Options) (*Views, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	vs := &Views{
		o: o, st: o.Store, log: o.Logger.With("part", "views"),
		table: map[store.Query]*view{}, asked: map[store.Query]bool{}, snaps: map[*Snapshot]struct{}{}, local: map[store.Key]uint64{}, former: map[store.Key][]former{},
	}
	vs.gate, vs.changed = newGate(context.Background()), make(chan struct{}, 1)
	vs.localTop = vs.st.Revision()
	err := vs.st.Entries(func(e store.Entry) error {
		vs.local[e.Key] = 0 // which one is not known: any
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the unsent writes: %w", err)
	}
	if err := vs.dropStaging(); err != nil {
		return nil, err
	}
	if vs.m, err = newMetrics(vs, o.Registry); err != nil {
		return nil, err
	}
	return vs, nil
}

// Run follows the cloud until ctx ends, and returns when nothing runs any more.
func (vs *Views) Run(ctx context.Context) error {
	vs.mu.Lock()
	if vs.running != nil {
		vs.mu.Unlock()
		return errors.New("views: Run was called twice")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	vs.running = ctx
	vs.gate.cancel()
	vs.gate = newGate(ctx)
	waiting := make([]*view, 0, len(vs.table))
	for _, v := range vs.table {
		waiting = append(waiting, v)
	}
	vs.mu.Unlock()

	vs.link(vs.o.Upstream.Online())
	stop := vs.o.Upstream.Subscribe(func(now bool) {
		vs.link(now)
		vs.tryGate()
	})
	defer stop()
	for _, v := range waiting {
		vs.ensureFollowed(v)
	}
	for _, q := range vs.o.Permanent {
		vs.openPermanent(q)
	}
	vs.wg.Add(1)
	go func() {
		defer vs.wg.Done()
		vs.housekeeping(ctx)
	}()
	vs.gates(ctx)
	cancel()
	vs.wg.Wait()
	vs.endAll()
	return nil
}

func (vs *Views) all() []*view {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	out := make([]*view, 0, len(vs.table))
	for _, v := range vs.table {
		out = append(out, v)
	}
	return out
}

// endAll ends what is left when Run ends.
func (vs *Views) endAll() {
	for _, v := range vs.all() {
		v.mu.Lock()
		v.live = false
		for w := range v.watchers {
			w.end(nil)
		}
		v.mu.Unlock()
	}
}

// upstreamQuery is the query that is followed to answer q.
func (vs *Views) upstreamQuery(q store.Query) store.Query {
	if slices.Contains(vs.o.Whole(), schema.GroupResource{Group: q.Group, Resource: q.Resource}) {
		return store.Query{Group: q.Group, Version: q.Version, Resource: q.Resource}
	}
	return q
}

func (vs *Views) isWhole(q store.Query) bool {
	return slices.Contains(vs.o.Whole(), schema.GroupResource{Group: q.Group, Resource: q.Resource})
}
