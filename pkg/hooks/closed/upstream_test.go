package closed

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// generateEndpointSlice is upstream's fixture (pkg/proxy,
// endpointslicecache_test.go: generateEndpointSliceWithOffset).
func generateEndpointSlice(serviceName, namespace string, sliceNum, offset, numEndpoints, unreadyMod, terminatingMod int, hosts []string, portNums []*int32) *discovery.EndpointSlice {
	endpointSlice := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%s-%d", serviceName, sliceNum),
			Namespace: namespace,
			Labels:    map[string]string{discovery.LabelServiceName: serviceName},
		},
		Ports:       []discovery.EndpointPort{},
		AddressType: discovery.AddressTypeIPv4,
		Endpoints:   []discovery.Endpoint{},
	}
	for i, portNum := range portNums {
		endpointSlice.Ports = append(endpointSlice.Ports, discovery.EndpointPort{
			Name:     ptr.To(fmt.Sprintf("port-%d", i)),
			Port:     portNum,
			Protocol: ptr.To(v1.ProtocolTCP),
		})
	}
	for i := 1; i <= numEndpoints; i++ {
		readyCondition := i%unreadyMod != 0
		terminatingCondition := i%terminatingMod == 0
		endpoint := discovery.Endpoint{
			Addresses: []string{fmt.Sprintf("10.0.%d.%d", offset, i)},
			Conditions: discovery.EndpointConditions{
				Ready:       ptr.To(readyCondition && !terminatingCondition),
				Serving:     ptr.To(readyCondition),
				Terminating: ptr.To(terminatingCondition),
			},
		}
		if len(hosts) > 0 {
			hostname := hosts[i%len(hosts)]
			endpoint.NodeName = &hostname
		}
		endpointSlice.Endpoints = append(endpointSlice.Endpoints, endpoint)
	}
	return endpointSlice
}

// With upstream's fixtures: an open Service gives upstream's trackers what they
// have without the hook, a closed one what they have when the other sites'
// endpoints were never there.
func TestUpstreamFixtures(t *testing.T) {
	port, other := ptr.To[int32](80), ptr.To[int32](443)
	hosts := []string{"w1", "e1", "w2", "c1"}
	for name, fixture := range map[string]func() []*discovery.EndpointSlice{
		"1 slice, 2 hosts, ports 80,443": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{generateEndpointSlice("web", "shop", 1, 1, 3, 999, 999, []string{"w1", "e1"}, []*int32{port, other})}
		},
		"2 slices, same port": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{
				generateEndpointSlice("web", "shop", 1, 1, 3, 999, 999, hosts, []*int32{port}),
				generateEndpointSlice("web", "shop", 2, 2, 3, 999, 999, hosts, []*int32{port}),
			}
		},
		// They agree: which of two that do not is believed is undefined upstream (the
		// order of a map).
		"2 overlapping slices, some endpoints unready": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{
				generateEndpointSlice("web", "shop", 1, 1, 10, 3, 999, hosts, []*int32{port}),
				generateEndpointSlice("web", "shop", 2, 1, 10, 3, 999, hosts, []*int32{port}),
			}
		},
		"2 slices, some unready, some terminating": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{
				generateEndpointSlice("web", "shop", 1, 1, 10, 3, 5, hosts, []*int32{port}),
				generateEndpointSlice("web", "shop", 2, 2, 10, 10, 6, hosts, []*int32{port}),
			}
		},
		"no hosts": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{generateEndpointSlice("web", "shop", 1, 1, 5, 2, 3, nil, []*int32{port})}
		},
		"a hundred, a port of 0 and a nil port": func() []*discovery.EndpointSlice {
			return []*discovery.EndpointSlice{generateEndpointSlice("web", "shop", 1, 1, 100, 7, 11, hosts, []*int32{port, ptr.To[int32](0), nil})}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, keys := range []string{"", bySite} {
				want := newProxier()
				for _, es := range fixture() {
					if keys != "" {
						es.Endpoints = slices.DeleteFunc(es.Endpoints, func(e discovery.Endpoint) bool {
							return e.NodeName != nil && *e.NodeName != "w1" && *e.NodeName != "w2"
						})
					}
					want.OnEndpointSliceAdd(es)
				}
				run(t, func(w *world) {
					w.p.OnServiceAdd(newService("web", keys))
					w.begin()
					for _, es := range fixture() {
						w.put(es)
					}
					synctest.Wait()
					if got, want := w.proxier.endpoints(), want.endpoints(); !reflect.DeepEqual(got, want) {
						t.Errorf("keys %q: trackers have %v, want %v", keys, got, want)
					}
				})
			}
		})
	}
}

// endpoints lists all that the trackers know of each endpoint.
func (p *proxier) endpoints() map[string][]string {
	out := map[string][]string{}
	for _, f := range p.families {
		f.targets.Update(f.endpoints)
		for name, all := range f.targets {
			for _, e := range all {
				out[name.String()] = append(out[name.String()], fmt.Sprint(e, e.IsLocal(), e.IsReady(), e.IsServing(), e.IsTerminating()))
			}
		}
	}
	return out
}
