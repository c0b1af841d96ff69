package observer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/observer"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/mesh"
	"skerry.dev/skerry/test/bench"
)

// settleReal is how long connections are made before anything is counted.
const settleReal = 40 * time.Second

// figures are per node and second.
type figures struct{ packets, bytes, cpu float64 }

// connections measures observers with real connections, and their control.
func connections(ctx context.Context, size int, watch time.Duration) ([]bench.Row, error) {
	s, err := newSite(size)
	if err != nil {
		return nil, err
	}
	value, err := s.observers(ctx, watch)
	if err != nil {
		return nil, err
	}
	control, err := s.everybody(ctx, watch)
	if err != nil {
		return nil, err
	}
	return []bench.Row{
		bench.Against(fmt.Sprintf("observer UDP packets sent, site of %d, with QUIC", size), "/s/node", value.packets, control.packets, goal(size)),
		bench.Against(fmt.Sprintf("observer UDP bytes sent, site of %d, with QUIC", size), "B/s/node", value.bytes, control.bytes, goal(size)),
		bench.Against(fmt.Sprintf("observer processor time, site of %d, both with QUIC", size), "ms/s/node", value.cpu, control.cpu, goal(size)),
	}, nil
}

// site is members with certificates and addresses of their own.
type site struct {
	pool         *x509.CertPool
	certificates []*tls.Certificate
	members      []observer.Member
	port         uint16
}

func newSite(size int) (*site, error) {
	s := &site{pool: x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	begin, end := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true, NotBefore: begin, NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	if authority, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	s.pool.AddCert(authority)
	for i := range size {
		name := fmt.Sprintf("edge-node-%04d", i)
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
			NotBefore: begin, NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if der, err = x509.CreateCertificate(rand.Reader, leaf, authority, &own.PublicKey, key); err != nil {
			return nil, err
		}
		if leaf, err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
		s.certificates = append(s.certificates, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own, Leaf: leaf})
		s.members = append(s.members, observer.Member{
			Name: name, UID: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(1 + i)})},
		})
	}
	socket, err := net.ListenPacket("udp", "127.1.0.1:0")
	if err != nil {
		return nil, err
	}
	s.port = socket.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	return s, socket.Close()
}

func (s *site) address(i int) netip.AddrPort {
	return netip.AddrPortFrom(s.members[i].Addresses[0], s.port)
}

// silent is a cloud to which nothing is said, for nothing happens.
type silent struct{}

func (silent) Put(context.Context, sitev1.NodeReportSpec) error { return nil }
func (silent) Delete(context.Context) error                     { return nil }

// observers runs one observer for each member.
func (s *site) observers(ctx context.Context, watch time.Duration) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	var registries []*prometheus.Registry
	var all []*observer.Observer
	for i, m := range s.members {
		registry := prometheus.NewRegistry()
		one, err := observer.New(observer.Options{
			Node: m.Name, Listen: s.address(i), Reports: silent{}, Registry: registry, Logger: slog.New(slog.DiscardHandler),
			Certificate: func() (*tls.Certificate, error) { return s.certificates[i], nil },
			Authority:   func() (*x509.CertPool, error) { return s.pool, nil },
			Online:      func() bool { return true },
			Changes:     func() <-chan struct{} { return nil },
		})
		if err != nil {
			return figures{}, err
		}
		one.SetSite(observer.Site{Name: "bench", Members: s.members, Witnesses: 1})
		registries, all = append(registries, registry), append(all, one)
		group.Go(func() { one.Run(ctx) })
	}
	// By then each has met all that it probes.
	if err := wait(ctx, settleReal); err != nil {
		return figures{}, err
	}
	for began := time.Now(); !healthy(all); {
		if time.Since(began) > 3*time.Minute {
			return figures{}, errors.New("the observers do not find each other: is this machine overloaded?")
		}
		if err := wait(ctx, time.Second); err != nil {
			return figures{}, err
		}
	}
	return count(ctx, len(all), watch, func() (packets, bytes float64, err error) {
		for _, r := range registries {
			families, err := r.Gather()
			if err != nil {
				return 0, 0, err
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if len(m.GetLabel()) != 1 || m.GetLabel()[0].GetValue() != "sent" {
						continue
					}
					switch f.GetName() {
					case "skerry_observer_packets_total":
						packets += m.GetCounter().GetValue()
					case "skerry_observer_bytes_total":
						bytes += m.GetCounter().GetValue()
					}
				}
			}
		}
		return packets, bytes, nil
	})
}

