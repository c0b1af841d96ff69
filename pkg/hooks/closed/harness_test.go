package closed

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy"

	"skerry.dev/skerry/pkg/topology"
)

const self = "w1"

// proxier is what every mode of upstream's is made of: its trackers and maps.
// What it would write rules for is what CategorizeEndpoints says.
type proxier struct {
	proxy.Provider // calls of what is not here end the test

	mu        sync.Mutex
	families  []*family
	slices    int // calls about slices
	synced    bool
	servicing bool
}

type family struct {
	services  *proxy.ServiceChangeTracker
	endpoints *proxy.EndpointsChangeTracker
	ports     proxy.ServicePortMap
	targets   proxy.EndpointsMap
}

func newProxier() *proxier {
	p := &proxier{}
	for _, f := range []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} {
		p.families = append(p.families, &family{
			services:  proxy.NewServiceChangeTracker(f, nil, nil),
			endpoints: proxy.NewEndpointsChangeTracker(f, self, nil, nil),
			ports:     proxy.ServicePortMap{},
			targets:   proxy.EndpointsMap{},
		})
	}
	return p
}

func (p *proxier) OnServiceAdd(s *v1.Service) { p.OnServiceUpdate(nil, s) }
func (p *proxier) OnServiceUpdate(before, s *v1.Service) {
	for _, f := range p.families {
		f.services.Update(before, s)
	}
}
func (p *proxier) OnServiceDelete(s *v1.Service) { p.OnServiceUpdate(s, nil) }
func (p *proxier) OnServiceSynced()              { p.servicing = true }

func (p *proxier) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice)       { p.slice(s, false) }
func (p *proxier) OnEndpointSliceUpdate(_, s *discoveryv1.EndpointSlice) { p.slice(s, false) }
func (p *proxier) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice)    { p.slice(s, true) }
func (p *proxier) OnEndpointSlicesSynced() {
	p.mu.Lock()
	p.synced = true
	p.mu.Unlock()
}

func (p *proxier) slice(s *discoveryv1.EndpointSlice, remove bool) {
	p.slices++
	if _, packed := s.Annotations[packedKey]; packed {
		panic("the proxier was given a packed slice")
	}
	for _, f := range p.families {
		f.endpoints.EndpointSliceUpdate(s, remove)
	}
}

func (p *proxier) isSynced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// reachable says what rules would lead to for each port of a Service: addresses,
// "refused" or "dropped".
func (p *proxier) reachable(service string) string {
	out := map[string]bool{}
	for _, f := range p.families {
		f.ports.Update(f.services)
		f.targets.Update(f.endpoints)
		for name, port := range f.ports {
			if name.Name != service {
				continue
			}
			cluster, local, all, any := proxy.CategorizeEndpoints(f.targets[name], port, self, nil)
			switch {
			case len(all) != 0:
				for _, e := range all {
					out[e.IP()] = true
				}
			case any:
				out["dropped"] = true
			default:
				out["refused"] = true
			}
			_, _ = cluster, local
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(out)), " ")
}

// count is how many endpoints the proxier has in its maps.
func (p *proxier) count() (n int) {
	for _, f := range p.families {
		f.targets.Update(f.endpoints)
		for _, e := range f.targets {
			n += len(e)
		}
	}
	return n
}

// world is a cluster as kube-proxy's informers deliver it.
type world struct {
	t       *testing.T
	p       *Provider
	proxier *proxier
	stored  map[types.NamespacedName]*discoveryv1.EndpointSlice // as in the informer's store

	mu      sync.Mutex
	nodes   map[string]map[string]string
	follows []*followed
	away    bool // the API does not answer about nodes
}

type followed struct {
	ctx        context.Context
	key, value string
	store      cache.ReflectorStore
}

// run runs a world until do returns. Nodes w1 (this one), w2, e1, e2 and cloud
// have names and hostnames; sites are named in it.
func run(t *testing.T, do func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); synctest.Wait() }()
		w := &world{t: t, proxier: newProxier(), stored: map[types.NamespacedName]*discoveryv1.EndpointSlice{}, nodes: map[string]map[string]string{
			"w1": {"skerry.dev/site": "west", "zone": "1"},
			"w2": {"skerry.dev/site": "west", "zone": "2"},
			"e1": {"skerry.dev/site": "east", "zone": "1"},
			"e2": {"skerry.dev/site": "east", "zone": "2"},
			// A cloud node.
			"c1": {"zone": "1"},
		}}
		w.p = newProvider(ctx, self, w.proxier, w.follow)
		w.p.setLabels(w.nodes[self])
		do(w)
	})
}

// follow is what a reflector does: a list, then events.
func (w *world) follow(ctx context.Context, key, value string, store cache.ReflectorStore) {
	f := &followed{ctx, key, value, store}
	go func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.follows = append(w.follows, f)
		if !w.away {
			w.list(f)
		}
	}()
}

