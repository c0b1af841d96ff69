package grid

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"skerry.dev/skerry/pkg/cloud/servicegroup"
)

// ControllerArgument makes the benchmark's program be the controller.
const ControllerArgument = "grid-controller"

// RunController runs the controller of grids and nothing else. The arguments are
// a kubeconfig file and an address for metrics.
func RunController(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: " + ControllerArgument + " KUBECONFIG ADDRESS")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		return err
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next} })
	metrics.Registry.MustRegister(asked)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	scheme := runtime.NewScheme()
	if err := servicegroup.AddToScheme(scheme); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: server.Options{BindAddress: args[1]}})
	if err != nil {
		return err
	}
	if err := servicegroup.Add(mgr, servicegroup.Options{Logger: log}); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// asked counts what the controller asks of the API server. Watches that are begun
// again, as each is every few minutes, are no work of the controller's.
var asked = prometheus.NewCounter(prometheus.CounterOpts{Name: "bench_requests_total", Help: "Requests of the API server that are no watch."})

type counted struct{ next http.RoundTripper }

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("watch") == "" {
		asked.Inc()
	}
	return c.next.RoundTrip(r)
}

// controller is the process.
type controller struct {
	cmd     *exec.Cmd
	done    chan struct{}
	metrics string
}

func startController(ctx context.Context, o Options, kubeconfig string) (*controller, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	log, err := os.OpenFile(filepath.Join(o.Logs, "grid-controller.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := &controller{metrics: "http://" + address + "/metrics", done: make(chan struct{})}
	c.cmd = exec.Command(o.Self, ControllerArgument, kubeconfig, address)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the controller: %w", err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err = c.requests(ctx); err == nil {
			return c, nil
		}
		if time.Now().After(end) {
			c.stop()
			return nil, fmt.Errorf("the controller does not start (see %s): %w", log.Name(), err)
		}
	}
}

func (c *controller) pid() int { return c.cmd.Process.Pid }

func (c *controller) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
}

// requests is how many the controller has made.
func (c *controller) requests(ctx context.Context) (sum float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.metrics, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	found := false
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "bench_requests_total ") {
			continue
		}
		_, number, _ := strings.Cut(lines.Text(), " ")
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %q: %w", lines.Text(), err)
		}
		found = true
		sum += value
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, errors.New("the controller's metrics have no bench_requests_total")
	}
	return sum, nil
}

// quiet waits until the controller has asked nothing for five seconds, and says
// when it last did.
func (c *controller) quiet(ctx context.Context) (last time.Time, err error) {
	last = time.Now()
	before := -1.0
	for end := time.Now().Add(5 * time.Minute); time.Since(last) < 5*time.Second; {
		n, err := c.requests(ctx)
		if err != nil {
			return last, err
		}
		if n != before {
			before, last = n, time.Now()
		}
		if time.Now().After(end) {
			return last, errors.New("the controller does not stop asking")
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return last, context.Cause(ctx)
		}
	}
	return last, nil
}
