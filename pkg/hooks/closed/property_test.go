package closed

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
)

// TestProperty: for random clusters, Services and labels, and whatever happens
// in whichever order, a closed Service leads to exactly the endpoints on nodes
// that share the values, and those without a node; and any other Service to all.
func TestProperty(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		run(t, func(w *world) { history(w, rand.New(rand.NewPCG(seed, 1)), fmt.Sprint("seed ", seed)) })
	}
}

// model is what is true, without any of the code under test.
type model struct {
	services map[string]*v1.Service
	keys     map[string][]string // nil: not closed; [""]: unreadable
	slices   map[string]map[int][]endpoint
}

type endpoint struct {
	address, node string
}

func (m *model) want(w *world, service string) string {
	out := map[string]bool{}
	for family := range 2 {
		some := false
		for number, all := range m.slices[service] {
			for _, e := range all {
				if (number >= 100) != (family == 1) {
					continue
				}
				use := true
				for _, key := range m.keys[service] {
					mine, has := w.nodes[self][key]
					its, had := w.nodes[e.node][key]
					use = use && (e.node == "" || has && had && mine == its)
				}
				if use {
					out[e.address], some = true, true
				}
			}
		}
		if !some {
			out["refused"] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(out)), " ")
}

func history(w *world, r *rand.Rand, name string) {
	m := &model{services: map[string]*v1.Service{}, keys: map[string][]string{}, slices: map[string]map[int][]endpoint{}}
	names := []string{"w1", "w2", "e1", "e2", "c1", "gone", ""}
	labels := func() map[string]string {
		out := map[string]string{}
		for _, key := range []string{"skerry.dev/site", "zone"} {
			if n := r.IntN(4); n != 0 {
				out[key] = fmt.Sprint(n)
			}
		}
		return out
	}
	for node := range w.nodes {
		w.label(node, labels())
	}
	begun := false
	for step := range 60 {
		service := fmt.Sprint("s", r.IntN(3))
		op := r.IntN(10)
		switch {
		case !begun && (step == 10 || op == 0):
			w.begin()
			begun = true
		case op < 3: // a Service comes, changes or goes
			annotation, keys := "", []string(nil)
			switch r.IntN(6) {
			case 0:
				annotation, keys = `["zone"]`, []string{"zone"}
			case 1, 2:
				annotation, keys = bySite, []string{"skerry.dev/site"}
			case 3:
				annotation, keys = `["skerry.dev/site","zone"]`, []string{"zone", "skerry.dev/site"}
			case 4:
				annotation, keys = `?`, []string{"no node has this"}
			}
			before := m.services[service]
			if before != nil && r.IntN(4) == 0 {
				w.p.OnServiceDelete(before)
				delete(m.services, service)
				delete(m.keys, service)
				break
			}
			now := newService(service, annotation)
			m.services[service], m.keys[service] = now, keys
			if before == nil {
				w.p.OnServiceAdd(now)
			} else {
				w.p.OnServiceUpdate(before, now)
			}
		case op < 7: // a slice
			if !begun {
				break // its transform would wait
			}
			number := 1 + r.IntN(2)
			if r.IntN(3) == 0 {
				number += 100
			}
			if m.slices[service] == nil {
				m.slices[service] = map[int][]endpoint{}
			}
			if _, ok := m.slices[service][number]; ok && r.IntN(3) == 0 {
				w.remove(endpoints(service, number, ""))
				delete(m.slices[service], number)
				break
			}
			all := []endpoint{}
			words := make([]string, r.IntN(6))
			for i := range words {
				words[i] = names[r.IntN(len(names))]
				if words[i] == "" {
					words[i] = "-"
				}
			}
			es := endpoints(service, number, strings.Join(words, " "))
			for i, word := range words {
				all = append(all, endpoint{es.Endpoints[i].Addresses[0], strings.TrimPrefix(word, "-")})
			}
			m.slices[service][number] = all
			w.put(es)
		default: // a node's labels change, or it goes
			node := names[r.IntN(5)]
			if node != self && r.IntN(5) == 0 {
				w.label(node, nil)
			} else {
				w.label(node, labels())
			}
		}
		synctest.Wait()
		for service := range m.services {
			if got, want := w.proxier.reachable(service), m.want(w, service); got != want {
				w.t.Fatalf("%s, step %d: service %s %v from %v leads to %q, want %q", name, step, service, m.keys[service], w.nodes[self], got, want)
			}
		}
	}
}
