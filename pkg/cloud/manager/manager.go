// Package manager is skerry-controller-manager: the process beside the control
// plane in which Skerry's controllers run. It has the flags, the client, health
// and metrics; what a controller does is in that controller's package, which
// must not know this one.
//
// Today there is one: the server that nodes rejoin at. Each replica serves, so
// there is no leader.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/cloud/rejoin"
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
}

// Run runs the controllers until the context ends or one of them fails.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if o.MaxExpired <= 0 {
		return fmt.Errorf("--max-expired=%s: it must be more than nothing", o.MaxExpired)
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
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})

	nodes, err := rejoin.Listen(o.Listen, o.Files, rejoin.Options{
		Client: client, MaxExpired: o.MaxExpired, Registry: registry, Logger: log,
		Events: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Name}),
	})
	if err != nil {
		return err
	}
	health, err := net.Listen("tcp", o.HealthAddress)
	if err != nil {
		return fmt.Errorf("listening for --health-address: %w", err)
	}
	log.Info("started", "rejoin", nodes.Address().String(), "health", health.Addr().String(), "maxExpired", o.MaxExpired.String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return nodes.Serve(ctx) })
	group.Go(func() error { return serveHealth(ctx, health, registry) })
	return group.Wait()
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
func serveHealth(ctx context.Context, listener net.Listener, registry *prometheus.Registry) error {
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
