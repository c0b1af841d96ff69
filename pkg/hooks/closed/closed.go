// Package closed is the body of the kube-proxy patch: it stands between what
// kube-proxy watches and the proxier that writes rules, and takes out of closed
// Services the endpoints that this node may not use (pkg/topology says which).
// The proxier never sees them, so every mode, protocol and traffic policy works
// on what is left, and rules and memory grow with the site.
//
// It must know nothing of how rules are written, and asks the API for one thing:
// the names of the nodes that share a label with this one.
package closed

import (
	"context"
	"maps"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"k8s.io/kubernetes/pkg/proxy"

	"skerry.dev/skerry/pkg/topology"
)

// startTimeout bounds how long the first rules wait for the names of the nodes
// that share a label. They are unknown only if this node never knew them and
// the cloud is away. Closed Services then have endpoints of this very node, and
// all others must not wait.
const startTimeout = 10 * time.Second

// Provider implements proxy.Provider and app.SkerryTransformer. What it does not
// name goes to the proxier as it comes.
type Provider struct {
	proxy.Provider

	nodeName string
	logger   klog.Logger
	// follow starts to follow the nodes that have a label, until ctx ends.
	follow func(ctx context.Context, key, value string, nodes cache.ReflectorStore)
	ctx    context.Context

	// started is closed when the first endpoints can be judged.
	started   chan struct{}
	startOnce sync.Once

	// mu is held while the proxier is called, so that it hears of a slice in the
	// order in which things happened. It never calls back.
	mu             sync.Mutex
	labels         map[string]string // of this node
	rules          map[types.NamespacedName]topology.Rule
	slices         map[types.NamespacedName]map[string]*slice
	peers          map[string]*peers // by label key
	packer         packer
	servicesSynced bool
}

var (
	_ proxy.Provider        = &Provider{}
	_ app.SkerryTransformer = &Provider{}
	_ topology.Node         = &Provider{}
)

// slice is an EndpointSlice twice: as it is, perhaps packed, and as the proxier
// has it.
type slice struct {
	is, has *discoveryv1.EndpointSlice
	packed  int // endpoints of is
}

// Install sets the hook of this process and registers its metrics beside those
// of kube-proxy. It is called once, before kube-proxy runs.
func Install() {
	m := newMetrics()
	m.register()
	app.SkerryProvider = func(ctx context.Context, client clientset.Interface, nodeName string, node *proxy.NodeManager, proxier proxy.Provider) proxy.Provider {
		p := newProvider(ctx, nodeName, proxier, followNodes(client))
		if own := node.Node(); own != nil {
			p.setLabels(own.Labels)
		}
		_, err := node.NodeInformer().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { p.onNode(obj) },
			UpdateFunc: func(_, obj any) { p.onNode(obj) },
		})
		if err != nil {
			// The informer has ended, and kube-proxy with it.
			p.logger.Error(err, "Cannot follow the labels of this node", "node", nodeName)
		}
		m.provider.Store(p)
		return p
	}
}

func newProvider(ctx context.Context, nodeName string, proxier proxy.Provider, follow func(context.Context, string, string, cache.ReflectorStore)) *Provider {
	p := &Provider{
		Provider: proxier,
		nodeName: nodeName,
		logger:   klog.FromContext(ctx).WithName("closed-services"),
		follow:   follow,
		ctx:      ctx,
		started:  make(chan struct{}),
		rules:    map[types.NamespacedName]topology.Rule{},
		slices:   map[types.NamespacedName]map[string]*slice{},
		peers:    map[string]*peers{},
	}
	time.AfterFunc(startTimeout, func() {
		p.start("Endpoints of closed Services are judged before all nodes that share a label are known")
	})
	return p
}

// start lets endpoints through. A reason is a complaint.
func (p *Provider) start(reason string) {
	p.startOnce.Do(func() {
		if reason != "" {
			p.logger.Info(reason, "after", startTimeout)
		}
		close(p.started)
	})
}

// startIfKnown starts as soon as there is nothing left to wait for. Called with
// mu held.
func (p *Provider) startIfKnown() {
	if !p.servicesSynced {
		return
	}
	for _, s := range p.peers {
		if !s.synced {
			return
		}
	}
	p.start("")
}

func (p *Provider) wait() {
	select {
	case <-p.started:
	case <-p.ctx.Done():
	}
}

func (p *Provider) onNode(obj any) {
	if node, ok := obj.(*v1.Node); ok && node.Name == p.nodeName {
		p.setLabels(node.Labels)
	}
}

// setLabels takes note of this node's labels.
func (p *Provider) setLabels(labels map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(p.labels, labels) {
		return
	}
	before := p.labels
	p.labels = maps.Clone(labels)
	changed := map[string]bool{}
	for _, all := range []map[string]string{before, labels} {
		for key := range all {
			was, had := before[key]
			is, has := labels[key]
			if had != has || was != is {
				changed[key] = true
			}
		}
	}
	p.followNeeded()
	p.refresh(func(rule topology.Rule, _ *slice) bool {
		for _, key := range rule.Keys {
			if changed[key] {
				return true
			}
		}
		return false
	})
}

// Shares implements topology.Node. Called with mu held.
func (p *Provider) Shares(key, node string) bool {
	if _, ok := p.labels[key]; !ok {
		return false
	}
	if node == p.nodeName {
		return true
	}
	s := p.peers[key]
	return s != nil && s.names[node]
}

// OnServiceAdd implements config.ServiceHandler.
func (p *Provider) OnServiceAdd(service *v1.Service) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The endpoints first: the proxier must not have the Service with endpoints
	// that it may not use, not for a moment.
	p.setRule(service)
	p.Provider.OnServiceAdd(service)
}

// OnServiceUpdate implements config.ServiceHandler.
func (p *Provider) OnServiceUpdate(oldService, service *v1.Service) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setRule(service)
	p.Provider.OnServiceUpdate(oldService, service)
}

// OnServiceDelete implements config.ServiceHandler.
func (p *Provider) OnServiceDelete(service *v1.Service) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Its slices go too, in a moment. Until then they stay as they are.
	p.Provider.OnServiceDelete(service)
	delete(p.rules, nameOf(service))
	p.followNeeded()
}

// OnServiceSynced implements config.ServiceHandler.
func (p *Provider) OnServiceSynced() {
	p.mu.Lock()
	p.servicesSynced = true
	p.startIfKnown()
	p.mu.Unlock()
	p.Provider.OnServiceSynced()
}

// setRule takes note of a Service's annotation. Called with mu held.
func (p *Provider) setRule(service *v1.Service) {
	name, rule := nameOf(service), topology.RuleOf(service.Annotations)
	was := p.rules[name]
	if rule.Closed() {
		p.rules[name] = rule
	} else {
		delete(p.rules, name)
	}
	if rule.Unreadable != nil && (was.Unreadable == nil || was.Unreadable.Error() != rule.Unreadable.Error()) {
		p.logger.Error(rule.Unreadable, "Service is closed to every endpoint on a node: its annotation cannot be read",
			"service", name, "annotation", topology.Annotation)
	}
	if !was.Equal(rule) {
		p.followNeeded()
	}
	// Also if it did not change: slices may have come before their Service.
	p.refreshService(name, func(topology.Rule, *slice) bool { return true })
}

func nameOf(service *v1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: service.Namespace, Name: service.Name}
}
