package weaklink

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// QueueTime is how much traffic waits in front of a slow link.
	QueueTime = 250 * time.Millisecond
	// minQueue lets a very slow link hold at least some full packets.
	minQueue = 16 * maxPacket
	// maxWaiting bounds the memory of one direction, whatever its delay.
	maxWaiting = 8 << 20
	maxPacket  = 1500
	maxDelay   = time.Minute
	minRate    = 1000
)

// packet is on its way: it arrives at due.
type packet struct {
	data []byte
	due  time.Time
	seq  uint64
}

// flight orders packets by arrival, and those of one moment by departure.
type flight []packet

func (f flight) Len() int { return len(f) }
func (f flight) Less(i, j int) bool {
	if f[i].due.Equal(f[j].due) {
		return f[i].seq < f[j].seq
	}
	return f[i].due.Before(f[j].due)
}
func (f flight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flight) Push(x any)   { *f = append(*f, x.(packet)) }
func (f *flight) Pop() any {
	last := len(*f) - 1
	p := (*f)[last]
	(*f)[last] = packet{}
	*f = (*f)[:last]
	return p
}

// lane is one direction of a link.
type lane struct {
	out  Device
	wake chan struct{} // something changed for deliver

	mu       sync.Mutex
	settings Settings
	blocked  []netip.Prefix
	random   *rand.Rand
	counters Counters
	waiting  flight
	bytes    int       // of waiting
	seq      uint64    // of the last packet that was queued
	free     time.Time // when the rate lets the next packet depart
	lastDue  time.Time // no packet may arrive before it, unless Reorder
	writing  bool      // deliver has taken a packet out and is writing it
}

func newLane(out Device, random *rand.Rand) *lane {
	return &lane{out: out, wake: make(chan struct{}, 1), random: random}
}

func (l *lane) set(s Settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settings = s
	l.free = time.Time{}
	if s.Cut {
		l.counters.Cut += int64(len(l.waiting))
		l.waiting, l.bytes = nil, 0
	}
	// What is on its way already must not hold up what follows: a link healed
	// of a long delay is healed now.
	latest := time.Now().Add(time.Duration(s.Delay))
	for i := range l.waiting {
		if l.waiting[i].due.After(latest) {
			l.waiting[i].due = latest
		}
	}
	heap.Init(&l.waiting)
	if l.lastDue.After(latest) {
		l.lastDue = latest
	}
	l.poke()
}

func (l *lane) getSettings() Settings {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settings
}

func (l *lane) getCounters() Counters {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counters
	c.Waiting = len(l.waiting)
	return c
}

func (l *lane) block(ranges []netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocked = slices.Clone(ranges)
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// receive reads packets until the device ends.
func (l *lane) receive(in Device) error {
	buf := make([]byte, 65536)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return err
		}
		if n > 0 && l.admit(buf[:n]) {
			l.write(buf[:n])
		}
	}
}

// admit decides about one packet: dropped, queued, or (true) to be written now.
func (l *lane) admit(data []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.settings
	switch {
	case s.Cut:
		l.counters.Cut++
		return false
	case len(l.blocked) > 0 && l.isBlocked(data):
		l.counters.Blocked++
		return false
	case s.Loss > 0 && l.random.Float64()*100 < float64(s.Loss):
		l.counters.Loss++
		return false
	case s.Delay == 0 && s.Jitter == 0 && s.Rate == 0 && len(l.waiting) == 0 && !l.writing:
		return true
	case l.bytes+len(data) > maxWaiting:
		l.counters.Queue++
		return false
	}
	now := time.Now()
	due := now
	if s.Rate > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		if backlog := bytesIn(l.free.Sub(now), s.Rate); backlog+len(data) > max(minQueue, bytesIn(QueueTime, s.Rate)) {
			l.counters.Queue++
			return false
		}
		l.free = l.free.Add(time.Duration(float64(len(data)*8) / float64(s.Rate) * float64(time.Second)))
		due = l.free
	}
	due = due.Add(time.Duration(s.Delay))
	if s.Jitter > 0 {
		due = due.Add(time.Duration((l.random.Float64()*2 - 1) * float64(s.Jitter)))
		if due.Before(now) {
			due = now
		}
	}
	if !s.Reorder && due.Before(l.lastDue) {
		due = l.lastDue
	}
	l.lastDue = due
	l.seq++
	l.bytes += len(data)
	heap.Push(&l.waiting, packet{data: slices.Clone(data), due: due, seq: l.seq})
	if l.waiting[0].seq == l.seq {
		l.poke()
	}
	return false
}

func bytesIn(d time.Duration, r Rate) int { return int(d.Seconds() * float64(r) / 8) }

// isBlocked looks at the addresses of an IPv4 or IPv6 header.
func (l *lane) isBlocked(data []byte) bool {
	src, dst, ok := addresses(data)
	if !ok {
		return false
	}
	return slices.ContainsFunc(l.blocked, func(p netip.Prefix) bool { return p.Contains(src) || p.Contains(dst) })
}

func addresses(data []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20])), true
	case len(data) >= 40 && data[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40])), true
	}
	return src, dst, false
}

// deliver writes queued packets when they are due.
func (l *lane) deliver(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		data, wait := l.next()
		if data != nil {
			l.write(data)
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// next takes the first packet that is due, or says how long there is none.
func (l *lane) next() ([]byte, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing = false
	if len(l.waiting) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(l.waiting[0].due); wait > 0 {
		return nil, wait
	}
	p := heap.Pop(&l.waiting).(packet)
	l.bytes -= len(p.data)
	l.writing = true
	return p.data, 0
}

// write hands one packet to the device. A device that cannot take it (its
// interface is down) loses it, as a real one would.
func (l *lane) write(data []byte) {
	_, err := l.out.Write(data)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.counters.Failed++
		return
	}
	l.counters.Packets++
	l.counters.Bytes += int64(len(data))
}
