package sandbox

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/sandbox/cgroup"
	"skerry.dev/skerry/pkg/sandbox/spec"
)

// doc is one document of a kubeadm configuration file.
type doc map[string]any

// Configuration files in the machines, for --config of `skerry init` and
// `skerry join`.
const (
	InitFile = "/etc/skerry/init.yaml"
	JoinFile = "/etc/skerry/join.yaml"
)

// WriteConfigFiles puts what `skerry init` and `skerry join` read onto the disks
// of all machines.
func (s *Sandbox) WriteConfigFiles() error {
	for _, m := range s.Spec.Machines() {
		if err := s.writeConfigFiles(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) writeConfigFiles(m spec.Machine) error {
	disk := s.machineConfig(m).Disk()
	files := map[string][]doc{}
	if m.Index == 0 {
		files[InitFile] = s.initDocuments(m)
	} else {
		files[JoinFile] = joinDocuments(m)
	}
	for name, docs := range files {
		var texts []string
		for _, d := range docs {
			data, err := yaml.Marshal(d)
			if err != nil {
				return err
			}
			texts = append(texts, string(data))
		}
		if err := writeFile(filepath.Join(disk, name), strings.Join(texts, "---\n")); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(disk, "etc/containerd/conf.d/50-sandbox.toml"), containerdDropIn)
}

func writeFile(file, content string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(content), 0o644)
}

// The host may not let us lower a process's out-of-memory score below our own.
const containerdDropIn = `version = 3

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
`

const (
	kubeadmAPI = "kubeadm.k8s.io/v1beta4"
	kubeletAPI = "kubelet.config.k8s.io/v1beta1"
	proxyAPI   = "kubeproxy.config.k8s.io/v1alpha1"
)

func (s *Sandbox) initDocuments(m spec.Machine) []doc {
	cluster := doc{
		"apiVersion": kubeadmAPI, "kind": "ClusterConfiguration",
		"clusterName":          "sandbox-" + s.Name(),
		"controlPlaneEndpoint": apiEndpoint(m),
		"networking":           doc{"podSubnet": s.Spec.PodSubnet, "serviceSubnet": s.Spec.ServiceSubnet},
	}
	apiServer := doc{"certSANs": []string{"127.0.0.1", "localhost", m.Name, m.Address.String()}}
	if args := s.extraArgs("kube-apiserver"); args != nil {
		apiServer["extraArgs"] = args
	}
	cluster["apiServer"] = apiServer
	for component, key := range map[string]string{"kube-controller-manager": "controllerManager", "kube-scheduler": "scheduler"} {
		if args := s.extraArgs(component); args != nil {
			cluster[key] = doc{"extraArgs": args}
		}
	}
	if args := s.extraArgs("etcd"); args != nil {
		cluster["etcd"] = doc{"local": doc{"extraArgs": args}}
	}
	return []doc{
		{
			"apiVersion": kubeadmAPI, "kind": "InitConfiguration",
			"localAPIEndpoint": doc{"advertiseAddress": m.Address.String(), "bindPort": 6443},
			"nodeRegistration": registration(m),
		},
		cluster, s.kubeletDocument(),
		{
			"apiVersion": proxyAPI, "kind": "KubeProxyConfiguration",
			"mode": "nftables",
			// A network namespace cannot change the size of the table.
			"conntrack": doc{"maxPerCore": 0, "min": 0},
		},
	}
}

// extraArgs writes a component's flags as kubeadm wants them.
func (s *Sandbox) extraArgs(component string) []doc {
	flags := s.Spec.ControlPlane.ExtraArgs[component]
	names := make([]string, 0, len(flags))
	for name := range flags {
		names = append(names, name)
	}
	sort.Strings(names)
	var args []doc
	for _, name := range names {
		args = append(args, doc{"name": name, "value": flags[name]})
	}
	return args
}

func registration(m spec.Machine) doc {
	d := doc{"name": m.Name, "kubeletExtraArgs": []doc{{"name": "node-ip", "value": m.Address.String()}}}
	if !cgroup.Unified() {
		// It refuses version 1 of control groups, whatever kubelet is told.
		d["ignorePreflightErrors"] = []string{"SystemVerification"}
	}
	return d
}

func joinDocuments(m spec.Machine) []doc {
	d := doc{
		"apiVersion": kubeadmAPI, "kind": "JoinConfiguration",
		"nodeRegistration": registration(m),
	}
	if !m.Cloud() && !m.Hub {
		d["skipPhases"] = []string{"agent"}
	}
	return []doc{d}
}

// kubeletDocument holds for all nodes: kubeadm hands it to those that join.
func (s *Sandbox) kubeletDocument() doc {
	d := doc{
		"apiVersion": kubeletAPI, "kind": "KubeletConfiguration", "cgroupDriver": "cgroupfs",
		// All machines share the host's disk: a full one is no reason to evict
		// pods, nor to remove images, which nothing here could pull again.
		"evictionHard": doc{
			"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100,
	}
	if !cgroup.Unified() {
		d["failCgroupV1"] = false
	}
	// kubeadm refuses unknown fields and names them.
	maps.Copy(d, s.Spec.Kubelet)
	return d
}

// caHash is the value of --discovery-token-ca-cert-hash.
func (s *Sandbox) caHash() (string, error) {
	file := filepath.Join(s.machineConfig(s.Spec.Machines()[0]).Disk(), "etc/kubernetes/pki/ca.crt")
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading the cluster's CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("%s holds no certificate", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", file, err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
