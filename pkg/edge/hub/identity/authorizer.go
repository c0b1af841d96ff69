package identity

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/lru"

	"skerry.dev/skerry/pkg/edge/store"
)

const rbacGroup = "rbac.authorization.k8s.io"

// Objects is where RBAC is read from; *store.Store is one.
type Objects interface {
	View(q store.Query) (store.View, bool, error)
	Scan(ctx context.Context, q store.Query, after store.Key, fn func(store.Object) error) error
	Get(k store.Key) (store.Object, bool, error)
}

// RBACQueries are the views that offline authorisation needs. The hub keeps them
// with the node's identity.
func RBACQueries() []store.Query {
	var out []store.Query
	for _, resource := range []string{"roles", "rolebindings", "clusterroles", "clusterrolebindings"} {
		out = append(out, rbacQuery(resource))
	}
	return out
}

func rbacQuery(resource string) store.Query {
	return store.Query{Group: rbacGroup, Version: "v1", Resource: resource}
}

// AuthorizerOptions configure an Authorizer.
type AuthorizerOptions struct {
	Objects Objects // required for Offline
	// Transport sends a request upstream as the caller. Required for Online.
	Transport func(c Caller) http.RoundTripper
	// AllowedFor is how long an answer "yes" of the API server is believed,
	// default 2 min; DeniedFor how long a "no", default 10 s.
	AllowedFor, DeniedFor time.Duration
	Now                   func() time.Time
	Logger                *slog.Logger
}

// Authorizer says what a caller may do. Safe for concurrent use.
type Authorizer struct {
	o       AuthorizerOptions
	answers *lru.Cache // answerKey -> answer, of the API server

	mu      sync.Mutex
	version rbacVersion
	callers *lru.Cache // user and groups -> *bindings; dropped when RBAC changes
}

// NewAuthorizer returns an Authorizer.
func NewAuthorizer(o AuthorizerOptions) *Authorizer {
	if o.AllowedFor <= 0 {
		o.AllowedFor = 2 * time.Minute
	}
	if o.DeniedFor <= 0 {
		o.DeniedFor = 10 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Authorizer{o: o, answers: lru.New(4096), callers: lru.New(maxCallers)}
}

// forbidden words a refusal as the API server does.
func forbidden(c Caller, at Attributes, reason string) error {
	message := fmt.Sprintf("User %q cannot ", c.User.Name)
	if at.Resource == "" {
		message += fmt.Sprintf("%s path %q", at.Verb, at.Path)
	} else {
		resource := at.Resource
		if at.Subresource != "" {
			resource += "/" + at.Subresource
		}
		message += fmt.Sprintf("%s resource %q in API group %q", at.Verb, resource, at.Group)
		if at.Namespace != "" {
			message += fmt.Sprintf(" in the namespace %q", at.Namespace)
		} else {
			message += " at the cluster scope"
		}
	}
	if reason != "" {
		message += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: at.Group, Resource: at.Resource}, at.Name, fmt.Errorf("%s", message))
}
