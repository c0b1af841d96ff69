package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// proxy carries connections from a port of the host to the API server, so that
// kubectl works on the host.
type proxy struct {
	listener net.Listener
	cloud    *router
	target   netip.AddrPort
	slots    chan struct{} // bounds the connections
}

const maxConnections = 512

func newProxy(ctx context.Context, cloud *router, port int, target netip.AddrPort, logger *log.Logger) (*proxy, error) {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		// An earlier network had the port, and somebody took it since.
		logger.Printf("port %d for kubectl is taken: choosing another", port)
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("listening for kubectl: %w", err)
	}
	p := &proxy{listener: l, cloud: cloud, target: target, slots: make(chan struct{}, maxConnections)}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				logger.Printf("accepting a connection to the API server: %v", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			p.slots <- struct{}{}
			go func() {
				defer func() { <-p.slots }()
				p.carry(ctx, conn)
			}()
		}
	}()
	return p, nil
}

func (p *proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

func (p *proxy) carry(ctx context.Context, near net.Conn) {
	defer near.Close()
	var far net.Conn
	err := p.cloud.do(func() error {
		// A socket stays in the network it was made in.
		var err error
		// The keep-alive notices a control plane whose power went.
		dialer := net.Dialer{Timeout: 5 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}}
		far, err = dialer.DialContext(ctx, "tcp4", p.target.String())
		return err
	})
	if err != nil {
		return // the caller sees a closed connection, as it would of a host that is down
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = pair[0].(*net.TCPConn).CloseWrite()
		})
	}
	wg.Wait()
}
