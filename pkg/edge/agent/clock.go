package agent

import (
	"sync"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// clockDocument is where the newest time that this node has known is kept.
const clockDocument = "agent/clock"

// clock remembers the newest time at which the API server was heard, over
// reboots: a machine without a battery boots in 1970, and would take every
// certificate and token for one of the future.
type clock struct {
	mu   sync.Mutex
	last time.Time
	kept time.Time // as it is in the store
}

func (c *clock) load(s *store.Store) error {
	data, ok, err := s.Document(clockDocument)
	if err != nil || !ok {
		return err
	}
	last, err := time.Parse(time.RFC3339, string(data))
	if err != nil {
		return nil // it is kept again when the cloud is heard
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.kept = last, last
	return nil
}

// heard notes when the API server was heard. An earlier time than the last one
// counts, too: the clock was ahead, and has been set right. One that is far behind
// cannot have reached the API server, whose certificate would not be valid yet.
func (c *clock) heard(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = at
}

// lastSeen is the newest time that this node knows of.
func (c *clock) lastSeen() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// save keeps the time if it is news by an hour.
func (c *clock) save(s *store.Store) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last.Sub(c.kept).Abs() < time.Hour {
		return nil
	}
	var batch store.Batch
	batch.PutDocument(clockDocument, []byte(c.last.UTC().Format(time.RFC3339)))
	if err := s.Apply(&batch, store.Lazy); err != nil {
		return err
	}
	c.kept = c.last
	return nil
}
