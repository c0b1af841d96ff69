package spec

import (
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

func TestDefault(t *testing.T) {
	s, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range s.Machines() {
		got = append(got, m.Name+"="+m.Address.String())
	}
	want := "cloud-1=172.30.0.11 east-1=172.30.1.11 east-2=172.30.1.12 west-1=172.30.2.11 west-2=172.30.2.12"
	if strings.Join(got, " ") != want {
		t.Errorf("machines %v, want %s", got, want)
	}
	if s.Name != "default" || s.PodSubnet != "10.244.0.0/16" {
		t.Errorf("%+v", s)
	}
}

func TestEverything(t *testing.T) {
	s, err := Parse([]byte(`
name: big
podSubnet: 10.10.0.0/16
serviceSubnet: 10.20.0.0/16
cloud: {nodes: 2, memory: 2Gi, subnet: 192.168.0.0/24}
sites:
- name: north
  nodes: 3
  memory: 1Gi
  subnet: 192.168.1.0/24
  link: {delay: 100ms, jitter: 20ms, loss: 10%, rate: 2mbit, down: {cut: true}}
controlPlane:
  extraArgs:
    kube-controller-manager: {node-monitor-grace-period: 20s}
kubelet: {nodeLeaseDurationSeconds: 8}
images: [a.tar]
`))
	if err != nil {
		t.Fatal(err)
	}
	link := s.Sites[0].Link
	if up := link.Direction(weaklink.Up); time.Duration(up.Delay) != 100*time.Millisecond || up.Loss != 10 || up.Rate != 2e6 || up.Cut {
		t.Errorf("link up: %+v", up)
	}
	if down := link.Direction(weaklink.Down); !down.Cut || down.Delay != 0 {
		t.Errorf("link down: %+v, want only what was said for it", down)
	}
	machines := s.Machines()
	if len(machines) != 5 || machines[1].Name != "cloud-2" || !machines[1].Cloud() || machines[1].Memory != 2<<30 || machines[4].Memory != 1<<30 {
		t.Errorf("machines: %+v", machines)
	}
	if s.ControlPlane.ExtraArgs["kube-controller-manager"]["node-monitor-grace-period"] != "20s" {
		t.Errorf("extraArgs: %v", s.ControlPlane.ExtraArgs)
	}
	if got := s.Kubelet["nodeLeaseDurationSeconds"]; got != float64(8) {
		t.Errorf("kubelet: nodeLeaseDurationSeconds: %v", got)
	}
}

func TestHub(t *testing.T) {
	s, err := Parse([]byte("cloud: {nodes: 2}\nsites: [{name: a, nodes: 1}, {name: b, nodes: 1, hub: false}, {name: c, nodes: 1, hub: true}]"))
	if err != nil {
		t.Fatal(err)
	}
	var with []string
	for _, m := range s.Machines() {
		if m.Hub {
			with = append(with, m.Name)
		}
	}
	if got := strings.Join(with, " "); got != "a-1 c-1" {
		t.Errorf("machines with a hub: %s", got)
	}
}

func TestNoSites(t *testing.T) {
	s, err := Parse([]byte("sites: []"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Sites) != 0 || len(s.Machines()) != 1 {
		t.Errorf("an empty list of sites gave %v", s.Sites)
	}
}

// Every mistake is refused with words that lead to the field.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"nam: x":                                         "nam: no such field; there are cloud, controlPlane, images, kubelet, name",
		"sites: [{name: a, node: 2}]":                    "sites[0].node: no such field",
		"sites: [{name: a, link: {dely: 1s}}]":           "sites[0].link.dely: no such field; there are cut, delay, down",
		"sites: [{name: a, nodes: two}]":                 `sites[0].nodes: "two" is not of type int`,
		"name: Upper":                                    "name:",
		"name: a-name-that-is-much-too-long":             "name:",
		"sites: [{name: ''}]":                            "sites[0].name",
		"sites: [{name: ../x}]":                          "sites[0].name",
		"sites: [{name: cloud}]":                         "sites[0].name",
		"sites: [{name: a}, {name: a}]":                  "sites[1].name",
		"sites: [{name: a, nodes: -1}]":                  "sites[0].nodes",
		"sites: [{name: a, nodes: 1000}]":                "sites[0].nodes",
		"cloud: {nodes: -1}":                             "cloud.nodes",
		"cloud: {memory: 1Mi}":                           "cloud.memory",
		"cloud: {memory: lots}":                          "cloud.memory",
		"sites: [{name: a, link: {delay: fast}}]":        "sites[0].link.delay",
		"sites: [{name: a, link: {delay: 2h}}]":          "sites[0].link: delay",
		"sites: [{name: a, link: {loss: 200%}}]":         "sites[0].link.loss",
		"sites: [{name: a, link: {rate: 1bit}}]":         "sites[0].link: rate",
		"sites: [{name: a, link: {up: {rate: 1}}}]":      "sites[0].link: rate",
		"podSubnet: 10.0.0.1/16":                         "podSubnet",
		"podSubnet: fd00::/64":                           "podSubnet",
		"serviceSubnet: 10.244.3.0/24":                   "serviceSubnet: 10.244.3.0/24 overlaps podSubnet",
		"sites: [{name: a, subnet: 172.30.0.0/16}]":      "sites[0].subnet: 172.30.0.0/16 overlaps cloud.subnet",
		"sites: [{name: a, subnet: 10.1.1.0/28}]":        "too small",
		"sites: [{name: a}, {name: a-1, nodes: 101}]":    "sites[1].nodes",
		"controlPlane: {extraArgs: {kubelet: {v: '9'}}}": `no component "kubelet"`,
		"name: a\nname: b":                               "already set",
		"- a":                                            "not a sandbox description",
	} {
		_, err := Parse([]byte(text))
		if err == nil {
			t.Errorf("%q is accepted", text)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: the error %q does not say %q", text, err, want)
		}
		if strings.Contains(err.Error(), "unmarshaling") || strings.Contains(err.Error(), "Go struct") {
			t.Errorf("%q: the error speaks of the parser: %q", text, err)
		}
	}
}

func TestNamesNotFoundSayWhatThereIs(t *testing.T) {
	s, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Machine("east-9"); err == nil || !strings.Contains(err.Error(), "west-2") {
		t.Errorf("machine: %v", err)
	}
	if _, err := s.Site("north"); err == nil || !strings.Contains(err.Error(), "east, west") {
		t.Errorf("site: %v", err)
	}
}

// Whatever is written, it is refused or gives a sandbox that holds together.
func FuzzParse(f *testing.F) {
	f.Add("")
	f.Add("sites: [{name: a, nodes: 3, link: {delay: 1s, up: {cut: true}}}]\ncloud: {memory: 1Gi}")
	f.Add("sites: [{name: a, subnet: 255.255.255.0/24, nodes: 100}]")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse([]byte(text))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, m := range s.Machines() {
			if seen[m.Name] || seen[m.Address.String()] || !s.Subnet(m.Site).Contains(m.Address) {
				t.Errorf("machine %s at %s of %s", m.Name, m.Address, s.Subnet(m.Site))
			}
			seen[m.Name], seen[m.Address.String()] = true, true
		}
	})
}
