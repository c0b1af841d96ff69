// Package observer watches the other nodes of the site: it runs the rules of
// package detect over the connections of package mesh, tells the cloud what
// package report decides, and tells its own node which neighbours are dead, also
// while the cloud is away.
//
// It must not know where the names of the nodes and the questions of the cloud
// come from, nor how a report gets there.
package observer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/mesh"
	"skerry.dev/skerry/pkg/edge/observer/report"
)

// Reports writes this node's NodeReport to the cloud.
type Reports interface {
	Put(ctx context.Context, spec sitev1.NodeReportSpec) error
	// Delete removes it; that there is none is no error.
	Delete(ctx context.Context) error
}

// Member is a node of the site.
type Member struct {
	Name, UID string
	// Addresses are where it can be reached.
	Addresses []netip.Addr
	// Dead says that the cloud calls it dead.
	Dead bool
}

// Site is what the cloud says about this node's site.
type Site struct {
	// Name is the site's; empty: the node has none, and observes nobody.
	Name string
	// Members are the nodes of the site; this one may be among them.
	Members []Member
	// Witnesses is how many must speak against a node, and Doubts whom the cloud
	// asks about.
	Witnesses int
	Doubts    []sitev1.Doubt
}

// Options are what an Observer is made of. All but Health are required.
type Options struct {
	// Node is this node's name.
	Node string
	// Listen is where observers speak to each other: they all take its port.
	Listen netip.AddrPort
	// Certificate and Authority are those that nodes show each other: see
	// mesh.Options.
	Certificate func() (*tls.Certificate, error)
	Authority   func() (*x509.CertPool, error)
	// Online says whether the cloud is there, and Changes is closed when that
	// changes.
	Online  func() bool
	Changes func() <-chan struct{}
	Reports Reports
	// Health watches this node, calls its argument with each change, and returns
	// when ctx ends.
	Health   func(ctx context.Context, changed func(detect.Health))
	Registry prometheus.Registerer
	Logger   *slog.Logger
	// Tuning is for tests and measurements.
	Tuning detect.Tuning
}

const (
	// reportTimeout bounds one try to write a report.
	reportTimeout = 10 * time.Second
	// refresh is how often what is known is told again though nothing happened.
	refresh = time.Second
	// retry is when the socket is tried again that could not be opened.
	retry = 3 * time.Second
	// inbox is how many messages may wait.
	inbox = 256
)

// Observer watches the neighbours of one node. Its methods are safe for
// concurrent use.
type Observer struct {
	o        Options
	log      *slog.Logger
	metrics  *metrics
	messages chan received
	wake     chan struct{}
	written  chan writeResult
	knocked  chan knockResult
	knocking chan struct{} // one for each knock under way

	site      atomic.Pointer[Site]
	addresses atomic.Pointer[addressBook]
	health    atomic.Pointer[detect.Health]
	mesh      atomic.Pointer[mesh.Mesh]
	counts    atomic.Pointer[counts]

	mu      sync.Mutex
	known   agentapi.Neighbours
	changed chan struct{}
	problem error

	// Of the loop alone:
	detector *detect.Detector
	reporter *report.Reporter
	current  *Site
	settled  map[string]time.Time
	blind    blindness
}

type received struct {
	from    string
	message detect.Message
}

type writeResult struct {
	action report.Action
	err    error
}

// New makes an observer that knows nobody yet.
func New(o Options) (*Observer, error) {
	seed := rand.NewPCG(rand.Uint64(), rand.Uint64())
	random := rand.New(seed)
	ob := &Observer{
		o: o, log: o.Logger, messages: make(chan received, inbox), wake: make(chan struct{}, 1), written: make(chan writeResult, 1),
		knocked: make(chan knockResult, inbox), knocking: make(chan struct{}, maxKnocks),
		changed: make(chan struct{}), settled: map[string]time.Time{},
		detector: detect.New(detect.Options{Self: o.Node, Rand: random, Tuning: o.Tuning}),
		reporter: report.New(report.Options{Self: o.Node, Rand: random, Knock: true}),
	}
	ob.site.Store(&Site{})
	ob.addresses.Store(&addressBook{})
	ob.health.Store(&detect.Health{})
	ob.counts.Store(&counts{})
	var err error
	if ob.metrics, err = newMetrics(ob, o.Registry); err != nil {
		return nil, err
	}
	return ob, nil
}

