package closed

import (
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"skerry.dev/skerry/pkg/topology"
)

const bySite = `["skerry.dev/site"]`

// What rules lead to, by upstream's own trackers and CategorizeEndpoints.
func TestWhatIsLeft(t *testing.T) {
	local := v1.ServiceInternalTrafficPolicyLocal
	for _, row := range []struct {
		name      string
		keys      string
		change    func(*v1.Service)
		v4, v6    string
		want      string
		unpatched string // with no annotation
	}{
		{name: "own site", keys: bySite, v4: "w1 w2 e1 c1", want: "10.0.1.1 10.0.1.2", unpatched: "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4"},
		{name: "both families", keys: bySite, v4: "w1 e1", v6: "e1 w2", want: "10.0.1.1 fd01::100:2", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1 fd01::100:2"},
		{name: "one family has none here", keys: bySite, v4: "w2", v6: "e1", want: "10.0.1.1 refused", unpatched: "10.0.1.1 fd01::100:1"},
		{name: "none here", keys: bySite, v4: "e1 e2 c1", v6: "e1", want: "refused", unpatched: "10.0.1.1 10.0.1.2 10.0.1.3 fd01::100:1"},
		{name: "without a node", keys: bySite, v4: "- e1", v6: "-", want: "10.0.1.1 fd01::100:1", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
		{name: "node that is gone", keys: bySite, v4: "gone w2", v6: "w1", want: "10.0.1.2 fd01::100:1", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
		{name: "two keys", keys: `["zone","skerry.dev/site"]`, v4: "w1 w2 e1 c1", v6: "w1", want: "10.0.1.1 fd01::100:1", unpatched: "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 fd01::100:1"},
		{name: "another key", keys: `["zone"]`, v4: "w1 w2 e1 c1", v6: "w1", want: "10.0.1.1 10.0.1.3 10.0.1.4 fd01::100:1", unpatched: "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 fd01::100:1"},
		{name: "a label this node lacks", keys: `["rack"]`, v4: "w1 -", v6: "w1", want: "10.0.1.2 refused", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
		{name: "unreadable", keys: `skerry.dev/site`, v4: "w1 -", v6: "w1", want: "10.0.1.2 refused", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
		{name: "fallback of the older system", keys: `["skerry.dev/site","*"]`, v4: "w1 e1", v6: "w1", want: "refused", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
		{name: "not ready here, ready elsewhere", keys: bySite, v4: "w1! e1", v6: "e1", want: "refused", unpatched: "10.0.1.2 fd01::100:1"},
		{name: "terminating here, ready elsewhere", keys: bySite, v4: "w2~ e1", v6: "w2~ w1", want: "10.0.1.1 fd01::100:2", unpatched: "10.0.1.2 fd01::100:2"},
		{name: "terminating elsewhere only", keys: bySite, v4: "e2~", v6: "w1", want: "fd01::100:1 refused", unpatched: "10.0.1.1 fd01::100:1"},
		{name: "internalTrafficPolicy Local, on this node", keys: bySite, v4: "w1 w2 e1", v6: "w1",
			change: func(s *v1.Service) { s.Spec.InternalTrafficPolicy = &local },
			want:   "10.0.1.1 fd01::100:1", unpatched: "10.0.1.1 fd01::100:1"},
		{name: "internalTrafficPolicy Local, on another node of the site", keys: bySite, v4: "w2 e1", v6: "w1",
			change: func(s *v1.Service) { s.Spec.InternalTrafficPolicy = &local },
			want:   "dropped fd01::100:1", unpatched: "dropped fd01::100:1"},
		{name: "internalTrafficPolicy Local, at another site", keys: bySite, v4: "e1", v6: "w1",
			change: func(s *v1.Service) { s.Spec.InternalTrafficPolicy = &local },
			want:   "fd01::100:1 refused", unpatched: "dropped fd01::100:1"},
		{name: "externalTrafficPolicy Local", keys: bySite, v4: "w1 w2 e1", v6: "e1 w2",
			change: func(s *v1.Service) {
				s.Spec.Type, s.Spec.ExternalTrafficPolicy = v1.ServiceTypeNodePort, v1.ServiceExternalTrafficPolicyLocal
			},
			want: "10.0.1.1 10.0.1.2 fd01::100:2", unpatched: "10.0.1.1 10.0.1.2 10.0.1.3 fd01::100:1 fd01::100:2"},
		{name: "hints for other zones are not followed out of the site", keys: bySite, v4: "e1 w2", v6: "w1",
			change: func(s *v1.Service) {
				d := v1.ServiceTrafficDistributionPreferSameZone
				s.Spec.TrafficDistribution = &d
			},
			want: "10.0.1.2 fd01::100:1", unpatched: "10.0.1.1 10.0.1.2 fd01::100:1"},
	} {
		if row.v6 == "" {
			row.v6, row.want, row.unpatched = "w1", row.want+" fd01::100:1", row.unpatched+" fd01::100:1"
		}
		for _, order := range []string{"services first", "slices first", "annotated later"} {
			for _, annotated := range []bool{true, false} {
				keys, want := row.keys, row.want
				if !annotated {
					keys, want = "", row.unpatched
				}
				t.Run(row.name+"/"+order, func(t *testing.T) {
					run(t, func(w *world) {
						changes := []func(*v1.Service){func(*v1.Service) {}}
						if row.change != nil {
							changes = append(changes, row.change)
						}
						s := newService("web", keys, changes...)
						slices := func() {
							w.put(endpoints("web", 1, row.v4))
							w.put(endpoints("web", 100, row.v6))
						}
						switch order {
						case "services first":
							w.p.OnServiceAdd(s)
							w.begin()
							slices()
						case "slices first":
							w.begin()
							slices()
							w.p.OnServiceAdd(s)
						case "annotated later":
							w.begin()
							before := newService("web", "", changes...)
							w.p.OnServiceAdd(before)
							slices()
							w.want("web", row.unpatched)
							w.p.OnServiceUpdate(before, s)
						}
						synctest.Wait()
						w.want("web", want)
						if !w.proxier.isSynced() {
							t.Error("the proxier never heard that slices have synced")
						}
					})
				})
			}
		}
	}
}

// With no Service annotated the proxier is given the very objects that upstream
// gives it, in the same calls, and no node is asked for.
func TestNothingAnnotated(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.p.OnServiceAdd(newService("web", ""))
		es := endpoints("web", 1, "w1 e1 -")
		before := es.DeepCopy()
		w.put(es)
		if !reflect.DeepEqual(es, before) {
			t.Errorf("the slice in the store was changed: %v", es)
		}
		if w.p.slices[serviceOf(es)][es.Name].has != es {
			t.Error("the proxier was given a copy")
		}
		calls := w.proxier.slices
		w.label("e1", map[string]string{"skerry.dev/site": "west"})
		w.label(self, map[string]string{"skerry.dev/site": "east"})
		w.p.OnServiceUpdate(newService("web", ""), newService("web", ""))
		if w.proxier.slices != calls {
			t.Errorf("%d calls about slices although none changed", w.proxier.slices-calls)
		}
		if len(w.follows) != 0 {
			t.Errorf("%d labels are followed", len(w.follows))
		}
		w.want("web", "10.0.1.1 10.0.1.2 10.0.1.3 refused")
	})
}

// Nodes move, and nothing is restarted or asked for again: also endpoints that
// were packed away come back.
func TestNodesMove(t *testing.T) {
	west, east := map[string]string{"skerry.dev/site": "west"}, map[string]string{"skerry.dev/site": "east"}
	run(t, func(w *world) {
		w.p.OnServiceAdd(newService("web", bySite))
		w.begin()
		es := endpoints("web", 1, "w1 w2 e1 e1~ c1 -")
		w.put(es)
		w.want("web", "10.0.1.1 10.0.1.2 10.0.1.6 refused")
		if len(es.Endpoints) != 3 {
			t.Errorf("the store has %d endpoints unpacked, want 3", len(es.Endpoints))
		}
		for _, step := range []struct {
			node   string
			labels map[string]string
			want   string
		}{
			{"e1", west, "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.6"},
			{"w2", east, "10.0.1.1 10.0.1.3 10.0.1.6"},
			{"c1", west, "10.0.1.1 10.0.1.3 10.0.1.5 10.0.1.6"},
			{"e1", nil, "10.0.1.1 10.0.1.5 10.0.1.6"},
			{"e1", east, "10.0.1.1 10.0.1.5 10.0.1.6"},
			// This node goes east.
			{self, east, "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.6"},
			// And leaves all sites: nothing is shared then.
			{self, map[string]string{}, "10.0.1.6"},
			{self, west, "10.0.1.1 10.0.1.5 10.0.1.6"},
		} {
			w.label(step.node, step.labels)
			w.want("web", step.want+" refused") // IPv6
		}
		calls := w.proxier.slices
		w.label("e2", map[string]string{"skerry.dev/site": "west"}) // has no endpoint
		w.label("w1", map[string]string{"skerry.dev/site": "west", "unrelated": "x"})
		if w.proxier.slices != calls {
			t.Errorf("%d calls about slices although nothing changed for them", w.proxier.slices-calls)
		}
	})
}

func TestAnnotationChanges(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		var before *v1.Service
		for _, step := range []struct{ keys, want string }{
			{bySite, "10.0.1.1 10.0.1.2 refused"},
			{"", "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 refused"},
			{`["zone"]`, "10.0.1.1 10.0.1.3 10.0.1.4 refused"},
			{"oops", "refused"},
			{`["skerry.dev/site"`, "refused"},
			{`[]`, "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 refused"},
			{bySite, "10.0.1.1 10.0.1.2 refused"},
		} {
			s := newService("web", step.keys)
			if before == nil {
				w.p.OnServiceAdd(s)
				synctest.Wait()
				w.put(endpoints("web", 1, "w1 w2 e1 c1"))
			} else {
				w.p.OnServiceUpdate(before, s)
			}
			synctest.Wait()
			w.want("web", step.want)
			before = s
		}
		if got := len(w.p.peers); got != 1 {
			t.Errorf("%d labels are followed, want 1", got)
		}
		w.p.OnServiceDelete(before)
		if got := len(w.p.peers); got != 0 {
			t.Errorf("%d labels are followed for no Service", got)
		}
		w.remove(endpoints("web", 1, ""))
		if len(w.p.slices) != 0 || len(w.p.rules) != 0 || w.proxier.count() != 0 {
			t.Errorf("something is left: %v %v", w.p.slices, w.p.rules)
		}
	})
}

// A node that has a label follows it; a Service cannot make it follow any other.
func TestFollowsOwnLabelsOnly(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		for _, key := range []string{"a", "b", "c", "zone", "skerry.dev/site"} {
			w.p.OnServiceAdd(newService("s"+key[:1], `["`+key+`","x`+key[:1]+`"]`))
		}
		synctest.Wait()
		if got := len(w.follows); got != 2 {
			t.Errorf("%d labels are followed, want 2: zone and site", got)
		}
	})
}

