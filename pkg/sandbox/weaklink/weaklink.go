// Package weaklink is a bad network link in user space: it carries IP packets
// between two devices and, per direction and at any moment, cuts, delays,
// drops and slows them, and counts what it did.
//
// It knows packets and time, nothing else: not what a site is, not where the
// devices come from.
package weaklink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
)

// Device delivers and takes whole packets, one a call. Close must end a
// blocked Read.
type Device interface {
	io.ReadWriteCloser
}

// Direction is one of the two ways over the link.
type Direction int

// The two directions. Up is from the site to the cloud.
const (
	Up Direction = iota
	Down
)

func (d Direction) String() string {
	if d == Up {
		return "up"
	}
	return "down"
}

// Directions lists both.
func Directions() []Direction { return []Direction{Up, Down} }

// Counters tell what happened to the packets of one direction since the start.
type Counters struct {
	Packets int64 `json:"packets"` // delivered
	Bytes   int64 `json:"bytes"`   // delivered
	// Dropped, by reason.
	Cut     int64 `json:"droppedCut"`
	Blocked int64 `json:"droppedBlocked"` // an address that was cut off by itself
	Loss    int64 `json:"droppedLoss"`
	Queue   int64 `json:"droppedQueue"` // the queue was full
	Failed  int64 `json:"droppedFailed"`
	// Waiting is the number of packets in the queue now.
	Waiting int `json:"waiting"`
}

// Dropped is the sum over all reasons.
func (c Counters) Dropped() int64 { return c.Cut + c.Blocked + c.Loss + c.Queue + c.Failed }

// Link joins two devices. Make it with New, then call Run.
type Link struct {
	devices [2]Device // the device a direction reads from
	lanes   [2]*lane
}

// New makes a perfect link between the site's and the cloud's device. The same
// seed makes the same random decisions for the same packets.
func New(site, cloud Device, seed uint64) *Link {
	l := &Link{devices: [2]Device{Up: site, Down: cloud}}
	l.lanes[Up] = newLane(cloud, rand.New(rand.NewPCG(seed, 1)))
	l.lanes[Down] = newLane(site, rand.New(rand.NewPCG(seed, 2)))
	return l
}

// Set changes one direction, at once: packets that wait are delivered within
// the new delay, or dropped when the link was cut.
func (l *Link) Set(d Direction, s Settings) error {
	if err := s.Validate(); err != nil {
		return err
	}
	l.lanes[d].set(s)
	return nil
}

// Settings returns how one direction is now.
func (l *Link) Settings(d Direction) Settings { return l.lanes[d].getSettings() }

// Counters returns what happened on one direction so far.
func (l *Link) Counters(d Direction) Counters { return l.lanes[d].getCounters() }

// Block drops all packets from or to the given ranges, in both directions, and
// replaces what an earlier call gave.
func (l *Link) Block(ranges []netip.Prefix) {
	for _, lane := range l.lanes {
		lane.block(ranges)
	}
}

// Run carries packets until ctx ends or a device fails. It closes both devices.
func (l *Link) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(l.lanes))
	var wg sync.WaitGroup
	for d, lane := range l.lanes {
		wg.Go(func() { lane.deliver(ctx) })
		wg.Go(func() {
			defer cancel()
			err := lane.receive(l.devices[d])
			if ctx.Err() == nil {
				errs[d] = fmt.Errorf("reading packets going %s: %w", Direction(d), err)
			}
		})
	}
	<-ctx.Done()
	for _, dev := range l.devices {
		_ = dev.Close()
	}
	wg.Wait()
	return errors.Join(errs...)
}
