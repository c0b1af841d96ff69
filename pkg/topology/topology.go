// Package topology says what a closed Service is, and which of its endpoints a
// node may use: those on nodes that share the node's values of the labels that
// the Service names, and those without a node. It is pure: it knows neither who
// asks (kube-proxy, the hub for DNS) nor where nodes' labels come from.
package topology

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"skerry.dev/api"
)

// Annotation closes a Service: a JSON list of node label keys, for example
// ["skerry.dev/site"].
const Annotation = api.Group + "/topology-keys"

const (
	// MaxBytes bounds the annotation.
	MaxBytes = 2048
	// MaxKeys bounds the keys of a Service.
	MaxKeys = 8
)

// A Rule says which endpoints of a Service may be used. The zero Rule is that of
// a Service that is not closed: all of them.
type Rule struct {
	// Keys are node label keys. A node shares an endpoint's value if both nodes
	// have the label, with the same value, for each of the keys. Sorted, each
	// once.
	Keys []string
	// Unreadable is why the annotation cannot be read, nil if it can. Such a
	// Service is closed to every endpoint that is on a node: who annotated it
	// wanted it closed, and an endpoint at another site must never answer for
	// the want of a comma.
	Unreadable error
}

// RuleOf returns the rule of a Service with these annotations.
func RuleOf(annotations map[string]string) Rule {
	value, ok := annotations[Annotation]
	if !ok {
		return Rule{}
	}
	keys, err := Parse(value)
	return Rule{Keys: keys, Unreadable: err}
}

// Parse reads the annotation's value. The empty list is readable, and closes
// nothing. There are no fallbacks: "*" is no key, and the order of keys has no
// meaning.
func Parse(value string) ([]string, error) {
	if len(value) > MaxBytes {
		return nil, fmt.Errorf("%d bytes are more than %d", len(value), MaxBytes)
	}
	if !strings.HasPrefix(strings.TrimLeft(value, " \t\r\n"), "[") {
		return nil, errors.New(`not a JSON list of node label keys, such as ["` + api.SiteLabel + `"]`)
	}
	var keys []string
	if err := json.Unmarshal([]byte(value), &keys); err != nil {
		return nil, fmt.Errorf("not a JSON list of node label keys: %w", err)
	}
	if len(keys) > MaxKeys {
		return nil, fmt.Errorf("%d keys are more than %d", len(keys), MaxKeys)
	}
	for _, key := range keys {
		if problems := validation.IsQualifiedName(key); len(problems) != 0 {
			return nil, fmt.Errorf("%q is not a node label key: %s", key, problems[0])
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// Closed says whether the rule can keep anything back.
func (r Rule) Closed() bool { return len(r.Keys) != 0 || r.Unreadable != nil }

// Equal says whether two rules keep the same endpoints.
func (r Rule) Equal(other Rule) bool {
	return (r.Unreadable != nil) == (other.Unreadable != nil) && slices.Equal(r.Keys, other.Keys)
}

// A Node knows what one node has in common with others.
type Node interface {
	// Shares says whether this node and the named one both have the label, with
	// the same value. A node that has a label shares it with itself.
	Shares(key, node string) bool
}

// Keeps says whether the node may use the endpoint. One without a node is for
// everybody: it is outside the cluster, or was written by hand.
func (r Rule) Keeps(node Node, endpoint *discoveryv1.Endpoint) bool {
	if !r.Closed() || endpoint.NodeName == nil || *endpoint.NodeName == "" {
		return true
	}
	if r.Unreadable != nil {
		return false
	}
	for _, key := range r.Keys {
		if !node.Shares(key, *endpoint.NodeName) {
			return false
		}
	}
	return true
}

// Filter returns the endpoints that the node may use, in their order, and
// whether that is all of them. It then returns what it was given; it never
// changes it.
func (r Rule) Filter(node Node, endpoints []discoveryv1.Endpoint) ([]discoveryv1.Endpoint, bool) {
	keeps := func(e discoveryv1.Endpoint) bool { return r.Keeps(node, &e) }
	first := slices.IndexFunc(endpoints, func(e discoveryv1.Endpoint) bool { return !keeps(e) })
	if first < 0 {
		return endpoints, true
	}
	kept := slices.Clone(endpoints[:first])
	for _, e := range endpoints[first:] {
		if keeps(e) {
			kept = append(kept, e)
		}
	}
	return slices.Clip(kept), false
}
