package agent

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/cluster"
	"skerry.dev/skerry/pkg/agentapi"
)

const head = "apiVersion: agent.skerry.dev/v1alpha1\nkind: AgentConfiguration\n"

func TestParseConfig(t *testing.T) {
	config, err := ParseConfig([]byte(head + "nodeName: east-1\nservers: [\"https://192.0.2.1:6443\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Listen.Hub != agentapi.HubAddress || config.Listen.Pods != agentapi.PodAddress || config.Listen.Socket != agentapi.Socket ||
		config.Files.StateDir != agentapi.StateDir || config.RejoinPort != agentapi.RejoinPort || config.ServiceAddresses[0] != "10.96.0.1" {
		t.Errorf("defaults: %+v", config)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	const good = head + "nodeName: east-1\nservers: [\"https://192.0.2.1:6443\"]\n"
	for _, test := range []struct{ text, says string }{
		{"", "must be apiVersion"},
		{"kind: [", "yaml"},
		{strings.Replace(good, "AgentConfiguration", "AgentPolicy", 1), "AgentPolicy"},
		{good + "colour: red\n", "colour"},
		{head + "servers: [\"https://192.0.2.1:6443\"]\n", "nodeName:"},
		{head + "nodeName: east-1\n", "servers:"},
		{head + "nodeName: east-1\nservers: [\"http://192.0.2.1\"]\n", "servers[0]:"},
		{head + "nodeName: east-1\nservers: [\"https://user:pw@192.0.2.1\"]\n", "servers[0]:"},
		{good + "clusterDomain: not_dns\n", "clusterDomain:"},
		{good + "serviceAddresses: [ten]\n", "serviceAddresses[0]:"},
		{good + "listen: {hub: 0.0.0.0:1}\n", "listen.hub: 0.0.0.0:1 is no loopback"},
		{good + "listen: {health: here}\n", "listen.health:"},
		{good + "listen: {pods: 192.0.2.1:1}\n", "listen.pods:"},
		{good + "listen: {socket: agent.sock}\n", "listen.socket:"},
		{good + "files: {stateDir: state}\n", "files.stateDir:"},
		{good + "memory: {softLimitBytes: 1}\n", "memory.softLimitBytes:"},
		{good + "memory: {gcPercent: 1}\n", "memory.gcPercent:"},
		{good + "rejoinPort: 70000\n", "rejoinPort:"},
		{good + "logLevel: loud\n", "logLevel:"},
		{good + "# " + strings.Repeat("x", maxConfig), "more than"},
	} {
		if _, err := ParseConfig([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.80q: error %v, want one that says %q", test.text, err, test.says)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("no file: %v", err)
	}
}

const policyHead = "apiVersion: agent.skerry.dev/v1alpha1\nkind: AgentPolicy\n"

func TestPolicy(t *testing.T) {
	p := NewPolicy()
	kept := func(user, group, resource string) bool {
		_, _, ok := p.Keep(user, group, resource)
		return ok
	}
	if !kept("system:serviceaccount:kube-system:coredns", "discovery.k8s.io", "endpointslices") || kept("system:serviceaccount:default:app", "", "services") {
		t.Error("the default keeps other clients than kube-proxy and CoreDNS")
	}
	if len(p.Whole()) != 2 || p.Whole()[1].Group != "discovery.k8s.io" {
		t.Errorf("whole: %v", p.Whole())
	}
	const mine = policyHead + `
clients:
- serviceAccount: shop/*
  resources: [configmaps, tills.example.com]
  quota: {objects: 7}
- user: jane
offlineTokenGrace: 24h
quota: {bytes: 1000}
`
	if err := p.Set([]byte(mine)); err != nil {
		t.Fatal(err)
	}
	if objects, bytes, ok := p.Keep("system:serviceaccount:shop:till", "example.com", "tills"); !ok || objects != 7 || bytes != 1000 {
		t.Errorf("till: %d objects, %d bytes, %v", objects, bytes, ok)
	}
	for _, test := range []struct {
		user, group, resource string
		want                  bool
	}{
		{"system:serviceaccount:shop:till", "", "configmaps", true},
		{"system:serviceaccount:shop:till", "", "secrets", false},
		{"system:serviceaccount:shopping:till", "", "configmaps", false},
		{"system:serviceaccount:kube-system:coredns", "", "services", false},
		{"jane", "apps", "deployments", true},
		{"shop/till", "", "configmaps", false},
	} {
		if kept(test.user, test.group, test.resource) != test.want {
			t.Errorf("%+v is wrong", test)
		}
	}
	if p.TokenGrace().Hours() != 24 {
		t.Errorf("grace %s", p.TokenGrace())
	}
	// A wrong one changes nothing, and is told until a right one comes.
	if err := p.Set([]byte(policyHead + "clients: [{user: jane, serviceAccount: a/b}]\n")); err == nil || !kept("jane", "", "pods") || !strings.Contains(p.Problem(), "clients[0]") {
		t.Errorf("a wrong policy: %v, problem %q", err, p.Problem())
	}
	p.Reset()
	if p.Problem() != "" || kept("jane", "", "pods") || !kept("system:serviceaccount:kube-system:kube-proxy", "", "services") {
		t.Error("without a policy the default does not hold")
	}
}

func TestPolicyRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"clients: [{}]":                                  "clients[0]:",
		"clients: [{user: 'system:node:n'}]":             "clients[0].user:",
		"clients: [{user: 'system:serviceaccount:a:b'}]": "clients[0].user:",
		"clients: [{serviceAccount: coredns}]":           "clients[0].serviceAccount:",
		"clients: [{user: a}, {user: a}]":                "clients[1]:",
		"clients: [{user: a, resources: ['Pods']}]":      "clients[0].resources[0]:",
		"clients: [{user: a, quota: {objects: -1}}]":     "clients[0].quota.objects:",
		"quota: {bytes: -1}":                             "quota.bytes:",
		"wholeResources: [secrets]":                      "wholeResources[0]:",
		"wholeResources: ['a/b']":                        "wholeResources[0]:",
		"offlineTokenGrace: 9000h":                       "offlineTokenGrace:",
		"offlineTokenGrace: soon":                        "not a duration",
		"store: {maxBytes: 5}":                           "store.maxBytes:",
		"colour: red":                                    "colour",
	} {
		if _, err := ParsePolicy([]byte(policyHead + text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want one that says %q", text, err, says)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(policyHead + "clients: [{user: a}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParsePolicy(data); err == nil && (p.OfflineTokenGrace == nil || p.Quota.Objects < 0) {
			t.Errorf("accepted %+v", p)
		}
	})
}

// The policy that `skerry init` makes says what holds without one.
func TestDefaultPolicyOfTheCluster(t *testing.T) {
	objects, err := cluster.Hub()
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if object.GetKind() != "ConfigMap" || object.GetName() != agentv1.PolicyName || object.GetNamespace() != agentv1.PolicyNamespace {
			continue
		}
		text, _, err := unstructured.NestedString(object.Object, "data", agentv1.PolicyKey)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParsePolicy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if want := DefaultPolicy(); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		return
	}
	t.Error("the cluster's objects have no policy")
}
