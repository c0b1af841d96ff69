package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/utils/lru"

	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// maxCallers is how many users' bindings are remembered, maxBindings how
	// many each may have.
	maxCallers  = 64
	maxBindings = 5000
)

// rbacVersion is the resourceVersion of each of RBACQueries.
type rbacVersion [4]uint64

// Offline evaluates the cached RBAC: nil is yes, a 403 is no, a 503 says that
// RBAC was never fully received. For the node it says yes: what the node may see
// is written in the views (store.View.Node), which who asks checks.
//
// The evaluation is upstream's own (it adds 0.4 MB to a process that has the API
// types). Only the bindings of users that ask are held decoded, and roles not at
// all.
func (a *Authorizer) Offline(ctx context.Context, c Caller, at Attributes) error {
	if c.Node && c.Verified {
		return nil
	}
	if !c.Verified || c.User.Name == "" {
		return forbidden(c, at, "the cloud is away, and this node cannot tell who this is")
	}
	bound, err := a.bindingsOf(ctx, c.User)
	if err != nil {
		return err
	}
	record := authorizer.AttributesRecord{
		User:            &user.DefaultInfo{Name: c.User.Name, UID: c.User.UID, Groups: c.User.Groups, Extra: c.User.Extra},
		Verb:            at.Verb,
		Namespace:       at.Namespace,
		APIGroup:        at.Group,
		APIVersion:      at.Version,
		Resource:        at.Resource,
		Subresource:     at.Subresource,
		Name:            at.Name,
		ResourceRequest: at.Resource != "",
		Path:            at.Path,
	}
	roles := &storedRoles{a.o.Objects, nil}
	decision, _, err := rbac.New(roles, bound, roles, bound).Authorize(ctx, record)
	switch {
	case decision == authorizer.DecisionAllow:
		return nil
	case roles.failure != nil:
		return unready("the stored RBAC cannot be read: %v", roles.failure)
	case err != nil:
		return unready("evaluating the stored RBAC: %v", err)
	}
	return forbidden(c, at, "")
}

func unready(format string, args ...any) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf(format, args...))
}

// bindings are the bindings that name one user or one of its groups. They satisfy
// the two listers of upstream's authorizer.
type bindings struct {
	cluster    []*rbacv1.ClusterRoleBinding
	namespaced map[string][]*rbacv1.RoleBinding
}

func (b *bindings) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	return b.cluster, nil
}

func (b *bindings) ListRoleBindings(_ context.Context, namespace string) ([]*rbacv1.RoleBinding, error) {
	return b.namespaced[namespace], nil
}

func (a *Authorizer) bindingsOf(ctx context.Context, u User) (*bindings, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var version rbacVersion
	for i, q := range RBACQueries() {
		view, ok, err := a.o.Objects.View(q)
		if err != nil {
			return nil, unready("the stored RBAC cannot be read: %v", err)
		}
		if !ok || !view.Complete {
			return nil, unready("the cloud is away, and this node has never received all of its %s: it cannot tell who may do what", q.Resource)
		}
		version[i] = view.ResourceVersion
	}
	if version != a.version {
		a.version, a.callers = version, lru.New(maxCallers)
	}
	key := u.Name + "\x00" + strings.Join(u.Groups, "\x00")
	if found, ok := a.callers.Get(key); ok {
		return found.(*bindings), nil
	}
	found, err := a.scan(ctx, u)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, unready("the stored RBAC cannot be read: %v", err)
	}
	a.callers.Add(key, found)
	return found, nil
}

// scan reads all bindings once and keeps those of one user.
func (a *Authorizer) scan(ctx context.Context, u User) (*bindings, error) {
	out := &bindings{namespaced: map[string][]*rbacv1.RoleBinding{}}
	count := 0
	admit := func() error {
		if count++; count > maxBindings {
			return fmt.Errorf("%s has more than %d bindings", u.Name, maxBindings)
		}
		return nil
	}
	err := a.o.Objects.Scan(ctx, rbacQuery("clusterrolebindings"), store.Key{}, func(o store.Object) error {
		var b rbacv1.ClusterRoleBinding
		if err := decode(o, &b); err != nil {
			return fmt.Errorf("clusterrolebinding %s: %w", o.Name, err)
		}
		subjects := naming(b.Subjects, u)
		if len(subjects) == 0 {
			return nil
		}
		lean := &rbacv1.ClusterRoleBinding{Subjects: subjects, RoleRef: b.RoleRef}
		lean.Name = b.Name
		out.cluster = append(out.cluster, lean)
		return admit()
	})
	if err != nil {
		return nil, err
	}
	err = a.o.Objects.Scan(ctx, rbacQuery("rolebindings"), store.Key{}, func(o store.Object) error {
		var b rbacv1.RoleBinding
		if err := decode(o, &b); err != nil {
			return fmt.Errorf("rolebinding %s/%s: %w", o.Namespace, o.Name, err)
		}
		subjects := naming(b.Subjects, u)
		if len(subjects) == 0 {
			return nil
		}
		lean := &rbacv1.RoleBinding{Subjects: subjects, RoleRef: b.RoleRef}
		lean.Name, lean.Namespace = b.Name, b.Namespace
		out.namespaced[b.Namespace] = append(out.namespaced[b.Namespace], lean)
		return admit()
	})
	return out, err
}

// naming returns the subjects that may mean the user. Which of them do is for
// upstream's evaluation to say: this only leaves out what cannot matter.
func naming(subjects []rbacv1.Subject, u User) []rbacv1.Subject {
	var out []rbacv1.Subject
	for _, s := range subjects {
		matters := false
		switch s.Kind {
		case rbacv1.UserKind:
			matters = s.Name == u.Name
		case rbacv1.GroupKind:
			matters = slices.Contains(u.Groups, s.Name)
		case rbacv1.ServiceAccountKind:
			matters = strings.HasPrefix(u.Name, serviceAccountUserPrefix) && strings.HasSuffix(u.Name, ":"+s.Name)
		}
		if matters {
			out = append(out, s)
		}
	}
	return out
}

// storedRoles reads roles from the store. failure is what went wrong besides a
// role not being there.
type storedRoles struct {
	objects Objects
	failure error
}

func (r *storedRoles) GetRole(_ context.Context, namespace, name string) (*rbacv1.Role, error) {
	role := &rbacv1.Role{}
	return role, r.read("roles", namespace, name, role)
}

func (r *storedRoles) GetClusterRole(_ context.Context, name string) (*rbacv1.ClusterRole, error) {
	role := &rbacv1.ClusterRole{}
	return role, r.read("clusterroles", "", name, role)
}

func (r *storedRoles) read(resource, namespace, name string, into interface{ Unmarshal([]byte) error }) error {
	o, ok, err := r.objects.Get(store.Key{Group: rbacGroup, Version: "v1", Resource: resource, Namespace: namespace, Name: name})
	if err == nil && !ok {
		return apierrors.NewNotFound(schema.GroupResource{Group: rbacGroup, Resource: resource}, name)
	}
	if err == nil {
		err = decode(o, into)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", resource, name, err)
		r.failure = errors.Join(r.failure, err)
	}
	return err
}
