package admission

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// What the API server refuses in a child is refused in the grid; what is not the
// grid's fault is not.
func TestTranslate(t *testing.T) {
	invalid := func(paths ...string) error {
		var errs field.ErrorList
		for _, p := range paths {
			errs = append(errs, field.Invalid(field.NewPath(p), 1, "no"))
		}
		return apierrors.NewInvalid(schema.GroupKind{Kind: "Deployment"}, "web-east", errs)
	}
	for name, c := range map[string]struct {
		err     error
		path    string // of the only error, "" for none
		unknown bool
	}{
		"fine":            {nil, "", false},
		"spec":            {invalid("spec.replicas"), "spec.overrides[1].patch.replicas", false},
		"not the spec":    {invalid("metadata.ownerReferences"), "", false},
		"both":            {invalid("metadata.name", "spec.template"), "spec.overrides[1].patch.template", false},
		"unreadable":      {apierrors.NewBadRequest("what?"), "spec.overrides[1].patch", false},
		"quota":           {apierrors.NewForbidden(schema.GroupResource{}, "web", errors.New("exceeded quota")), "", false},
		"no namespace":    {apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "ns"), "", false},
		"no answer":       {errors.New("connection refused"), "", true},
		"too many":        {apierrors.NewTooManyRequests("later", 1), "", true},
		"its own trouble": {apierrors.NewInternalError(errors.New("etcd")), "", true},
	} {
		bad, unknown := translate(c.err, try{variant: &shape.Variant{Override: 1}})
		got := ""
		if len(bad) > 0 {
			got = bad[0].Field
		}
		if got != c.path || len(bad) > 1 || (unknown != nil) != c.unknown {
			t.Errorf("%s: %v, unknown %v", name, bad, unknown)
		}
	}
}

// The certificate that API servers are shown is good for the webhook's address
// under the authority that its registration names, and for nothing before that.
func TestCertificate(t *testing.T) {
	k := &keys{host: "127.0.0.1"}
	if _, err := k.certificate(nil); err == nil {
		t.Error("a certificate without an authority")
	}
	cert, key, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	k.authority = &pair
	shown, err := k.certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	if _, err := shown.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"}); err != nil {
		t.Error(err)
	}
	if _, err := shown.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.2"}); err == nil {
		t.Error("it is good for another address")
	}
	if again, _ := k.certificate(nil); again != shown {
		t.Error("a new one for each connection")
	}
}

func TestAddress(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:10275": true, "[::1]:1": true, "0.0.0.0:1": false, "10.0.0.1:1": false, "localhost:1": false, "127.0.0.1": false} {
		if _, err := New(Options{Address: address, Config: &rest.Config{}}); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
