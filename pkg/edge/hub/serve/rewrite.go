package serve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// What is rewritten, on its way out and only there; the store keeps what the
// cloud says. An answer to a write is not rewritten.
//
//	for            object                                    how
//	the node       ConfigMap kube-root-ca.crt, everywhere    ca.crt also has the node's own authority
//	the node       ConfigMap kube-system/kube-proxy          kubeconfig.conf leads to the hub
//	the node       its Node, offline                         no NoExecute taint of a lost heartbeat
//	everybody      EndpointSlices of default/kubernetes      lead to the hub
//	DNS            EndpointSlices of closed Services         only endpoints for this node (closed.go)
const (
	rootCAName     = "kube-root-ca.crt"
	rootCAKey      = "ca.crt"
	proxyName      = "kube-proxy"
	proxyNamespace = "kube-system"
	proxyKey       = "kubeconfig.conf"
	apiService     = "kubernetes"
)

// rewrites says that an answer to this request can have an object that is
// rewritten online, too.
func (x *exchange) rewrites() bool {
	req := x.req
	if !req.IsResource || req.Subresource != "" {
		return false
	}
	switch {
	case req.Group == "" && req.Resource == "configmaps":
		return x.caller.Node && (req.Name == "" || req.Name == rootCAName || (req.Name == proxyName && (req.Namespace == "" || req.Namespace == proxyNamespace)))
	case req.Group == discoveryv1.GroupName && req.Resource == "endpointslices":
		return req.Namespace == "" || req.Namespace == "default" || x.forDNS()
	}
	return false
}

// rewrite returns an object as this caller is to see it, and whether that is
// another than it was.
func (x *exchange) rewrite(o store.Object, offline bool) (store.Object, bool, error) {
	switch {
	case o.Group == "" && o.Resource == "configmaps" && x.caller.Node:
		if o.Name == rootCAName || (o.Name == proxyName && o.Namespace == proxyNamespace) {
			return typed(o, x.rewriteConfigMap)
		}
	case o.Group == "" && o.Resource == "nodes" && x.caller.Node && offline && o.Name == x.NodeName:
		return typed(o, rewriteNode)
	case o.Group == discoveryv1.GroupName && o.Resource == "endpointslices" && o.Version == "v1" && o.Namespace == "default":
		meta, err := wire.Meta(o)
		if err != nil {
			return o, false, err
		}
		if meta.Labels[discoveryv1.LabelServiceName] == apiService {
			return typed(o, x.rewriteSlice)
		}
	}
	if x.forDNS() && o.Group == discoveryv1.GroupName && o.Resource == "endpointslices" && o.Version == "v1" {
		return x.rewriteClosed(o)
	}
	return o, false, nil
}

// typed changes an object in its Go type.
func typed[T any](o store.Object, change func(*T) bool) (store.Object, bool, error) {
	object, err := wire.Typed(o)
	if err != nil {
		return o, false, fmt.Errorf("reading %s %s/%s: %w", o.Resource, o.Namespace, o.Name, err)
	}
	it, ok := any(object).(*T)
	if !ok {
		return o, false, nil // a version that is not compiled in
	}
	if !change(it) {
		return o, false, nil
	}
	changed, err := wire.FromTyped(object, o.Key)
	if err != nil {
		return o, false, fmt.Errorf("writing %s %s/%s: %w", o.Resource, o.Namespace, o.Name, err)
	}
	return changed, true, nil
}

// kubeconfigServer is the one line of kubeadm's kubeconfig.conf that says where
// the API server is.
var kubeconfigServer = regexp.MustCompile(`(?m)^(\s*server:)[ \t].*$`)

func (x *exchange) rewriteConfigMap(m *corev1.ConfigMap) bool {
	if m.Name == proxyName {
		text, ok := m.Data[proxyKey]
		if !ok {
			return false
		}
		m.Data[proxyKey] = kubeconfigServer.ReplaceAllString(text, "${1} "+x.HubURL)
		return m.Data[proxyKey] != text
	}
	bundle, own := m.Data[rootCAKey], string(bytes.TrimSpace(x.NodeCA()))
	if bundle == "" || own == "" || bytes.Contains([]byte(bundle), []byte(own)) {
		return false
	}
	if bundle[len(bundle)-1] != '\n' {
		bundle += "\n"
	}
	m.Data[rootCAKey] = bundle + own + "\n"
	return true
}

// rewriteNode takes the taints away that a lost heartbeat brought: offline they
// say nothing, and with them the kubelet would refuse its own pods.
func rewriteNode(n *corev1.Node) bool {
	before := len(n.Spec.Taints)
	n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady)
	})
	return len(n.Spec.Taints) != before
}

func (x *exchange) rewriteSlice(s *discoveryv1.EndpointSlice) bool {
	if s.AddressType != discoveryv1.AddressTypeIPv4 {
		return false
	}
	yes, name, protocol, port := true, "https", corev1.ProtocolTCP, x.PodPort
	s.Endpoints = []discoveryv1.Endpoint{{
		Addresses:  []string{x.PodAddress},
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
	}}
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}}
	return true
}

func (x *exchange) rewriteEvent(e wire.Event, offline bool) (wire.Event, error) {
	switch e.Type {
	case watch.Added, watch.Modified, watch.Deleted:
		o, _, err := x.rewrite(e.Object, offline)
		e.Object = o
		return e, err
	}
	return e, nil
}

func (x *exchange) listKey() store.Key {
	return store.Key{Group: x.req.Group, Version: x.req.Version, Resource: x.req.Resource, Namespace: x.req.Namespace}
}

// rewriteWatch rewrites the events of a watch that passes through.
func (x *exchange) rewriteWatch(resp *http.Response) error {
	contentType := resp.Header.Get("Content-Type")
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return fmt.Errorf("a watch in encoding %q, which was not asked for", encoding)
	}
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), true)
	if err != nil || media.As != wire.AsIs {
		return nil
	}
	events, err := wire.NewEventReader(contentType, resp.Body, x.listKey(), 2*maxObject)
	if err != nil {
		return nil
	}
	resp.Header.Set("Content-Type", media.ContentType(true))
	resp.Body = &rewrittenWatch{x: x, media: media, events: events, Closer: resp.Body}
	return nil
}

type rewrittenWatch struct {
	io.Closer
	x      *exchange
	media  wire.Media
	events *wire.EventReader
	rest   []byte
}

func (w *rewrittenWatch) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		event, err := w.events.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("reading a watch: %w", err)
			}
			return 0, err
		}
		if event, err = w.x.rewriteEvent(event, false); err != nil {
			return 0, err
		}
		if w.rest, err = wire.EncodeEvent(w.media, event); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}
