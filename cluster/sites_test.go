package cluster

import (
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/api/site/v1alpha1"
)

// ours is an object of site.skerry.dev.
func ours(kind, name string, metadata map[string]any) runtime.Object {
	meta := map[string]any{"name": name}
	for key, value := range metadata {
		meta[key] = value
	}
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind, "metadata": meta, "spec": map[string]any{}}}
}

func TestReportsAndSites(t *testing.T) {
	policies := load(t)
	kubelet := []string{"system:nodes", "system:authenticated"}
	const west1 = "system:node:west-1"
	resource := func(name string) schema.GroupVersionResource { return v1alpha1.GroupVersion.WithResource(name) }
	report := func(user, name string, object, old runtime.Object) write {
		return write{user: user, groups: kubelet, kind: v1alpha1.GroupVersion.WithKind("NodeReport"), resource: resource("nodereports"), name: name, object: object, old: old}
	}
	site := func(subresource string, object, old runtime.Object) write {
		return write{user: west1, groups: kubelet, kind: v1alpha1.GroupVersion.WithKind("Site"), resource: resource("sites"), subresource: subresource, name: "west", object: object, old: old}
	}
	mine, theirs, west := ours("NodeReport", "west-1", nil), ours("NodeReport", "west-2", nil), ours("Site", "west", nil)
	admin := report("admin", "west-1", mine, nil)
	admin.groups = []string{"system:masters"}
	tests := []struct {
		name string
		w    write
		want string
	}{
		{"its own report", report(west1, "west-1", mine, nil), ""},
		{"its own report again", report(west1, "west-1", mine, mine), ""},
		{"its own report is over", report(west1, "west-1", nil, mine), ""},
		{"another's report", report(west1, "west-2", theirs, nil), "its own NodeReport only"},
		{"changes another's report", report(west1, "west-2", theirs, theirs), "its own NodeReport only"},
		{"deletes another's report", report(west1, "west-2", nil, theirs), "its own NodeReport only"},
		{"deletes all reports", report(west1, "", nil, theirs), "its own NodeReport only"},
		{"a made-up name", report(west1, "", ours("NodeReport", "", map[string]any{"generateName": "west-"}), nil), "its own NodeReport only"},
		{"a name that ends like its own", report("system:node:north-west-1", "west-1", mine, nil), "its own NodeReport only"},
		{"a node without a name", report("system:node:", "west-1", mine, nil), "its own NodeReport only"},
		{"somebody in the group of nodes", report("west-1", "west-1", mine, nil), "its own NodeReport only"},
		{"labels", report(west1, "west-1", ours("NodeReport", "west-1", map[string]any{"labels": map[string]any{"a": "b"}}), nil), "no labels"},
		{"annotations", report(west1, "west-1", ours("NodeReport", "west-1", map[string]any{"annotations": map[string]any{"a": strings.Repeat("x", 1000)}}), mine), "no labels"},
		{"finalizers", report(west1, "west-1", ours("NodeReport", "west-1", map[string]any{"finalizers": []any{"a/b"}}), mine), "no labels"},
		{"owners", report(west1, "west-1", ours("NodeReport", "west-1", map[string]any{"ownerReferences": []any{map[string]any{"name": "a"}}}), mine), "no labels"},
		{"administrator", admin, ""},
		{"makes a Site", site("", west, nil), "cannot write Sites"},
		{"changes a policy", site("", west, west), "cannot write Sites"},
		{"changes a status", site("status", west, west), "cannot write Sites"},
		{"deletes a Site", site("", nil, west), "cannot write Sites"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			messages := strings.Join(deniedWrite(t, policies, test.w), "\n")
			if test.want == "" && messages != "" || !strings.Contains(messages, test.want) {
				t.Errorf("denied with %q, want %q", messages, test.want)
			}
		})
	}
}

func TestCRDs(t *testing.T) {
	objects, err := CRDs()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, object := range objects {
		if object.GetKind() != "CustomResourceDefinition" {
			t.Errorf("%s is a %s", object.GetName(), object.GetKind())
			continue
		}
		var crd apiextensionsv1.CustomResourceDefinition
		convert(t, object.Object, &crd)
		found[crd.Name] = true
	}
	for _, name := range []string{"sites.site.skerry.dev", "nodereports.site.skerry.dev"} {
		if !found[name] {
			t.Errorf("there is no %s", name)
		}
	}
}

// Nodes get what they need of our types and no more.
func TestRightsOfNodes(t *testing.T) {
	objects, err := Hub()
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]bool{}
	for _, object := range objects {
		if object.GetKind() != "ClusterRoleBinding" {
			continue
		}
		var binding rbacv1.ClusterRoleBinding
		convert(t, object.Object, &binding)
		for _, subject := range binding.Subjects {
			roles[binding.RoleRef.Name] = roles[binding.RoleRef.Name] || subject.Name == "system:nodes"
		}
	}
	granted := map[string]string{}
	for _, object := range objects {
		if object.GetKind() != "ClusterRole" || !roles[object.GetName()] {
			continue
		}
		var role rbacv1.ClusterRole
		convert(t, object.Object, &role)
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				granted[resource] = strings.Join(rule.Verbs, " ")
			}
		}
	}
	for resource, verbs := range map[string]string{"sites": "get list watch", "nodes": "get list watch", "nodereports": "get create update patch delete"} {
		if granted[resource] != verbs {
			t.Errorf("%s: %q, want %q", resource, granted[resource], verbs)
		}
	}
	for resource, verbs := range granted {
		if resource != "nodereports" && verbs != "get list watch" {
			t.Errorf("nodes may %s %s", verbs, resource)
		}
	}
}
