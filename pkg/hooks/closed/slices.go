package closed

import (
	"maps"
	"reflect"
	"runtime/debug"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"skerry.dev/skerry/pkg/topology"
)

// serviceOf says which Service a slice belongs to, as the proxier sees it.
func serviceOf(es *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: es.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]}
}

// OnEndpointSliceAdd implements config.EndpointSliceHandler.
func (p *Provider) OnEndpointSliceAdd(es *discoveryv1.EndpointSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Provider.OnEndpointSliceAdd(p.put(es).has)
}

// OnEndpointSliceUpdate implements config.EndpointSliceHandler.
func (p *Provider) OnEndpointSliceUpdate(oldSlice, es *discoveryv1.EndpointSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if service := serviceOf(oldSlice); service != serviceOf(es) {
		p.take(oldSlice)
	}
	had := oldSlice
	if s := p.slices[serviceOf(es)][es.Name]; s != nil {
		had = s.has
	}
	p.Provider.OnEndpointSliceUpdate(had, p.put(es).has)
}

// OnEndpointSliceDelete implements config.EndpointSliceHandler.
func (p *Provider) OnEndpointSliceDelete(es *discoveryv1.EndpointSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.take(es); s != nil {
		es = s.has
	}
	p.Provider.OnEndpointSliceDelete(es)
}

// OnEndpointSlicesSynced implements config.EndpointSliceHandler. The proxier
// writes its first rules after it, so it waits until they can be right.
func (p *Provider) OnEndpointSlicesSynced() {
	p.wait()
	p.Provider.OnEndpointSlicesSynced()
	time.AfterFunc(tidyAfter, p.tidy)
}

// tidyAfter is when the first rules are written, on a slow machine too.
const tidyAfter = 10 * time.Second

// tidy gives back to the system what the lists took that kube-proxy began with:
// endpoints of all sites went through it once. Without closed Services it is
// upstream's business when that happens.
func (p *Provider) tidy() {
	p.mu.Lock()
	some := len(p.rules) != 0
	p.mu.Unlock()
	if some {
		debug.FreeOSMemory()
	}
}

func (p *Provider) put(es *discoveryv1.EndpointSlice) *slice {
	service := serviceOf(es)
	if p.slices[service] == nil {
		p.slices[service] = map[string]*slice{}
	}
	packed, _ := p.unpack(es)
	s := &slice{is: es, has: p.judge(es, p.rules[service]), packed: len(packed)}
	p.slices[service][es.Name] = s
	return s
}

func (p *Provider) take(es *discoveryv1.EndpointSlice) *slice {
	service := serviceOf(es)
	s := p.slices[service][es.Name]
	delete(p.slices[service], es.Name)
	if len(p.slices[service]) == 0 {
		delete(p.slices, service)
	}
	return s
}

// judge returns a slice as the proxier is to have it: the very same if there is
// nothing to take out.
func (p *Provider) judge(es *discoveryv1.EndpointSlice, rule topology.Rule) *discoveryv1.EndpointSlice {
	away, packed := p.unpack(es)
	kept, all := rule.Filter(p, es.Endpoints)
	if all && !packed {
		return es
	}
	if back, _ := rule.Filter(p, away); len(back) != 0 {
		kept = append(kept[:len(kept):len(kept)], back...)
	}
	out := *es
	out.Endpoints = kept
	if packed {
		out.Annotations = maps.Clone(es.Annotations)
		delete(out.Annotations, packedKey)
	}
	return &out
}

// refresh judges slices of closed Services again: those that might says may
// come out differently. Called with mu held.
func (p *Provider) refresh(might func(topology.Rule, *slice) bool) {
	for service := range p.rules {
		p.refreshService(service, might)
	}
}

func (p *Provider) refreshService(service types.NamespacedName, might func(topology.Rule, *slice) bool) {
	rule := p.rules[service]
	for _, s := range p.slices[service] {
		if !might(rule, s) {
			continue
		}
		now := p.judge(s.is, rule)
		if now == s.has || reflect.DeepEqual(now.Endpoints, s.has.Endpoints) {
			continue
		}
		// The proxier measures from the time of the last change of endpoints, and
		// that is not what has happened now.
		copied := *now
		copied.Annotations = maps.Clone(now.Annotations)
		delete(copied.Annotations, v1.EndpointsLastChangeTriggerTime)
		had := s.has
		s.has = &copied
		p.Provider.OnEndpointSliceUpdate(had, s.has)
	}
}
