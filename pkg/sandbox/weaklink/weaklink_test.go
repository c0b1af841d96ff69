package weaklink

import (
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a device in memory: send puts a packet in, got records what came out
// and when.
type wire struct {
	in     chan []byte
	closed chan struct{}
	once   sync.Once

	mu  sync.Mutex
	got []arrival
}

type arrival struct {
	seq  uint32
	size int
	at   time.Time
}

func newWire() *wire { return &wire{in: make(chan []byte), closed: make(chan struct{})} }

func (w *wire) Read(p []byte) (int, error) {
	select {
	case data := <-w.in:
		return copy(p, data), nil
	case <-w.closed:
		return 0, io.EOF
	}
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, arrival{binary.BigEndian.Uint32(p[20:]), len(p), time.Now()})
	return len(p), nil
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

func (w *wire) arrivals() []arrival {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.got)
}

// datagram is an IPv4 packet with a number in it.
func datagram(seq uint32, size int, src, dst string) []byte {
	p := make([]byte, size)
	p[0] = 0x45
	copy(p[12:], netip.MustParseAddr(src).AsSlice())
	copy(p[16:], netip.MustParseAddr(dst).AsSlice())
	binary.BigEndian.PutUint32(p[20:], seq)
	return p
}

func (w *wire) send(seq uint32, size int) { w.in <- datagram(seq, size, "10.0.1.11", "10.0.0.11") }

// withLink runs a test on a link, in a bubble of fake time.
func withLink(t *testing.T, test func(t *testing.T, l *Link, site, cloud *wire)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		site, cloud := newWire(), newWire()
		l := New(site, cloud, 42)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		test(t, l, site, cloud)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func set(t *testing.T, l *Link, d Direction, s Settings) {
	t.Helper()
	if err := l.Set(d, s); err != nil {
		t.Fatal(err)
	}
}

func TestPerfectLinkIsImmediateBothWays(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		start := time.Now()
		site.send(1, 100)
		cloud.send(2, 200)
		synctest.Wait()
		for name, w := range map[string]*wire{"cloud": cloud, "site": site} {
			got := w.arrivals()
			if len(got) != 1 || !got[0].at.Equal(start) {
				t.Errorf("%s got %v, want one packet at once", name, got)
			}
		}
		if c := l.Counters(Up); c != (Counters{Packets: 1, Bytes: 100}) {
			t.Errorf("counters up: %+v", c)
		}
		if c := l.Counters(Down); c != (Counters{Packets: 1, Bytes: 200}) {
			t.Errorf("counters down: %+v", c)
		}
	})
}

func TestCutOneWay(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		set(t, l, Up, Settings{Cut: true})
		site.send(1, 100)
		cloud.send(2, 100)
		synctest.Wait()
		if n := len(cloud.arrivals()); n != 0 {
			t.Errorf("%d packets passed a cut link", n)
		}
		if n := len(site.arrivals()); n != 1 {
			t.Errorf("%d packets came down, want 1: that way is not cut", n)
		}
		if c := l.Counters(Up); c.Cut != 1 || c.Packets != 0 {
			t.Errorf("counters: %+v", c)
		}
		set(t, l, Up, Settings{})
		site.send(3, 100)
		synctest.Wait()
		if n := len(cloud.arrivals()); n != 1 {
			t.Errorf("%d packets passed the healed link, want 1", n)
		}
	})
}

func TestDelayIsExactAndDirectionsAreSeparate(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		set(t, l, Up, Settings{Delay: Duration(100 * time.Millisecond)})
		start := time.Now()
		for i := range uint32(10) {
			site.send(i, 100)
			time.Sleep(time.Millisecond)
		}
		cloud.send(99, 100)
		synctest.Wait()
		if len(site.arrivals()) != 1 {
			t.Error("the other direction is delayed too")
		}
		time.Sleep(time.Second)
		for i, a := range cloud.arrivals() {
			want := start.Add(time.Duration(i)*time.Millisecond + 100*time.Millisecond)
			if a.seq != uint32(i) || !a.at.Equal(want) {
				t.Errorf("packet %d came as number %d, %v after it should", a.seq, i, a.at.Sub(want))
			}
		}
	})
}

