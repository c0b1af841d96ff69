package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
)

// dial tries to reach a peer, unless that is being tried or was tried just now.
// m.mu is held.
func (m *Mesh) dial(p *peer, now time.Time) {
	if p.dialing || now.Before(p.redial) || m.dials >= maxDials {
		return
	}
	addresses, ok := m.o.Addresses(p.name)
	if !ok || len(addresses) == 0 {
		return
	}
	p.dialing = true
	m.dials++
	go func() {
		connection, err := m.reach(p.name, addresses)
		m.mu.Lock()
		p.dialing = false
		m.dials--
		if err != nil {
			p.redial = m.o.Now().Add(p.wait())
		}
		m.mu.Unlock()
		if err != nil {
			m.counters.failed.Add(1)
			m.log.Debug("a neighbour cannot be reached", "neighbour", p.name, "err", err)
			return
		}
		m.counters.dialled.Add(1)
		m.add(p.name, connection, true)
	}()
}

// reach opens a connection to one of the addresses of a member: to the first
// that answers, and none for longer than the next one can wait.
func (m *Mesh) reach(name string, addresses []netip.AddrPort) (*quic.Conn, error) {
	certificate, err := m.o.Certificate()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolName}, ServerName: name,
		Certificates:       []tls.Certificate{*certificate},
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection:   m.verifyServer(name),
		ClientSessionCache: m.sessions,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*handshakeIdle)
	defer cancel()
	type result struct {
		connection *quic.Conn
		err        error
	}
	results := make(chan result, len(addresses))
	for i, address := range addresses {
		go func() {
			if sleep(ctx, time.Duration(i)*addressDelay); ctx.Err() != nil {
				results <- result{err: ctx.Err()}
				return
			}
			connection, err := m.quic.Dial(ctx, net.UDPAddrFromAddrPort(address), config, m.config())
			results <- result{connection, err}
		}()
	}
	var failures []error
	for range addresses {
		r := <-results
		if r.err != nil {
			failures = append(failures, r.err)
			continue
		}
		cancel()
		// Others may have been reached at the same time.
		go func(left int) {
			for range left {
				if r := <-results; r.err == nil {
					_ = r.connection.CloseWithError(closeDone, "")
				}
			}
		}(len(addresses) - len(failures) - 1)
		return r.connection, nil
	}
	return nil, errors.Join(failures...)
}
