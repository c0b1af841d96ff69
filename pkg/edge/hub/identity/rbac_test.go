package identity

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"

	"skerry.dev/skerry/pkg/edge/store"
)

// policy is RBAC as upstream's authorizer takes it and as the store holds it.
type policy struct {
	roles               []*rbacv1.Role
	roleBindings        []*rbacv1.RoleBinding
	clusterRoles        []*rbacv1.ClusterRole
	clusterRoleBindings []*rbacv1.ClusterRoleBinding
}

func (p *policy) store(t testing.TB, s *store.Store) {
	t.Helper()
	var b store.Batch
	for _, q := range RBACQueries() {
		b.SetView(store.View{Query: q, Node: true, Complete: true, ResourceVersion: 10, Synced: time.Now()})
	}
	if err := s.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
	for _, o := range p.roles {
		put(t, s, rbacGroup, "roles", "Role", o.Namespace, o.Name, "", o)
	}
	for _, o := range p.roleBindings {
		put(t, s, rbacGroup, "rolebindings", "RoleBinding", o.Namespace, o.Name, "", o)
	}
	for _, o := range p.clusterRoles {
		put(t, s, rbacGroup, "clusterroles", "ClusterRole", "", o.Name, "", o)
	}
	for _, o := range p.clusterRoleBindings {
		put(t, s, rbacGroup, "clusterrolebindings", "ClusterRoleBinding", "", o.Name, "", o)
	}
}

var (
	verbs      = []string{"get", "list", "watch", "update", "*"}
	groups     = []string{"", "apps", "*"}
	resources  = []string{"pods", "pods/status", "secrets", "*/status", "*"}
	names      = []string{"a", "b"}
	paths      = []string{"/healthz", "/healthz/*", "/apis", "/apis/*", "*"}
	namespaces = []string{"shop", "bank"}
	subjects   = []rbacv1.Subject{
		{Kind: "ServiceAccount", Namespace: "shop", Name: "till"},
		{Kind: "ServiceAccount", Namespace: "bank", Name: "till"},
		{Kind: "ServiceAccount", Name: "till"}, // of the binding's namespace
		{Kind: "User", APIGroup: rbacGroup, Name: "system:serviceaccount:bank:clerk"},
		{Kind: "User", APIGroup: rbacGroup, Name: "till"},
		{Kind: "Group", APIGroup: rbacGroup, Name: "system:serviceaccounts"},
		{Kind: "Group", APIGroup: rbacGroup, Name: "system:serviceaccounts:bank"},
		{Kind: "Group", APIGroup: rbacGroup, Name: "system:nodes"},
		{Kind: "ServiceAccount", Namespace: "bank", Name: "ill"},
	}
)

func some(r *rand.Rand, from []string) []string {
	var out []string
	for _, s := range from {
		if r.IntN(4) == 0 {
			out = append(out, s)
		}
	}
	return out
}

func one[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomPolicy(r *rand.Rand) *policy {
	rules := func() []rbacv1.PolicyRule {
		var out []rbacv1.PolicyRule
		for range r.IntN(3) {
			rule := rbacv1.PolicyRule{Verbs: some(r, verbs)}
			if r.IntN(4) == 0 {
				rule.NonResourceURLs = some(r, paths)
			} else {
				rule.APIGroups, rule.Resources = some(r, groups), some(r, resources)
				if r.IntN(3) == 0 {
					rule.ResourceNames = some(r, names)
				}
			}
			out = append(out, rule)
		}
		return out
	}
	bound := func() []rbacv1.Subject {
		var out []rbacv1.Subject
		for range 1 + r.IntN(2) {
			out = append(out, one(r, subjects))
		}
		return out
	}
	p := &policy{}
	for i := range 6 {
		name := fmt.Sprintf("r%d", i)
		p.clusterRoles = append(p.clusterRoles, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules()})
		for _, ns := range namespaces {
			p.roles = append(p.roles, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: rules()})
		}
	}
	for i := range 4 {
		// r6 does not exist: a binding may lead nowhere.
		name, target := fmt.Sprintf("b%d", i), fmt.Sprintf("r%d", r.IntN(7))
		p.clusterRoleBindings = append(p.clusterRoleBindings, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: bound(), RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: target},
		})
		for _, ns := range namespaces {
			p.roleBindings = append(p.roleBindings, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Subjects: bound(),
				RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: one(r, []string{"Role", "ClusterRole"}), Name: target},
			})
		}
	}
	return p
}

func randomAttributes(r *rand.Rand) Attributes {
	if r.IntN(4) == 0 {
		return Attributes{Verb: one(r, verbs[:4]), Path: one(r, []string{"/healthz", "/healthz/etcd", "/apis", "/apis/apps", "/metrics"})}
	}
	return Attributes{
		Verb: one(r, verbs[:4]), Group: one(r, groups[:2]), Version: "v1", Resource: one(r, []string{"pods", "secrets", "deployments"}),
		Subresource: one(r, []string{"", "", "status"}), Namespace: one(r, []string{"shop", "bank", ""}), Name: one(r, []string{"", "a", "c"}),
	}
}

func account(namespace, name string) Caller {
	return Caller{Verified: true, Token: "t", User: User{
		Name:   serviceAccountUserPrefix + namespace + ":" + name,
		Groups: []string{serviceAccountsGroup, serviceAccountsGroup + ":" + namespace, authenticatedGroup},
	}}
}

