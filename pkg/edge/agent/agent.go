// Package agent is skerry-agent: it reads the configuration, opens the store,
// and joins the parts of the hub to one process. Each part is a package of its
// own that knows nothing of the others but what it declares; what they have to
// do with each other is here, and only here.
//
// It must not know what a request means, nor how anything is stored.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/closed"
	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/outbox"
	"skerry.dev/skerry/pkg/edge/hub/serve"
	"skerry.dev/skerry/pkg/edge/hub/tokens"
	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/observer"
	"skerry.dev/skerry/pkg/edge/store"
)

// settleFor is how long the first requests wait to learn whether the cloud is
// there.
const settleFor = time.Second

// firstSync is how long a read waits for the cloud where the store has an older
// answer: a kubelet's own patience must not end before.
const firstSync = 2 * time.Second

// Agent is the parts of a running skerry-agent.
type Agent struct {
	config   *agentv1.AgentConfiguration
	version  string
	log      *slog.Logger
	started  time.Time
	registry *prometheus.Registry
	policy   *Policy
	problems problems
	clock    clock
	outage   outage
	settled  atomic.Bool // whether the API server has been tried
	maxBytes int64       // of the store, since the start

	store         *store.Store
	pki           *identity.NodePKI
	authenticator *identity.Authenticator
	certificates  *upstream.Certificates
	upstream      *upstream.Upstream
	tokens        *tokens.Tokens
	views         *views.Views
	outbox        *outbox.Outbox
	closed        *closed.Services
	hub           *serve.Handler
	observer      *observer.Observer // nil: switched off
}

// Run is skerry-agent until ctx ends. An error says what must be put right
// before another try; what can come right by itself is waited for instead, and
// told as a problem.
func Run(ctx context.Context, config *agentv1.AgentConfiguration, version string, log *slog.Logger) (err error) {
	debug.SetGCPercent(config.Memory.GCPercent)
	debug.SetMemoryLimit(config.Memory.SoftLimitBytes)
	a := &Agent{config: config, version: version, log: log, started: time.Now(), registry: prometheus.NewRegistry(), policy: NewPolicy()}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The store comes first: it proves that no other agent runs here.
	if err := a.openStore(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, a.clock.save(a.store), a.store.Close())
	}()
	if err := a.build(); err != nil {
		return err
	}
	a.registerMetrics()
	return a.serve(ctx)
}

// path is a file in the agent's own folder.
func (a *Agent) path(name string) string { return filepath.Join(a.config.Files.StateDir, name) }

// openStore opens the store, with the size that the last policy allows.
func (a *Agent) openStore() error {
	for _, dir := range []string{a.config.Files.StateDir, filepath.Dir(a.config.Files.Journal)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making a folder of the agent: %w", err)
		}
	}
	if err := os.Chmod(a.config.Files.StateDir, 0o700); err != nil {
		return fmt.Errorf("making the agent's folder its own: %w", err)
	}
	if err := a.policy.load(a.path(policyFile)); err != nil {
		a.problem("policy file", err)
	}
	a.maxBytes = a.policy.Current().Store.MaxBytes
	options := a.storeOptions()
	opened, err := store.Open(options)
	if errors.Is(err, store.ErrDamaged) {
		opened, err = a.replaceStore(options, err)
	}
	if err != nil {
		return fmt.Errorf("opening the store in %s: %w", a.config.Files.StateDir, err)
	}
	a.store = opened
	a.problem("store", a.storesAside())
	return errors.Join(a.clock.load(a.store), a.outage.load(a.store))
}

func (a *Agent) storeOptions() store.Options {
	return store.Options{
		Path: a.path("store.db"), KeyFile: a.path("store.key"), JournalPath: a.config.Files.Journal,
		MaxBytes: a.maxBytes, Logger: a.log,
	}
}

