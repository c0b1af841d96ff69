package mesh

import (
	"net"
	"sync/atomic"

	"golang.org/x/net/ipv4"
)

// counters are what Stats tells.
type counters struct {
	packetsIn, packetsOut, bytesIn, bytesOut atomic.Uint64
	sent, received, dropped                  atomic.Uint64
	accepted, dialled, failed                atomic.Uint64
	refused, limited                         atomic.Uint64
}

// Stats are counts since the start.
type Stats struct {
	// Packets and bytes of UDP, without the headers of IP and UDP.
	PacketsIn, PacketsOut, BytesIn, BytesOut uint64
	// Messages; Dropped are those that there was no way for, or too many of.
	Sent, Received, Dropped uint64
	// Handshakes: Accepted were begun by others, Dialled and Failed by this
	// node; Refused had a wrong certificate, Limited came too often.
	Accepted, Dialled, Failed, Refused, Limited uint64
}

// Stats returns the counts.
func (m *Mesh) Stats() Stats {
	c := &m.counters
	return Stats{
		PacketsIn: c.packetsIn.Load(), PacketsOut: c.packetsOut.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Sent: c.sent.Load(), Received: c.received.Load(), Dropped: c.dropped.Load(),
		Accepted: c.accepted.Load(), Dialled: c.dialled.Load(), Failed: c.failed.Load(),
		Refused: c.refused.Load(), Limited: c.limited.Load(),
	}
}

// metered counts what passes a socket. It keeps what QUIC makes use of: the
// address that a packet was sent to, on machines with several.
type metered struct {
	*net.UDPConn
	batch    *ipv4.PacketConn
	counters *counters
}

func newMetered(udp *net.UDPConn, counters *counters) *metered {
	return &metered{UDPConn: udp, batch: ipv4.NewPacketConn(udp), counters: counters}
}

// ReadBatch reads packets.
func (s *metered) ReadBatch(messages []ipv4.Message, flags int) (int, error) {
	n, err := s.batch.ReadBatch(messages, flags)
	for i := range max(n, 0) {
		s.counters.packetsIn.Add(1)
		s.counters.bytesIn.Add(uint64(messages[i].N))
	}
	return n, err
}

// WriteMsgUDP writes a packet.
func (s *metered) WriteMsgUDP(data, oob []byte, to *net.UDPAddr) (int, int, error) {
	n, oobn, err := s.UDPConn.WriteMsgUDP(data, oob, to)
	s.counters.packetsOut.Add(1)
	s.counters.bytesOut.Add(uint64(n))
	return n, oobn, err
}
