// Package observer measures what it costs the nodes of a site to watch over each
// other, beside what it would cost if each asked each other one: messages and
// bytes by the rules alone, for sites of any size in a clock of their own, and
// packets, bytes and processor time with real connections, for as many as one
// machine holds.
//
// It must not know how the observers do it.
package observer

import (
	"container/heap"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/test/bench"
)

// Options of Measure.
type Options struct {
	// Sizes are the sites that are measured by the rules alone, Real those with
	// connections. Default: 3, 30, 300 and 1000; 3 and 30.
	Sizes, Real []int
	// Watch is how long each is watched. Default 1m by the rules, and 40s for
	// real.
	Watch, WatchReal time.Duration
	Out              io.Writer
}

const (
	// settle is how long the rules run before anything is counted: by then all
	// know each other.
	settle = time.Minute
	// flight is how long a message takes.
	flight = time.Millisecond
)

// Measure counts. The control is the same number of members of which each probes
// each other one as often as the observers probe one.
func Measure(ctx context.Context, o Options) ([]bench.Row, error) {
	if o.Sizes == nil {
		o.Sizes = []int{3, 30, 300, 1000}
	}
	if o.Real == nil {
		o.Real = []int{3, 30}
	}
	if o.Watch == 0 {
		o.Watch = time.Minute
	}
	if o.WatchReal == 0 {
		o.WatchReal = 40 * time.Second
	}
	var rows []bench.Row
	for _, size := range o.Sizes {
		var row []bench.Row
		err := bench.Step(o.Out, fmt.Sprintf("observers: a site of %d, by the rules", size), func() error {
			messages, bytes, err := rules(ctx, size, o.Watch)
			all, allBytes := everybody(size)
			row = []bench.Row{
				bench.Against(fmt.Sprintf("observer messages sent, site of %d", size), "/s/node", messages, all, goal(size)),
				bench.Against(fmt.Sprintf("observer bytes of messages sent, site of %d", size), "B/s/node", bytes, allBytes, goal(size)),
			}
			return err
		})
		if err != nil {
			return rows, err
		}
		rows = append(rows, row...)
	}
	for _, size := range o.Real {
		var row []bench.Row
		err := bench.Step(o.Out, fmt.Sprintf("observers: a site of %d, with connections", size), func() (err error) {
			row, err = connections(ctx, size, o.WatchReal)
			return err
		})
		if err != nil {
			return rows, err
		}
		rows = append(rows, row...)
	}
	return rows, nil
}

// goal is the most that watching may cost, measured by what it would cost if
// each asked each other one: as much among three, and a constant in a site of any
// size, which is that of ten.
func goal(size int) float64 {
	if size <= 3 {
		return 1
	}
	return min(1, 10/float64(size))
}

// everybody is what each member sends a second if each pings each other one once
// a second and answers: the same messages, without news.
func everybody(size int) (messages, bytes float64) {
	ping := detect.Size(detect.Message{Kind: detect.Ping, Sequence: 1})
	ack := detect.Size(detect.Message{Kind: detect.Ack, Sequence: 1})
	return float64(2 * (size - 1)), float64((size - 1) * (ping + ack))
}

// happening is a message that arrives, or a time at which a member has something
// to do.
type happening struct {
	at      time.Duration
	to      int
	from    int // -1: none
	message detect.Message
}

type agenda []happening

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(happening)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// rules runs the state machines of a site in which all is well, and counts what
// each member sends a second.
func rules(ctx context.Context, size int, watch time.Duration) (messages, bytes float64, err error) {
	begin := time.Unix(1_700_000_000, 0)
	var all []detect.Member
	index := map[string]int{}
	for i := range size {
		name := fmt.Sprintf("edge-node-%04d", i)
		index[name] = i
		all = append(all, detect.Member{Name: name, UID: name})
	}
	nodes := make([]*detect.Detector, size)
	due := make([]time.Duration, size)
	var next agenda
	for i := range nodes {
		nodes[i] = detect.New(detect.Options{Self: all[i].Name, Rand: rand.New(rand.NewPCG(1, uint64(i)))})
		nodes[i].SetMembers(begin, all)
		heap.Push(&next, happening{to: i, from: -1})
	}
	sent, written := 0, 0
	for next.Len() > 0 && next[0].at < settle+watch {
		if ctx.Err() != nil {
			return 0, 0, context.Cause(ctx)
		}
		h := heap.Pop(&next).(happening)
		node, now := nodes[h.to], begin.Add(h.at)
		if h.from >= 0 {
			node.Receive(now, all[h.from].Name, h.message)
		} else if h.at < due[h.to] {
			continue // something came first
		} else {
			node.Tick(now)
		}
		for _, out := range node.Take() {
			if h.at >= settle {
				sent++
				written += detect.Size(out.Message)
			}
			heap.Push(&next, happening{at: h.at + flight, to: index[out.To], from: h.to, message: out.Message})
		}
		node.Events()
		if at := max(node.Next().Sub(begin), h.at); at != due[h.to] || h.from < 0 {
			due[h.to] = at
			heap.Push(&next, happening{at: at, to: h.to, from: -1})
		}
	}
	for i, node := range nodes {
		for _, m := range node.Members() {
			if m.State != detect.Alive {
				return 0, 0, fmt.Errorf("%s calls %s %s though all is well", all[i].Name, m.Name, m.State)
			}
		}
	}
	per := float64(size) * watch.Seconds()
	return float64(sent) / per, float64(written) / per, nil
}
