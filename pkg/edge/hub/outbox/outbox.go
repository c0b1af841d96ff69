package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// ErrNotOffline means that a write is not taken while the cloud is away (or not
// by the outbox while it is there). The client is to try again: 503.
var ErrNotOffline = errors.New("this write needs the API server")

// Store is what the outbox needs of *store.Store.
type Store interface {
	Apply(b *store.Batch, d store.Durability) error
	Get(k store.Key) (store.Object, bool, error)
	Revision() uint64
	Entries(fn func(store.Entry) error) error
	Entry(k store.Key, op string) (store.Entry, bool, error)
}

// Options configure an Outbox.
type Options struct {
	Store    Store  // required
	NodeName string // required

	// Online says whether requests go to the API server now. Default: never.
	Online func() bool
	// Changes returns a channel that is closed when Online changes the next
	// time. Only Run needs it.
	Changes func() <-chan struct{}
	// Do sends a request with the node's identity. The outbox closes the body.
	Do func(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error)
	// Publish tells watchers of a change that is already in the store. Default:
	// there are none.
	Publish func(ctx context.Context, old, new *store.Object) error

	// MaxEvents bounds the queue of events. Default 1,000.
	MaxEvents int
	// MaxOldEvents bounds how many events older than an hour are sent; the
	// newest of them are. Default 200.
	MaxOldEvents int
	// Rate is how many writes a second are replayed. Default 50.
	Rate float64
	// ForbiddenFor is how long an entry that the API server forbids is tried.
	// Default 10 min.
	ForbiddenFor time.Duration

	Now      func() time.Time      // default time.Now
	Registry prometheus.Registerer // default: metrics are not registered
	Logger   *slog.Logger          // default: nothing is logged
}

// Outbox takes the node's writes while the cloud is away. Safe for concurrent
// use.
type Outbox struct {
	o   Options
	log *slog.Logger
	m   metrics

	// writing is held while a status is written and told to watchers.
	writing sync.Mutex
	// mu is held while the store changes, so that an entry and its object agree.
	mu      sync.Mutex
	entries map[entryKey]*entry // the store's, with its order
	sent    map[store.Key]sent  // statuses the cloud has, but may not have shown yet
	taken   uint64              // the highest resourceVersion that was taken here
	kick    chan struct{}       // an entry was written while online

	replaying sync.Mutex
}

type entryKey struct {
	key store.Key
	op  string
}

// entry is what the outbox remembers of a store.Entry.
type entry struct {
	seq       uint64
	uid       string
	created   time.Time
	version   int       // of this process: has it changed while it was being sent?
	forbidden time.Time // when the cloud first forbade it
}

// sent is a difference that the cloud has since a resourceVersion.
type sent struct {
	uid  string
	rv   uint64
	diff difference
	at   time.Time
}

