package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxDocument bounds a document of the API server.
const maxDocument = 1 << 20

// replayTimeout bounds how long the views wait for the statuses to be sent.
const replayTimeout = 5 * time.Second

// fetch gets a document from the API server with the node's identity.
func (a *Agent) fetch(ctx context.Context, path string) ([]byte, error) {
	response, err := a.upstream.Do(ctx, http.MethodGet, path, nil, "", "application/json, */*", nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading %s: the API server answers %s", path, response.Status)
	}
	if len(data) > maxDocument {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", path, maxDocument)
	}
	return data, nil
}

// beforeLive makes sure, after each reconnect, that no client sees a
// resourceVersion go back. What the cloud does not know yet is sent meanwhile:
// until it is, the views show it as it was written here.
func (a *Agent) beforeLive(ctx context.Context) error {
	a.outbox.Settle()
	if _, err := a.views.CatchUp(ctx, a.upstream.Do, a.config.NodeName); err != nil {
		return err
	}
	// A pod that was changed here and in the cloud has the lower version there
	// until the cloud has our change.
	replay, cancel := context.WithTimeout(ctx, replayTimeout)
	defer cancel()
	if err := a.outbox.ReplayStatuses(replay); err != nil {
		a.log.Warn("sending what happened while the cloud was away; it goes on in the background", "error", err)
	}
	return nil
}
