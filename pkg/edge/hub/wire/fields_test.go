package wire

import (
	"regexp"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	csr "k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	rc "k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"
	"sigs.k8s.io/randfill"

	"skerry.dev/skerry/pkg/edge/store"
)

// attributes are what the API server selects by.
var attributes = map[schema.GroupResource]func(runtime.Object) (labels.Set, fields.Set, error){
	{Resource: "pods"}:                           pod.GetAttrs,
	{Resource: "nodes"}:                          node.GetAttrs,
	{Resource: "namespaces"}:                     namespace.GetAttrs,
	{Resource: "secrets"}:                        secret.GetAttrs,
	{Resource: "services"}:                       service.GetAttrs,
	{Resource: "replicationcontrollers"}:         rc.GetAttrs,
	{Resource: "events"}:                         event.GetAttrs,
	{Group: "events.k8s.io", Resource: "events"}: event.GetAttrs,
	{Group: "batch", Resource: "jobs"}:           job.GetAttrs,
	{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}: csr.GetAttrs,
	{Group: "resource.k8s.io", Resource: "resourceslices"}:                 resourceslice.GetAttrs,
}

// TestFieldsAreUpstreams compares which fields are accepted, for each kind.
func TestFieldsAreUpstreams(t *testing.T) {
	all := map[string]bool{"spec.replicas": true, "status.replicas": true, "spec.unknown": true, "name": true}
	for _, known := range selectables {
		for field := range known {
			all[field] = true
		}
	}
	compared := 0
	for gvr, kind := range kindsByResource() {
		gvk := gvr.GroupVersion().WithKind(kind)
		if !legacyscheme.Scheme.Recognizes(gvk) || notObjects[kind] {
			continue
		}
		if gvr.Version != "v1" && (gvr.Group == "apps" || gvr.Group == "batch") {
			continue // no longer served; they accepted fields that no object had
		}
		compared++
		for field := range all {
			_, _, err := legacyscheme.Scheme.ConvertFieldLabel(gvk, field, "x")
			if got := SupportsField(gvr.Group, gvr.Resource, field); got != (err == nil) {
				t.Errorf("%s %s: supported %v, upstream says %v", gvr, field, got, err)
			}
		}
	}
	if compared < 40 {
		t.Errorf("only %d kinds compared", compared)
	}
}

// TestFieldValuesAreUpstreams compares the values for random objects of each
// version, and how the selectors judge them.
func TestFieldValuesAreUpstreams(t *testing.T) {
	for gr, known := range selectables {
		attrs := attributes[gr]
		for gvr, kind := range kindsByResource() {
			gvk := gvr.GroupVersion().WithKind(kind)
			if gvr.GroupResource() != gr || attrs == nil || !legacyscheme.Scheme.Recognizes(gvk) {
				continue
			}
			for seed := range int64(50) {
				typed, err := scheme.Scheme.New(gvk)
				if err != nil {
					t.Fatal(err)
				}
				fill := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 2).MaxDepth(6)
				fill.SkipFieldsWithPattern(fieldsNotFilled).Fill(typed)
				typed.(metav1.Object).SetResourceVersion("7")
				legacyscheme.Scheme.Default(typed) // as every object that the server gives
				o, err := FromTyped(typed, store.Key{Group: gvr.Group, Version: gvr.Version, Resource: gvr.Resource})
				if err != nil {
					t.Fatalf("%s: %v", gvk, err)
				}
				internal, err := legacyscheme.Scheme.ConvertToVersion(typed, schema.GroupVersion{Group: gr.Group, Version: runtime.APIVersionInternal})
				if err != nil {
					t.Fatalf("%s: %v", gvk, err)
				}
				_, want, err := attrs(internal)
				if err != nil {
					t.Fatal(err)
				}
				for field := range known {
					label, _, err := legacyscheme.Scheme.ConvertFieldLabel(gvk, field, "")
					if err != nil {
						t.Fatal(err)
					}
					for _, s := range []fields.Selector{
						fields.OneTermEqualSelector(field, want[label]), fields.OneTermNotEqualSelector(field, want[label]),
						fields.OneTermEqualSelector(field, "other"), fields.OneTermEqualSelector(field, ""),
					} {
						upstream, _ := s.Transform(func(_, v string) (string, string, error) { return label, v, nil })
						ok, err := Matches(o, nil, s)
						if err != nil {
							t.Fatal(err)
						}
						if ok != upstream.Matches(want) {
							t.Errorf("%s seed %d: %s is %v, upstream's set is %v", gvk, seed, s, ok, want)
						}
					}
				}
			}
		}
	}
}

func TestMatches(t *testing.T) {
	p := mustFrom(t, testPod(1), podKey())
	w := mustFrom(t, testWidget(1), widgetKey())
	for _, c := range []struct {
		o            store.Object
		label, field string
		want         bool
	}{
		{p, "", "", true},
		{p, "app=a", "", true},
		{p, "app=b", "", false},
		{p, "app in (a,b),n=1", "", true},
		{p, "!app", "", false},
		{p, "!nothing", "", true},
		{p, "empty", "", true},
		{p, "empty=", "", true},
		{p, "app!=b", "spec.nodeName=node-1", true},
		{p, "n>0", "metadata.name=pod-1,metadata.namespace=default", true},
		{p, "n>1", "", false},
		{p, "", "metadata.name=pod-2", false},
		{p, "", "spec.host=node-1,status.podIP=10.0.0.1,spec.hostNetwork=true", true},
		{p, "", "status.phase!=Running", false},
		{w, "app=a", "metadata.name=w-1", true},
		{w, "app=b", "", false},
		{w, "app=a", "metadata.namespace=other", false},
	} {
		label, err := labels.Parse(c.label)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Matches(c.o, label, fields.ParseSelectorOrDie(c.field))
		if err != nil || got != c.want {
			t.Errorf("%s: label %q field %q is %v, %v", c.o.Name, c.label, c.field, got, err)
		}
	}
	for _, o := range []store.Object{p, w} {
		if _, err := Matches(o, nil, fields.ParseSelectorOrDie("spec.unknown=1")); !apierrors.IsBadRequest(err) {
			t.Errorf("an unknown field of %s: %v", o.Kind, err)
		}
	}
	if ok, err := Matches(p, nil, nil); !ok || err != nil {
		t.Errorf("nil selectors: %v, %v", ok, err)
	}
}

// fieldsNotFilled have conversions that random values break.
var fieldsNotFilled = regexp.MustCompile(`^(TypeMeta|ManagedFields|Template|Devices|Taints|Extra)$`)