func TestJitter(t *testing.T) {
	for _, reorder := range []bool{false, true} {
		withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
			set(t, l, Up, Settings{Delay: Duration(100 * time.Millisecond), Jitter: Duration(20 * time.Millisecond), Reorder: reorder})
			sent := map[uint32]time.Time{}
			for i := range uint32(500) {
				sent[i] = time.Now()
				site.send(i, 100)
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			got := cloud.arrivals()
			if len(got) != 500 {
				t.Fatalf("%d of 500 packets arrived", len(got))
			}
			low, high := time.Hour, time.Duration(0)
			for _, a := range got {
				took := a.at.Sub(sent[a.seq])
				low, high = min(low, took), max(high, took)
			}
			if low < 80*time.Millisecond || high > 120*time.Millisecond || high-low < 20*time.Millisecond {
				t.Errorf("delays from %v to %v, want them spread within 100±20 ms", low, high)
			}
			ordered := slices.IsSortedFunc(got, func(a, b arrival) int { return int(a.seq) - int(b.seq) })
			if ordered == reorder {
				t.Errorf("packets in order: %v, with reorder %v", ordered, reorder)
			}
		})
	}
}

func TestLossIsTheAskedShareAndRepeatable(t *testing.T) {
	var first []uint32
	for range 2 {
		withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
			set(t, l, Up, Settings{Loss: 10})
			const n = 5000
			for i := range uint32(n) {
				site.send(i, 100)
			}
			synctest.Wait()
			lost := l.Counters(Up).Loss
			if lost < n*8/100 || lost > n*12/100 {
				t.Errorf("lost %d of %d packets, want about 10%%", lost, n)
			}
			var seqs []uint32
			for _, a := range cloud.arrivals() {
				seqs = append(seqs, a.seq)
			}
			if int64(len(seqs))+lost != n {
				t.Errorf("%d arrived and %d were lost of %d", len(seqs), lost, n)
			}
			if first != nil && !slices.Equal(first, seqs) {
				t.Error("the same seed lost other packets")
			}
			first = seqs
		})
	}
}

func TestRateShapesAndQueueIsBounded(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		// 1 Mbit/s: a packet of 1250 bytes takes 10 ms; the queue of 250 ms
		// holds 25 of them.
		set(t, l, Up, Settings{Rate: 1e6})
		start := time.Now()
		for i := range uint32(100) {
			site.send(i, 1250)
		}
		synctest.Wait()
		if c := l.Counters(Up); c.Queue != 75 || c.Waiting > 25 {
			t.Errorf("dropped %d, waiting %d; want 75 dropped at the tail", c.Queue, c.Waiting)
		}
		time.Sleep(time.Second)
		got := cloud.arrivals()
		if len(got) != 25 {
			t.Fatalf("%d packets arrived, want 25", len(got))
		}
		for i, a := range got {
			if want := time.Duration(i+1) * 10 * time.Millisecond; a.at.Sub(start) != want || a.seq != uint32(i) {
				t.Errorf("packet %d came after %v as number %d, want %v", a.seq, a.at.Sub(start), i, want)
			}
		}
		// After a pause the bucket is not fuller than before.
		time.Sleep(time.Minute)
		resumed := time.Now()
		for i := range uint32(10) {
			site.send(100+i, 1250)
		}
		time.Sleep(time.Second)
		last := cloud.arrivals()[34]
		if took := last.at.Sub(resumed); took != 100*time.Millisecond {
			t.Errorf("10 packets after a pause took %v, want 100ms", took)
		}
	})
}

func TestRateAndDelayTogether(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		set(t, l, Up, Settings{Rate: 1e6, Delay: Duration(200 * time.Millisecond)})
		start := time.Now()
		for i := range uint32(20) {
			site.send(i, 1250)
		}
		time.Sleep(time.Second)
		got := cloud.arrivals()
		if first, last := got[0].at.Sub(start), got[19].at.Sub(start); first != 210*time.Millisecond || last != 400*time.Millisecond {
			t.Errorf("20 packets came from %v to %v, want 210ms to 400ms: the delay does not fill the queue of the rate", first, last)
		}
	})
}

func TestMemoryOfALongLinkIsBounded(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		set(t, l, Up, Settings{Delay: Duration(time.Minute)})
		for i := range uint32(maxWaiting/1500 + 100) {
			site.send(i, 1500)
		}
		synctest.Wait()
		c := l.Counters(Up)
		if c.Waiting > maxWaiting/1500 || c.Queue < 100 {
			t.Errorf("%d packets wait and %d were dropped; at most %d bytes may wait", c.Waiting, c.Queue, maxWaiting)
		}
	})
}

func TestChangesActAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		to        Settings
		delivered int
	}{
		"healed":  {Settings{}, 3},
		"cut":     {Settings{Cut: true}, 0},
		"shorter": {Settings{Delay: Duration(time.Second)}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
				set(t, l, Up, Settings{Delay: Duration(30 * time.Second)})
				for i := range uint32(3) {
					site.send(i, 100)
				}
				synctest.Wait()
				changed := time.Now()
				set(t, l, Up, c.to)
				time.Sleep(2 * time.Second)
				got := cloud.arrivals()
				if len(got) != c.delivered {
					t.Fatalf("%d packets arrived within 2s of the change, want %d", len(got), c.delivered)
				}
				for i, a := range got {
					if a.seq != uint32(i) || a.at.Sub(changed) != time.Duration(c.to.Delay) {
						t.Errorf("packet %d came as number %d, %v after the change", a.seq, i, a.at.Sub(changed))
					}
				}
				if cut := l.Counters(Up).Cut; c.to.Cut && cut != 3 {
					t.Errorf("%d packets counted as cut, want the 3 that were on their way", cut)
				}
			})
		})
	}
}

func TestHealedLinkKeepsOrderBehindTheQueue(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		set(t, l, Up, Settings{Rate: 1e6})
		for i := range uint32(20) {
			site.send(i, 1250)
		}
		set(t, l, Up, Settings{})
		for i := range uint32(20) {
			site.send(20+i, 1250)
		}
		time.Sleep(time.Second)
		got := cloud.arrivals()
		if len(got) != 40 || !slices.IsSortedFunc(got, func(a, b arrival) int { return int(a.seq) - int(b.seq) }) {
			t.Errorf("%d packets, not in order: %v", len(got), got)
		}
	})
}

func TestBlockDropsOneMachineOnly(t *testing.T) {
	withLink(t, func(t *testing.T, l *Link, site, cloud *wire) {
		l.Block([]netip.Prefix{netip.MustParsePrefix("10.0.1.11/32"), netip.MustParsePrefix("10.244.3.0/24")})
		for i, a := range []struct{ src, dst string }{
			{"10.0.1.11", "10.0.0.11"}, {"10.244.3.7", "10.0.0.11"}, {"10.0.1.12", "10.0.0.11"}, {"10.244.4.7", "10.0.0.11"},
		} {
			site.in <- datagram(uint32(i), 100, a.src, a.dst)
			cloud.in <- datagram(uint32(i), 100, a.dst, a.src)
		}
		synctest.Wait()
		for name, w := range map[string]*wire{"cloud": cloud, "site": site} {
			got := w.arrivals()
			if len(got) != 2 || got[0].seq != 2 || got[1].seq != 3 {
				t.Errorf("the %s got %v, want packets 2 and 3", name, got)
			}
		}
		if c := l.Counters(Up); c.Blocked != 2 {
			t.Errorf("counters: %+v", c)
		}
		l.Block(nil)
		site.send(9, 100)
		synctest.Wait()
		if n := len(cloud.arrivals()); n != 3 {
			t.Errorf("%d packets after the block ended, want 3", n)
		}
	})
}

func TestHostilePacketsPass(t *testing.T) {
	// Too short to have addresses: they are carried, and nothing breaks.
	for _, p := range [][]byte{{0}, {0x45}, make([]byte, 19), {0x60, 1, 2}} {
		if _, _, ok := addresses(p); ok {
			t.Errorf("addresses found in %v", p)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, s := range []Settings{
		{Delay: -1}, {Delay: Duration(time.Hour)}, {Jitter: -1}, {Loss: -1}, {Loss: 100.5}, {Rate: -1}, {Rate: 10},
	} {
		if s.Validate() == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
}

func TestWords(t *testing.T) {
	var r Rate
	for text, want := range map[string]Rate{"2mbit": 2e6, "1.5Mbit": 15e5, "64kbit": 64e3, "1gbit": 1e9, "5000": 5000, "5000bit": 5000} {
		if err := r.Set(text); err != nil || r != want {
			t.Errorf("rate %q: %v, %v", text, r, err)
		}
	}
	for _, text := range []string{"", "fast", "-1", "2mb", "NaN", "1e300", "2 mbit/s"} {
		if err := r.Set(text); err == nil {
			t.Errorf("rate %q is accepted as %v", text, r)
		}
	}
	var p Percent
	for text, want := range map[string]Percent{"10%": 10, "0.5": 0.5, "100%": 100} {
		if err := p.Set(text); err != nil || p != want {
			t.Errorf("share %q: %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "101%", "-1", "NaN", "ten"} {
		if err := p.Set(text); err == nil {
			t.Errorf("share %q is accepted as %v", text, p)
		}
	}
	got := Settings{Cut: true, Delay: Duration(time.Second), Jitter: Duration(time.Millisecond), Reorder: true, Loss: 2.5, Rate: 2e6}.String()
	if want := "cut delay 1s jitter 1ms reorder loss 2.5% rate 2mbit"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
