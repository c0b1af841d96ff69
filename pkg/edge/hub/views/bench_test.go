package views

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
)

// BenchmarkEvent is the time from a change in the cloud to the last of N watchers,
// next to that of one watch without the hub.
func BenchmarkEvent(b *testing.B) {
	for _, watchers := range []int{1, 10, 50} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			c := newCloud(b)
			c.proto, c.bookmarks = true, time.Hour
			c.put("a", "m", "0")
			n := newNode(b, newLink(c))
			h := acquire(b, n, nodeCaller, allMaps)
			seen := make(chan uint64, watchers)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			for range watchers {
				w, err := h.Watch(ctx, wire.Options{ResourceVersion: "101", Timeout: time.Hour})
				if err != nil {
					b.Fatal(err)
				}
				defer w.Stop()
				go func() {
					for {
						e, err := w.Next(ctx)
						if errors.Is(err, io.EOF) || ctx.Err() != nil {
							return
						}
						if e.Type == watch.Modified {
							seen <- e.Object.ResourceVersion
						}
					}
				}()
			}
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				begin := time.Now()
				rv := c.put("a", "m", fmt.Sprint(i))
				for range watchers {
					if got := <-seen; got != rv {
						b.Fatalf("event %d, want %d", got, rv)
					}
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkMemory is what a view and a watcher cost while nothing happens.
func BenchmarkMemory(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	for b.Loop() {
		c := newCloud(b)
		c.put("a", "m", "0")
		n := newNode(b, newLink(c), func(o *Options) { o.BookmarkEvery = time.Hour })
		c.bookmarks = time.Hour
		h := acquire(b, n, nodeCaller, allMaps)
		before := heap()
		const many = 1000
		for range many {
			watchFrom(b, h, wire.Options{ResourceVersion: "101"})
		}
		b.ReportMetric((heap()-before)/many, "B/watcher")
		before = heap()
		const views = 100
		for i := range views {
			acquire(b, n, nodeCaller, exact("a", fmt.Sprint("m", i)))
		}
		b.ReportMetric((heap()-before)/views, "B/view-with-test-server")
		n.halt()
	}
}
