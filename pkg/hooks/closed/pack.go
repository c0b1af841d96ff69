package closed

import (
	"encoding/binary"
	"net/netip"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// packedKey is an annotation of slices in this process: endpoints that were of
// no use to this node when the slice came, in a few bytes each. They are needed
// again when a node moves, and asking for them then would take a link that may
// be down. No object of the API has such a key.
const packedKey = "\x00packed"

// Transform implements app.SkerryTransformer. Services come first, so that it is
// known which slices to pack. A slice that came before its Service, or before it
// was closed, stays as it is: that costs memory, nothing else.
func (p *Provider) Transform(next cache.TransformFunc) cache.TransformFunc {
	return func(obj any) (any, error) {
		obj, err := next(obj)
		if es, ok := obj.(*discoveryv1.EndpointSlice); ok && err == nil {
			p.wait()
			p.packSlice(es)
		}
		return obj, err
	}
}

// packSlice changes a slice that nobody else has yet. A packed one stays as it
// is.
func (p *Provider) packSlice(es *discoveryv1.EndpointSlice) {
	if _, ok := es.Annotations[packedKey]; ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rule := p.rules[serviceOf(es)]
	kept, all := rule.Filter(p, es.Endpoints)
	if all {
		return
	}
	var packed []byte
	for i := range es.Endpoints {
		if e := &es.Endpoints[i]; !rule.Keeps(p, e) {
			var err error
			if packed, err = p.packer.append(packed, e); err != nil {
				p.logger.Error(err, "Packing endpoints", "endpointSlice", es.Name)
				return // unpacked it is as good
			}
		}
	}
	es.Endpoints = kept
	if es.Annotations == nil {
		es.Annotations = map[string]string{}
	}
	es.Annotations[packedKey] = string(packed)
}

// unpack returns the endpoints of a slice that were packed away.
func (p *Provider) unpack(es *discoveryv1.EndpointSlice) (endpoints []discoveryv1.Endpoint, packed bool) {
	text, ok := es.Annotations[packedKey]
	if !ok {
		return nil, false
	}
	for rest := []byte(text); len(rest) != 0; {
		var e discoveryv1.Endpoint
		e, rest = p.packer.next(rest)
		endpoints = append(endpoints, e)
	}
	return endpoints, true
}

// mentions says whether a slice has an endpoint on one of the nodes.
func (p *Provider) mentions(es *discoveryv1.EndpointSlice, nodes map[string]bool) bool {
	packed, _ := p.unpack(es)
	for _, all := range [][]discoveryv1.Endpoint{es.Endpoints, packed} {
		for i := range all {
			if name := all[i].NodeName; name != nil && nodes[*name] {
				return true
			}
		}
	}
	return false
}

// maxNames bounds the names of nodes that a packer remembers: whoever may write
// EndpointSlices may put any name there.
const maxNames = 100_000

// packer writes of an endpoint what kube-proxy reads: its first address, its
// node, its conditions and its hints. An endpoint is
//
//	1 byte    kind: other, or the conditions, two bits each, and what address
//	4 or 16   address
//	1 to 3    the node's number
//
// or, if it has hints, an address that is written in an unusual way, or a node
// without a number:
//
//	1 byte    other
//	varint    length
//	…         protobuf
type packer struct {
	numbers map[string]uint64
	names   []*string
}

const (
	six   = 1 << 6
	other = 1 << 7
)

func (k *packer) append(b []byte, e *discoveryv1.Endpoint) ([]byte, error) {
	e = &discoveryv1.Endpoint{Addresses: e.Addresses[:min(1, len(e.Addresses))], Conditions: e.Conditions, NodeName: e.NodeName, Hints: e.Hints}
	if plain, ok := k.plain(b, e); ok {
		return plain, nil
	}
	text, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(append(b, other), uint64(len(text)))
	return append(b, text...), nil
}

func (k *packer) plain(b []byte, e *discoveryv1.Endpoint) ([]byte, bool) {
	if e.Hints != nil || len(e.Addresses) != 1 || e.NodeName == nil {
		return nil, false
	}
	address, err := netip.ParseAddr(e.Addresses[0])
	if err != nil || address.Zone() != "" || address.String() != e.Addresses[0] {
		return nil, false
	}
	number, ok := k.number(*e.NodeName)
	if !ok {
		return nil, false
	}
	kind := byte(0)
	for i, condition := range []*bool{e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating} {
		if condition != nil {
			kind |= 1 << (2 * i)
			if *condition {
				kind |= 2 << (2 * i)
			}
		}
	}
	if address.Is6() {
		kind |= six
	}
	b = append(append(b, kind), address.AsSlice()...)
	return binary.AppendUvarint(b, number), true
}

func (k *packer) number(name string) (uint64, bool) {
	number, ok := k.numbers[name]
	if !ok && len(k.names) < maxNames {
		if k.numbers == nil {
			k.numbers = map[string]uint64{}
		}
		number, ok = uint64(len(k.names)), true
		k.numbers[name] = number
		k.names = append(k.names, &name)
	}
	return number, ok
}

var (
	yes, no    = true, false
	conditions = [4]*bool{nil, &no, nil, &yes}
)

// next reads what append wrote. The memory of the process is no input.
func (k *packer) next(b []byte) (e discoveryv1.Endpoint, rest []byte) {
	kind := b[0]
	b = b[1:]
	if kind == other {
		length, n := binary.Uvarint(b)
		b = b[n:]
		if err := e.Unmarshal(b[:length]); err != nil {
			panic("closed: what was packed cannot be read: " + err.Error())
		}
		return e, b[length:]
	}
	size := 4
	if kind&six != 0 {
		size = 16
	}
	address, _ := netip.AddrFromSlice(b[:size])
	number, n := binary.Uvarint(b[size:])
	e.Addresses, e.NodeName = []string{address.String()}, k.names[number]
	e.Conditions = discoveryv1.EndpointConditions{Ready: conditions[kind&3], Serving: conditions[kind>>2&3], Terminating: conditions[kind>>4&3]}
	return e, b[size+n:]
}
