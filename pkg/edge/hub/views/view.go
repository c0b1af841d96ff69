package views

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// view is shared by all clients that ask the same of the cloud.
type view struct {
	vs    *Views
	q     store.Query
	whole bool // clients may ask for parts of it
	log   *slog.Logger

	mu       sync.Mutex
	kind     string
	node     bool // seen by the node's identity
	complete bool // there is a whole copy, in the store or in unwritten
	rv       uint64
	localRV  uint64 // the highest one made here that watchers have seen
	// localShown are the local changes among what watchers have seen.
	localShown map[store.Key]uint64
	// ahead are the members that were stored in a state beyond the view when it
	// was loaded: what they were before is not known.
	ahead    map[store.Key]uint64
	synced   time.Time
	live     bool
	relist   bool // the copy is not to be trusted
	listing  bool
	restored bool // the cloud's revisions went back
	gone     bool // out of the table
	err      error
	changed  chan struct{} // closed at the next change, if somebody waits
	window   window
	// See suspect.
	suspectFrom, suspectTo uint64
	watchers               map[*Watcher]struct{}
	// selective counts watchers that want a part of the view.
	selective int
	unwritten unwritten
	// What the store knows, when that is less.
	storedComplete bool
	storedRV       uint64
	kick           chan struct{}

	permanent bool
	wanted    bool // to be followed
	following bool
	stop      context.CancelFunc // of the following goroutine
	brokeAt   time.Time          // the last stream, of the following goroutine alone
	owner     string
	users     int
	idle      time.Time // since when nobody uses it
	creds     []credential
	turns     uint64
}

// credential is a caller in whose name the view can be followed.
type credential struct {
	caller identity.Caller
	turn   uint64 // the newest is the highest
}

// newView reads what the store has.
func (vs *Views) newView(q store.Query) (*view, error) {
	v := &view{
		vs: vs, q: q, whole: vs.isWhole(q),
		log: vs.log.With("view", q.String()), watchers: map[*Watcher]struct{}{}, idle: time.Now(), kick: make(chan struct{}, 1),
	}
	if err := v.load(); err != nil {
		return nil, err
	}
	return v, nil
}

// load takes the description of the view from the store.
func (v *view) load() error {
	stored, ok, err := v.vs.st.View(v.q)
	if err != nil {
		return fmt.Errorf("reading the view %s: %w", v.q, err)
	}
	if !ok {
		return nil
	}
	v.kind, v.node, v.complete = stored.Kind, stored.Node, stored.Complete
	v.rv, v.synced = stored.ResourceVersion, stored.Synced
	if v.complete {
		// Members can be newer than the view: written here, which has been
		// shown, or known from another view, which has not.
		versions, err := v.vs.st.Versions(v.q)
		if err != nil {
			v.relist = true
			v.log.Warn("the stored view is damaged and will be listed again", "error", err)
		}
		v.localRV, v.ahead = 0, nil
		for k, rv := range versions {
			switch {
			case rv <= v.rv:
			case v.vs.isLocal(k, rv):
				v.localRV = max(v.localRV, rv)
			default:
				if v.ahead == nil {
					v.ahead = map[store.Key]uint64{}
				}
				v.ahead[k] = rv
			}
		}
	}
	v.suspect(v.vs.top())
	v.storedComplete, v.storedRV = v.complete, v.rv
	v.window.from = v.shown()
	if v.complete && v.rv == 0 {
		// Of a kept answer that had no resourceVersion: see Keeper.Done.
		v.window.from = math.MaxUint64
	}
	return nil
}

// shown is the resourceVersion that clients see: mu is held.
func (v *view) shown() uint64 { return max(v.rv, v.localRV) }

// suspect notes that resourceVersions up to top may have been made here: mu is
// held. A client that comes with one which this view has not reached saw it
// elsewhere, and it says nothing about what the cloud did until then.
func (v *view) suspect(top uint64) { v.suspectFrom, v.suspectTo = v.rv, top }