// build makes the parts. Nothing runs yet, and nothing waits for the network.
func (a *Agent) build() (err error) {
	node, dir := a.config.NodeName, a.path("pki")
	if a.pki, err = identity.EnsurePKI(dir, node, a.names(), a.log); err != nil {
		return fmt.Errorf("making the node's own certificates: %w", err)
	}
	if a.certificates, err = upstream.NewCertificates(upstream.CertificateOptions{
		Dir: dir, NodeName: node, ClusterCA: a.config.Files.ClusterCA, Servers: a.config.Servers,
		Bootstrap: a.config.Files.BootstrapKubeconfig, RejoinPort: a.config.RejoinPort, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("reading the node's certificate: %w", err)
	}
	if a.upstream, err = upstream.New(upstream.Options{
		Servers: a.config.Servers, CAFile: a.config.Files.ClusterCA, NodeName: node, Certificates: a.certificates,
		Registry: a.registry, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("preparing the way to the API server: %w", err)
	}
	if a.authenticator, err = identity.NewAuthenticator(identity.AuthenticatorOptions{
		NodeName: node, PKI: a.pki, ClusterCA: a.config.Files.ClusterCA, Documents: a.store,
		Bindings: bindings{Bindings: identity.StoreBindings(a.store, node), store: a.store, pods: podsOf(node)}, Fetch: a.fetch,
		OfflineTokenGrace: a.policy.TokenGrace, LastSeen: a.clock.lastSeen, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("preparing authentication: %w", err)
	}
	authorizer := identity.NewAuthorizer(identity.AuthorizerOptions{Objects: a.store, Transport: a.upstream.Transport, Logger: a.log})
	a.tokens = tokens.New(tokens.Options{Store: a.store, Logger: a.log})
	if a.outbox, err = outbox.New(outbox.Options{
		Store: a.store, NodeName: node, Online: a.upstream.Online, Changes: a.upstream.Changes, Do: a.upstream.Do,
		Publish: func(ctx context.Context, before, after *store.Object) error {
			return a.views.Publish(ctx, before, after)
		},
		Registry: a.registry, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("reading the unsent writes: %w", err)
	}
	if a.views, err = views.New(views.Options{
		Store: a.store, Upstream: a.upstream, Rebase: a.outbox.Rebase, BeforeLive: a.beforeLive, Whole: a.policy.Whole,
		Permanent: append(identity.RBACQueries(), policyQuery), FirstSync: firstSync, Registry: a.registry, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("preparing the views: %w", err)
	}
	a.closed = closed.New(node, a.views, a.log)
	if a.hub, err = serve.New(serve.Options{
		NodeName: node, Upstream: a.upstream, Authenticator: a.authenticator, Authorizer: authorizer, Store: a.store,
		Views: a.views, Writer: a.outbox, Tokens: a.tokens, Keep: a.policy.Keep, Closed: a.closed, NodeCA: a.pki.CA, HubURL: "https://" + a.config.Listen.Hub,
		PodAddress: a.podAddress().Addr().String(), PodPort: int32(a.podAddress().Port()),
		Registry: a.registry, Logger: a.log,
	}); err != nil {
		return fmt.Errorf("preparing the hub: %w", err)
	}
	return a.buildObserver()
}

// podAddress is where pods reach the hub; without a listener for them, that of
// the node's components.
func (a *Agent) podAddress() netip.AddrPort {
	text := a.config.Listen.Pods
	if text == agentv1.None {
		text = a.config.Listen.Hub
	}
	return netip.MustParseAddrPort(text) // the configuration was checked
}

// names are what clients call the hub.
func (a *Agent) names() []string {
	names := []string{"localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + a.config.ClusterDomain}
	names = append(names, a.config.ServiceAddresses...)
	for _, address := range []netip.AddrPort{netip.MustParseAddrPort(a.config.Listen.Hub), a.podAddress()} {
		if text := address.Addr().String(); text != "127.0.0.1" {
			names = append(names, text)
		}
	}
	return names
}

// serve opens the listeners and runs all parts until ctx ends, or a part that
// the others cannot do without.
func (a *Agent) serve(ctx context.Context) error {
	hub, err := listen(a.config.Listen.Hub)
	if err != nil {
		return err
	}
	defer hub.Close()
	health, err := listen(a.config.Listen.Health)
	if err != nil {
		return err
	}
	defer health.Close()
	socket, err := listenSocket(a.config.Listen.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	run := func(what string, part func(context.Context) error) {
		group.Go(func() {
			if err := part(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s ended: %w", what, err))
			}
		})
	}
	simple := func(part func(context.Context)) { group.Go(func() { part(ctx) }) }

	run("the status socket", func(ctx context.Context) error {
		return serveHTTP(ctx, newServer(a.socketHandler(), a.log), socket)
	})
	run("the health listener", func(ctx context.Context) error {
		return serveHTTP(ctx, newServer(a.healthHandler(), a.log), health)
	})
	run("the way to the API server", a.upstream.Run)
	run("the node's certificate", func(ctx context.Context) error { return a.certificates.Run(ctx, a.upstream) })
	simple(a.pki.Run)
	simple(func(ctx context.Context) { a.authenticator.Run(ctx, a.upstream.Online) })
	run("the views", a.views.Run)
	run("the queue of unsent writes", a.outbox.Run)
	simple(a.closed.Run)
	simple(a.hub.Run)
	simple(a.followPolicy)
	simple(a.keepTidy)
	a.upstream.Settle(ctx, settleFor)
	a.settled.Store(true)
	simple(a.noteOutages)
	run("the hub", func(ctx context.Context) error { return a.serveHub(ctx, hub) })
	simple(a.servePods)
	simple(a.runObserver)
	a.log.Info("serving", "node", a.config.NodeName, "hub", a.config.Listen.Hub, "pods", a.config.Listen.Pods,
		"online", a.upstream.Online(), "took", time.Since(a.started).Round(time.Millisecond))

	<-ctx.Done()
	group.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	a.log.Info("stopped")
	return nil
}

// noteOutages keeps the beginning of an outage until it ends.
func (a *Agent) noteOutages(ctx context.Context) {
	for {
		changes := a.upstream.Changes()
		a.problem("outage", a.outage.note(a.store, a.upstream.State()))
		select {
		case <-ctx.Done():
			return
		case <-changes:
		}
	}
}

// problem notes a problem for the status, and logs it when it is news.
func (a *Agent) problem(about string, err error) {
	if !a.problems.set(about, err) {
		return
	}
	if err == nil {
		a.log.Info("a problem is over", "about", about)
		return
	}
	a.log.Warn("there is a problem", "about", about, "err", err)
}
