package closed

import (
	"reflect"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// What kube-proxy reads of an endpoint comes back as it was, and it is small.
func TestPack(t *testing.T) {
	node, hint := "n1", discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z"}}, ForNodes: []discoveryv1.ForNode{{Name: "n"}}}
	var all []discoveryv1.Endpoint
	for _, address := range []string{"10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "fe80::1%eth0", "FD00::1", "010.0.0.1", "example.com", ""} {
		for _, conditions := range []discoveryv1.EndpointConditions{
			{}, {Ready: &yes}, {Ready: &no, Serving: &yes, Terminating: &yes}, {Serving: &no}, {Terminating: &no},
		} {
			for _, hints := range []*discoveryv1.EndpointHints{nil, &hint} {
				for _, on := range []*string{&node, nil} {
					all = append(all, discoveryv1.Endpoint{Addresses: []string{address}, Conditions: conditions, Hints: hints, NodeName: on})
				}
			}
		}
	}
	all = append(all, discoveryv1.Endpoint{}, discoveryv1.Endpoint{NodeName: &node})
	var k packer
	var b []byte
	var err error
	for i := range all {
		if b, err = k.append(b, &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range all {
		var got discoveryv1.Endpoint
		got, b = k.next(b)
		if len(got.Addresses) == 0 && len(all[i].Addresses) == 0 {
			got.Addresses = all[i].Addresses
		}
		if !reflect.DeepEqual(got, all[i]) {
			t.Errorf("%+v came back as %+v", all[i], got)
		}
	}
	if len(b) != 0 {
		t.Errorf("%d bytes are left", len(b))
	}
	// More than the first address is nobody's.
	one, err := k.append(nil, &discoveryv1.Endpoint{Addresses: []string{"10.0.0.1", "10.0.0.2"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}})
	if err != nil || len(one) != 6 {
		t.Errorf("an ordinary endpoint takes %d bytes (%v), want 6", len(one), err)
	}
}

// Names of nodes beyond the bound are written out.
func TestPackNames(t *testing.T) {
	var k packer
	k.names = make([]*string, maxNames)
	name := strings.Repeat("x", 60)
	b, err := k.append(nil, &discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, NodeName: &name})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := k.next(b); got.NodeName == nil || *got.NodeName != name || len(k.names) != maxNames {
		t.Errorf("came back as %+v, with %d names", got, len(k.names))
	}
}
