//go:build e2e

package gridapi

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/cloud/servicegroup"
	"skerry.dev/skerry/test/controlplane"
)

// The control plane and the controller are shared: each test has its own
// namespace, and its own label of nodes.
var (
	cloud  *controlplane.ControlPlane
	scheme = runtime.NewScheme()
	api    client.Client
	writes atomic.Int64 // requests of the controller that are no watch
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dir, err := os.MkdirTemp("", "gridapi")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	cloud, err = controlplane.Start(ctx, controlplane.Options{Dir: dir, Controllers: "garbage-collector-controller,horizontal-pod-autoscaler-controller,namespace-controller,validatingadmissionpolicy-status-controller"})
	if err != nil {
		panic(err)
	}
	defer cloud.Stop()
	for _, add := range []func(*runtime.Scheme) error{servicegroup.AddToScheme, apiextensionsv1.AddToScheme, admissionregistrationv1.AddToScheme, autoscalingv2.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	if api, err = client.New(cloud.Config(), client.Options{Scheme: scheme}); err != nil {
		panic(err)
	}
	if err := installCRDs(ctx); err != nil {
		panic(err)
	}
	log, err := os.Create(filepath.Join(os.TempDir(), "gridapi-controller.log"))
	if err != nil {
		panic(err)
	}
	defer log.Close()
	if _, err := startController(ctx, log, true); err != nil {
		panic(err)
	}
	return m.Run()
}

func installCRDs(ctx context.Context) error {
	files, err := filepath.Glob("../../../cluster/crds/*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no CRDs found: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(text, &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := api.Create(ctx, &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			if err := api.Get(ctx, client.ObjectKeyFromObject(&crd), &crd); err != nil {
				return err
			}
			if slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
				return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
			}) {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("%s is not established: %+v", crd.Name, crd.Status.Conditions)
			}
		}
	}
	return nil
}

// counting counts requests that are no watch.
type counting struct{ next http.RoundTripper }

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("watch") == "" {
		writes.Add(1)
	}
	return c.next.RoundTrip(r)
}

// startController runs the controllers in a manager, until the returned func is
// called.
func startController(ctx context.Context, log *os.File, webhook bool) (stop func(), err error) {
	slogger := slog.New(slog.NewTextHandler(log, nil))
	cfg := cloud.Config()
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next} })
	ctrl.SetLogger(logr.FromSlogHandler(slogger.Handler()))
	again := true
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &again}})
	if err != nil {
		return nil, err
	}
	o := servicegroup.Options{Logger: slogger}
	if webhook {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		o.WebhookAddress = l.Addr().String()
		l.Close()
	}
	if err := servicegroup.Add(mgr, o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := mgr.Start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "manager:", err)
		}
	}()
	return func() { cancel(); <-done }, nil
}
