package observer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	// knockTime is how long a machine may take to answer, and knocks how often it
	// is asked.
	knockTime, knocks = 200 * time.Millisecond, 3
	// maxKnocks bounds those under way, and maxDoors the addresses of one.
	maxKnocks, maxDoors = 32, 4
)

type knockResult struct {
	name    string
	refused bool
}

// door is a TCP listener on the port of the observer, at which nothing is said:
// while this process is there, however ill, the kernel opens to those who knock;
// when it is not, the kernel refuses.
type door struct{ listener net.Listener }

func newDoor(address netip.AddrPort) (*door, error) {
	where := net.TCPAddrFromAddrPort(address)
	if address.Addr().IsUnspecified() {
		where.IP = nil // both families, or the one that there is
	}
	listener, err := net.ListenTCP("tcp", where)
	if err != nil {
		return nil, fmt.Errorf("listening for neighbours: %w", err)
	}
	return &door{listener}, nil
}

// run closes what comes, until close.
func (d *door) run() {
	for {
		connection, err := d.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, and the like
			time.Sleep(time.Second)
			continue
		}
		connection.Close()
	}
}

func (d *door) close() { d.listener.Close() }

// knock asks the machine of a neighbour whether there is an observer. Its kernel
// refuses if there is none: then the machine is not dead, but its agent is.
// Nobody proves who answers, so this is no sign of life: it turns "cannot be
// reached" into "its kubelet is down", for which the cloud waits longer.
func (ob *Observer) knock(ctx context.Context, name string) {
	select {
	case ob.knocking <- struct{}{}:
	case <-ctx.Done():
		return
	}
	addresses, _ := ob.addresses.Load().of(name)
	result := knockResult{name, refused(ctx, addresses)}
	<-ob.knocking
	select {
	case ob.knocked <- result:
	case <-ctx.Done():
	}
}

// refused says whether one of the addresses refuses.
func refused(ctx context.Context, addresses []netip.AddrPort) bool {
	var group sync.WaitGroup
	answers := make(chan bool, maxDoors)
	for _, address := range addresses[:min(len(addresses), maxDoors)] {
		group.Go(func() { answers <- refusedAt(ctx, address) })
	}
	group.Wait()
	close(answers)
	for answer := range answers {
		if answer {
			return true
		}
	}
	return false
}

func refusedAt(ctx context.Context, address netip.AddrPort) bool {
	for range knocks { // a packet may get lost
		dialer := net.Dialer{Timeout: knockTime}
		connection, err := dialer.DialContext(ctx, "tcp", address.String())
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		case err == nil:
			connection.Close()
			return false
		}
	}
	return false
}