// New reads the queue out of the store, before anybody reads the store through
// the hub.
func New(o Options) (*Outbox, error) {
	if o.Store == nil || o.NodeName == "" {
		return nil, errors.New("outbox: store and node name are required")
	}
	if o.Online == nil {
		o.Online = func() bool { return false }
	}
	if o.Publish == nil {
		o.Publish = func(context.Context, *store.Object, *store.Object) error { return nil }
	}
	if o.MaxEvents <= 0 {
		o.MaxEvents = 1000
	}
	if o.MaxOldEvents <= 0 {
		o.MaxOldEvents = 200
	}
	if o.Rate <= 0 {
		o.Rate = 50
	}
	if o.ForbiddenFor <= 0 {
		o.ForbiddenFor = 10 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Outbox{
		o: o, log: o.Logger.With("part", "outbox"),
		entries: map[entryKey]*entry{}, sent: map[store.Key]sent{}, kick: make(chan struct{}, 1),
		taken: o.Store.Revision(), // or a lower one: who was before knows
	}
	if err := o.Store.Entries(func(e store.Entry) error {
		b.entries[entryKey{e.Key, e.Op}] = &entry{seq: e.Seq, uid: e.UID, created: e.Created}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the queue of unsent writes: %w", err)
	}
	b.m = newMetrics(b, o.Registry)
	// Nobody watches yet.
	b.o.Publish = func(context.Context, *store.Object, *store.Object) error { return nil }
	err := b.restate(context.Background())
	b.o.Publish = o.Publish
	if err != nil {
		return nil, fmt.Errorf("reading the queue of unsent writes: %w", err)
	}
	return b, nil
}

// Write applies a write of the node. contentType is the body's. It returns the
// object that the client is to be answered, and the HTTP status.
//
// The error is ErrNotOffline, or an apierrors.APIStatus: what the API server
// would say. While the cloud is online only writes are taken that Holds wants
// behind an unsent one; they change the queue and not the stored object.
func (b *Outbox) Write(ctx context.Context, caller identity.Caller, req *wire.Request, contentType string, body []byte) (store.Object, int, error) {
	if !caller.Node || !req.IsResource {
		return store.Object{}, 0, ErrNotOffline
	}
	if len(body) > maxBody {
		return store.Object{}, 0, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d bytes", maxBody))
	}
	var (
		obj  store.Object
		code = http.StatusOK
		err  error
	)
	switch {
	case isStatus(req) && (req.Verb == "update" || req.Verb == "patch"):
		obj, err = b.writeStatus(ctx, req, contentType, body)
	case b.o.Online():
		err = ErrNotOffline
	case isLease(req, b.o.NodeName):
		obj, err = b.writeLease(req, contentType, body)
		if req.Verb == "create" {
			code = http.StatusCreated
		}
	case isEvent(req):
		obj, code, err = b.writeEvent(req, contentType, body)
	case req.Verb == "create" && req.Group == "" && req.Resource == "nodes" && req.Subresource == "":
		err = b.createNode()
	default:
		err = ErrNotOffline
	}
	if err != nil {
		return store.Object{}, 0, storeError(err)
	}
	return obj, code, nil
}

// createNode answers the registration of a kubelet that starts offline: the node
// is there already. That it is not there cannot be known.
func (b *Outbox) createNode() error {
	_, ok, err := b.o.Store.Get(store.Key{Version: "v1", Resource: "nodes", Name: b.o.NodeName})
	if err != nil {
		return err
	}
	if !ok {
		return ErrNotOffline
	}
	return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "nodes"}, b.o.NodeName)
}

// Holds reports whether the status of an object is unsent. Status writes of it
// go to Write then, online too, and what the cloud answers to the node's GET of
// it is to be passed through Rebase.
func (b *Outbox) Holds(k store.Key) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.entries[entryKey{k, opStatus}]
	return ok
}

// Settle returns when no write is about to take a resourceVersion of its own any
// more, or to tell watchers of one: to be called after Online has become true
// and before the store's revision is compared with the cloud's, without a lock
// that Publish needs.
func (b *Outbox) Settle() {
	b.writing.Lock()
	b.writing.Unlock() //nolint:staticcheck // the lock itself is the point
}

// Pending returns how many writes are unsent, and when the oldest was made; the
// zero time if there is none.
func (b *Outbox) Pending() (n int, oldest time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if oldest.IsZero() || e.created.Before(oldest) {
			oldest = e.created
		}
	}
	return len(b.entries), oldest
}

// storeError turns what the store says into what a client understands.
func storeError(err error) error {
	switch {
	case errors.Is(err, ErrNotOffline):
		return err
	case errors.Is(err, store.ErrFull):
		return apierrors.NewServiceUnavailable("the node's store is full: the write was not kept")
	case errors.Is(err, store.ErrDamaged):
		return apierrors.NewServiceUnavailable("the stored copy of the object is damaged, and the API server is away")
	}
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return apierrors.NewInternalError(err)
}
