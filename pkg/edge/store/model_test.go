package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	rounds = flag.Int("store.rounds", 0, "rounds of each torture test; 0: a short run")
	seed   = flag.Uint64("store.seed", 0, "seed of the torture tests; 0: a random one")
)

// torture returns the number of rounds and the seed, and prints them.
func torture(t *testing.T, short int) (int, uint64) {
	n, sd := short, rand.Uint64()>>1
	if *rounds > 0 {
		n = *rounds
	}
	if *seed != 0 {
		sd = *seed
	}
	t.Logf("rounds %d, seed %d", n, sd)
	return n, sd
}

// model is what a store should have after the first n steps of a history. The
// history is a function of the seed, so that a parent knows what its child did.
type model struct {
	seed    uint64
	objects map[Key]Object
	views   map[Query]map[Key]bool
	entries map[uint64]string // seq: payload
	next    uint64
	shown   uint64
	tokens  map[string]string
	steps   int
}

const stepDocument = "steps"

var modelViews = []Query{allPods, defaultPods, allSecrets}

func newModel(seed uint64) *model {
	return &model{seed: seed, objects: map[Key]Object{}, views: map[Query]map[Key]bool{}, entries: map[uint64]string{}, tokens: map[string]string{}}
}

// step makes the next batch and its durability, and follows it.
func (m *model) step() (*Batch, Durability) {
	m.steps++
	r := rand.New(rand.NewPCG(m.seed, uint64(m.steps)))
	b := &Batch{}
	rv := uint64(m.steps)
	if m.steps == 1 {
		for _, q := range modelViews {
			b.SetView(View{Query: q, Kind: "X", Complete: true})
			m.views[q] = map[Key]bool{}
		}
	}
	for range 1 + r.IntN(4) {
		ns := []string{"default", "other"}[r.IntN(2)]
		name := fmt.Sprintf("n%02d", r.IntN(40))
		switch r.IntN(10) {
		case 0, 1, 2, 3:
			o := pod(ns, name, rv, m.data(r, rv))
			m.put(b, o, allPods)
			if ns == "default" {
				m.put(b, o, defaultPods)
			}
		case 4:
			m.put(b, secretObject(ns, name, rv, "PLANTED"+m.data(r, rv)), allSecrets)
		case 5:
			m.remove(b, podKey(ns, name))
		case 6:
			m.next++
			p := m.data(r, rv)
			b.PutEntry(Entry{Key: podKey(ns, name), Op: "status", Payload: []byte(p)})
			m.entries[m.next] = p
		case 7:
			if seqs := slices.Sorted(maps.Keys(m.entries)); len(seqs) > 3 {
				b.DeleteEntry(seqs[0])
				delete(m.entries, seqs[0])
			}
		case 8:
			m.tokens[name] = "PLANTED" + m.data(r, rv)
			b.PutSecret("tokens", name, []byte(m.tokens[name]))
		case 9:
			q := modelViews[r.IntN(2)]
			b.SetView(View{Query: q, Kind: "X", Complete: true, ResourceVersion: rv})
		}
	}
	if m.shown = max(m.shown, rv); rv%16 == 0 {
		m.shown = rv / 2
		b.ResetRevision(m.shown)
	} else {
		b.SetRevision(rv)
	}
	b.PutDocument(stepDocument, []byte(strconv.Itoa(m.steps)))
	d := []Durability{Lazy, Soon, Soon, Soon, Durable}[r.IntN(5)]
	return b, d
}

func (m *model) data(r *rand.Rand, rv uint64) string {
	n := r.IntN(300)
	if r.IntN(20) == 0 {
		n = 3000 + r.IntN(9000)
	}
	return fmt.Sprintf("%d-%s", rv, strings.Repeat("z", n))
}

func (m *model) put(b *Batch, o Object, q Query) {
	b.Put(o)
	b.Join(q, o.Key)
	m.objects[o.Key] = o
	m.views[q][o.Key] = true
}

func (m *model) remove(b *Batch, k Key) {
	b.Delete(k)
	delete(m.objects, k)
	for _, v := range m.views {
		delete(v, k)
	}
}

func (m *model) clone() *model {
	c := *m
	c.objects, c.entries, c.tokens = maps.Clone(m.objects), maps.Clone(m.entries), maps.Clone(m.tokens)
	c.views = map[Query]map[Key]bool{}
	for q, v := range m.views {
		c.views[q] = maps.Clone(v)
	}
	return &c
}

// after returns the model of n steps.
func after(seed uint64, n int) *model {
	m := newModel(seed)
	for m.steps < n {
		m.step()
	}
	return m
}

// keys are the members of a view in order.
func (m *model) keys(q Query) []Key {
	return slices.SortedFunc(maps.Keys(m.views[q]), func(a, b Key) int {
		if a.less(b) {
			return -1
		}
		return 1
	})
}

// storedSteps is how many steps the store has seen; 0 if it has none.
func storedSteps(s *Store) int {
	v, _, _ := s.Document(stepDocument)
	n, _ := strconv.Atoi(string(v))
	return n
}

// differs says how a store differs from the model; "" if it does not.
func (m *model) differs(s *Store) string {
	for _, q := range modelViews {
		if m.views[q] == nil {
			continue
		}
		v, ok, err := s.View(q)
		if err != nil || !ok || !v.Complete {
			return fmt.Sprintf("view %s: %+v %v %v", q, v, ok, err)
		}
		if d := m.listDiffers(s, q); d != "" {
			return d
		}
	}
	got := map[uint64]string{}
	if err := s.Entries(func(e Entry) error { got[e.Seq] = string(e.Payload); return nil }); err != nil {
		return err.Error()
	}
	if !maps.Equal(got, m.entries) {
		return fmt.Sprintf("entries: %d there, %d expected", len(got), len(m.entries))
	}
	tokens := map[string]string{}
	if err := s.Secrets("tokens", func(n string, v []byte) error { tokens[n] = string(v); return nil }); err != nil {
		return err.Error()
	}
	if !maps.Equal(tokens, m.tokens) {
		return fmt.Sprintf("tokens: %d there, %d expected", len(tokens), len(m.tokens))
	}
	if s.Revision() != m.shown {
		return fmt.Sprintf("revision %d after %d steps, expected %d", s.Revision(), m.steps, m.shown)
	}
	return ""
}

var errShort = errors.New("the list is not the expected one")

func (m *model) listDiffers(s *Store, q Query) string {
	expect := m.keys(q)
	i := 0
	err := s.Scan(context.Background(), q, Key{}, func(o Object) error {
		if i >= len(expect) || o.Key != expect[i] {
			return fmt.Errorf("%w: %s at %d", errShort, o.Key, i)
		}
		if e := m.objects[o.Key]; e.ResourceVersion != o.ResourceVersion || string(e.Data) != string(o.Data) || e.UID != o.UID {
			return fmt.Errorf("%w: %s has version %d, expected %d", errShort, o.Key, o.ResourceVersion, e.ResourceVersion)
		}
		i++
		return nil
	})
	if err == nil && i != len(expect) {
		err = fmt.Errorf("%w: %d members, expected %d", errShort, i, len(expect))
	}
	if err != nil {
		return fmt.Sprintf("%s: %v", q, err)
	}
	return ""
}
