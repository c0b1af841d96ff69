//go:build e2e

package history

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// link is a TCP proxy that can be cut.
type link struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	state linkState
	conns map[net.Conn]bool
	cond  *sync.Cond
}

type linkState int

const (
	linkOpen   linkState = iota
	linkClosed           // connections are reset, new ones too
	linkHole             // nothing passes, nobody is told
)

func newLink(t *testing.T, target string) *link {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener, target: target, conns: map[net.Conn]bool{}}
	l.cond = sync.NewCond(&l.mu)
	t.Cleanup(func() {
		listener.Close()
		l.set(linkClosed)
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.carry(conn.(*net.TCPConn))
		}
	}()
	return l
}

func (l *link) url() string { return "https://" + l.listener.Addr().String() }

// set changes the state. Connections do not survive a change: what was under way
// in a hole is lost.
func (l *link) set(s linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s != linkHole {
		for c := range l.conns {
			reset(c)
		}
		clear(l.conns)
	}
	l.state = s
	l.cond.Broadcast()
}

func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// keep remembers a connection; false if it must not be.
func (l *link) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == linkClosed {
		reset(c)
		return false
	}
	l.conns[c] = true
	return true
}

// passes waits while the link is a hole; false if the connection was reset.
func (l *link) passes(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.state == linkHole && l.conns[c] {
		l.cond.Wait()
	}
	return l.conns[c]
}

func (l *link) carry(near *net.TCPConn) {
	if !l.keep(near) || !l.passes(near) {
		return
	}
	conn, err := net.Dial("tcp", l.target)
	if err != nil {
		reset(near)
		return
	}
	far := conn.(*net.TCPConn)
	if !l.keep(far) {
		reset(near)
		return
	}
	var group sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{near, far}, {far, near}} {
		group.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buf)
				if n > 0 && l.passes(way[0]) {
					if _, err := way[1].Write(buf[:n]); err != nil {
						break
					}
				}
				if err != nil {
					if !errors.Is(err, io.EOF) {
						reset(way[1])
					}
					break
				}
			}
			_ = way[1].CloseWrite()
		})
	}
	group.Wait()
	near.Close()
	far.Close()
	l.mu.Lock()
	delete(l.conns, near)
	delete(l.conns, far)
	l.mu.Unlock()
}
