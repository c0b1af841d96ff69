package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	agentv1 "skerry.dev/api/agent/v1alpha1"
)

// Defaults and bounds of the policy.
const (
	defaultQuotaObjects = 20000
	defaultQuotaBytes   = 64 * mebi
	defaultStoreBytes   = 512 * mebi
	minStoreBytes       = 16 * mebi
	defaultTokenGrace   = 720 * time.Hour
	maxTokenGrace       = 8760 * time.Hour

	serviceAccountPrefix = "system:serviceaccount:"
)

// DefaultPolicy is what an agent does until it knows the cluster's.
func DefaultPolicy() *agentv1.AgentPolicy {
	p := &agentv1.AgentPolicy{TypeMeta: agentv1.TypeMeta{APIVersion: agentv1.APIVersion, Kind: agentv1.AgentPolicyKind}}
	setPolicyDefaults(p)
	return p
}

// ParsePolicy reads, defaults and checks the cluster's policy.
func ParsePolicy(data []byte) (*agentv1.AgentPolicy, error) {
	p := &agentv1.AgentPolicy{}
	if err := decode(data, p, &p.TypeMeta, agentv1.AgentPolicyKind); err != nil {
		return nil, err
	}
	setPolicyDefaults(p)
	if err := validatePolicy(p); err != nil {
		return nil, err
	}
	return p, nil
}

func setPolicyDefaults(p *agentv1.AgentPolicy) {
	if p.Clients == nil {
		p.Clients = []agentv1.KeptClient{{ServiceAccount: "kube-system/kube-proxy"}, {ServiceAccount: "kube-system/coredns"}}
	}
	if p.WholeResources == nil {
		p.WholeResources = []string{"services", "endpointslices.discovery.k8s.io"}
	}
	p.Quota.Objects = cmp.Or(p.Quota.Objects, defaultQuotaObjects)
	p.Quota.Bytes = cmp.Or(p.Quota.Bytes, defaultQuotaBytes)
	p.Store.MaxBytes = cmp.Or(p.Store.MaxBytes, defaultStoreBytes)
	if p.OfflineTokenGrace == nil {
		p.OfflineTokenGrace = &agentv1.Duration{Duration: defaultTokenGrace}
	}
	for i := range p.Clients {
		client := &p.Clients[i]
		if client.Resources == nil {
			client.Resources = []string{"*"}
		}
		client.Quota.Objects = cmp.Or(client.Quota.Objects, p.Quota.Objects)
		client.Quota.Bytes = cmp.Or(client.Quota.Bytes, p.Quota.Bytes)
	}
}

func validatePolicy(p *agentv1.AgentPolicy) error {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	quota := func(field string, q agentv1.Quota) {
		if q.Objects < 0 {
			bad(field+".objects", "%d is negative", q.Objects)
		}
		if q.Bytes < 0 {
			bad(field+".bytes", "%d is negative", q.Bytes)
		}
	}
	quota("quota", p.Quota)
	seen := map[string]bool{}
	for i, client := range p.Clients {
		field := fmt.Sprintf("clients[%d]", i)
		switch {
		case (client.ServiceAccount == "") == (client.User == ""):
			bad(field, "give either serviceAccount or user")
		case client.User != "":
			if strings.HasPrefix(client.User, "system:node:") || client.User == "system:anonymous" {
				bad(field+".user", "%q cannot be a kept client", client.User)
			} else if strings.HasPrefix(client.User, serviceAccountPrefix) {
				bad(field+".user", "%q is a service account: say serviceAccount: NAMESPACE/NAME", client.User)
			}
		default:
			if err := checkServiceAccount(client.ServiceAccount); err != nil {
				bad(field+".serviceAccount", "%v", err)
			}
		}
		key := client.ServiceAccount + " " + client.User
		if seen[key] {
			bad(field, "this client is in the list already")
		}
		seen[key] = true
		for j, resource := range client.Resources {
			if resource == "*" {
				continue
			}
			if err := checkResource(resource); err != nil {
				bad(fmt.Sprintf("%s.resources[%d]", field, j), "%v", err)
			}
		}
		quota(field+".quota", client.Quota)
	}
	for i, resource := range p.WholeResources {
		if err := checkResource(resource); err != nil {
			bad(fmt.Sprintf("wholeResources[%d]", i), "%v", err)
		} else if slices.Contains([]string{"secrets", "configmaps", "pods", "nodes"}, resource) {
			// A node's identity may not list these, and should not.
			bad(fmt.Sprintf("wholeResources[%d]", i), "a node may not read all %s of the cluster", resource)
		}
	}
	if grace := p.OfflineTokenGrace.Duration; grace < 0 || grace > maxTokenGrace {
		bad("offlineTokenGrace", "%s is not between 0 and %s", grace, maxTokenGrace)
	}
	if p.Store.MaxBytes < minStoreBytes {
		bad("store.maxBytes", "%d is less than %d", p.Store.MaxBytes, int64(minStoreBytes))
	}
	return errors.Join(problems...)
}

