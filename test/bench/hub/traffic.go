package hub

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/sandbox/machine"
	"skerry.dev/skerry/test/bench"
)

const (
	// bytesGoal is the ratio to direct of what kubelet, kube-proxy and CoreDNS
	// move over the link.
	bytesGoal = 0.5
	// diskGoal is in MiB an hour. Flash of a small device bears some tens of
	// TiB in its life.
	diskGoal = 16
	// updates are made after the clients have read everything.
	updates = 300
)

func meta(o runtime.Object) (metav1.Object, error) { return apimeta.Accessor(o) }

// A follower reads a collection as one client of a node does.
type follower struct {
	client   string // kubelet, kube-proxy, coredns
	resource string
	object   runtime.Object
	label    string
	field    string
}

// followers are what the three clients keep in memory of Services (from their
// own sources, 1.37; CoreDNS 1.14).
var followers = []follower{
	{"kubelet", "services", &corev1.Service{}, "", "spec.clusterIP!=None"},
	{"kube-proxy", "services", &corev1.Service{}, "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", ""},
	{"kube-proxy", "endpointslices", &discoveryv1.EndpointSlice{}, "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name", ""},
	{"coredns", "services", &corev1.Service{}, "", ""},
	{"coredns", "endpointslices", &discoveryv1.EndpointSlice{}, "", ""},
	{"coredns", "namespaces", &corev1.Namespace{}, "", ""},
}

// bytes compares what passes over the link from nothing to all Services known,
// and for changes after that: three clients directly, and the same three by an
// agent of their own with an empty store.
func (s *stage) bytes(ctx context.Context) error {
	var tokens = map[string]string{"kubelet": ""}
	for _, name := range []string{"kube-proxy", "coredns"} {
		token, err := s.tokenOf(ctx, metav1.NamespaceSystem, name)
		if err != nil {
			return err
		}
		tokens[name] = token
	}
	results := map[path][2]float64{}

	count := &counter{}
	first, more, err := s.follow(ctx, func(name string) (*rest.Config, error) {
		return s.config(direct, tokens[name], asProtobuf, count)
	}, func() (float64, error) { return float64(count.total.Load()), nil })
	if err != nil {
		return fmt.Errorf("direct: %w", err)
	}
	results[direct] = [2]float64{first, more}

	second, err := s.startSecond(ctx)
	if err != nil {
		return err
	}
	defer second.stop()
	first, more, err = s.follow(ctx, func(name string) (*rest.Config, error) {
		return second.config(tokens[name])
	}, func() (float64, error) { return second.bytes(ctx) })
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	results[viaHub] = [2]float64{first, more}

	const kib = 1024
	s.add(bench.Against(fmt.Sprintf("link: kubelet, kube-proxy, CoreDNS read %d Services", services), "KiB", results[viaHub][0]/kib, results[direct][0]/kib, bytesGoal),
		bench.Against(fmt.Sprintf("link: the same, %d changes", updates), "KiB", results[viaHub][1]/kib, results[direct][1]/kib, bytesGoal))
	return nil
}

