// Package manager is skerry-controller-manager: the process beside the control
// plane in which Skerry's controllers run. It has the flags, the clients, the
// leader election, health and metrics; what a controller does is in that
// controller's package, which must not know this one.
//
// The controllers act in the replica that leads. The server that nodes rejoin at
// serves in each.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrl "sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/cloud/rejoin"
	"skerry.dev/skerry/pkg/cloud/servicegroup"
	"skerry.dev/skerry/pkg/cloud/site"
)

// Name is the program's, and that of the source of its events.
const Name = "skerry-controller-manager"

// Options are the flags.
type Options struct {
	Kubeconfig    string
	HealthAddress string

	Listen     string
	Files      rejoin.Files
	MaxExpired time.Duration

	// GridWebhookAddress is where grids are checked before they are stored.
	GridWebhookAddress string

	Election Election
	// QPS and Burst limit what the controllers ask of the API server.
	QPS   float32
	Burst int
}

// Election is how the replica is found that leads. The flags are those of
// Kubernetes' own components.
type Election struct {
	Elect     bool
	Namespace string
	Lease     time.Duration
	Renew     time.Duration
	Retry     time.Duration
}

// AddFlags adds the flags with their defaults.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "How to reach the API server. Empty: with the service account of this pod.")
	flags.StringVar(&o.HealthAddress, "health-address", "127.0.0.1:10273", "Where /healthz, /readyz and /metrics are served, as plain HTTP.")
	flags.StringVar(&o.Listen, "listen", fmt.Sprintf(":%d", agentapi.RejoinPort), "Where nodes whose certificate ran out get a new one.")
	flags.StringVar(&o.Files.Certificate, "tls-cert-file", "/etc/kubernetes/pki/apiserver.crt", "Certificate that nodes are shown, signed by the cluster's authority. It is read again when it changes.")
	flags.StringVar(&o.Files.Key, "tls-private-key-file", "/etc/kubernetes/pki/apiserver.key", "Key of --tls-cert-file.")
	flags.StringVar(&o.Files.Authorities, "client-ca-file", agentapi.ClusterCA, "Certificate authorities of the nodes' client certificates.")
	flags.DurationVar(&o.MaxExpired, "max-expired", rejoin.DefaultMaxExpired, "For how long after its end a certificate is good for getting a new one.")

	flags.StringVar(&o.GridWebhookAddress, "grid-webhook-address", servicegroup.DefaultWebhookAddress, "Loopback address at which the API server of this host has grids checked before it stores them. Empty: it does not, and what is wrong with a grid stands in its status only.")

	flags.BoolVar(&o.Election.Elect, "leader-elect", true, "Let one replica lead. Without it every replica decides, so there must be one only.")
	flags.StringVar(&o.Election.Namespace, "leader-elect-resource-namespace", metav1.NamespaceSystem, "Namespace of the Lease "+Name+" that the leader holds.")
	flags.DurationVar(&o.Election.Lease, "leader-elect-lease-duration", 15*time.Second, "How long the others wait after the leader's last renewal before they try to lead.")
	flags.DurationVar(&o.Election.Renew, "leader-elect-renew-deadline", 10*time.Second, "How long a leader that cannot renew goes on. Then this program ends.")
	flags.DurationVar(&o.Election.Retry, "leader-elect-retry-period", 2*time.Second, "Time between two tries to lead or to renew.")
	flags.Float32Var(&o.QPS, "kube-api-qps", 200, "Requests in a second that the controllers make of the API server.")
	flags.IntVar(&o.Burst, "kube-api-burst", 400, "Requests that they may make at once.")
}

func (o Options) check() error {
	if o.MaxExpired <= 0 {
		return fmt.Errorf("--max-expired=%s: it must be more than nothing", o.MaxExpired)
	}
	if e := o.Election; e.Elect && (e.Retry <= 0 || e.Renew <= e.Retry || e.Lease <= e.Renew) {
		return fmt.Errorf("--leader-elect-retry-period=%s, --leader-elect-renew-deadline=%s, --leader-elect-lease-duration=%s: each must be longer than the one before", e.Retry, e.Renew, e.Lease)
	}
	return nil
}

