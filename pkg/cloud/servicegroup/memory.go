package servicegroup

import (
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// memory is what a controller knows beside the cache. All of it is found again
// after a restart: with one write for each variant of each grid.
type memory struct {
	mu    sync.Mutex
	grids map[types.NamespacedName]*gridMemory
	// inTheWay is, by the name of a child that is somebody else's, the grid that
	// waits for it to go.
	inTheWay map[types.NamespacedName]types.NamespacedName
}

func newMemory() *memory {
	return &memory{grids: map[types.NamespacedName]*gridMemory{}, inTheWay: map[types.NamespacedName]types.NamespacedName{}}
}

// waits notes that an object is in the way of a grid.
func (m *memory) waits(object, grid types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inTheWay[object] = grid
}

// cleared says which grid, if any, an object was in the way of that is gone.
func (m *memory) cleared(object types.NamespacedName) (grid types.NamespacedName, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	grid, ok = m.inTheWay[object]
	delete(m.inTheWay, object)
	return grid, ok
}

// gridMemory is about one grid. Only one worker has it at a time.
type gridMemory struct {
	uid        types.UID
	generation int64
	extra      string // what else the shape depends on
	shape      *shape.Shape

	// owned is, for each variant by its hash, the record of fields that the API
	// server keeps after it was applied: equal in all sites, because they differ
	// in values only.
	owned map[string]string
	// written is, for each child, what came of the last write. The watch forgets
	// what is deleted.
	mu      sync.Mutex
	written map[string]written
	// refused is, for each child, why it was refused.
	refused map[string]refusal

	statusWritten time.Time
	lastReason    string
}

// written is newer than the cache until the cache has its resource version.
type written struct {
	uid             types.UID
	resourceVersion string
	hash            string
	owned           string
	at              time.Time
}

type refusal struct {
	hash, message string
	at            time.Time
}

// of returns the memory of a grid, empty when it is another than before.
func (m *memory) of(key types.NamespacedName, uid types.UID) *gridMemory {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.grids[key]
	if g == nil || g.uid != uid {
		g = &gridMemory{uid: uid, owned: map[string]string{}, written: map[string]written{}, refused: map[string]refusal{}}
		m.grids[key] = g
	}
	return g
}

func (m *memory) forget(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.grids, key)
}

// gone forgets the last write of a child that was deleted.
func (m *memory) gone(key types.NamespacedName, name string, uid types.UID) {
	m.mu.Lock()
	g := m.grids[key]
	m.mu.Unlock()
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.written[name].uid == uid {
		delete(g.written, name)
	}
}

// applied notes what came of a write.
func (g *gridMemory) applied(name, hash string, result *metav1.PartialObjectMetadata, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fields, _ := ours(&result.ObjectMeta)
	w := written{uid: result.UID, resourceVersion: result.ResourceVersion, hash: hash, owned: hashOf(fields), at: now}
	g.written[name] = w
	if g.owned[hash] == "" {
		g.owned[hash] = w.owned
	}
	delete(g.refused, name)
}

// child is what is known about one: from the cache, or from our last write when
// that is newer.
type child struct {
	exists    bool
	deleting  bool
	uid       types.UID
	hash      string // what it was told
	changed   time.Time
	untouched bool // the fields that we set are as we set them
	known     bool // whether we can tell
	fresh     bool // the cache does not have our last write yet
	left      string
	replicas  bool // replicas is a field of ours
	object    client.Object
}

// unseen is how long the cache may take to show what we wrote. If it does not,
// the child was deleted before the cache saw it.
const unseen = time.Minute

func (g *gridMemory) child(name string, object client.Object, now time.Time) child {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := child{object: object}
	if object != nil {
		annotations := object.GetAnnotations()
		c.exists, c.uid, c.hash = true, object.GetUID(), annotations[gridv1.HashAnnotation]
		c.deleting = object.GetDeletionTimestamp() != nil
		c.left, c.replicas = annotations[gridv1.SiteLeftAnnotation], annotations[replicasKey] != ""
		c.changed, _ = time.Parse(time.RFC3339, annotations[changedKey])
		want, known := g.owned[c.hash]
		c.known, c.untouched = known, known && annotations[ownedKey] == want
	}
	w, ok := g.written[name]
	switch {
	case !ok:
	case c.exists && w.uid == c.uid && !older(object.GetResourceVersion(), w.resourceVersion):
		// The cache is as new: a child whose record differs from the others' is
		// still as we left it when it has the record that we left.
		if c.hash == w.hash && object.GetAnnotations()[ownedKey] == w.owned {
			c.known, c.untouched = true, true
		}
		if w.owned == g.owned[w.hash] {
			delete(g.written, name)
		}
	case !c.exists || older(object.GetResourceVersion(), w.resourceVersion):
		if !now.Before(w.at.Add(unseen)) {
			delete(g.written, name)
			break
		}
		c.exists, c.uid, c.hash, c.changed, c.known, c.untouched, c.fresh = true, w.uid, w.hash, w.at, true, true, true
	}
	return c
}

// older compares resource versions, which count up.
func older(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x < y
}
