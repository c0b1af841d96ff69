package views

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// informer is a client that does what client-go's reflector does, and complains
// about what a reflector would forgive.
type informer struct {
	t      testing.TB
	name   string
	caller identity.Caller
	q      store.Query
	views  func() *Views
	rng    *rand.Rand

	mu       sync.Mutex
	state    map[string]string
	ahead    map[string]string // states of a list that are newer than the list
	rv       uint64            // the highest seen
	lists    int               // how often it had to start over
	expired  int
	anomaly  int
	problems []string
	trace    []string
}

func (i *informer) note(format string, args ...any) {
	i.trace = append(i.trace, fmt.Sprintf(format, args...))
}

func describe(o store.Object) (key, state string, err error) {
	typed, err := wire.Typed(o)
	if err != nil {
		return "", "", err
	}
	m, ok := typed.(*corev1.ConfigMap)
	if !ok {
		return "", "", fmt.Errorf("a %T", typed)
	}
	if m.ResourceVersion != strconv.FormatUint(o.ResourceVersion, 10) || m.Name != o.Name || m.Namespace != o.Namespace {
		raw, _ := json.Marshal(m.ObjectMeta)
		return "", "", fmt.Errorf("the bytes say %s, the key says %s@%d", raw, o.Key, o.ResourceVersion)
	}
	return m.Namespace + "/" + m.Name, m.Data["v"] + "@" + m.ResourceVersion, nil
}

func (i *informer) complain(format string, args ...any) {
	i.problems = append(i.problems, i.name+" "+i.q.String()+": "+fmt.Sprintf(format, args...))
}

// saw notes a resourceVersion, which must not be lower than one before.
func (i *informer) saw(what string, rv uint64) {
	if rv < i.rv {
		i.complain("%s went back from %d to %d", what, i.rv, rv)
	}
	i.rv = max(i.rv, rv)
}

func (i *informer) run(ctx context.Context) {
	resume := false
	for ctx.Err() == nil {
		ok := i.once(ctx, resume)
		resume = ok
		if !ok {
			time.Sleep(time.Duration(i.rng.IntN(5)+1) * time.Millisecond)
		}
	}
}

// once is one connection; true if the next may resume.
func (i *informer) once(ctx context.Context, resume bool) bool {
	wait, cancel := context.WithTimeout(ctx, 2*time.Second)
	h, err := i.views().Acquire(wait, i.caller, i.q)
	cancel()
	if err != nil {
		return resume
	}
	defer h.Release()
	o := wire.Options{AllowWatchBookmarks: true, Timeout: time.Duration(50+i.rng.IntN(300)) * time.Millisecond}
	initial := false
	if resume {
		i.mu.Lock()
		o.ResourceVersion = strconv.FormatUint(i.rv, 10)
		i.mu.Unlock()
	} else if i.rng.IntN(2) == 0 {
		yes := true
		o.SendInitialEvents, initial = &yes, true
		o.ResourceVersion = i.notOlder()
	} else if !i.list(ctx, h, &o) {
		return false
	}
	w, err := h.Watch(ctx, o)
	if err != nil {
		return false
	}
	defer w.Stop()
	i.mu.Lock()
	i.note("watch of %s from %s initial=%v", h.v.q, o.ResourceVersion, initial)
	i.mu.Unlock()
	fresh := map[string]string{}
	for {
		e, err := w.Next(ctx)
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				i.mu.Lock()
				i.complain("Next: %v", err)
				i.mu.Unlock()
			}
			return !initial
		}
		if e.Type == watch.Error {
			i.mu.Lock()
			i.expired++
			i.mu.Unlock()
			return false
		}
		i.mu.Lock()
		done := i.take(e, &initial, fresh)
		i.mu.Unlock()
		if done {
			return false
		}
		if i.rng.IntN(200) == 0 { // the connection breaks
			return !initial
		}
	}
}

// notOlder is what a reflector asks for: nothing older than it has seen.
func (i *informer) notOlder() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return strconv.FormatUint(i.rv, 10)
}

func (i *informer) list(ctx context.Context, h *View, o *wire.Options) bool {
	next, newest := map[string]string{}, map[string]uint64{}
	rv, err := h.List(ctx, wire.Options{ResourceVersion: i.notOlder()}, store.Key{}, func(obj store.Object) error {
		k, s, err := describe(obj)
		if err != nil {
			return err
		}
		if _, twice := next[k]; twice {
			return fmt.Errorf("%s is twice in a list", k)
		}
		next[k] = s
		newest[k] = obj.ResourceVersion
		return nil
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		return false
	}
	i.saw("a list", rv)
	i.note("list of %s at %d: %v", h.v.q, rv, next)
	i.begin(next, newest, rv)
	i.lists++
	o.ResourceVersion = strconv.FormatUint(rv, 10)
	return true
}

// begin is what a list says. An object may be newer than the list: the store has
// one copy of it, and another view may be ahead. Its event comes again.
func (i *informer) begin(state map[string]string, newest map[string]uint64, rv uint64) {
	i.state, i.ahead = maps.Clone(state), map[string]string{}
	for k, newest := range newest {
		if newest > rv {
			i.ahead[k] = state[k]
		}
	}
}

func (i *informer) take(e wire.Event, initial *bool, fresh map[string]string) (startOver bool) {
	i.note("%s %s@%d initial=%v", e.Type, e.Object.Name, e.Object.ResourceVersion, *initial)
	if e.Type == watch.Bookmark {
		if *initial != e.InitialEventsEnd {
			i.complain("bookmark: the end of the initial events is %v, expected %v", e.InitialEventsEnd, *initial)
		}
		i.saw("a bookmark", e.Object.ResourceVersion)
		if *initial {
			newest := map[string]uint64{}
			for k, s := range fresh {
				_, rv, _ := strings.Cut(s, "@")
				newest[k], _ = strconv.ParseUint(rv, 10, 64)
			}
			i.begin(fresh, newest, e.Object.ResourceVersion)
			*initial = false
			i.lists++
		}
		return false
	}
	k, s, err := describe(e.Object)
	if err != nil {
		i.complain("%s: %v", e.Type, err)
		return true
	}
	state := i.state
	if *initial {
		state = fresh
	} else {
		i.saw(string(e.Type)+" "+k, e.Object.ResourceVersion)
	}
	old, had := state[k]
	switch e.Type {
	case watch.Added:
		if had && !*initial {
			i.anomaly++
		}
		if had && old == s && i.ahead[k] != s {
			i.complain("%s was added twice", k)
		}
		state[k] = s
	case watch.Modified:
		if !had {
			i.anomaly++
		}
		if old == s && i.ahead[k] != s {
			i.complain("%s is twice %s", k, s)
		}
		state[k] = s
	case watch.Deleted:
		if !had {
			i.anomaly++
		}
		delete(state, k)
	}
	return false
}

func (i *informer) copy() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.state)
}
