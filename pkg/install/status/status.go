// Package status tells how this node is doing, from what is on it: it works
// while the API server is out of reach, and waits for nothing longer than two
// seconds.
//
// It must not change anything but the note of when the API server was last
// heard.
package status

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	componentversion "k8s.io/component-base/version"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"

	"skerry.dev/api"
	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/agentfiles"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/images"
	"skerry.dev/skerry/pkg/install/site"
)

// patience bounds everything that status asks for.
const patience = 2 * time.Second

// Status is how a node is doing.
type Status struct {
	Node      Node      `json:"node"`
	Versions  []Version `json:"versions"`
	Units     []Unit    `json:"units"`
	Runtime   Runtime   `json:"runtime"`
	APIServer APIServer `json:"apiServer"`
	// Agent is what skerry-agent says, on a node that has it.
	Agent *agentapi.Status `json:"agent,omitempty"`
	// Pods are those of this node, as the API server or the node's store has them.
	Pods         *Pods                  `json:"pods,omitempty"`
	Certificates []Certificate          `json:"certificates"`
	Conditions   []corev1.NodeCondition `json:"conditions,omitempty"`
	// Problems are what could not be found out, and why.
	Problems []string `json:"problems,omitempty"`
}

// Node is what this machine is.
type Node struct {
	Name string `json:"name,omitempty"`
	Role string `json:"role,omitempty"`
	Site string `json:"site,omitempty"`
	// From says who says so: "cluster" or "this machine's record".
	From  string    `json:"from,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// Version is the version of a program on this machine.
type Version struct {
	Program string   `json:"program"`
	Version string   `json:"version"`
	Patches []string `json:"patches,omitempty"`
}

// Unit is one of the units of a node.
type Unit struct {
	Name     string    `json:"name"`
	Active   bool      `json:"active"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
}

// Runtime is the container runtime.
type Runtime struct {
	Version string   `json:"version,omitempty"`
	Images  []string `json:"images,omitempty"`
}

// APIServer is the cluster's API server as seen from here.
type APIServer struct {
	Address     string    `json:"address,omitempty"`
	Reachable   bool      `json:"reachable"`
	LastReached time.Time `json:"lastReached,omitzero"`
	Error       string    `json:"error,omitempty"`
}

// Pods are the pods of this node.
type Pods struct {
	Total int `json:"total"`
	// Ready are those that are ready, or have done their work.
	Ready int `json:"ready"`
	// NotReady names the others, as NAMESPACE/NAME.
	NotReady []string `json:"notReady,omitempty"`
}

// Certificate is a certificate on this machine.
type Certificate struct {
	Path    string    `json:"path"`
	Expires time.Time `json:"expires"`
}

// Healthy reports whether all units of the node run.
func (s Status) Healthy() bool {
	return len(s.Units) > 0 && !slices.ContainsFunc(s.Units, func(unit Unit) bool { return !unit.Active })
}

// collector gathers a Status; its fields are the paths and programs to look at.
type collector struct {
	record     string
	kubeconfig string
	socket     string
	agent      string // the agent's configuration
	// certificates are patterns of PEM files, beside the agent's.
	certificates []string
	detect       func() (host.Supervisor, error)
}

// Collect finds out how this node is doing.
func Collect(ctx context.Context) Status {
	c := collector{
		record:     site.RecordPath,
		kubeconfig: kubeadmconstants.GetKubeletKubeConfigPath(),
		socket:     host.ContainerdSocket,
		agent:      agentapi.ConfigFile,
		certificates: []string{
			filepath.Join(kubeadmconstants.KubeletRunDirectory, "pki", "kubelet-client-current.pem"),
			filepath.Join(kubeadmconstants.KubeletRunDirectory, "pki", "kubelet-server-current.pem"),
			filepath.Join(kubeadmconstants.KubernetesDir, "pki", "*.crt"),
			filepath.Join(kubeadmconstants.KubernetesDir, "pki", "etcd", "*.crt"),
		},
		detect: host.Detect,
	}
	return c.collect(ctx)
}

func (c collector) collect(ctx context.Context) Status {
	var s Status
	var mutex sync.Mutex
	problem := func(err error) {
		if err != nil {
			mutex.Lock()
			defer mutex.Unlock()
			s.Problems = append(s.Problems, err.Error())
		}
	}
	record, err := site.ReadRecord(c.record)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("neither `skerry init` nor `skerry join` has made this machine a node")
	}
	problem(err)
	s.Node = Node{Name: record.NodeName, Role: record.Role, Site: record.Site, From: "this machine's record", Since: record.Since}
	s.APIServer = APIServer{Address: record.Server, LastReached: record.LastReached}
	agent, err := agentfiles.Read(c.agent)
	problem(err)

	// Each task writes fields of its own.
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		units, err := c.units(ctx, record.Hub)
		s.Units = units
		problem(err)
	})
	tasks.Go(func() {
		runtime, err := c.runtime(ctx)
		s.Runtime = runtime
		problem(err)
	})
	tasks.Go(func() {
		certificates, err := readCertificates(append([]string{
			filepath.Join(agent.PKIDir(), "*.crt"), filepath.Join(agent.PKIDir(), "node-client-current.pem"),
		}, c.certificates...))
		s.Certificates = certificates
		problem(err)
	})
	tasks.Go(func() {
		if record.Hub {
			said, err := agentapi.Get(ctx, agent.Socket)
			if err != nil {
				s.APIServer.Error = fmt.Sprintf("%v (asked at %s): what this node knows cannot be read", err, agent.Socket)
				return
			}
			s.Agent = &said
			s.APIServer = APIServer{Address: said.Server, Reachable: said.Online, LastReached: said.LastContact, Error: said.Reason}
		}
		problem(c.ask(ctx, &s, record))
	})
	tasks.Go(func() {
		kubelet, err := kubeletVersion(ctx)
		problem(err)
		s.Versions = []Version{{Program: "skerry", Version: componentversion.Get().GitVersion}}
		if err == nil {
			s.Versions = append(s.Versions, kubelet)
		}
	})
	tasks.Wait()
	if s.APIServer.Reachable && record.Role != "" {
		record.LastReached = s.APIServer.LastReached
		problem(site.WriteRecord(c.record, record))
	}
	slices.Sort(s.Problems)
	return s
}

