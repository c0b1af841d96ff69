package sandbox

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/machine"
)

// Status is how a sandbox is doing.
type Status struct {
	Name       string                       `json:"name"`
	Kubeconfig string                       `json:"kubeconfig,omitempty"`
	Machines   []MachineStatus              `json:"machines"`
	Links      map[string]fabric.LinkStatus `json:"links,omitempty"`
	CutOff     []string                     `json:"cutOff,omitempty"`
	Inside     []fabric.Inside              `json:"inside,omitempty"` // faults between machines of one site
	// Problems are what could not be found out, and why.
	Problems []string `json:"problems,omitempty"`
}

// Power of a machine.
const (
	PowerOn     = "on"
	PowerOff    = "off"
	PowerFrozen = "frozen"
)

// MachineStatus is how one machine is doing.
type MachineStatus struct {
	Name    string `json:"name"`
	Site    string `json:"site"`
	Power   string `json:"power"`
	Uptime  string `json:"uptime,omitempty"`
	Address string `json:"address"`
	BootID  string `json:"bootID,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Memory  int64  `json:"memory,omitempty"` // bytes in use
	Limit   int64  `json:"memoryLimit,omitempty"`
	Node    string `json:"node,omitempty"` // Ready, NotReady, Unknown or, without a Node object, empty
}

// Status looks at everything; what cannot be reached is in Problems.
func (s *Sandbox) Status(ctx context.Context) (Status, error) {
	st := Status{Name: s.Name()}
	ready := map[string]string{}
	if s.meta.Cluster {
		st.Kubeconfig = s.Kubeconfig()
		var err error
		if ready, err = s.nodeConditions(ctx); err != nil {
			st.Problems = append(st.Problems, "the API server does not answer: "+err.Error())
		}
	}
	for _, m := range s.Spec.Machines() {
		c := s.machineConfig(m)
		ms := MachineStatus{Name: m.Name, Site: m.Site, Power: PowerOff, Address: m.Address.String(), BootID: c.BootID(), Limit: m.Memory, Node: ready[m.Name]}
		if id, on := c.Process(); on {
			ms.Power, ms.PID, ms.Uptime = PowerOn, id.PID, machine.Uptime(id).Round(time.Second).String()
			if frozen, err := c.Cgroup.Frozen(); err == nil && frozen {
				ms.Power = PowerFrozen
			}
			if used, err := c.Cgroup.Memory(); err == nil {
				ms.Memory = used
			}
		}
		st.Machines = append(st.Machines, ms)
	}
	if _, runs := fabricProcess(s.dir); !runs {
		st.Problems = append(st.Problems, "the network's process is gone: machines cannot reach each other until `skerry sandbox repair` starts it again")
		return st, nil
	}
	network, err := s.Fabric().Status(ctx)
	if err != nil {
		st.Problems = append(st.Problems, err.Error())
		return st, nil
	}
	st.Links, st.CutOff, st.Inside = network.Links, network.CutOff, network.Inside
	return st, nil
}

// nodeConditions tells for every Node whether it is Ready.
func (s *Sandbox) nodeConditions(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client, err := s.Client()
	if err != nil {
		return nil, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	ready := map[string]string{}
	for _, n := range nodes.Items {
		ready[n.Name] = "Unknown"
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				ready[n.Name] = map[corev1.ConditionStatus]string{corev1.ConditionTrue: "Ready", corev1.ConditionFalse: "NotReady"}[c.Status]
			}
		}
		if ready[n.Name] == "" {
			ready[n.Name] = "Unknown"
		}
	}
	return ready, nil
}