// follow runs the clients until they know everything, makes changes, and waits
// until they know those.
func (s *stage) follow(ctx context.Context, configOf func(client string) (*rest.Config, error), total func() (float64, error)) (first, more float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began, err := total()
	if err != nil {
		return 0, 0, err
	}
	clients := map[string]*kubernetes.Clientset{}
	stores := make([]cache.Store, len(followers))
	for i, f := range followers {
		if clients[f.client] == nil {
			config, err := configOf(f.client)
			if err != nil {
				return 0, 0, err
			}
			if clients[f.client], err = kubernetes.NewForConfig(config); err != nil {
				return 0, 0, err
			}
		}
		getter := cache.Getter(clients[f.client].CoreV1().RESTClient())
		if f.resource == "endpointslices" {
			getter = clients[f.client].DiscoveryV1().RESTClient()
		}
		selector, err := fields.ParseSelector(f.field)
		if err != nil {
			return 0, 0, err
		}
		lw := cache.NewFilteredListWatchFromClient(getter, f.resource, metav1.NamespaceAll, func(o *metav1.ListOptions) {
			o.LabelSelector, o.FieldSelector = f.label, selector.String()
		})
		stores[i] = cache.NewStore(cache.MetaNamespaceKeyFunc)
		reflector := cache.NewReflectorWithOptions(lw, f.object, stores[i], cache.ReflectorOptions{})
		go reflector.RunWithContext(ctx)
	}
	err = poll(ctx, 3*time.Minute, func() error {
		for i, f := range followers {
			want := services
			if f.resource == "namespaces" {
				want = 4
			}
			if got := len(stores[i].List()); got < want {
				return fmt.Errorf("%s knows %d of %d %s", f.client, got, want, f.resource)
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(2 * time.Second) // bookmarks, window updates
	read, err := total()
	if err != nil {
		return 0, 0, err
	}
	mark := fmt.Sprint(time.Now().UnixNano())
	err = each(ctx, updates, func(i int) error {
		patch := []byte(`{"metadata":{"annotations":{"bench":"` + mark + `"}}}`)
		_, err := s.client.CoreV1().Services(metav1.NamespaceDefault).Patch(ctx, fmt.Sprintf("bench-%d", i), types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	err = poll(ctx, time.Minute, func() error {
		for i, f := range followers {
			if f.resource != "services" {
				continue
			}
			for k := range updates {
				o, ok, err := stores[i].GetByKey(fmt.Sprintf("%s/bench-%d", metav1.NamespaceDefault, k))
				if err != nil || !ok || o.(*corev1.Service).Annotations["bench"] != mark {
					return fmt.Errorf("%s does not know change %d", f.client, k)
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(2 * time.Second)
	end, err := total()
	return read - began, end - read, err
}

// second is an agent beside the node's own, with an empty store.
type second struct {
	s       *stage
	dir     string // as the machine sees it
	disk    string // as the host sees it
	process *os.Process
	ended   chan struct{}
	failure error // why it ended
}

const (
	secondHub    = "127.0.0.1:10370"
	secondHealth = "127.0.0.1:10371"
)

func (s *stage) startSecond(ctx context.Context) (*second, error) {
	a := &second{s: s, dir: "/var/lib/skerry/bench", ended: make(chan struct{})}
	a.disk = filepath.Join(s.edge.Disk(), a.dir)
	if err := os.RemoveAll(a.disk); err != nil {
		return nil, err
	}
	pki := filepath.Join(a.disk, "state", "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return nil, err
	}
	const cert = "node-client-current.pem"
	data, err := os.ReadFile(filepath.Join(s.edge.Disk(), agentapi.PKIDir, cert))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(pki, cert), data, 0o600); err != nil {
		return nil, err
	}
	config, err := yaml.Marshal(agentv1.AgentConfiguration{
		TypeMeta: agentv1.TypeMeta{APIVersion: agentv1.APIVersion, Kind: agentv1.AgentConfigurationKind},
		NodeName: s.edge.Name, Servers: []string{"https://" + s.server},
		Listen: agentv1.Listen{Hub: secondHub, Pods: agentv1.None, PodInterface: agentv1.None, Health: secondHealth, Socket: a.dir + "/agent.sock"},
		Files:  agentv1.Files{StateDir: a.dir + "/state", Journal: a.dir + "/journal"},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(a.disk, "agent.yaml"), config, 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(a.disk, "log"))
	if err != nil {
		return nil, err
	}
	cmd, err := s.edge.Start(machine.Command{Args: []string{"skerry-agent", "--config", a.dir + "/agent.yaml"}, Stdout: log, Stderr: log})
	log.Close()
	if err != nil {
		return nil, err
	}
	a.process = cmd.Process
	go func() { a.failure = cmd.Wait(); close(a.ended) }()
	err = poll(ctx, 30*time.Second, func() error {
		select {
		case <-a.ended:
			return fmt.Errorf("the second agent ended: %w", a.failure)
		default:
		}
		_, err := s.page(ctx, secondHealth, "/readyz")
		return err
	})
	// An agent that has never run learns the cluster's policy and token keys
	// first; until then it passes tokens on, and shares nothing.
	time.Sleep(5 * time.Second)
	if err != nil {
		a.stop()
		return nil, fmt.Errorf("starting a second agent (log: %s): %w", filepath.Join(a.disk, "log"), err)
	}
	return a, nil
}

func (a *second) stop() {
	_ = a.process.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(10 * time.Second):
		_ = a.process.Kill()
		<-a.ended
	}
}

func (a *second) config(token string) (*rest.Config, error) {
	c, err := a.s.config(viaHub, token, asProtobuf, nil)
	if err != nil {
		return nil, err
	}
	c.Host = "https://" + secondHub
	pki := filepath.Join(a.disk, "state", "pki")
	c.CAFile = filepath.Join(pki, "node-ca.crt")
	if token == "" {
		if c.CertData, err = os.ReadFile(filepath.Join(pki, "kubelet.crt")); err != nil {
			return nil, err
		}
		if c.KeyData, err = os.ReadFile(filepath.Join(pki, "kubelet.key")); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (a *second) bytes(ctx context.Context) (float64, error) {
	return a.s.metric(ctx, secondHealth, "skerry_hub_upstream_bytes_total")
}

// metric is the sum of a metric's samples.
func (s *stage) metric(ctx context.Context, address, name string) (float64, error) {
	text, err := s.page(ctx, address, "/metrics")
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		fields := strings.Fields(rest)
		var value float64
		if _, err := fmt.Sscan(fields[len(fields)-1], &value); err != nil {
			return 0, fmt.Errorf("%q: %w", line, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("the agent has no metric %s", name)
	}
	return sum, nil
}

// listedMemory has three clients list and keep everything.
func (s *stage) listedMemory(ctx context.Context) error {
	for range 3 {
		client, err := s.clientFor(viaHub, s.token, asProtobuf, nil)
		if err != nil {
			return err
		}
		for _, uri := range []string{
			"/api/v1/services?resourceVersion=0",
			"/api/v1/namespaces/" + listedIn + "/configmaps?resourceVersion=0",
			"/api/v1/services",
			"/api/v1/namespaces/" + listedIn + "/configmaps",
		} {
			if _, _, err := read(ctx, client, uri, asJSON); err != nil {
				return err
			}
		}
	}
	mib, err := s.memory(ctx, 3*time.Second)
	if err != nil {
		return err
	}
	s.add(bench.Alone(fmt.Sprintf("agent, after three clients listed %d Services and %d ConfigMaps: RSS", services, listed), "MiB", mib, listedGoal))
	return nil
}

// steady watches the agent's writes while nothing happens but heartbeats.
func (s *stage) steady(ctx context.Context) error {
	const name = "skerry_hub_store_written_bytes_total"
	before, err := s.metric(ctx, agentapi.HealthAddress, name)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(s.Steady):
	}
	after, err := s.metric(ctx, agentapi.HealthAddress, name)
	if err != nil {
		return err
	}
	hourly := (after - before) / (1 << 20) * float64(time.Hour) / float64(s.Steady)
	s.add(bench.Alone(fmt.Sprintf("agent, %d pods and %d Services: written to disk an hour", pods, services), "MiB", hourly, diskGoal))
	return nil
}
