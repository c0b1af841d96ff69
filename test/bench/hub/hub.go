// Package hub measures what the hub costs against asking the API server
// directly, from the same machine over the same link in the same run: the time
// of requests and of watch events, the bytes over the link, and the memory and
// the writes of the agent.
//
// It must not know how the agent works: it sees what its clients see, its
// process and its metrics.
package hub

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
	"skerry.dev/skerry/test/bench"
)

// Options of Measure.
type Options struct {
	Box *sandbox.Sandbox
	// Steady is how long the agent's writes are watched.
	Steady time.Duration
	Out    io.Writer
}

// stage is what is measured on: one edge node with an agent.
type stage struct {
	Options
	client kubernetes.Interface // the administrator's, not over the link
	server string
	edge   machine.Config
	site   string
	token  string // of a client that the agent keeps
	rows   []bench.Row
}

// Measure takes the sandbox as it comes from its creation. With an error, the
// rows are those of the steps before it.
func Measure(ctx context.Context, o Options) ([]bench.Row, error) {
	s := &stage{Options: o}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"finding the edge node and its agent", s.find},
		{"memory of the idle agent", s.idle},
		{fmt.Sprintf("%d pods, %d Services, %d ConfigMaps", pods, services, many+few+listed), s.fill},
		{"memory with pods and Services", s.loaded},
		{"GET, over a clean link", func(ctx context.Context) error { return s.gets(ctx, "clean link", 1000) }},
		{"LIST, over a clean link", func(ctx context.Context) error { return s.lists(ctx, "clean link", 9) }},
		{"watch events, over a clean link", func(ctx context.Context) error { return s.watches(ctx, "clean link") }},
		{"requests per second", s.throughput},
		{"a link of 20 ms", func(ctx context.Context) error { return s.link(ctx, 10*time.Millisecond) }},
		{"GET, over 20 ms", func(ctx context.Context) error { return s.gets(ctx, "20 ms link", 200) }},
		{"LIST, over 20 ms", func(ctx context.Context) error { return s.lists(ctx, "20 ms link", 5) }},
		{"watch events, over 20 ms", func(ctx context.Context) error { return s.watches(ctx, "20 ms link") }},
		{"a clean link", func(ctx context.Context) error { return s.link(ctx, 0) }},
		{"bytes over the link", s.bytes},
		{"memory after three clients listed everything", s.listedMemory},
		{fmt.Sprintf("writes in %s of nothing new", o.Steady), s.steady},
	} {
		if err := bench.Step(o.Out, step.name, func() error { return step.do(ctx) }); err != nil {
			return s.rows, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return s.rows, nil
}

func (s *stage) add(rows ...bench.Row) { s.rows = append(s.rows, rows...) }

func (s *stage) find(ctx context.Context) error {
	for _, m := range s.Box.Spec.Machines() {
		if m.Cloud() {
			s.server = net.JoinHostPort(m.Address.String(), "6443")
			continue
		}
		var err error
		if s.edge, err = s.Box.Machine(m.Name); err != nil {
			return err
		}
		s.site = m.Site
	}
	var err error
	s.client, err = s.Box.Client()
	return err
}

// link delays packets in each direction.
func (s *stage) link(ctx context.Context, delay time.Duration) error {
	settings := weaklink.Settings{Delay: weaklink.Duration(delay)}
	return s.Box.Fabric().SetLink(ctx, s.site, &settings, &settings)
}

// A path is how a client reaches the API server.
type path string

const (
	direct path = "direct"
	viaHub path = "hub"
	floor  path = "floor" // through the simplest proxy
)

var (
	paths = []path{direct, viaHub}
	timed = []path{direct, floor, viaHub} // of single requests
)

// counter counts the bytes of connections.
type counter struct{ total atomic.Int64 }

type countedConn struct {
	net.Conn
	c *counter
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.c.total.Add(int64(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.c.total.Add(int64(n))
	return n, err
}

// dial connects from inside the edge node's network.
func (s *stage) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = s.edge.InNetwork(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// config is a client on the edge node. With a token it is that service account,
// without one the node itself. A counter, if there is one, counts its bytes.
func (s *stage) config(p path, token, contentType string, count *counter) (*rest.Config, error) {
	disk := s.edge.Disk()
	c := &rest.Config{
		Host:          "https://" + s.server,
		ContentConfig: rest.ContentConfig{ContentType: contentType},
		BearerToken:   token,
		QPS:           -1,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := s.dial(ctx, network, address)
			if err == nil && count != nil {
				conn = countedConn{conn, count}
			}
			return conn, err
		},
	}
	c.CAFile = filepath.Join(disk, agentapi.ClusterCA)
	cert := filepath.Join(disk, agentapi.PKIDir, "node-client-current.pem")
	key := cert
	if p == viaHub {
		c.Host = "https://" + agentapi.HubAddress
		c.CAFile = filepath.Join(disk, agentapi.PKIDir, "node-ca.crt")
		cert, key = filepath.Join(disk, agentapi.PKIDir, "kubelet.crt"), filepath.Join(disk, agentapi.PKIDir, "kubelet.key")
	}
	if p == floor {
		c.Host = "https://" + floorAddress
		c.CAFile = filepath.Join(disk, agentapi.PKIDir, "node-ca.crt")
	}
	if token == "" {
		// Read once: a client that watches its files is one more goroutine.
		var err error
		if c.CertData, err = os.ReadFile(cert); err != nil {
			return nil, err
		}
		if c.KeyData, err = os.ReadFile(key); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// clientFor is a client of its own: it shares no connection with another.
func (s *stage) clientFor(p path, token, contentType string, count *counter) (*kubernetes.Clientset, error) {
	config, err := s.config(p, token, contentType, count)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

const (
	asProtobuf = "application/vnd.kubernetes.protobuf"
	asJSON     = "application/json"
)

// tokenOf asks for a token of a service account.
func (s *stage) tokenOf(ctx context.Context, namespace, name string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](3600)}}
	answer, err := s.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for a token of %s/%s: %w", namespace, name, err)
	}
	return answer.Status.Token, nil
}

// quantile of values, which it sorts.
func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[min(len(values)-1, int(q*float64(len(values))))]
}

// agent is the agent's process, as the host numbers it.
func (s *stage) agent() (int, error) {
	pids, err := s.edge.Cgroup.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it ended meanwhile
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		if filepath.Base(program) == "skerry-agent" {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no skerry-agent runs on %s", s.edge.Name)
}

// memory is the median of the agent's resident memory over a while, in MiB.
func (s *stage) memory(ctx context.Context, settle time.Duration) (float64, error) {
	var values []float64
	wait := settle
	for range 10 {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(wait):
		}
		pid, err := s.agent()
		if err != nil {
			return 0, err
		}
		m, err := bench.ReadMemory(pid)
		if err != nil {
			return 0, err
		}
		values = append(values, m.RSS)
		wait = time.Second
	}
	return bench.Median(values), nil
}

// poll calls do until it succeeds.
func poll(ctx context.Context, timeout time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", timeout, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