func healthy(all []*observer.Observer) bool {
	for _, one := range all {
		for _, n := range one.Neighbours().Members {
			if n.State != agentapi.NeighbourAlive {
				return false
			}
		}
	}
	return true
}

// everybody is the control: each pings each other one once a second, over the
// same kind of connections, so that both pay for the same encryption.
func (s *site) everybody(ctx context.Context, watch time.Duration) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	ping := detect.Append(nil, detect.Message{Kind: detect.Ping, Sequence: 1})
	ack := detect.Append(nil, detect.Message{Kind: detect.Ack, Sequence: 1})
	addresses := map[string][]netip.AddrPort{}
	for i, m := range s.members {
		addresses[m.Name] = []netip.AddrPort{s.address(i)}
	}
	var all []*mesh.Mesh
	for i, m := range s.members {
		var one *mesh.Mesh
		ready := make(chan struct{})
		one, err := mesh.New(mesh.Options{
			Self: m.Name, Listen: s.address(i), Logger: slog.New(slog.DiscardHandler),
			Certificate: func() (*tls.Certificate, error) { return s.certificates[i], nil },
			Authority:   func() (*x509.CertPool, error) { return s.pool, nil },
			Addresses:   func(name string) ([]netip.AddrPort, bool) { a, ok := addresses[name]; return a, ok },
			Known:       func(netip.Addr) bool { return true },
			Receive: func(from string, data []byte) {
				<-ready
				if message, err := detect.Decode(data); err == nil && message.Kind == detect.Ping {
					one.Send(from, ack)
				}
			},
		})
		if err != nil {
			return figures{}, err
		}
		close(ready)
		all = append(all, one)
		group.Go(func() { _ = one.Run(ctx) })
		group.Go(func() {
			// Machines do not ask in step, and neither do observers: what wakes this
			// process once for all of them would be cheaper than it is on any machine.
			if wait(ctx, time.Duration(i)*time.Second/time.Duration(len(s.members))) != nil {
				return
			}
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				for _, other := range s.members {
					if other.Name != m.Name {
						one.Send(other.Name, ping)
					}
				}
			}
		})
	}
	if err := wait(ctx, settleReal); err != nil {
		return figures{}, err
	}
	return count(ctx, len(all), watch, func() (packets, bytes float64, err error) {
		for _, m := range all {
			stats := m.Stats()
			packets += float64(stats.PacketsOut)
			bytes += float64(stats.BytesOut)
		}
		return packets, bytes, nil
	})
}

// count takes the difference over a while. All nodes are in this process, so its
// processor time is theirs.
func count(ctx context.Context, nodes int, watch time.Duration, read func() (packets, bytes float64, err error)) (figures, error) {
	packets, bytes, err := read()
	cpu, cpuErr := processorTime()
	if err := errors.Join(err, cpuErr, wait(ctx, watch)); err != nil {
		return figures{}, err
	}
	packets2, bytes2, err := read()
	cpu2, cpuErr := processorTime()
	per := float64(nodes) * watch.Seconds()
	return figures{(packets2 - packets) / per, (bytes2 - bytes) / per, (cpu2 - cpu).Seconds() * 1000 / per}, errors.Join(err, cpuErr)
}

func processorTime() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("reading the processor time: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