func (c collector) units(ctx context.Context, hub bool) ([]Unit, error) {
	supervisor, err := c.detect()
	if err != nil {
		return nil, err
	}
	var units []Unit
	var problems []error
	for _, name := range host.Units {
		if name == host.AgentUnit && !hub {
			continue
		}
		state, err := supervisor.Status(ctx, name)
		if err != nil {
			problems = append(problems, err)
		}
		units = append(units, Unit{
			Name: name, Active: state.Active, PID: state.PID, Since: state.Since, Restarts: state.Restarts, LastExit: state.LastExit,
		})
	}
	return units, errors.Join(problems...)
}

func (c collector) runtime(ctx context.Context) (Runtime, error) {
	if _, err := os.Stat(c.socket); err != nil {
		return Runtime{}, fmt.Errorf("containerd does not listen: %w", err)
	}
	store, err := images.Open(c.socket, patience)
	if err != nil {
		return Runtime{}, err
	}
	defer store.Close()
	version, err := store.Version(ctx)
	if err != nil {
		return Runtime{}, err
	}
	names, err := store.List(ctx)
	return Runtime{Version: version, Images: names}, err
}

// ask reads this node's Node and pods with the kubelet's credentials: from the
// API server, or behind a hub from the hub, which has them in its store while
// the API server is away.
func (c collector) ask(ctx context.Context, s *Status, record site.Record) error {
	client, server, err := c.client()
	if err != nil {
		s.APIServer.Error = err.Error()
		return nil
	}
	if !record.Hub {
		s.APIServer.Address = server
	}
	node, err := client.CoreV1().Nodes().Get(ctx, record.NodeName, metav1.GetOptions{})
	if err != nil {
		if record.Hub {
			return fmt.Errorf("asking the hub for this node: %w", err)
		}
		s.APIServer.Error = err.Error()
		return nil
	}
	if !record.Hub {
		s.APIServer.Reachable, s.APIServer.LastReached, s.APIServer.Error = true, time.Now().UTC().Truncate(time.Second), ""
	}
	s.Node.Site, s.Node.From = node.Labels[api.SiteLabel], "cluster"
	if !s.APIServer.Reachable {
		s.Node.From = "this node's store"
	}
	s.Conditions = node.Status.Conditions
	pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: "spec.nodeName=" + record.NodeName, ResourceVersion: "0",
	})
	if err != nil {
		return fmt.Errorf("asking for the pods of this node: %w", err)
	}
	s.Pods = countPods(pods.Items)
	return nil
}

func countPods(all []corev1.Pod) *Pods {
	pods := &Pods{Total: len(all)}
	for _, pod := range all {
		ready := pod.Status.Phase == corev1.PodSucceeded
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				ready = true
			}
		}
		if ready {
			pods.Ready++
		} else {
			pods.NotReady = append(pods.NotReady, pod.Namespace+"/"+pod.Name)
		}
	}
	slices.Sort(pods.NotReady)
	return pods
}

// client is a client with the kubelet's credentials, and whom it asks.
func (c collector) client() (clientset.Interface, string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("the kubelet has no credentials yet: %w", err)
	}
	config.Timeout = patience
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return nil, "", fmt.Errorf("making a client of %s: %w", c.kubeconfig, err)
	}
	return client, config.Host, nil
}

// readCertificates returns when the certificates in the files expire, the first
// certificate of each. Files that are not there are left out.
func readCertificates(patterns []string) ([]Certificate, error) {
	var found []Certificate
	var problems []error
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		problems = append(problems, err)
		for _, path := range paths {
			expires, err := expiry(path)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			found = append(found, Certificate{Path: path, Expires: expires})
		}
	}
	return found, errors.Join(problems...)
}

func expiry(path string) (time.Time, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading certificate: %w", err)
	}
	return parseExpiry(path, data)
}

func parseExpiry(path string, data []byte) (time.Time, error) {
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			return time.Time{}, fmt.Errorf("no certificate in %s", path)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("parsing certificate %s: %w", path, err)
		}
		return certificate.NotAfter, nil
	}
}
