// Package admission checks grids before they are stored: what the API server
// itself would refuse in a child, and overrides that do not fit the template, are
// refused with the path of the field in the grid. It asks the API server, by
// dry-run, so there is no second opinion of what is valid.
//
// It is a help, not a guard: while it does not answer, grids are stored
// unchecked, and the controller says the same in their status. It must not know
// how children are rolled out.
package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// Children applies the children of grids.
type Children interface {
	Apply(ctx context.Context, kind shape.Kind, namespace, name string, body map[string]any, dryRun bool) (*metav1.PartialObjectMetadata, error)
}

// Existing knows what there is: the sites, with their labels, by the key of
// nodes, and whose objects are.
type Existing interface {
	Sites(ctx context.Context, key string) (map[string]labels.Set, error)
	// Stranger says whether an object of that name is there that is not the
	// owner's and would not become it.
	Stranger(ctx context.Context, kind shape.Kind, name string, owner shape.Owner) (bool, error)
}

// Options of the webhook.
type Options struct {
	Address   string // to listen on, host:port; API servers call it by this address
	Namespace string // of the Secret with its authority
	Config    *rest.Config
	Children  Children
	Existing  Existing
	Logger    *slog.Logger
}

// Webhook is the server that API servers ask.
type Webhook struct {
	o      Options
	client kubernetes.Interface
	host   string
}

// New makes a webhook. It does nothing before Start.
func New(o Options) (*Webhook, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("the address %q of the grids' webhook: %w", o.Address, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("the address %q of the grids' webhook: it must be a loopback address, which each API server reaches at itself", o.Address)
	}
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("making a client for the grids' webhook: %w", err)
	}
	return &Webhook{o: o, client: client, host: host}, nil
}

// NeedLeaderElection says that each replica serves the API server beside it.
func (w *Webhook) NeedLeaderElection() bool { return false }

// Start serves until the context ends. That the webhook cannot be registered is
// logged and tried again: the controllers work without it.
func (w *Webhook) Start(ctx context.Context) error {
	listener, err := net.Listen("tcp", w.o.Address)
	if err != nil {
		return fmt.Errorf("listening for the grids' webhook: %w", err)
	}
	keys := &keys{client: w.client, namespace: w.o.Namespace, host: w.host}
	handler, err := admission.StandaloneWebhook(&admission.Webhook{Handler: &checker{children: w.o.Children, existing: w.o.Existing}}, admission.StandaloneOptions{})
	if err != nil {
		return fmt.Errorf("making the grids' webhook: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+path, handler)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(w.o.Logger.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: keys.certificate},
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	go w.register(ctx, keys)
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the grids' webhook: %w", err)
	}
	return nil
}

// register tells the API servers of the webhook, and once a day looks after its
// authority.
func (w *Webhook) register(ctx context.Context, keys *keys) {
	wait := time.Second
	for {
		next := 24 * time.Hour
		if err := keys.ensure(ctx, w.o.Address); err != nil {
			if ctx.Err() != nil {
				return
			}
			w.o.Logger.Warn("grids are not checked before they are stored", "error", err)
			next, wait = wait, min(2*wait, time.Minute)
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return
		}
	}
}
