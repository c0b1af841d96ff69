// Package closed knows which endpoints of closed Services this node may use, for
// those who read EndpointSlices through the hub and cannot know it themselves:
// DNS, which answers for Services that kube-proxy never sees. It follows
// Services, the node's own labels and the nodes that share them in the hub's
// views, which the store keeps: so it knows them after a reboot without the
// cloud, too.
//
// It must not know how slices are served, nor who asks.
package closed

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/store"
	"skerry.dev/skerry/pkg/gridname"
	"skerry.dev/skerry/pkg/topology"
)

const (
	// maxReaders bounds the readers that are remembered. One that is forgotten
	// lists once more.
	maxReaders = 64
	// maxGrids bounds the names in an annotation of a Service.
	maxGrids = 16
)

// Views are the hub's; *views.Views is one.
type Views interface {
	Acquire(ctx context.Context, c identity.Caller, q store.Query) (*views.View, error)
}

// Services is what is known. Safe for concurrent use.
type Services struct {
	nodeName string
	views    Views
	log      *slog.Logger

	mu sync.Mutex
	// nil until they are known.
	services map[name]service
	labels   map[string]string // of this node
	peers    map[string]*peers // by label key, of those that services name
	// generation counts what happened that can make a slice come out
	// differently; changed is closed at the next time.
	generation uint64
	changed    chan struct{}
	readers    map[string]uint64 // the generation at which each has listed
}

type name struct{ namespace, name string }

// service is a closed Service.
type service struct {
	rule  topology.Rule
	grids []string // StatefulSetGrids whose pods have their names in it
}

// peers are the nodes that share this node's value of a label.
type peers struct {
	value string
	names map[string]bool // nil until they are known
	stop  context.CancelFunc
}

// New returns a Services that knows nothing before Run.
func New(nodeName string, v Views, log *slog.Logger) *Services {
	return &Services{nodeName: nodeName, views: v, log: log, peers: map[string]*peers{}, changed: make(chan struct{}), readers: map[string]uint64{}}
}

// Run follows what there is to know until ctx ends.
func (s *Services) Run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		follow(ctx, s, store.Query{Version: "v1", Resource: "services"}, readService, func(all map[name]service) {
			s.change(ctx, &group, func() bool {
				same := s.services != nil && maps.EqualFunc(s.services, all, service.equal)
				s.services = maps.Clone(all)
				return !same
			})
		})
	})
	group.Go(func() {
		own := store.Query{Version: "v1", Resource: "nodes", FieldSelector: fields.OneTermEqualSelector("metadata.name", s.nodeName).String()}
		follow(ctx, s, own, readLabels, func(all map[name]map[string]string) {
			s.change(ctx, &group, func() bool {
				now := all[name{name: s.nodeName}]
				same := s.labels != nil && maps.Equal(s.labels, now)
				s.labels = maps.Clone(now)
				if s.labels == nil {
					s.labels = map[string]string{}
				}
				return !same
			})
		})
	})
	<-ctx.Done()
}

// change makes a change, and follows the nodes of labels that are needed now.
func (s *Services) change(ctx context.Context, group *sync.WaitGroup, do func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !do() {
		return
	}
	needed := map[string]bool{}
	for _, service := range s.services {
		for _, key := range service.rule.Keys {
			if _, ok := s.labels[key]; ok {
				needed[key] = true
			}
		}
	}
	for key, p := range s.peers {
		if !needed[key] || p.value != s.labels[key] {
			p.stop()
			delete(s.peers, key)
		}
	}
	for key := range needed {
		if s.peers[key] == nil {
			s.followPeers(ctx, group, key)
		}
	}
	s.bump()
}

func (s *Services) followPeers(ctx context.Context, group *sync.WaitGroup, key string) {
	inner, stop := context.WithCancel(ctx)
	p := &peers{value: s.labels[key], stop: stop}
	s.peers[key] = p
	query := store.Query{Version: "v1", Resource: "nodes", LabelSelector: labels.Set{key: p.value}.String()}
	group.Go(func() {
		defer stop()
		follow(inner, s, query, readName, func(all map[name]bool) {
			s.change(ctx, group, func() bool {
				if s.peers[key] != p {
					return false
				}
				names := map[string]bool{}
				for n := range all {
					names[n.name] = true
				}
				same := p.names != nil && maps.Equal(p.names, names)
				p.names = names
				return !same
			})
		})
	})
}

// bump tells readers that slices may come out differently.
func (s *Services) bump() {
	s.generation++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Services) known() bool {
	if s.services == nil || s.labels == nil {
		return false
	}
	for _, p := range s.peers {
		if p.names == nil {
			return false
		}
	}
	return true
}

// errUnknown says that a slice cannot be judged yet.
var errUnknown = errors.New("this node does not know yet which endpoints of closed Services it may use")

// Await waits until slices can be judged, and returns the generation and what
// is closed when it ends.
func (s *Services) Await(ctx context.Context) (generation uint64, changed <-chan struct{}, err error) {
	for {
		s.mu.Lock()
		generation, changed = s.generation, s.changed
		known := s.known()
		s.mu.Unlock()
		if known {
			return generation, changed, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, nil, errUnknown
		}
	}
}

// Listed notes that a reader gets everything as it is in a generation.
func (s *Services) Listed(reader string, generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.readers) >= maxReaders {
		clear(s.readers)
	}
	s.readers[reader] = generation
}

// Current says whether what a reader has listed is as it would be now. One that
// is not known has not.
func (s *Services) Current(reader string, generation uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed, ok := s.readers[reader]
	return ok && listed == generation
}

// Closed says whether a Service is.
func (s *Services) Closed(namespace, service string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.services[name{namespace, service}]
	return ok
}

// Judge takes the endpoints out of a slice that this node may not use, gives
// pods of StatefulSetGrids the names that they have inside their site, and
// reports whether it changed anything.
func (s *Services) Judge(slice *discoveryv1.EndpointSlice) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	service, ok := s.services[name{slice.Namespace, slice.Labels[discoveryv1.LabelServiceName]}]
	if !ok {
		return false
	}
	kept, all := service.rule.Filter(node{s}, slice.Endpoints)
	changed := !all
	slice.Endpoints = kept
	if len(service.rule.Keys) != 1 {
		return changed
	}
	site, ok := s.labels[service.rule.Keys[0]]
	if !ok {
		return changed
	}
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if e.Hostname == nil {
			continue
		}
		for _, grid := range service.grids {
			if own, ok := gridname.Hostname(grid, site, *e.Hostname); ok {
				e.Hostname, changed = &own, true
				break
			}
		}
	}
	return changed
}

// node is this one, with mu held.
type node struct{ s *Services }

// Shares implements topology.Node.
func (n node) Shares(key, other string) bool {
	if _, ok := n.s.labels[key]; !ok {
		return false
	}
	if other == n.s.nodeName {
		return true
	}
	p := n.s.peers[key]
	return p != nil && p.names[other]
}

func (a service) equal(b service) bool {
	return a.rule.Equal(b.rule) && slices.Equal(a.grids, b.grids)
}

// grids reads the annotation of a ServiceGrid's Service. What cannot be read
// names nobody.
func grids(annotations map[string]string) []string {
	var names []string
	if err := json.Unmarshal([]byte(annotations[appsv1.StatefulSetGridsAnnotation]), &names); err != nil || len(names) > maxGrids {
		return nil
	}
	return names
}
