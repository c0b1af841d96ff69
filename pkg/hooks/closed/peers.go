package closed

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"skerry.dev/skerry/pkg/topology"
)

// peers are the names of the nodes that have a label with this node's value. It
// is a cache.ReflectorStore.
type peers struct {
	p          *Provider
	key, value string
	stop       context.CancelFunc

	// With Provider.mu held:
	names  map[string]bool
	synced bool
}

var _ cache.ReflectorStore = &peers{}

// followNeeded follows the labels that closed Services name and this node has,
// so there are never more watches than labels on the node. Called with mu held.
func (p *Provider) followNeeded() {
	needed := map[string]bool{}
	for _, rule := range p.rules {
		for _, key := range rule.Keys {
			if _, ok := p.labels[key]; ok {
				needed[key] = true
			}
		}
	}
	for key, s := range p.peers {
		if !needed[key] || s.value != p.labels[key] {
			s.stop()
			delete(p.peers, key)
		}
	}
	for key := range needed {
		if p.peers[key] == nil {
			ctx, stop := context.WithCancel(p.ctx)
			s := &peers{p: p, key: key, value: p.labels[key], stop: stop, names: map[string]bool{}}
			p.peers[key] = s
			p.logger.V(2).Info("Following nodes", "label", key, "value", s.value)
			p.follow(ctx, key, s.value, s)
		}
	}
	p.startIfKnown()
}

// change makes one change to the names. One that was stopped has no say any more.
func (s *peers) change(do func() (changed []string)) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if s.p.peers[s.key] != s {
		return
	}
	nodes := map[string]bool{}
	for _, name := range do() {
		nodes[name] = true
	}
	if len(nodes) != 0 {
		s.p.refresh(func(rule topology.Rule, sl *slice) bool {
			return slices.Contains(rule.Keys, s.key) && s.p.mentions(sl.is, nodes)
		})
	}
	s.p.startIfKnown()
}

// Add implements cache.ReflectorStore.
func (s *peers) Add(obj any) error {
	o, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("node of label %s: %w", s.key, err)
	}
	s.change(func() []string {
		if s.names[o.GetName()] {
			return nil
		}
		s.names[o.GetName()] = true
		return []string{o.GetName()}
	})
	return nil
}

// Update implements cache.ReflectorStore.
func (s *peers) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *peers) Delete(obj any) error {
	o, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("node of label %s: %w", s.key, err)
	}
	s.change(func() []string {
		if !s.names[o.GetName()] {
			return nil
		}
		delete(s.names, o.GetName())
		return []string{o.GetName()}
	})
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *peers) Replace(objects []any, _ string) error {
	names := make(map[string]bool, len(objects))
	for _, obj := range objects {
		o, err := meta.Accessor(obj)
		if err != nil {
			return fmt.Errorf("node of label %s: %w", s.key, err)
		}
		names[o.GetName()] = true
	}
	s.change(func() []string {
		var changed []string
		for name := range s.names {
			if !names[name] {
				changed = append(changed, name)
			}
		}
		for name := range names {
			if !s.names[name] {
				changed = append(changed, name)
			}
		}
		s.names, s.synced = names, true
		return changed
	})
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *peers) Resync() error { return nil }

// followNodes follows nodes through kube-proxy's own connections. Only their
// metadata comes over the link.
func followNodes(client clientset.Interface) func(context.Context, string, string, cache.ReflectorStore) {
	core := client.CoreV1().RESTClient().(*rest.RESTClient)
	base := strings.TrimSuffix(core.Get().AbsPath("/").URL().String(), "/")
	nodes, err := metadata.NewForConfigAndClient(&rest.Config{Host: base}, core.Client)
	if err != nil {
		panic("closed: the address that kube-proxy uses is none: " + err.Error())
	}
	return followWith(nodes)
}

func followWith(client metadata.Interface) func(context.Context, string, string, cache.ReflectorStore) {
	nodes := client.Resource(v1.SchemeGroupVersion.WithResource("nodes"))
	return func(ctx context.Context, key, value string, store cache.ReflectorStore) {
		selector := labels.SelectorFromSet(labels.Set{key: value}).String()
		lw := &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				options.LabelSelector = selector
				return nodes.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				options.LabelSelector = selector
				return nodes.Watch(ctx, options)
			},
		}
		reflector := cache.NewReflectorWithOptions(lw, &metav1.PartialObjectMetadata{}, store, cache.ReflectorOptions{
			Name: "nodes with " + selector,
		})
		go reflector.RunWithContext(klog.NewContext(ctx, klog.FromContext(ctx)))
	}
}