// suspicious reports whether a watch cannot begin at rv: mu is held.
func (v *view) suspicious(rv uint64) bool {
	if rv <= v.suspectFrom || rv > v.suspectTo || rv == v.localRV {
		return false
	}
	return !slices.ContainsFunc(v.window.events, func(e *event) bool { return e.local && e.rv == rv })
}

// showed reports whether watchers have seen this stored state of an object: mu is
// held. The store can be ahead of a view, by another view of the same object or
// by a list that was cut off.
func (v *view) showed(o *store.Object) bool { return v.showedVersion(o.Key, o.ResourceVersion) }

func (v *view) showedVersion(k store.Key, rv uint64) bool {
	if local, ok := v.localShown[k]; ok {
		return local == rv
	}
	return rv <= v.rv
}

// describe adds to a batch what the store is to know of the view: mu is held.
func (v *view) describe(b *store.Batch) {
	d := store.View{Query: v.q, Kind: v.kind, Node: v.node, Complete: v.complete, ResourceVersion: v.rv, Synced: v.synced}
	if v.unwritten.lost {
		// The store lacks something: it stays where it was.
		d.Complete, d.ResourceVersion = v.storedComplete, v.storedRV
	}
	b.SetView(d)
}

// described notes that the store took a description: mu is held.
func (v *view) described() {
	if !v.unwritten.lost {
		v.storedComplete, v.storedRV = v.complete, v.rv
	}
}

// listAgain makes the follower list the collection: mu is held.
func (v *view) listAgain() {
	v.relist = true
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// notify wakes those who wait for a change: mu is held.
func (v *view) notify() {
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// wait returns a channel that is closed at the next change: mu is held.
func (v *view) wait() <-chan struct{} {
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.changed
}

func (v *view) setLive(live bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live && !live {
		v.synced = time.Now()
	}
	v.live = live
	v.notify()
}

// deliver hands an event to all: mu is held.
func (v *view) deliver(e *event, burst bool) {
	v.remember(e)
	v.vs.m.events.Inc()
	for w := range v.watchers {
		w.offer(e, burst)
	}
}

// current is the state of an object that clients of this view see: mu is held.
// nil if it has none, or it cannot be read.
func (v *view) current(k store.Key) *store.Object {
	if o, ok := v.unwritten.objects[k]; ok {
		return o
	}
	o, ok, err := v.vs.st.Get(k)
	if err != nil || !ok {
		return nil
	}
	return &o
}

// fail ends the view for its clients: mu is not held.
func (v *view) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err = err
	v.live = false
	for w := range v.watchers {
		w.end(err)
	}
	v.notify()
}

// use and leave count clients.
func (v *view) use(c identity.Caller) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.users++
	v.offerCredential(c)
}

func (v *view) leave() {
	v.mu.Lock()
	v.users--
	if v.users == 0 {
		v.idle = time.Now()
	}
	v.mu.Unlock()
}

// maxCredentials bounds how many callers a view remembers.
const maxCredentials = 8

// offerCredential adds or renews a caller: mu is held.
func (v *view) offerCredential(c identity.Caller) {
	if !c.Node && c.Token == "" {
		return
	}
	v.turns++
	for i := range v.creds {
		if v.creds[i].caller.ID() == c.ID() {
			v.creds[i] = credential{c, v.turns}
			return
		}
	}
	if len(v.creds) == maxCredentials {
		oldest := 0
		for i := range v.creds {
			if v.creds[i].turn < v.creds[oldest].turn && !v.creds[i].caller.Node {
				oldest = i
			}
		}
		v.creds = append(v.creds[:oldest], v.creds[oldest+1:]...)
	}
	v.creds = append(v.creds, credential{c, v.turns})
	v.notify()
}

// credential is the one to use: the node's, else the newest.
func (v *view) credential() (credential, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var best credential
	for _, c := range v.creds {
		if c.caller.Node {
			return c, true
		}
		if c.turn > best.turn {
			best = c
		}
	}
	return best, best.turn > 0
}

// refuse drops a credential that upstream does not accept, unless it has been
// renewed meanwhile.
func (v *view) refuse(c credential) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.creds {
		if v.creds[i].turn == c.turn {
			v.creds = append(v.creds[:i], v.creds[i+1:]...)
			return
		}
	}
}
