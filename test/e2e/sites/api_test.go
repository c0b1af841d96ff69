//go:build e2e

package sites

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api"
	"skerry.dev/api/site/v1alpha1"
)

// testTypes: what the API server makes of Sites and reports that people write.
func testTypes(t *testing.T, c *cloud) {
	site := func(spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "site.skerry.dev/v1alpha1", "kind": "Site",
			"metadata": map[string]any{"name": "types"}, "spec": spec}}
	}
	for _, row := range []struct {
		name string
		spec map[string]any
		want string
	}{
		{"defaults", map[string]any{}, ""},
		{"all fields", map[string]any{"witnesses": int64(3), "holdTimeout": "72h", "kubeletGrace": "90s", "failover": "On"}, ""},
		{"no witness", map[string]any{"witnesses": int64(0)}, "witnesses"},
		{"too many witnesses", map[string]any{"witnesses": int64(101)}, "witnesses"},
		{"short holdTimeout", map[string]any{"holdTimeout": "59s"}, "leave it out to hold without a bound"},
		{"no holdTimeout", map[string]any{"holdTimeout": "0s"}, "leave it out to hold without a bound"},
		{"negative holdTimeout", map[string]any{"holdTimeout": "-1h"}, "leave it out to hold without a bound"},
		{"nonsense holdTimeout", map[string]any{"holdTimeout": "soon"}, "holdTimeout"},
		{"short kubeletGrace", map[string]any{"kubeletGrace": "1s"}, "must be at least 1m"},
		{"nonsense failover", map[string]any{"failover": "Perhaps"}, "failover"},
	} {
		object := site(row.spec)
		err := c.admin.Create(t.Context(), object, client.DryRunAll)
		if row.want != "" {
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%s: %v, want a message with %q", row.name, err, row.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		spec, _, _ := unstructured.NestedMap(object.Object, "spec")
		if row.name == "defaults" && fmt.Sprint(spec) != "map[failover:Off kubeletGrace:5m witnesses:1]" {
			t.Errorf("defaults: %v", spec)
		}
	}
	bare := site(nil)
	delete(bare.Object, "spec")
	if err := c.admin.Create(t.Context(), bare, client.DryRunAll); err != nil {
		t.Errorf("a Site without a spec: %v", err)
	}
}