// SetSite says what is known about the site.
func (ob *Observer) SetSite(site Site) {
	if site.Name == "" {
		site.Members, site.Doubts = nil, nil
	}
	book := newAddressBook(site.Members, ob.o.Node, ob.o.Listen.Port())
	ob.addresses.Store(book)
	ob.site.Store(&site)
	if m := ob.mesh.Load(); m != nil {
		m.Members()
	}
	ob.poke()
}

func (ob *Observer) poke() {
	select {
	case ob.wake <- struct{}{}:
	default:
	}
}

// Neighbours is what this node knows about its site.
func (ob *Observer) Neighbours() agentapi.Neighbours {
	ob.mu.Lock()
	defer ob.mu.Unlock()
	known := ob.known
	known.Members = slices.Clone(known.Members)
	return known
}

// Neighbour is what this node knows about one other of its site; ok is false if
// there is none of that name.
func (ob *Observer) Neighbour(name string) (neighbour agentapi.Neighbour, ok bool) {
	ob.mu.Lock()
	defer ob.mu.Unlock()
	i, ok := slices.BinarySearchFunc(ob.known.Members, name, func(n agentapi.Neighbour, name string) int {
		return compare(n.Name, name)
	})
	if !ok {
		return agentapi.Neighbour{}, false
	}
	return ob.known.Members[i], true
}

// Changes is closed when the state of a neighbour has changed.
func (ob *Observer) Changes() <-chan struct{} {
	ob.mu.Lock()
	defer ob.mu.Unlock()
	return ob.changed
}

// Problem says why nobody is observed though there is a site; nil: all is well.
func (ob *Observer) Problem() error {
	ob.mu.Lock()
	defer ob.mu.Unlock()
	return ob.problem
}

func (ob *Observer) setProblem(err error) {
	ob.mu.Lock()
	defer ob.mu.Unlock()
	if err != nil && (ob.problem == nil || ob.problem.Error() != err.Error()) {
		ob.log.Warn("the neighbours cannot be observed", "err", err)
	}
	ob.problem = err
}

// Run observes until ctx ends.
func (ob *Observer) Run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	if ob.o.Health != nil {
		group.Go(func() {
			ob.o.Health(ctx, func(h detect.Health) {
				ob.health.Store(&h)
				ob.poke()
			})
		})
	}
	group.Go(func() { ob.runMesh(ctx) })
	ob.loop(ctx, &group)
}

// runMesh keeps the connections, while there is a site.
func (ob *Observer) runMesh(ctx context.Context) {
	for ctx.Err() == nil {
		if ob.site.Load().Name == "" {
			ob.setProblem(nil)
			wait(ctx, refresh)
			continue
		}
		door, err := newDoor(ob.o.Listen)
		if err != nil {
			ob.setProblem(err)
			wait(ctx, retry)
			continue
		}
		go door.run()
		m, err := mesh.New(mesh.Options{
			Self: ob.o.Node, Listen: ob.o.Listen, Certificate: ob.o.Certificate, Authority: ob.o.Authority,
			Addresses: func(name string) ([]netip.AddrPort, bool) { return ob.addresses.Load().of(name) },
			Known:     func(a netip.Addr) bool { return ob.addresses.Load().known[a] },
			Receive:   ob.receive, Logger: ob.log,
		})
		ob.setProblem(err)
		if err != nil {
			door.close()
			wait(ctx, retry)
			continue
		}
		ob.mesh.Store(m)
		running, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for running.Err() == nil {
				if wait(running, refresh); ob.site.Load().Name == "" {
					stop()
				}
			}
		}()
		err = m.Run(running)
		stop()
		door.close()
		<-done
		ob.mesh.Store(nil)
		if err != nil && ctx.Err() == nil && ob.site.Load().Name != "" {
			ob.setProblem(err)
			wait(ctx, retry)
		}
	}
}

// receive takes a message from a connection.
func (ob *Observer) receive(from string, data []byte) {
	message, err := detect.Decode(data)
	if err != nil {
		ob.metrics.malformed.Inc()
		return
	}
	select {
	case ob.messages <- received{from, message}:
	default:
		ob.metrics.overrun.Inc()
	}
}

// write does what the reporter has decided.
func (ob *Observer) write(ctx context.Context, action report.Action) {
	limited, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	var err error
	if action.Kind == report.Put {
		err = ob.o.Reports.Put(limited, action.Spec)
	} else {
		err = ob.o.Reports.Delete(limited)
	}
	ob.metrics.wrote(action.Kind, err)
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		ob.log.Debug("writing the report about the neighbours", "err", err)
	}
	ob.written <- writeResult{action, err}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
