package upstream

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conns are the open connections, so that they can be closed when the link is
// lost: half-dead TCP would otherwise swallow requests after it has healed.
type conns struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

// conn counts bytes, and tells when it ends although nobody here wanted that.
type conn struct {
	net.Conn
	u        *Upstream
	gen      *generation
	host     string      // that was dialed
	expected atomic.Bool // its end is no news
	closed   atomic.Bool
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.u.metrics.received.Add(float64(n))
		c.u.link.hear()
	}
	if err != nil && !c.closed.Load() {
		c.ended(err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.u.metrics.sent.Add(float64(n))
	if err != nil && !c.closed.Load() {
		c.ended(err)
	}
	return n, err
}

func (c *conn) ended(err error) {
	if !c.expected.Swap(true) {
		c.u.Suspect(err)
	}
}

// Close is how HTTP/2 ends a connection whose ping was not answered.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.ended(fmt.Errorf("the connection to %s was given up", c.RemoteAddr()))
	c.u.conns.mu.Lock()
	delete(c.u.conns.open, c)
	c.u.conns.mu.Unlock()
	c.gen.open.Add(-1)
	return c.Conn.Close()
}

// closeAll closes the connections of one generation, or all if gen is nil.
func (cs *conns) closeAll(gen *generation) {
	cs.mu.Lock()
	var doomed []*conn
	for c := range cs.open {
		if gen == nil || c.gen == gen {
			doomed = append(doomed, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range doomed {
		c.expected.Store(true)
		c.Close()
	}
}

// expect says that the connections of gen will end, and that this is no news.
func (cs *conns) expect(gen *generation) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if c.gen == gen {
			c.expected.Store(true)
		}
	}
}

func (u *Upstream) dial(ctx context.Context, gen *generation, network, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout: u.o.DialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: u.o.IdlePing, Interval: 2 * time.Second, Count: 3,
		},
		Control: func(_, _ string, raw syscall.RawConn) error {
			// What was sent and not acknowledged for this long is lost: the
			// kernel would go on for a quarter of an hour.
			timeout := int(u.o.IdlePing / time.Millisecond)
			var err error
			if controlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, timeout)
			}); controlErr != nil {
				return controlErr
			}
			return err
		},
	}
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, u: u, gen: gen, host: address}
	c.expected.Store(gen.quiet)
	gen.open.Add(1)
	u.conns.mu.Lock()
	if u.conns.open == nil {
		u.conns.open = map[*conn]struct{}{}
	}
	u.conns.open[c] = struct{}{}
	u.conns.mu.Unlock()
	return c, nil
}

// caFile is the cluster's certificate authority, read again when it changes.
type caFile struct {
	path string

	mu      sync.Mutex
	checked time.Time
	stamp   string
	current *x509.CertPool
}

func (c *caFile) pool() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && time.Since(c.checked) < 10*time.Second {
		return c.current, nil
	}
	c.checked = time.Now()
	pool, stamp, err := c.read()
	if err != nil {
		if c.current != nil {
			return c.current, nil // half written: the old one is as good as before
		}
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	if stamp != c.stamp {
		c.current, c.stamp = pool, stamp
	}
	return c.current, nil
}

func (c *caFile) read() (*x509.CertPool, string, error) {
	data, err := os.ReadFile(c.path)
	if err != nil {
		return nil, "", err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, "", fmt.Errorf("%s has no certificate", c.path)
	}
	return pool, string(data), nil
}

// dropOthers closes the connections to all servers but one that is used now.
func (u *Upstream) dropOthers(host string) {
	u.conns.mu.Lock()
	var doomed []*conn
	for c := range u.conns.open {
		if c.host != host {
			doomed = append(doomed, c)
		}
	}
	u.conns.mu.Unlock()
	for _, c := range doomed {
		c.expected.Store(true)
		c.Close()
	}
}