func checkServiceAccount(text string) error {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		return fmt.Errorf("%q is not NAMESPACE/NAME", text)
	}
	if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 {
		return fmt.Errorf("%q is no namespace: %s", namespace, problems[0])
	}
	if name == "*" {
		return nil
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("%q is no name of a service account: %s", name, problems[0])
	}
	return nil
}

func checkResource(text string) error {
	if problems := validation.IsDNS1123Subdomain(text); len(problems) > 0 {
		return fmt.Errorf("%q is not RESOURCE or RESOURCE.GROUP: %s", text, problems[0])
	}
	return nil
}

// Policy answers what the cluster's policy says. It is safe for concurrent use,
// and changes when the cluster's does.
type Policy struct {
	mu      sync.RWMutex
	current *agentv1.AgentPolicy
	problem string
}

// NewPolicy returns the default policy.
func NewPolicy() *Policy { return &Policy{current: DefaultPolicy()} }

// Set replaces the policy by what the cluster says. What is wrong is refused,
// and reported by Problem until something right comes.
func (p *Policy) Set(data []byte) error {
	parsed, err := ParsePolicy(data)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.problem = fmt.Sprintf("the policy in ConfigMap %s/%s is wrong, the last good one is used: %s",
			agentv1.PolicyNamespace, agentv1.PolicyName, strings.ReplaceAll(err.Error(), "\n", "; "))
		return err
	}
	p.current, p.problem = parsed, ""
	return nil
}

// Reset goes back to the default policy: the cluster has none.
func (p *Policy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current, p.problem = DefaultPolicy(), ""
}

// Current is the policy in force. It must not be changed.
func (p *Policy) Current() *agentv1.AgentPolicy {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.current
}

// Problem says what is wrong with the cluster's policy; "" is nothing.
func (p *Policy) Problem() string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.problem
}

// TokenGrace is for how long after its expiry a token is good offline.
func (p *Policy) TokenGrace() time.Duration { return p.Current().OfflineTokenGrace.Duration }

// Keep says whether the resource is kept for a user, with which quota.
func (p *Policy) Keep(user, group, resource string) (objects int, bytes int64, ok bool) {
	name := schema.GroupResource{Group: group, Resource: resource}.String()
	for _, client := range p.Current().Clients {
		if matches(client, user) && (slices.Contains(client.Resources, "*") || slices.Contains(client.Resources, name)) {
			return client.Quota.Objects, client.Quota.Bytes, true
		}
	}
	return 0, 0, false
}

func matches(client agentv1.KeptClient, user string) bool {
	if client.User != "" {
		return client.User == user
	}
	account, ok := strings.CutPrefix(user, serviceAccountPrefix)
	if !ok {
		return false
	}
	wantNamespace, wantName, _ := strings.Cut(client.ServiceAccount, "/")
	namespace, name, _ := strings.Cut(account, ":")
	return namespace == wantNamespace && (wantName == "*" || wantName == name)
}

// Whole lists the resources that are mirrored whole.
func (p *Policy) Whole() []schema.GroupResource {
	var all []schema.GroupResource
	for _, name := range p.Current().WholeResources {
		all = append(all, schema.ParseGroupResource(name))
	}
	return all
}

// sortedErrors makes messages that do not depend on the order of a map.
func sortedErrors(all []error) []error {
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return all
}
