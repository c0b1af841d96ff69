package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/observer"
	"skerry.dev/skerry/pkg/edge/observer/detect"
	"skerry.dev/skerry/pkg/edge/observer/health"
)

// kubeletFiles are the kubelet's own configuration, the later the stronger.
var kubeletFiles = []string{"/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml"}

// buildObserver makes the observer, unless it is switched off.
func (a *Agent) buildObserver() (err error) {
	if a.config.Listen.Observer == agentv1.None {
		return nil
	}
	certificate := fileCache[*tls.Certificate]{path: a.path("pki/node-client-current.pem"), read: func(data []byte) (*tls.Certificate, error) {
		pair, err := tls.X509KeyPair(data, data)
		return &pair, err
	}}
	authority := fileCache[*x509.CertPool]{path: a.config.Files.ClusterCA, read: func(data []byte) (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(data) {
			return nil, errors.New("there is no certificate in it")
		}
		return pool, nil
	}}
	a.observer, err = observer.New(observer.Options{
		Node: a.config.NodeName, Listen: netip.MustParseAddrPort(a.config.Listen.Observer),
		Certificate: certificate.get, Authority: authority.get,
		Online: a.upstream.Online, Changes: a.upstream.Changes,
		Reports: &reports{node: a.config.NodeName, do: a.upstream.Do},
		Health: func(ctx context.Context, changed func(detect.Health)) {
			options := health.FromKubelet(kubeletFiles...)
			options.Changed = changed
			health.Run(ctx, options)
		},
		Registry: a.registry, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("preparing the observer: %w", err)
	}
	return nil
}

// runObserver observes the neighbours until ctx ends.
func (a *Agent) runObserver(ctx context.Context) {
	if a.observer == nil {
		return
	}
	var group sync.WaitGroup
	group.Go(func() { a.followSite(ctx) })
	a.observer.Run(ctx)
	group.Wait()
}

// neighbours is what the observer knows; nil if it is switched off.
func (a *Agent) neighbours() *agentapi.Neighbours {
	if a.observer == nil {
		return nil
	}
	known := a.observer.Neighbours()
	return &known
}

// observerProblem says why the observer does not work.
func (a *Agent) observerProblem() []string {
	if a.observer == nil {
		return nil
	}
	if err := a.observer.Problem(); err != nil {
		return []string{fmt.Sprintf("the neighbours cannot be observed: %v", err)}
	}
	return nil
}

// serveNeighbours answers GET /neighbours.
func (a *Agent) serveNeighbours(w http.ResponseWriter, _ *http.Request) {
	known := a.neighbours()
	if known == nil {
		http.Error(w, "the observer is switched off", http.StatusNotFound)
		return
	}
	answer(w, known)
}

// fileCache reads a file again when it has changed.
type fileCache[T any] struct {
	path string
	read func([]byte) (T, error)

	mu      sync.Mutex
	value   T
	ok      bool
	changed time.Time
	size    int64
}

func (f *fileCache[T]) get() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var none T
	info, err := os.Stat(f.path)
	if err != nil {
		return none, err
	}
	if f.ok && info.ModTime().Equal(f.changed) && info.Size() == f.size {
		return f.value, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return none, err
	}
	value, err := f.read(data)
	if err != nil {
		return none, fmt.Errorf("reading %s: %w", f.path, err)
	}
	f.value, f.ok, f.changed, f.size = value, true, info.ModTime(), info.Size()
	return value, nil
}

// reports writes this node's NodeReport with the node's identity.
type reports struct {
	node string
	do   func(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error)
}

const fieldManager = "skerry-agent"

func (r *reports) path() string {
	return "/apis/" + sitev1.GroupVersion.String() + "/nodereports/" + r.node
}

// Put makes or replaces the report, in one request.
func (r *reports) Put(ctx context.Context, spec sitev1.NodeReportSpec) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": sitev1.GroupVersion.String(), "kind": "NodeReport",
		"metadata": map[string]string{"name": r.node}, "spec": spec,
	})
	if err != nil {
		return fmt.Errorf("writing a report: %w", err)
	}
	status, err := r.send(ctx, http.MethodPatch, url.Values{"fieldManager": {fieldManager}, "force": {"true"}}, "application/apply-patch+yaml", body)
	return done(status, err)
}

// Delete removes the report. Whether there is one is asked first: a question
// costs the cloud less than a write, and mostly there is none.
func (r *reports) Delete(ctx context.Context) error {
	status, err := r.send(ctx, http.MethodGet, nil, "", nil)
	if err == nil && status == http.StatusOK {
		status, err = r.send(ctx, http.MethodDelete, nil, "", nil)
	}
	if status == http.StatusNotFound {
		return nil
	}
	return done(status, err)
}

func done(status int, err error) error {
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("the API server answers %d", status)
	}
	return err
}

// send makes one request. Of the answer only the status matters.
func (r *reports) send(ctx context.Context, method string, query url.Values, contentType string, body []byte) (int, error) {
	response, err := r.do(ctx, method, r.path(), query, contentType, "application/json", body)
	if err != nil {
		return 0, fmt.Errorf("%s of the report: %w", method, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxDocument))
	if err != nil {
		return 0, fmt.Errorf("%s of the report: %w", method, err)
	}
	if response.StatusCode/100 != 2 && response.StatusCode != http.StatusNotFound {
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(bytes.TrimSpace(data), &status) == nil && status.Message != "" {
			return response.StatusCode, errors.New(status.Message)
		}
	}
	return response.StatusCode, nil
}
