package wire

import (
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// protobufTag returns the field number that a struct field's tag gives it.
func protobufTag(t reflect.Type, field string) string {
	f, ok := t.FieldByName(field)
	if !ok {
		return ""
	}
	parts := strings.Split(f.Tag.Get("protobuf"), ",")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

// notObjects are kinds with a metadata of their own or none, which no list or
// watch ever has.
var notObjects = map[string]bool{
	"Status": true, "APIGroup": true, "APIVersions": true, "APIGroupList": true, "APIResourceList": true,
	"WatchEvent": true, "ListOptions": true, "GetOptions": true, "DeleteOptions": true, "CreateOptions": true,
	"UpdateOptions": true, "PatchOptions": true, "PodLogOptions": true, "PodExecOptions": true, "PodAttachOptions": true,
	"PodPortForwardOptions": true, "PodProxyOptions": true, "ServiceProxyOptions": true, "NodeProxyOptions": true,
	"List": true, "SerializedReference": true, "DeploymentRollback": true,
}

func TestEveryKindHasMetadataFirst(t *testing.T) {
	objects, lists := 0, 0
	for gvk, typ := range scheme.Scheme.AllKnownTypes() {
		if gvk.Version == runtime.APIVersionInternal || notObjects[gvk.Kind] {
			continue
		}
		if _, ok := reflect.New(typ).Interface().(message); !ok {
			t.Errorf("%s has no protobuf form", gvk)
			continue
		}
		if _, ok := typ.FieldByName("ListMeta"); ok {
			lists++
			if got := protobufTag(typ, "ListMeta"); got != "1" {
				t.Errorf("%s has its ListMeta in field %q", gvk, got)
			}
			if got := protobufTag(typ, "Items"); got != "2" {
				t.Errorf("%s has its items in field %q", gvk, got)
			}
			if !strings.HasSuffix(gvk.Kind, "List") {
				t.Errorf("%s is a list by another name", gvk)
			}
			continue
		}
		objects++
		if got := protobufTag(typ, "ObjectMeta"); got != "1" {
			t.Errorf("%s has its ObjectMeta in field %q", gvk, got)
		}
	}
	if objects < 100 || lists < 70 {
		t.Errorf("only %d objects and %d lists were seen", objects, lists)
	}
}

func TestMetaFieldNumbers(t *testing.T) {
	typ := reflect.TypeFor[metav1.ObjectMeta]()
	for field, want := range map[string]string{
		"Name": "1", "Namespace": "3", "UID": "5", "ResourceVersion": "6", "Labels": "11",
	} {
		if got := protobufTag(typ, field); got != want {
			t.Errorf("%s is field %s, want %s", field, got, want)
		}
	}
}

func TestBuiltIn(t *testing.T) {
	for _, c := range []struct {
		group, version string
		want           bool
	}{
		{"", "v1", true},
		{"apps", "v1", true},
		{"discovery.k8s.io", "v1", true},
		{"apps", "v9", false},
		{"apps", "", false},
		{"", runtime.APIVersionInternal, false},
		{"meta.k8s.io", "v1", false},
		{"skerry.dev", "v1alpha1", false},
	} {
		if got := BuiltIn(c.group, c.version); got != c.want {
			t.Errorf("BuiltIn(%q, %q) = %v", c.group, c.version, got)
		}
	}
	for _, c := range []struct{ group, resource, want string }{
		{"", "pods", "Pod"}, {"", "endpoints", "Endpoints"}, {"discovery.k8s.io", "endpointslices", "EndpointSlice"},
		{"networking.k8s.io", "networkpolicies", "NetworkPolicy"}, {"storage.k8s.io", "storageclasses", "StorageClass"},
	} {
		got := kindsByResource()[schema.GroupVersionResource{Group: c.group, Version: "v1", Resource: c.resource}]
		if got != c.want {
			t.Errorf("%s is a %q, want %s", c.resource, got, c.want)
		}
	}
}
