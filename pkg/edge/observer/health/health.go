// Package health finds out whether the node that it runs on does what a node is
// for: whether its kubelet and its container runtime answer. One missed answer
// means nothing, and neither does a node that is still starting.
//
// It must not know who wants to know.
package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/edge/observer/detect"
)

const (
	// every is the time between two looks, and patience how long an answer may
	// take.
	every, patience = 5 * time.Second, 4 * time.Second
	// failures in a row make a part down, answers in a row make it work again.
	failures, answers = 3, 2
	// grace is how long after the start a part that has never answered is not
	// called down: it may be starting.
	grace = 2 * time.Minute
)

// Options say what to look at.
type Options struct {
	// Kubelet is the URL of the kubelet's /healthz; empty: it is not looked at.
	Kubelet string
	// Runtime is the path of the container runtime's socket; empty: it is not
	// looked at.
	Runtime string
	// Changed is called with each change, and at first with what is assumed: all
	// is well.
	Changed func(detect.Health)
}

// part is a program that is looked at.
type part struct {
	ask       func(context.Context) error
	bad, good int
	answered  bool
	down      bool
}

// note takes the result of one look.
func (p *part) note(err error, age time.Duration) {
	if err == nil {
		p.bad, p.answered = 0, true
		if p.good++; p.good >= answers {
			p.down = false
		}
		return
	}
	p.good = 0
	if p.bad++; p.bad >= failures && (p.answered || age > grace) {
		p.down = true
	}
}

// Run looks until ctx ends.
func Run(ctx context.Context, o Options) {
	var kubelet, runtime part
	if o.Kubelet != "" {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: 4 * every}}
		kubelet.ask = func(ctx context.Context) error { return askKubelet(ctx, client, o.Kubelet) }
	}
	if o.Runtime != "" {
		runtime.ask = newRuntime(o.Runtime).version
	}
	begin := time.Now()
	last := detect.Health{}
	o.Changed(last)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		for _, p := range []*part{&kubelet, &runtime} {
			if p.ask == nil {
				continue
			}
			limited, cancel := context.WithTimeout(ctx, patience)
			err := p.ask(limited)
			cancel()
			if ctx.Err() != nil {
				return
			}
			p.note(err, time.Since(begin))
		}
		if now := (detect.Health{KubeletDown: kubelet.down, RuntimeDown: runtime.down}); now != last {
			last = now
			o.Changed(now)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// askKubelet asks the kubelet whether it is well.
func askKubelet(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4<<10))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the kubelet answers %s", response.Status)
	}
	return nil
}

// runtime speaks to a container runtime: one call of gRPC without arguments,
// which is all that is needed of a protocol whose library would cost the agent
// megabytes.
type runtime struct {
	client *http.Client
}

func newRuntime(socket string) *runtime {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &runtime{client: &http.Client{Timeout: patience, Transport: &http.Transport{
		Protocols: &protocols, MaxIdleConns: 1, IdleConnTimeout: 4 * every,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// emptyMessage is a message of gRPC without content: not compressed, 0 bytes.
const emptyMessage = "\x00\x00\x00\x00\x00"

// version asks for the version of the runtime.
func (r *runtime) version(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://runtime/runtime.v1.RuntimeService/Version", strings.NewReader(emptyMessage))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	response, err := r.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)); err != nil {
		return err
	}
	status := response.Trailer.Get("Grpc-Status")
	if status == "" {
		status = response.Header.Get("Grpc-Status") // an answer without content
	}
	if response.StatusCode != http.StatusOK || status != "0" {
		return fmt.Errorf("the container runtime answers %s, status %q", response.Status, status)
	}
	return nil
}
