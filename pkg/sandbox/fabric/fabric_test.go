package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/pkg/sandbox/spec"
)

func TestTheNewestStateIsSavedLast(t *testing.T) {
	f := &Fabric{cutOff: map[string]bool{}}
	var saved State
	inside := 0
	changed := f.saver(func(s State) error {
		inside++
		if inside != 1 {
			t.Error("two saves at once")
		}
		time.Sleep(time.Millisecond)
		saved = s
		inside--
		return nil
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			f.mu.Lock()
			f.cutOff[fmt.Sprint(i)] = true
			f.mu.Unlock()
			if err := changed(nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !reflect.DeepEqual(saved, f.State()) {
		t.Errorf("saved %v, and it is %v", saved, f.State())
	}
	if err := changed(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("a change that failed: %v", err)
	}
}

func TestStaleRanges(t *testing.T) {
	s, err := spec.Parse([]byte("sites: [{name: east, nodes: 2}, {name: west, nodes: 1}]"))
	if err != nil {
		t.Fatal(err)
	}
	type ranges = map[string][]netip.Prefix
	a, b := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")
	old := ranges{"east-1": {a}, "east-2": {b}}
	for name, c := range map[string]struct{ now, want ranges }{
		"nothing changes":        {old, ranges{}},
		"two nodes swap":         {ranges{"east-1": {b}, "east-2": {a}}, ranges{}},
		"one takes over":         {ranges{"east-2": {a, b}}, ranges{}},
		"one is gone":            {ranges{"east-2": {b}}, ranges{"east-1": {a}}},
		"moves to another site":  {ranges{"east-2": {b}, "west-1": {a}}, ranges{"east-1": {a}}},
		"moves and another goes": {ranges{"west-1": {a}}, ranges{"east-1": {a}, "east-2": {b}}},
	} {
		if got := staleRanges(s.Machines(), old, c.now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestProxyTakesAnotherPort(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := newProxy(ctx, nil, port, netip.MustParseAddrPort("127.0.0.1:1"), log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	if p.port() == port || p.port() == 0 {
		t.Errorf("port %d, and %d is taken", p.port(), port)
	}
}

func TestMissingTUNDriverIsExplained(t *testing.T) {
	for err, hint := range map[error]bool{unix.ENODEV: true, unix.ENXIO: true, unix.EMFILE: false} {
		if got := explainTUN(err); strings.Contains(got.Error(), "modprobe tun") != hint {
			t.Errorf("%v is explained as %v", err, got)
		}
	}
	if err := explainTUN(nil); err != nil {
		t.Error(err)
	}
}
