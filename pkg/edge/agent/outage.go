package agent

import (
	"encoding/json"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/store"
)

// outageDocument is where an outage is noted that has not ended.
const outageDocument = "agent/outage"

// outage remembers when the API server was lost and last heard, over restarts
// and reboots: an agent that starts offline could only tell since when it runs.
type outage struct {
	mu sync.Mutex
	noted
}

type noted struct {
	Since       time.Time `json:"since,omitzero"`
	LastContact time.Time `json:"lastContact,omitzero"`
}

func (o *outage) load(s *store.Store) error {
	data, ok, err := s.Document(outageDocument)
	if err != nil || !ok {
		return err
	}
	var was noted
	if json.Unmarshal(data, &was) != nil {
		return nil // it is noted again
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.noted = was
	return nil
}

// note follows the state of the link.
func (o *outage) note(s *store.Store, state upstream.State) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var batch store.Batch
	switch {
	case state.Online && o.Since.IsZero():
		return nil
	case state.Online:
		o.noted = noted{}
		batch.DeleteDocument(outageDocument)
	case !o.Since.IsZero():
		return nil // the same outage, in the eyes of another process
	default:
		o.noted = noted{Since: state.Since, LastContact: state.LastContact}
		data, err := json.Marshal(o.noted)
		if err != nil {
			return err
		}
		batch.PutDocument(outageDocument, data)
	}
	return s.Apply(&batch, store.Soon)
}

// correct puts into a state what an earlier process knew.
func (o *outage) correct(state *upstream.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if state.Online || o.Since.IsZero() {
		return
	}
	if o.Since.Before(state.Since) {
		state.Since = o.Since
	}
	if state.LastContact.IsZero() {
		state.LastContact = o.LastContact
	}
}
