//go:build e2e

package closed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/test/sandbox"
)

// workload has pods at both sites and in the cloud, behind the same Services.
// They are placed by machine: a node that changes its site keeps its pod.
const workload = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: tcp, port: 80, targetPort: 8080}
  - {name: udp, port: 80, targetPort: 8081, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  selector: {app: web}
  sessionAffinity: ClientIP
  ports: [{name: tcp, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  selector: {app: web}
  internalTrafficPolicy: Local
  ports: [{name: tcp, port: 80, targetPort: 8080}]
` + app

const app = `
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-west}
spec:
  replicas: 2
  selector: {matchLabels: {run: web-west}}
  template:
    metadata: {labels: {app: web, run: web-west}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [west-1, west-2]}]}]
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {labelSelector: {matchLabels: {app: web}}, topologyKey: kubernetes.io/hostname}
      containers:
      - name: web
        image: %[1]q
        imagePullPolicy: IfNotPresent
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-east}
spec:
  replicas: 1
  selector: {matchLabels: {run: web-east}}
  template:
    metadata: {labels: {app: web, run: web-east}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      nodeSelector: {kubernetes.io/hostname: east-1}
      containers:
      - name: web
        image: %[1]q
        imagePullPolicy: IfNotPresent
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-cloud}
spec:
  replicas: 1
  selector: {matchLabels: {run: web-cloud}}
  template:
    metadata: {labels: {app: web, run: web-cloud}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      nodeSelector: {kubernetes.io/hostname: cloud-1}
      containers:
      - name: web
        image: %[1]q
        imagePullPolicy: IfNotPresent
        args: [netexec, --http-port=8080, --udp-port=8081]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

type subject struct {
	*sandbox.Sandbox
	t *testing.T
}

func (s *subject) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// siteNodes are the machines that are at a site.
func (s *subject) siteNodes() (out []*sandbox.Node) {
	for _, p := range s.Sites() {
		out = append(out, p.Nodes()...)
	}
	return out
}

func (s *subject) waitWorkload(replicas map[string]int) {
	s.t.Helper()
	for site, want := range replicas {
		s.Eventually(2*time.Minute, fmt.Sprintf("web-%s has %d pods", site, want), func() error {
			pods, err := s.Kube().CoreV1().Pods("default").List(s.Context(), metav1.ListOptions{LabelSelector: "run=web-" + site})
			if err != nil {
				return err
			}
			ready := 0
			for _, p := range pods.Items {
				if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
					return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
				}) {
					ready++
				}
			}
			if ready != want || len(pods.Items) != want {
				return fmt.Errorf("%d pods, %d ready", len(pods.Items), ready)
			}
			return nil
		})
	}
}

// targets returns the addresses of pods: of web-SITE, or web-SITE/NODE.
func (s *subject) targets(what string) []string {
	s.t.Helper()
	run, node, _ := strings.Cut(what, "/")
	pods, err := s.Kube().CoreV1().Pods("default").List(s.Context(), metav1.ListOptions{LabelSelector: "run=" + run})
	s.must(err)
	var out []string
	for _, p := range pods.Items {
		if (node == "" || p.Spec.NodeName == node) && p.DeletionTimestamp == nil {
			out = append(out, p.Status.PodIP)
		}
	}
	return out
}

