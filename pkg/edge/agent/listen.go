package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/serve"
)

const (
	// podRetry is how often we try again to listen for pods.
	podRetry = 5 * time.Second
	// goodbye is how long requests may take when the agent ends; watches would
	// take for ever.
	goodbye = time.Second
)

// listen opens a TCP listener of this node.
func listen(address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	return listener, nil
}

// serveHub serves clients of the API until ctx ends.
func (a *Agent) serveHub(ctx context.Context, listener net.Listener) error {
	return serve.Serve(ctx, a.hub, a.pki.TLSConfig(), goodbye, a.log, listener)
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, server *http.Server, listener net.Listener) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		soon, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		if server.Shutdown(soon) != nil {
			_ = server.Close() // what is left are watches
		}
	})
	err := server.Serve(listener)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", listener.Addr(), err)
}

// servePods serves pods, as soon and as often as their address can be listened
// on: without it the node's own components go on all the same.
func (a *Agent) servePods(ctx context.Context) {
	address, err := netip.ParseAddrPort(a.config.Listen.Pods)
	if err != nil { // "none": the configuration was checked
		return
	}
	for ctx.Err() == nil {
		err := func() error {
			if name := a.config.Listen.PodInterface; name != agentv1.None {
				if err := ensureInterface(name, address.Addr()); err != nil {
					return err
				}
			}
			listener, err := listen(address.String())
			if err != nil {
				return err
			}
			a.problem("pods", nil)
			a.log.Info("serving pods", "address", address)
			return a.serveHub(ctx, listener)
		}()
		if ctx.Err() != nil {
			return
		}
		a.problem("pods", fmt.Errorf("pods cannot reach the API: %w", err))
		select {
		case <-ctx.Done():
		case <-time.After(podRetry):
		}
	}
}
