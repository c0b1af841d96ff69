package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	echoPort  = 7
	drainPort = 9
)

// Serve answers probes on all machines until the test ends: datagrams are
// echoed, streams are read. The servers live in the test's process, the
// sockets in the machines. After a machine has booted again, call Serve again.
func (s *Sandbox) Serve() {
	s.t.Helper()
	for _, n := range s.Nodes() {
		n.Serve()
	}
}

// Serve answers probes on this machine.
func (n *Node) Serve() {
	n.s.t.Helper()
	var echo net.PacketConn
	var drain net.Listener
	err := n.Config().InNetwork(func() error {
		var err error
		if echo, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", echoPort)); err != nil {
			return err
		}
		drain, err = net.Listen("tcp4", fmt.Sprintf(":%d", drainPort))
		return err
	})
	n.s.must(err)
	n.s.t.Cleanup(func() { echo.Close(); drain.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			size, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(buf[:size], from)
		}
	}()
	go func() {
		for {
			conn, err := drain.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
}

func (n *Node) port(port int) string { return net.JoinHostPort(n.Address(), strconv.Itoa(port)) }

// Echo is what Ping found.
type Echo struct {
	Sent, Received int
	Times          []time.Duration // of those received, in order of sending
}

// Median is the middle of all round-trip times, 0 without any.
func (e Echo) Median() time.Duration {
	if len(e.Times) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(e.Times))[len(e.Times)/2]
}

// Ping sends datagrams to another machine's echo and waits for the last one
// for up to two seconds.
func (n *Node) Ping(to *Node, count int, interval time.Duration) Echo {
	n.s.t.Helper()
	var conn net.Conn
	err := n.Config().InNetwork(func() error {
		var err error
		conn, err = net.Dial("udp4", to.port(echoPort))
		return err
	})
	n.s.must(err)
	defer conn.Close()
	var mu sync.Mutex
	result := Echo{Sent: count}
	sent := make([]time.Time, count)
	times := map[int]time.Duration{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			size, err := conn.Read(buf)
			mu.Lock()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
				mu.Unlock()
				return
			case err == nil && size >= 4:
				i := int(binary.BigEndian.Uint32(buf))
				if _, twice := times[i]; i < count && !twice {
					times[i] = time.Since(sent[i])
				}
			}
			all := len(times) == count
			mu.Unlock()
			if all {
				return
			}
		}
	}()
	for i := range count {
		data := make([]byte, 100)
		binary.BigEndian.PutUint32(data, uint32(i))
		mu.Lock()
		sent[i] = time.Now()
		mu.Unlock()
		_, _ = conn.Write(data) // one that cannot be sent does not come back
		time.Sleep(interval)
	}
	n.s.must(conn.SetReadDeadline(time.Now().Add(2 * time.Second)))
	<-done
	for i := range count {
		if took, ok := times[i]; ok {
			result.Received++
			result.Times = append(result.Times, took)
		}
	}
	return result
}

// Dial connects to another machine's server. A router on the way that refuses
// shows in the error.
func (n *Node) Dial(to *Node) error {
	n.s.t.Helper()
	return n.Config().InNetwork(func() error {
		conn, err := net.DialTimeout("tcp4", to.port(drainPort), 3*time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// Throughput sends a stream to another machine for a while and returns the
// bits a second that arrived there.
func (n *Node) Throughput(to *Node, duration time.Duration) float64 {
	n.s.t.Helper()
	var conn net.Conn
	err := n.Config().InNetwork(func() error {
		var err error
		conn, err = net.DialTimeout("tcp4", to.port(drainPort), 5*time.Second)
		return err
	})
	n.s.must(err)
	defer conn.Close()
	// What waits in this end's buffer has not arrived.
	n.s.must(conn.(*net.TCPConn).SetWriteBuffer(64 << 10))
	began := time.Now()
	n.s.must(conn.SetWriteDeadline(began.Add(duration)))
	var total int64
	block := make([]byte, 32<<10)
	for {
		size, err := conn.Write(block)
		total += int64(size)
		if err != nil {
			break
		}
	}
	return float64(total) * 8 / time.Since(began).Seconds()
}