// testAttacks: what a node's own certificate is refused, and what it is not.
func testAttacks(t *testing.T, c *cloud) {
	ctx := t.Context()
	one, two := c.join(t, "attacked", "attacked-1"), c.join(t, "attacked", "attacked-2")
	report := func(name string, change func(r *v1alpha1.NodeReport)) *v1alpha1.NodeReport {
		r := &v1alpha1.NodeReport{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NodeReportSpec{RenewTime: metav1.NowMicro()}}
		if change != nil {
			change(r)
		}
		return r
	}
	neighbours := func(n int) func(r *v1alpha1.NodeReport) {
		return func(r *v1alpha1.NodeReport) {
			for i := range n {
				r.Spec.Neighbours = append(r.Spec.Neighbours, v1alpha1.NeighbourReport{Node: fmt.Sprintf("n-%d", i), State: v1alpha1.NeighbourUnreachable})
			}
		}
	}
	site := &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "attacked"}}
	c.site(t, "attacked", func(*v1alpha1.Site) error { return nil })
	patch := func(kind types.PatchType, text string) client.Patch { return client.RawPatch(kind, []byte(text)) }
	nodeObject := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	condition := func(kind, status string) client.Patch {
		return patch(types.StrategicMergePatchType, fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q,"reason":"x","message":"y"}]}}`, kind, status))
	}
	// A member of staff with rights on nodes/status, and an administrator by role.
	people := map[string]client.Client{}
	for name, role := range map[string]string{"staff": "sites-test:nodes", "operator": "cluster-admin"} {
		if err := c.admin.Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "sites-test:" + name},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: name}}}); err != nil {
			t.Fatal(err)
		}
		people[name] = c.as(t, name)
	}
	if err := c.admin.Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "sites-test:nodes"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "nodes/status"}, Verbs: []string{"get", "list", "patch", "update"}}}}); err != nil {
		t.Fatal(err)
	}
	one.becomes(t, 30*time.Second, "True Heartbeat")
	two.becomes(t, 30*time.Second, "True Heartbeat")
	eventually(t, 20*time.Second, "the rights", func() error {
		return people["staff"].Status().Patch(ctx, nodeObject(two.name), condition("Other", "True"), client.DryRunAll)
	})

	as := one.as
	for _, row := range []struct {
		name string
		do   func() error
		want string // part of the refusal; empty: allowed
	}{
		{"its own report", func() error { return as.Create(ctx, report(one.name, neighbours(3))) }, ""},
		{"its own report at its largest", func() error {
			return as.Patch(ctx, report(one.name, nil), client.MergeFrom(report(one.name, neighbours(256))))
		}, ""},
		{"reads its report", func() error { return as.Get(ctx, client.ObjectKey{Name: one.name}, &v1alpha1.NodeReport{}) }, ""},
		{"reads its site", func() error { return as.Get(ctx, client.ObjectKey{Name: "attacked"}, &v1alpha1.Site{}) }, ""},
		{"lists the nodes of its site", func() error {
			return as.List(ctx, &corev1.NodeList{}, client.MatchingLabels{api.SiteLabel: "attacked"})
		}, ""},
		{"another's report", func() error { return as.Create(ctx, report(two.name, nil)) }, "its own NodeReport only"},
		{"a report of a made-up name", func() error { return as.Create(ctx, report("nobody", nil)) }, "its own NodeReport only"},
		{"a report with a generated name", func() error {
			return as.Create(ctx, report("", func(r *v1alpha1.NodeReport) { r.GenerateName = one.name + "-" }))
		}, "its own NodeReport only"},
		{"lists all reports", func() error { return as.List(ctx, &v1alpha1.NodeReportList{}) }, "forbidden"},
		{"deletes all reports", func() error { return as.DeleteAllOf(ctx, &v1alpha1.NodeReport{}) }, "forbidden"},
		{"floods: too many neighbours", func() error { return as.Update(ctx, versioned(t, c, report(one.name, neighbours(257)))) }, "at most 256"},
		{"floods: an annotation", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) { r.Annotations = map[string]string{"a": strings.Repeat("x", 200_000)} })))
		}, "no labels, annotations"},
		{"floods: labels", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) { r.Labels = map[string]string{"a": "b"} })))
		}, "no labels, annotations"},
		{"floods: a long name", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) {
				r.Spec.Neighbours = []v1alpha1.NeighbourReport{{Node: strings.Repeat("n", 254), State: v1alpha1.NeighbourReachable}}
			})))
		}, "Too long"},
		{"floods: a long uid", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) {
				r.Spec.Neighbours = []v1alpha1.NeighbourReport{{Node: "n", UID: types.UID(strings.Repeat("u", 65)), State: v1alpha1.NeighbourReachable}}
			})))
		}, "Too long"},
		{"a state that is none", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) {
				r.Spec.Neighbours = []v1alpha1.NeighbourReport{{Node: "n", State: "Dead"}}
			})))
		}, "Unsupported value"},
		{"the same neighbour twice", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) {
				n := v1alpha1.NeighbourReport{Node: "n", State: v1alpha1.NeighbourUnreachable}
				r.Spec.Neighbours = []v1alpha1.NeighbourReport{n, n}
			})))
		}, "Duplicate value"},
		{"names itself", func() error {
			return as.Update(ctx, versioned(t, c, report(one.name, func(r *v1alpha1.NodeReport) {
				r.Spec.Neighbours = []v1alpha1.NeighbourReport{{Node: one.name, State: v1alpha1.NeighbourReachable}}
			})))
		}, "not in spec.neighbours"},
		{"changes its site's policy", func() error {
			return as.Patch(ctx, site.DeepCopy(), patch(types.MergePatchType, `{"spec":{"witnesses":1}}`))
		}, "forbidden"},
		{"changes its site's status", func() error {
			return as.Status().Patch(ctx, site.DeepCopy(), patch(types.MergePatchType, `{"status":{"dead":7}}`))
		}, "forbidden"},
		{"makes a site", func() error {
			return as.Create(ctx, &v1alpha1.Site{ObjectMeta: metav1.ObjectMeta{Name: "mine"}})
		}, "forbidden"},
		{"says that it is alive", func() error {
			return as.Status().Patch(ctx, nodeObject(one.name), condition(api.AliveCondition, "True"))
		}, "forbidden: ValidatingAdmissionPolicy"},
		{"says that it is dead", func() error {
			return as.Status().Patch(ctx, nodeObject(one.name), condition(api.AliveCondition, "False"))
		}, "forbidden: ValidatingAdmissionPolicy"},
		{"says that a neighbour is dead", func() error {
			return as.Status().Patch(ctx, nodeObject(two.name), condition(api.AliveCondition, "False"))
		}, "is not allowed to"},
		{"moves itself", func() error {
			return as.Patch(ctx, nodeObject(one.name), patch(types.MergePatchType, `{"metadata":{"labels":{"skerry.dev/site":"other"}}}`))
		}, "a node cannot add, change or remove labels"},
		{"leaves its site", func() error {
			return as.Patch(ctx, nodeObject(one.name), patch(types.MergePatchType, `{"metadata":{"labels":{"skerry.dev/site":null}}}`))
		}, "a node cannot add, change or remove labels"},
		{"claims that a taint is the controller's", func() error {
			return as.Patch(ctx, nodeObject(one.name), patch(types.MergePatchType, `{"metadata":{"annotations":{"skerry.dev/out-of-service":"nodeshutdown"}}}`))
		}, "a node cannot add, change or remove annotations"},
		{"renews a neighbour's heartbeat", func() error {
			stranger := &machine{c: c, name: two.name, as: as}
			return stranger.beat(ctx)
		}, "forbidden"},
		{"its report is over", func() error { return as.Delete(ctx, report(one.name, nil)) }, ""},

		{"staff writes another condition", func() error {
			return people["staff"].Status().Patch(ctx, nodeObject(two.name), condition("Other", "False"))
		}, ""},
		{"staff says that a node is dead", func() error {
			return people["staff"].Status().Patch(ctx, nodeObject(two.name), condition(api.AliveCondition, "False"))
		}, "may override verdicts"},
		{"staff gives a site a name that none can have", func() error {
			return people["staff"].Patch(ctx, nodeObject(two.name), patch(types.MergePatchType, `{"metadata":{"labels":{"skerry.dev/site":"East_1"}}}`))
		}, "must be a lower-case DNS label"},
		{"an operator says that a node is dead", func() error {
			return people["operator"].Status().Patch(ctx, nodeObject(two.name), condition(api.AliveCondition, "False"))
		}, ""},
	} {
		err := row.do()
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%s: %v", row.name, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v, want a refusal with %q", row.name, err, row.want)
		}
	}
	// What the operator said does not outlive the next heartbeat.
	two.becomes(t, 30*time.Second, "True Heartbeat")
}

// versioned gives an object the resourceVersion that is stored.
func versioned(t *testing.T, c *cloud, r *v1alpha1.NodeReport) *v1alpha1.NodeReport {
	t.Helper()
	was := &v1alpha1.NodeReport{}
	if err := c.admin.Get(t.Context(), client.ObjectKey{Name: r.Name}, was); err != nil {
		t.Fatal(err)
	}
	r.ResourceVersion = was.ResourceVersion
	return r
}