// Rules of Service web's TCP port: the chain that mode nftables has for it, and
// the rules that mode iptables has for its endpoints.
var (
	chain   = regexp.MustCompile(`chain service-[A-Z0-9]+-default/web/tcp/tcp \{\n(.*\n)*?\t\}`)
	dnat    = regexp.MustCompile(`default/web:tcp.* -j DNAT .*--to-destination ([0-9.]+):`)
	ipv4    = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`)
	listing = "nft list table ip kube-proxy 2>/dev/null; iptables-save -t nat 2>/dev/null | grep DNAT; true"
)

// leadsTo returns the addresses of pods that the kernel's rules for Service web
// lead to, whichever mode wrote them.
func (s *subject) leadsTo(n *sandbox.Node) ([]string, error) {
	rules, err := n.Try("sh", "-c", listing)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, address := range ipv4.FindAllString(chain.FindString(rules), -1) {
		found[address] = true
	}
	for _, m := range dnat.FindAllStringSubmatch(rules, -1) {
		found[m[1]] = true
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// hasTargets says whether a node's rules lead to exactly these pods.
func (s *subject) hasTargets(n *sandbox.Node, what ...string) error {
	got, err := s.leadsTo(n)
	if want := s.allTargets(what); err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("rules of %s lead to %v, want %v", n.Name(), got, want)
	}
	return err
}

func (s *subject) allTargets(what []string) []string {
	var out []string
	for _, w := range what {
		out = append(out, s.targets(w)...)
	}
	slices.Sort(out)
	return out
}

// settled waits until nodes' rules lead to exactly these pods, and fails if that
// is later than converged after start.
func (s *subject) settled(start time.Time, want map[string][]string) {
	s.t.Helper()
	expected := map[string][]string{}
	for node, what := range want {
		expected[node] = s.allTargets(what)
	}
	for len(expected) != 0 {
		for _, node := range slices.Sorted(maps.Keys(expected)) {
			// The rules were true at some moment before they were read, and not
			// when this loop asked for the first time.
			asked := time.Since(start)
			got, err := s.leadsTo(s.Node(node))
			s.must(err)
			switch {
			case slices.Equal(got, expected[node]):
				delete(expected, node)
				if asked > converged {
					s.t.Errorf("%s: true only after %.1f s", node, asked.Seconds())
					continue
				}
				s.Step("%s: true after at most %.1f s", node, time.Since(start).Seconds())
			case asked > 30*time.Second:
				s.t.Fatalf("rules of %s lead to %v, want %v", node, got, expected[node])
			}
		}
	}
}

// setMode restarts kube-proxy in a mode on all nodes.
func (s *subject) setMode(mode string) {
	s.t.Helper()
	maps := s.Kube().CoreV1().ConfigMaps("kube-system")
	config, err := maps.Get(s.Context(), "kube-proxy", metav1.GetOptions{})
	s.must(err)
	var lines []string
	for line := range strings.Lines(config.Data["config.conf"]) {
		if strings.HasPrefix(line, "mode:") {
			line = "mode: " + mode + "\n"
		}
		lines = append(lines, line)
	}
	text := strings.Join(lines, "")
	if !strings.Contains(text, "\nmode: "+mode+"\n") {
		s.t.Fatalf("kube-proxy's configuration has no mode: %s", text)
	}
	if config.Data["config.conf"] != text {
		config.Data["config.conf"] = text
		_, err = maps.Update(s.Context(), config, metav1.UpdateOptions{})
		s.must(err)
	}
	s.Kubectl("-n", "kube-system", "rollout", "restart", "daemonset/kube-proxy")
	s.Kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=3m")
	for _, n := range s.Nodes() {
		s.Eventually(time.Minute, n.Name()+" proxies in mode "+mode, func() error {
			out, err := s.get(n, "http://127.0.0.1:10249/proxyMode")
			if err == nil && out != mode {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		})
	}
}

func (s *subject) get(n *sandbox.Node, url string) (string, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, network, address string) (net.Conn, error) { return s.dial(n, network, address) },
	}}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	return string(body), err
}

func (s *subject) service(name string) string {
	s.t.Helper()
	svc, err := s.Kube().CoreV1().Services("default").Get(s.Context(), name, metav1.GetOptions{})
	s.must(err)
	return net.JoinHostPort(svc.Spec.ClusterIP, "80")
}

func (s *subject) nodePort(n *sandbox.Node, name string) string {
	s.t.Helper()
	svc, err := s.Kube().CoreV1().Services("default").Get(s.Context(), name, metav1.GetOptions{})
	s.must(err)
	return net.JoinHostPort(n.Address(), strconv.Itoa(int(svc.Spec.Ports[0].NodePort)))
}

// seen is who answered.
type seen struct {
	own, foreign, failed int
	pods                 map[string]int
	err                  error // one of those that failed
}

func (s seen) String() string {
	return fmt.Sprintf("%d were answered by the own site, %d by others, %d not (%v): %v", s.own, s.foreign, s.failed, s.err, s.pods)
}

// ask asks for the name of the answering pod, again and again, from a machine.
func (s *subject) ask(n *sandbox.Node, network, address string, times int) seen {
	s.t.Helper()
	site, _, _ := strings.Cut(n.Name(), "-")
	out := seen{pods: map[string]int{}}
	for range times {
		pod, err := s.askOnce(n, network, address)
		switch {
		case err != nil:
			out.failed, out.err = out.failed+1, err
		case strings.HasPrefix(pod, "web-"+site+"-"):
			out.own++
			out.pods[pod]++
		default:
			out.foreign++
			out.pods[pod]++
		}
	}
	return out
}

func (s *subject) askOnce(n *sandbox.Node, network, address string) (string, error) {
	conn, err := s.dial(n, network, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	question := "hostname"
	if network == "tcp" {
		question = "GET /hostname HTTP/1.0\r\n\r\n"
	}
	if _, err := io.WriteString(conn, question); err != nil {
		return "", err
	}
	if network == "udp" {
		buf := make([]byte, 512)
		n, err := conn.Read(buf)
		return strings.TrimSpace(string(buf[:n])), err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 4096))
	if err != nil {
		return "", err
	}
	head, body, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok || !strings.Contains(head, " 200 ") {
		return "", fmt.Errorf("answer %q", answer)
	}
	return body, nil
}

func (s *subject) dial(n *sandbox.Node, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.Context(), 3*time.Second)
	defer cancel()
	return n.Connect(ctx, network, address)
}

// onlyOwn insists that all requests were answered, by the own site.
func (s *subject) onlyOwn(n *sandbox.Node, times int, got seen) {
	s.t.Helper()
	if got.own != times || got.foreign != 0 {
		s.t.Errorf("%s: of %d requests, %s", n.Name(), times, got)
		return
	}
	s.Step("%s: %d requests, %d foreign", n.Name(), times, got.foreign)
}

// onlyFrom insists that all requests were answered by one machine's pod.
func (s *subject) onlyFrom(n *sandbox.Node, what string, times int) {
	s.t.Helper()
	got := s.ask(n, "tcp", s.service("web"), times)
	if got.own != times || len(got.pods) != 1 {
		s.t.Errorf("%s: of %d requests, %s, want all from %s", n.Name(), times, got, what)
	}
}

// refused insists that connections are refused, at once. The kernel limits how
// often it says so: of many attempts a few are answered at their second packet,
// a second later.
func (s *subject) refused(n *sandbox.Node, address string) {
	s.t.Helper()
	s.refusedWithin(n, address, 100, 100*time.Millisecond)
}

func (s *subject) refusedWithin(n *sandbox.Node, address string, attempts int, limit time.Duration) {
	s.t.Helper()
	var took []time.Duration
	for range attempts {
		start := time.Now()
		conn, err := s.dial(n, "tcp", address)
		if err == nil {
			_ = conn.Close()
			s.t.Fatalf("%s: %s accepts connections", n.Name(), address)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			s.t.Fatalf("%s: %s: %v, want it refused", n.Name(), address, err)
		}
		took = append(took, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	if nearly := took[attempts*9/10]; nearly > limit {
		s.t.Errorf("%s: %s: nine of ten attempts are refused within %s", n.Name(), address, nearly)
	}
	s.Step("%s: %s refuses, %d times, in the middle after %s", n.Name(), address, attempts, took[attempts/2].Round(10*time.Microsecond))
}