// The same decisions as upstream's authorizer over the whole policy.
func TestOfflineIsWhatUpstreamSays(t *testing.T) {
	const seed = 20261123
	allowed, denied := 0, 0
	for round := range 12 {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		p := randomPolicy(r)
		s := openStore(t)
		p.store(t, s)
		a := NewAuthorizer(AuthorizerOptions{Objects: s})
		_, lists := validation.NewTestRuleResolver(p.roles, p.roleBindings, p.clusterRoles, p.clusterRoleBindings)
		upstream := rbac.New(lists, lists, lists, lists)
		callers := []Caller{account("shop", "till"), account("bank", "till"), account("bank", "clerk"), account("other", "x")}
		for range 500 {
			c, at := one(r, callers), randomAttributes(r)
			decision, _, _ := upstream.Authorize(t.Context(), authorizer.AttributesRecord{
				User: &user.DefaultInfo{Name: c.User.Name, Groups: c.User.Groups}, Verb: at.Verb, Namespace: at.Namespace, APIGroup: at.Group,
				APIVersion: at.Version, Resource: at.Resource, Subresource: at.Subresource, Name: at.Name, ResourceRequest: at.Resource != "", Path: at.Path,
			})
			err := a.Offline(t.Context(), c, at)
			switch {
			case decision == authorizer.DecisionAllow && err != nil:
				t.Errorf("seed %d round %d: %s %+v: allowed upstream, here %v", seed, round, c.User.Name, at, err)
			case decision != authorizer.DecisionAllow && !apierrors.IsForbidden(err):
				t.Errorf("seed %d round %d: %s %+v: denied upstream, here %v", seed, round, c.User.Name, at, err)
			case err == nil:
				allowed++
			default:
				denied++
			}
		}
	}
	if allowed < 300 || denied < 300 {
		t.Errorf("%d allowed and %d denied compare nothing", allowed, denied)
	}
}

func TestOfflineFollowsChanges(t *testing.T) {
	s := openStore(t)
	a := NewAuthorizer(AuthorizerOptions{Objects: s})
	c, at := account("shop", "till"), Attributes{Verb: "list", Version: "v1", Resource: "pods", Namespace: "shop"}
	if err := a.Offline(t.Context(), c, at); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("nothing was ever received: %v", err)
	}
	(&policy{}).store(t, s)
	if err := a.Offline(t.Context(), c, at); !apierrors.IsForbidden(err) {
		t.Errorf("no bindings: %v", err)
	}
	p := &policy{
		clusterRoles: []*rbacv1.ClusterRole{{ObjectMeta: metav1.ObjectMeta{Name: "view"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods"}}}}},
		roleBindings: []*rbacv1.RoleBinding{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "b"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "till"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: "view"}}},
	}
	p.store(t, s)
	var b store.Batch
	q := rbacQuery("rolebindings")
	b.SetView(store.View{Query: q, Kind: "RoleBinding", Node: true, Complete: true, ResourceVersion: 11})
	if err := s.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
	if err := a.Offline(t.Context(), c, at); err != nil {
		t.Errorf("bound: %v", err)
	}
	if err := a.Offline(t.Context(), Caller{User: c.User}, at); !apierrors.IsForbidden(err) {
		t.Errorf("who says that it is bound, unverified: %v", err)
	}
	at.Namespace = "bank"
	err := a.Offline(t.Context(), c, at)
	const want = `pods is forbidden: User "system:serviceaccount:shop:till" cannot list resource "pods" in API group "" in the namespace "bank"`
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := a.Offline(t.Context(), Caller{Token: "x"}, at); !apierrors.IsForbidden(err) {
		t.Errorf("unverified: %v", err)
	}
	if err := a.Offline(t.Context(), Caller{Node: true, Verified: true}, at); err != nil {
		t.Errorf("node: %v", err)
	}
	b = store.Batch{}
	b.SetView(store.View{Query: rbacQuery("roles"), Kind: "Role", Node: true, Complete: false, ResourceVersion: 12})
	if err := s.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
	if err := a.Offline(t.Context(), c, at); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "roles") {
		t.Errorf("roles not complete: %v", err)
	}
}

// A role that cannot be read must not turn into a plain no, and one that can
// still says yes.
func TestOfflineWithADamagedRole(t *testing.T) {
	s := openStore(t)
	rule := []rbacv1.PolicyRule{{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
	me := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "shop", Name: "till"}}
	p := &policy{
		clusterRoles: []*rbacv1.ClusterRole{{ObjectMeta: metav1.ObjectMeta{Name: "good"}, Rules: rule}},
		clusterRoleBindings: []*rbacv1.ClusterRoleBinding{
			{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Subjects: me, RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: "bad"}},
			{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Subjects: me, RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: "good"}},
		},
	}
	p.store(t, s)
	q := rbacQuery("clusterroles")
	k := store.Key{Group: rbacGroup, Version: "v1", Resource: "clusterroles", Name: "bad"}
	var b store.Batch
	b.Put(store.Object{Key: k, Kind: "ClusterRole", ResourceVersion: 10, Format: store.FormatProtobuf, Data: []byte("\xff\xff\xff")})
	b.Join(q, k)
	if err := s.Apply(&b, store.Soon); err != nil {
		t.Fatal(err)
	}
	a := NewAuthorizer(AuthorizerOptions{Objects: s})
	c := account("shop", "till")
	if err := a.Offline(context.Background(), c, Attributes{Verb: "list", Version: "v1", Resource: "pods"}); err != nil {
		t.Errorf("allowed by the good role: %v", err)
	}
	if err := a.Offline(context.Background(), c, Attributes{Verb: "list", Version: "v1", Resource: "secrets"}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("perhaps allowed by the bad role: %v", err)
	}
}