// The first rules wait for the names of the site's nodes; not for ever.
func TestStart(t *testing.T) {
	for _, away := range []bool{false, true} {
		run(t, func(w *world) {
			w.away = true
			w.p.OnServiceAdd(newService("web", bySite))
			w.p.OnServiceAdd(newService("open", ""))
			done := make(chan struct{})
			go func() {
				w.put(endpoints("web", 1, "w1 w2 e1"))
				w.put(endpoints("open", 2, "w1 e1"))
				close(done)
			}()
			w.begin()
			time.Sleep(startTimeout - time.Second)
			synctest.Wait()
			if w.proxier.isSynced() {
				t.Fatal("first rules were written although the site's nodes are not known")
			}
			if !away {
				w.back()
			} else {
				time.Sleep(2 * time.Second)
			}
			<-done
			synctest.Wait()
			if !w.proxier.isSynced() {
				t.Fatal("no rules are written")
			}
			w.want("open", "10.0.2.1 10.0.2.2 refused")
			if away {
				w.want("web", "10.0.1.1 refused") // this node is one of its own site
				w.back()
			}
			w.want("web", "10.0.1.1 10.0.1.2 refused")
		})
	}
}

// Changes of endpoints after the start, and a slice that changes hands.
func TestSlicesChange(t *testing.T) {
	run(t, func(w *world) {
		w.p.OnServiceAdd(newService("web", bySite))
		w.p.OnServiceAdd(newService("other", ""))
		w.begin()
		w.put(endpoints("web", 1, "w1 e1"))
		w.want("web", "10.0.1.1 refused")
		w.put(endpoints("web", 1, "e1"))
		w.want("web", "refused")
		w.put(endpoints("web", 1, "e1 w2"))
		w.put(endpoints("web", 2, "w2 e2"))
		w.want("web", "10.0.1.2 10.0.2.1 refused")
		moved := endpoints("web", 2, "w2 e2")
		moved.Labels = map[string]string{discoveryv1.LabelServiceName: "other"}
		w.put(moved)
		w.want("other", "10.0.2.1 10.0.2.2 refused")
		w.remove(moved)
		w.want("other", "refused")
		unlabelled := endpoints("web", 3, "e1")
		unlabelled.Labels = nil
		w.put(unlabelled)
		w.remove(unlabelled)
	})
}

// What the API server could never have sent means nothing here.
func TestAnnotationOfSlicesIsNotTrusted(t *testing.T) {
	run(t, func(w *world) {
		w.p.OnServiceAdd(newService("web", bySite))
		w.begin()
		es := endpoints("web", 1, "w1 e1")
		es.Annotations[topology.Annotation] = `[]`
		es.Annotations["skerry.dev/packed"] = "rubbish"
		w.put(es)
		w.want("web", "10.0.1.1 refused")
	})
}
