package views

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

var (
	seedFlag   = flag.Uint64("views.seed", 0, "seed of the history test; 0: a new one each time")
	roundsFlag = flag.Int("views.rounds", 3, "rounds of the history test")
	stepsFlag  = flag.Int("views.steps", 250, "steps of each round")
)

// TestHistory makes clients live through a random history: changes in the cloud,
// cuts, broken connections, compactions, restarts of the agent, local writes,
// clients that come and go. In the end each has exactly what the cloud has, and
// none has seen a resourceVersion go back, an event twice, or one missing.
func TestHistory(t *testing.T) {
	for round := range *roundsFlag {
		seed := *seedFlag
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprintf("seed=%d", seed+uint64(round)), func(t *testing.T) {
			t.Logf("replay with -views.seed=%d -views.rounds=1", seed+uint64(round))
			history(t, seed+uint64(round), *stepsFlag)
		})
	}
}

func history(t *testing.T, seed uint64, steps int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := newCloud(t)
	c.proto = rng.IntN(2) == 0
	l := newLink(c)
	var mu sync.RWMutex // of n.vs, which restarts replace
	var n *node
	whole := rng.IntN(2) == 0
	options := func(o *Options) {
		if whole {
			wholeMaps(o)
		}
		o.WindowEvents = 40
		o.WatchTimeout = time.Second
		st := o.Store
		o.BeforeLive = func(context.Context) error {
			if shown := st.Revision(); c.revision() <= shown {
				c.tick(shown - c.revision() + 1)
			}
			return replay(c, st)
		}
	}
	n = newNode(t, l, options)
	views := func() *Views {
		mu.RLock()
		defer mu.RUnlock()
		return n.vs
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var clients []*informer
	selectors := []string{"", "app=a", "app=b", "app in (a,c)", "tier", "!tier"}
	join := func() {
		q := allMaps
		q.Namespace = []string{"", "", "x", "y"}[rng.IntN(4)]
		q.LabelSelector = selectors[rng.IntN(len(selectors))]
		if rng.IntN(4) == 0 {
			q.LabelSelector, q.Namespace = "", "x"
			q.FieldSelector = fmt.Sprintf("metadata.name=m%d", rng.IntN(6))
		}
		caller := nodeCaller
		if rng.IntN(2) == 0 {
			caller = identity.Caller{User: identity.User{Name: fmt.Sprint("user", len(clients)%3)}, Token: fmt.Sprint("t", len(clients)%3), Verified: true}
		}
		i := &informer{t: t, name: fmt.Sprint("client ", len(clients)), caller: caller, q: q, views: views, rng: rand.New(rand.NewPCG(seed, uint64(len(clients)+2))), state: map[string]string{}}
		clients = append(clients, i)
		wg.Add(1)
		go func() {
			defer wg.Done()
			i.run(ctx)
		}()
	}
	write := func() {
		ns, name := []string{"x", "y"}[rng.IntN(2)], fmt.Sprintf("m%d", rng.IntN(12))
		if rng.IntN(4) == 0 {
			c.delete(ns, name)
			return
		}
		labels := []string{"app=" + string("abc"[rng.IntN(3)])}
		if rng.IntN(2) == 0 {
			labels = append(labels, "tier=1")
		}
		c.put(ns, name, fmt.Sprint(rng.IntN(1000)), labels...)
	}
	for range 8 {
		write()
	}
	for range 4 {
		join()
	}
	restarts, cuts := 0, 0
	for range steps {
		switch p := rng.IntN(100); {
		case p < 70:
			write()
		case p < 73:
			c.compact()
		case p < 76:
			c.tick(uint64(rng.IntN(5)))
		case p < 80:
			l.c.srv.CloseClientConnections() // without anybody saying so
		case p < 86:
			cuts++
			l.set(false)
			for range rng.IntN(10) {
				write()
				if rng.IntN(3) == 0 {
					localChange(t, n, rng)
				}
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
			if rng.IntN(3) == 0 {
				c.compact()
			}
			l.set(true)
		case p < 88 && restarts < 5:
			restarts++
			mu.Lock()
			n.halt()
			n.start(options)
			mu.Unlock()
		case p < 91 && len(clients) < 14:
			join()
		case p < 94:
			passes(t, c, n, rng)
		default:
			time.Sleep(time.Duration(rng.IntN(8)) * time.Millisecond)
		}
	}
	l.set(true)
	deadline := time.Now().Add(5 * time.Second)
	for _, i := range clients {
		for !maps.Equal(i.copy(), c.state(i.q)) {
			if time.Now().After(deadline) {
				for _, v := range n.vs.all() {
					v.mu.Lock()
					t.Logf("view %s: rv %d, local %d, live %v, following %v, complete %v, relist %v, err %v, window from %d with %d, %d watchers, %d users", v.q, v.rv, v.localRV, v.live, v.following, v.complete, v.relist, v.err, v.window.from, len(v.window.events), len(v.watchers), v.users)
					v.mu.Unlock()
				}
				for k := range i.copy() {
					if _, ok := c.state(i.q)[k]; ok {
						continue
					}
					_, name, _ := strings.Cut(k, "/")
					for _, line := range i.trace {
						if strings.Contains(line, name+"@") || strings.Contains(line, name+":") || strings.HasPrefix(line, "watch") {
							t.Log(line)
						}
					}
					t.Log(strings.Join(c.told[k], " "))
				}
				t.Logf("the client is at %d after %d lists and %d times expired; problems %v", i.rv, i.lists, i.expired, i.problems)
				t.Fatalf("%s (%s) %s has %v, the cloud %v", i.name, i.caller.ID(), i.q, i.copy(), c.state(i.q))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	cancel()
	wg.Wait()
	anomalies, lists := 0, 0
	for _, i := range clients {
		for _, p := range i.problems {
			t.Error(p)
		}
		anomalies += i.anomaly
		lists += i.lists
	}
	t.Logf("%d clients, %d cuts, %d restarts, %d lists, %d changes of unknown objects, revision %d", len(clients), cuts, restarts, lists, anomalies, c.revision())
}

// passes lets an answer of the cloud pass by: one object, or a whole list, which
// may find a followed view, a wider one, or none.
func passes(t *testing.T, c *cloud, n *node, rng *rand.Rand) {
	q := in([]string{"", "x", "y"}[rng.IntN(3)], []string{"", "app=a"}[rng.IntN(2)])
	match := matchQuery(q)
	var items []store.Object
	c.mu.Lock()
	rv := c.rev
	for _, o := range c.live {
		if !match(o) {
			continue
		}
		body, err := json.Marshal(typed(o))
		if err != nil {
			t.Error(err)
		}
		item, err := wire.Decode("application/json", body, store.Key{Version: "v1", Resource: "configmaps"})
		if err != nil {
			t.Error(err)
		}
		items = append(items, item)
	}
	c.mu.Unlock()
	if err := n.st.Raise(rv); err != nil {
		t.Error(err)
	}
	if len(items) > 0 && rng.IntN(2) == 0 {
		if err := n.vs.Saw(items[rng.IntN(len(items))], store.Soon); err != nil {
			t.Error(err)
		}
		return
	}
	k := n.vs.NewKeeper(q, "ConfigMap", true)
	for _, o := range items {
		if err := k.Add(t.Context(), o); err != nil {
			t.Error(err)
		}
	}
	// That the view has not got as far is no error of the view.
	_ = k.Done(t.Context(), rv)
}

func flat(labels map[string]string) []string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	return out
}

// replay sends the local changes, as the outbox does: a new revision of each
// object that is there still.
func replay(c *cloud, st *store.Store) error {
	b := &store.Batch{}
	err := st.Entries(func(e store.Entry) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if o := c.live[e.Key.Namespace+"/"+e.Key.Name]; o != nil && string(o.UID) == e.UID {
			c.putLocked(o.Namespace, o.Name, o.Data["v"], flat(o.Labels)...)
		}
		b.DeleteEntry(e.Seq)
		return nil
	})
	if err != nil {
		return err
	}
	return st.Apply(b, store.Durable)
}

// localChange does what the outbox does: a new revision of an object, in the
// store first.
func localChange(t *testing.T, n *node, rng *rand.Rand) {
	k := store.Key{Version: "v1", Resource: "configmaps", Namespace: "x", Name: fmt.Sprintf("m%d", rng.IntN(12))}
	old, ok, err := n.st.Get(k)
	if err != nil {
		t.Error(err)
	}
	if !ok {
		return
	}
	now, err := wire.WithResourceVersion(old, n.st.Revision()+1)
	if err != nil {
		t.Error(err)
		return
	}
	b := &store.Batch{}
	b.Put(now)
	b.SetRevision(now.ResourceVersion)
	b.PutEntry(store.Entry{Key: k, UID: old.UID, Op: "status", Created: time.Now()})
	if err := n.st.Apply(b, store.Durable); err != nil {
		t.Error(err)
	}
	if err := n.vs.Publish(context.Background(), &old, &now); err != nil {
		t.Error(err)
	}
}
