package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections bounds each listener, so that nobody on one of them can shut
// the other one's clients out.
const maxConnections = 1024

// Serve serves the handler on the listeners until ctx ends, then lets requests
// end for grace. The TLS configuration should have GetCertificate, so that a
// renewed certificate is used at once.
func Serve(ctx context.Context, handler http.Handler, config *tls.Config, grace time.Duration, logger *slog.Logger, listeners ...net.Listener) error {
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	if config.MinVersion < tls.VersionTLS12 {
		config.MinVersion = tls.VersionTLS12
	}
	// Streams end with base, so that a shutdown need not wait for each watch.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	server := &http.Server{
		Handler:           handler,
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			// A kubelet has one connection, with a watch for each Secret and
			// ConfigMap that its pods mount.
			MaxConcurrentStreams:          1000,
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			// A client that was killed with its network is found out.
			SendPingTimeout:  30 * time.Second,
			PingTimeout:      15 * time.Second,
			WriteByteTimeout: 30 * time.Second,
		},
	}
	failed := make(chan error, len(listeners))
	var group sync.WaitGroup
	for _, l := range listeners {
		group.Go(func() {
			failed <- server.ServeTLS(&limitedListener{Listener: l, slots: make(chan struct{}, maxConnections)}, "", "")
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	time.AfterFunc(grace/2, cut)
	if shutdown := server.Shutdown(stopping); shutdown != nil {
		_ = server.Close()
	}
	cut()
	group.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// limitedListener has so many connections at once, and closes what is more:
// a client that waits in a queue cannot tell it from a hub that hangs.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = conn.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