// Run runs the controllers until the context ends or one of them fails. It fails,
// too, when the replica led and leads no more.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if err := o.check(); err != nil {
		return err
	}
	config, err := clientConfig(o.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client of the API server: %w", err)
	}
	registry := prometheus.NewRegistry()

	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	recorder := events.NewRecorder(site.Scheme(), corev1.EventSource{Component: Name})

	nodes, err := rejoin.Listen(o.Listen, o.Files, rejoin.Options{
		Client: client, MaxExpired: o.MaxExpired, Registry: registry, Logger: log, Events: recorder,
	})
	if err != nil {
		return err
	}
	controllers, err := newControllers(config, o, log)
	if err != nil {
		return err
	}
	if err := site.Add(controllers, site.Options{Events: recorder, Registry: registry}); err != nil {
		return err
	}
	if err := servicegroup.Add(controllers, servicegroup.Options{Logger: log, WebhookAddress: o.GridWebhookAddress, Registry: registry}); err != nil {
		return err
	}
	health, err := net.Listen("tcp", o.HealthAddress)
	if err != nil {
		return fmt.Errorf("listening for --health-address: %w", err)
	}
	log.Info("started", "rejoin", nodes.Address().String(), "health", health.Addr().String(), "maxExpired", o.MaxExpired.String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return nodes.Serve(ctx) })
	group.Go(func() error { return serveHealth(ctx, health, prometheus.Gatherers{registry, metrics.Registry}) })
	group.Go(func() error {
		if err := controllers.Start(ctx); err != nil {
			return fmt.Errorf("running the controllers: %w", err)
		}
		return nil
	})
	return group.Wait()
}

// newControllers makes the manager of the controllers. It listens nowhere, and
// waits for the API server as long as it takes.
func newControllers(config *rest.Config, o Options, log *slog.Logger) (ctrl.Manager, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = o.QPS, o.Burst
	config.Timeout = 0 // watches last; each write has a time of its own
	logger := logr.FromSlogHandler(log.Handler())
	ctrllog.SetLogger(logger)
	// The leader's Lease is renewed whatever else is being asked.
	election := rest.CopyConfig(config)
	election.QPS, election.Burst, election.Timeout = 5, 10, o.Election.Renew/2
	stop := 5 * time.Second
	skip := true // names are checked per process, and tests run several managers in one
	m, err := ctrl.New(config, ctrl.Options{
		Controller: ctrlconfig.Controller{SkipNameValidation: &skip},
		Scheme:     site.Scheme(), MapperProvider: site.Mapper, Cache: site.CacheOptions(), Logger: logger, Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		GracefulShutdownTimeout: &stop,
		LeaderElection:          o.Election.Elect, LeaderElectionID: Name, LeaderElectionNamespace: o.Election.Namespace,
		LeaderElectionConfig: election, LeaderElectionReleaseOnCancel: true,
		LeaseDuration: &o.Election.Lease, RenewDeadline: &o.Election.Renew, RetryPeriod: &o.Election.Retry,
	})
	if err != nil {
		return nil, fmt.Errorf("making the manager of the controllers: %w", err)
	}
	return m, nil
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("how to reach the API server: %w", err)
	}
	config.UserAgent = Name
	config.Timeout = 15 * time.Second
	config.QPS, config.Burst = 50, 100
	return config, nil
}

// serveHealth serves what probes and Prometheus ask. It answers while the
// process is able to: no controller has state that could be behind.
func serveHealth(ctx context.Context, listener net.Listener, registry prometheus.Gatherer) error {
	mux := http.NewServeMux()
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving --health-address: %w", err)
	}
	return nil
}
