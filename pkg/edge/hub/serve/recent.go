package serve

import (
	"hash/maphash"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// recentFor is how long an answer that was kept is not kept again when it
	// comes again, byte for byte. Short, since what is kept also says when the
	// cloud last confirmed it.
	recentFor = 3 * time.Second
	// maxRecent bounds how many are remembered, about 200 bytes each.
	maxRecent = 1024
)

// recent remembers which answers have just been kept: clients that ask for the
// same object over and over mostly get the same.
type recent struct {
	seed maphash.Seed
	now  func() time.Time

	mu    sync.Mutex
	known map[recentKey]recentAnswer
}

type recentKey struct {
	query store.Query
	node  bool
}

type recentAnswer struct {
	sum uint64
	at  time.Time
}

func newRecent(now func() time.Time) *recent {
	return &recent{seed: maphash.MakeSeed(), now: now, known: map[recentKey]recentAnswer{}}
}

// sum is of all that an answer says.
func (r *recent) sum(code int, contentType, encoding string, body []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(r.seed)
	maphash.WriteComparable(&h, code)
	for _, text := range []string{contentType, encoding} {
		maphash.WriteComparable(&h, text)
	}
	_, _ = h.Write(body)
	return h.Sum64()
}

// has reports whether this very answer has just been kept.
func (r *recent) has(key recentKey, sum uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.known[key]
	return ok && last.sum == sum && r.now().Sub(last.at).Abs() < recentFor
}

// add notes that an answer is kept now.
func (r *recent) add(key recentKey, sum uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[key]; !ok && len(r.known) >= maxRecent {
		clear(r.known)
	}
	r.known[key] = recentAnswer{sum, r.now()}
}

// forget makes the next answer be kept whatever it is.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.known)
}
