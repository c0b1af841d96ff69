package store

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func benchStore(b *testing.B, n int) *Store {
	b.Helper()
	s := opened(b, files(b))
	var batch Batch
	batch.SetView(View{Query: allPods, Complete: true})
	for i := range n {
		p := pod("default", fmt.Sprintf("p%05d", i), 1, strings.Repeat("x", 2000))
		batch.Put(p)
		batch.Join(allPods, p.Key)
	}
	if err := s.Apply(&batch, Durable); err != nil {
		b.Fatal(err)
	}
	return s
}

func benchApply(b *testing.B, d Durability) {
	s := benchStore(b, 200)
	data := strings.Repeat("y", 2000)
	for i := 0; b.Loop(); i++ {
		var batch Batch
		batch.Put(pod("default", fmt.Sprintf("p%05d", i%200), uint64(i+2), data))
		if err := s.Apply(&batch, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyLazy(b *testing.B)    { benchApply(b, Lazy) }
func BenchmarkApplySoon(b *testing.B)    { benchApply(b, Soon) }
func BenchmarkApplyDurable(b *testing.B) { benchApply(b, Durable) }

func BenchmarkScan5000(b *testing.B) {
	s := benchStore(b, 5000)
	for b.Loop() {
		n := 0
		if err := s.Scan(context.Background(), allPods, Key{}, func(Object) error { n++; return nil }); err != nil || n != 5000 {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkOpen5000(b *testing.B) {
	s := benchStore(b, 5000)
	_ = s.Close()
	for b.Loop() {
		s, err := Open(s.o)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
	}
}

// steadyHour applies what an idle node does in so many simulated seconds: its
// Lease each 10 s, bookmarks of 60 views each minute, the Node's status each
// five minutes. Lazy changes are committed once a minute, as in life.
func steadyHour(t testing.TB, seconds int) (written, process int64) {
	t.Helper()
	o := files(t)
	o.LazyInterval = time.Hour // the test makes the minutes
	s := opened(t, o)
	view := func(i int) Query {
		return Query{Version: "v1", Resource: "configmaps", Namespace: fmt.Sprintf("ns-%d", i%7), FieldSelector: fmt.Sprintf("metadata.name=name-of-%d", i)}
	}
	lease := Object{Key: Key{Group: "coordination.k8s.io", Version: "v1", Resource: "leases", Namespace: "kube-node-lease", Name: "n"}, Format: FormatProtobuf}
	leases := Query{Group: lease.Group, Version: "v1", Resource: "leases"}
	node := Object{Key: Key{Version: "v1", Resource: "nodes", Name: "n"}, Format: FormatProtobuf}
	nodes := Query{Version: "v1", Resource: "nodes"}
	lease.Data, node.Data = make([]byte, 250), make([]byte, 6000)
	apply(t, s, Durable, func(b *Batch) {
		for i := range 60 {
			b.SetView(View{Query: view(i), Complete: true, Node: true})
			cm := Object{Key: Key{Version: "v1", Resource: "configmaps", Namespace: fmt.Sprintf("ns-%d", i%7), Name: fmt.Sprintf("name-of-%d", i)}, Format: FormatProtobuf, Data: make([]byte, 1500)}
			b.Put(cm)
			b.Join(view(i), cm.Key)
		}
		b.SetView(View{Query: leases, Complete: true})
		b.SetView(View{Query: nodes, Complete: true})
		b.Put(lease)
		b.Join(leases, lease.Key)
		b.Put(node)
		b.Join(nodes, node.Key)
	})
	start, startProcess := s.Stats(), writtenByProcess()
	rv := uint64(10)
	for now := 10; now <= seconds; now += 10 {
		rv++
		lease.ResourceVersion = rv
		apply(t, s, Lazy, func(b *Batch) { b.Put(lease); b.SetRevision(rv) })
		if now%300 == 0 {
			rv++
			node.ResourceVersion = rv
			apply(t, s, Lazy, func(b *Batch) { b.Put(node); b.SetRevision(rv) })
		}
		if now%60 == 0 {
			apply(t, s, Lazy, func(b *Batch) {
				for i := range 60 {
					b.SetView(View{Query: view(i), Complete: true, Node: true, ResourceVersion: rv, Synced: time.Unix(int64(now), 0)})
				}
			})
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s.Stats().WrittenBytes - start.WrittenBytes, writtenByProcess() - startProcess
}

// writtenByProcess is what the kernel counts; 0 on a tmpfs.
func writtenByProcess() int64 {
	data, _ := os.ReadFile("/proc/self/io")
	for _, line := range strings.Split(string(data), "\n") {
		var n int64
		if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
			return n
		}
	}
	return 0
}

func TestBytesWrittenInSteadyState(t *testing.T) {
	written, process := steadyHour(t, 3600)
	t.Logf("in an hour: %d bytes written by commits (the kernel counted %d for the process)", written, process)
	if limit := int64(4 << 20); written > limit {
		t.Errorf("%d bytes an hour", written)
	}
	if process > 0 && written < process/4 {
		t.Errorf("the account is too low: %d of %d", written, process)
	}
}