func (w *world) list(f *followed) {
	var objects []any
	for name, labels := range w.nodes {
		if v, ok := labels[f.key]; ok && v == f.value {
			objects = append(objects, partial(name, labels))
		}
	}
	if err := f.store.Replace(objects, "1"); err != nil {
		panic(err)
	}
}

func partial(name string, labels map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// back ends what away began.
func (w *world) back() {
	w.mu.Lock()
	w.away = false
	for _, f := range w.follows {
		if f.ctx.Err() == nil {
			w.list(f)
		}
	}
	w.mu.Unlock()
	synctest.Wait()
}

// label gives a node labels; none deletes it.
func (w *world) label(name string, labels map[string]string) {
	w.mu.Lock()
	before := w.nodes[name]
	if labels == nil {
		delete(w.nodes, name)
	} else {
		w.nodes[name] = labels
	}
	for _, f := range w.follows {
		was, had := before[f.key]
		is, has := labels[f.key]
		had, has = had && was == f.value, has && is == f.value
		var err error
		switch {
		case f.ctx.Err() != nil:
			// A reflector that was stopped may still deliver what it has.
			err = f.store.Add(partial(name, labels))
		case has && had:
			err = f.store.Update(partial(name, labels))
		case has:
			err = f.store.Add(partial(name, labels))
		case had:
			err = f.store.Delete(partial(name, before))
		}
		if err != nil {
			panic(err)
		}
	}
	w.mu.Unlock()
	if name == self {
		w.p.onNode(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: self, Labels: labels}})
	}
	synctest.Wait()
}

// newService makes a Service with one TCP and one UDP port.
func newService(name, keys string, change ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10", "fd00::10"},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol},
			Ports:      []v1.ServicePort{{Name: "tcp", Port: 80, Protocol: v1.ProtocolTCP}, {Name: "udp", Port: 80, Protocol: v1.ProtocolUDP}, {Name: "sctp", Port: 80, Protocol: v1.ProtocolSCTP}},
		},
	}
	if keys != "" {
		s.Annotations = map[string]string{topology.Annotation: keys}
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// endpoints makes a slice with an endpoint for each word: a node's name, "-" for
// none, with "!" behind it not ready, "~" terminating and still serving.
func endpoints(service string, number int, words string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("%s-%d", service, number), Labels: map[string]string{discoveryv1.LabelServiceName: service},
			Annotations: map[string]string{v1.EndpointsLastChangeTriggerTime: "2020-01-01T00:00:00Z"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	prefix := fmt.Sprintf("10.0.%d.", number)
	if number >= 100 {
		s.AddressType, prefix = discoveryv1.AddressTypeIPv6, fmt.Sprintf("fd01::%d:", number)
	}
	port := int32(8080)
	for _, p := range []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP} {
		name := strings.ToLower(string(p))
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &port})
	}
	for i, word := range strings.Fields(words) {
		yes, no := true, false
		e := discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("%s%d", prefix, i+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &v1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "pod"},
		}
		if word, ok := strings.CutSuffix(word, "!"); ok {
			e.Conditions.Ready, e.Conditions.Serving, e.NodeName = &no, &no, &word
		} else if word, ok := strings.CutSuffix(word, "~"); ok {
			e.Conditions.Ready, e.Conditions.Terminating, e.NodeName = &no, &yes, &word
		} else if word != "-" {
			e.NodeName = &word
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// put delivers a slice as an informer does: transformed, then added or updated.
func (w *world) put(es *discoveryv1.EndpointSlice) {
	transform := w.p.Transform(func(obj any) (any, error) { return obj, nil })
	for range 2 { // a watch list transforms twice
		if _, err := transform(es); err != nil {
			w.t.Fatal(err)
		}
	}
	name := types.NamespacedName{Namespace: es.Namespace, Name: es.Name}
	before := w.stored[name]
	w.stored[name] = es
	if before == nil {
		w.p.OnEndpointSliceAdd(es)
	} else {
		w.p.OnEndpointSliceUpdate(before, es)
	}
}

func (w *world) remove(es *discoveryv1.EndpointSlice) {
	name := types.NamespacedName{Namespace: es.Namespace, Name: es.Name}
	stored := w.stored[name]
	delete(w.stored, name)
	w.p.OnEndpointSliceDelete(stored)
}

// begin ends the initial lists, as kube-proxy's configs do.
func (w *world) begin() {
	w.p.OnServiceSynced()
	go w.p.OnEndpointSlicesSynced()
	synctest.Wait()
}

func (w *world) want(service, want string) {
	w.t.Helper()
	if got := w.proxier.reachable(service); got != want {
		w.t.Errorf("service %s leads to %q, want %q", service, got, want)
	}
}
