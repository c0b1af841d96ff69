//go:build e2e

package gridapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// world is what a test has for itself.
type world struct {
	*testing.T
	ns, key string
}

var serial atomic.Int64

// newWorld makes a namespace and a key.
func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	return newWorldAlone(t)
}

// newWorldAlone is for a test that runs before all parallel ones.
func newWorldAlone(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, ns: fmt.Sprintf("t%d", serial.Add(1))}
	w.key = "example.com/" + w.ns
	w.must(api.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}))
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// node makes a node in a site, ready or not.
func (w *world) node(name, site string, ready bool) {
	w.Helper()
	name = w.ns + "-" + name
	w.must(api.Create(w.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{w.key: site}}}))
	w.Cleanup(func() {
		_ = api.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	})
	w.setReady(name, ready)
}

func (w *world) setReady(name string, ready bool) {
	w.Helper()
	if !strings.HasPrefix(name, w.ns) {
		name = w.ns + "-" + name
	}
	status := corev1.ConditionUnknown
	if ready {
		status = corev1.ConditionTrue
	}
	w.patchStatus(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, map[string]any{"conditions": []any{map[string]any{
		"type": "Ready", "status": string(status), "lastTransitionTime": time.Now().UTC().Format(time.RFC3339), "lastHeartbeatTime": time.Now().UTC().Format(time.RFC3339), "reason": "Test", "message": "",
	}}})
}

func (w *world) label(node, site string) {
	w.Helper()
	value := any(site)
	if site == "" {
		value = nil
	}
	w.patch(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.ns + "-" + node}}, map[string]any{"metadata": map[string]any{"labels": map[string]any{w.key: value}}})
}

// patch is a merge patch by a user.
func (w *world) patch(o client.Object, what map[string]any) {
	w.Helper()
	w.must(w.tryPatch(o, what))
}

func (w *world) tryPatch(o client.Object, what map[string]any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return api.Patch(w.Context(), o, client.RawPatch("application/merge-patch+json", text), client.FieldOwner("a-user"))
}

func (w *world) patchStatus(o client.Object, status map[string]any) {
	w.Helper()
	text, err := json.Marshal(map[string]any{"status": status})
	w.must(err)
	w.must(api.Status().Patch(w.Context(), o, client.RawPatch("application/merge-patch+json", text)))
}

// grid makes an object from YAML, with the test's key.
func (w *world) apply(text string) error {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "KEY", w.key), "\t", "  ")
	json, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	var head metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(json, &head); err != nil {
		return err
	}
	object, err := scheme.New(head.GroupVersionKind())
	if err != nil {
		return err
	}
	o := object.(client.Object)
	o.SetName(head.Name)
	o.SetNamespace(w.ns)
	return api.Patch(w.Context(), o, client.RawPatch("application/apply-patch+yaml", json), client.FieldOwner("a-user"), client.ForceOwnership)
}

func (w *world) mustApply(text string) {
	w.Helper()
	w.must(w.apply(text))
}

// web is a DeploymentGrid of one container.
func web(image, more string) string {
	return fmt.Sprintf(`
apiVersion: apps.skerry.dev/v1alpha1
kind: DeploymentGrid
metadata: {name: web}
spec:
  gridKey: KEY
  template:
    replicas: 2
    selector: {matchLabels: {app: web}}
    template:
      metadata: {labels: {app: web}}
      spec:
        containers:
        - {name: web, image: %q, ports: [{containerPort: 80}], env: [{name: A, value: "1"}]}
%s`, image, more)
}

func (w *world) deployment(name string) *appsv1.Deployment {
	w.Helper()
	var d appsv1.Deployment
	w.must(api.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &d))
	return &d
}

// children are the names of Deployments.
func (w *world) children() []string {
	w.Helper()
	var list appsv1.DeploymentList
	w.must(api.List(w.Context(), &list, client.InNamespace(w.ns)))
	names := map[string]bool{}
	for _, d := range list.Items {
		if d.DeletionTimestamp == nil {
			names[d.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (w *world) wantChildren(names ...string) {
	w.Helper()
	w.eventually("children "+strings.Join(names, " "), func() error {
		if got := w.children(); !slices.Equal(got, names) {
			return fmt.Errorf("there are %v", got)
		}
		return nil
	})
}

func (w *world) image(name string) string {
	w.Helper()
	return w.deployment(name).Spec.Template.Spec.Containers[0].Image
}

func (w *world) wantImage(name, image string) {
	w.Helper()
	w.eventually(name+" with image "+image, func() error {
		var d appsv1.Deployment
		if err := api.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &d); err != nil {
			return err
		}
		if got := d.Spec.Template.Spec.Containers[0].Image; got != image {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})
}

// become writes the status that kube-controller-manager would, once all pods of
// a Deployment are ready, or none of the new ones.
func (w *world) become(name string, ready bool) {
	w.Helper()
	d := w.deployment(name)
	n := int32(1)
	if d.Spec.Replicas != nil {
		n = *d.Spec.Replicas
	}
	status := map[string]any{"observedGeneration": d.Generation, "replicas": n, "updatedReplicas": n, "readyReplicas": n, "availableReplicas": n,
		"conditions": []any{map[string]any{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}}}
	if !ready {
		status = map[string]any{"observedGeneration": d.Generation, "replicas": n + 1, "updatedReplicas": 1, "readyReplicas": n, "availableReplicas": n,
			"conditions": []any{map[string]any{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}}}
	}
	w.patchStatus(d, status)
}

// exceed writes the status of a Deployment that did not get ready in its time.
func (w *world) exceed(name string) {
	w.Helper()
	d := w.deployment(name)
	w.patchStatus(d, map[string]any{"observedGeneration": d.Generation, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 2,
		"conditions": []any{map[string]any{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet has timed out progressing."}}})
}

func (w *world) status(name string) gridv1.WorkloadGridStatus {
	w.Helper()
	var g gridv1.DeploymentGrid
	w.must(api.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &g))
	if g.Status.ObservedGeneration != g.Generation {
		return gridv1.WorkloadGridStatus{}
	}
	return g.Status
}

func (w *world) wantPhase(phase gridv1.Phase) {
	w.Helper()
	w.eventually("phase "+string(phase), func() error {
		if s := w.status("web"); s.Phase != phase {
			text, _ := yaml.Marshal(s)
			return fmt.Errorf("it is %s", text)
		}
		return nil
	})
}

func (w *world) condition(kind string) metav1.Condition {
	w.Helper()
	if c := meta.FindStatusCondition(w.status("web").Conditions, kind); c != nil {
		return *c
	}
	return metav1.Condition{}
}

func (w *world) wantCondition(kind, reason, message string) {
	w.Helper()
	w.eventually(kind+" "+reason, func() error {
		if c := w.condition(kind); c.Reason != reason || !strings.Contains(c.Message, message) {
			return fmt.Errorf("it is %s %s: %s", c.Status, c.Reason, c.Message)
		}
		return nil
	})
}

// eventually waits for something that comes by itself.
func (w *world) eventually(what string, fn func() error) {
	w.Helper()
	w.within(20*time.Second, what, fn)
}

func (w *world) within(limit time.Duration, what string, fn func() error) {
	w.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = fn(); err == nil {
			return
		}
	}
	w.Fatalf("%s did not come: %v", what, err)
}

// never watches that something does not come for a while.
func (w *world) never(what string, fn func() bool) {
	w.Helper()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if fn() {
			w.Fatalf("%s came", what)
		}
	}
}

// wantEvent waits until exactly one event with the reason says this; events are
// sent after the deed.
func (w *world) wantEvent(reason, about string) {
	w.Helper()
	w.eventually("one event "+reason, func() error {
		if got := w.events(reason); len(got) != 1 || !strings.Contains(got[0], about) {
			return fmt.Errorf("events: %q", got)
		}
		return nil
	})
}

func (w *world) events(reason string) []string {
	w.Helper()
	var list corev1.EventList
	w.must(api.List(w.Context(), &list, client.InNamespace(w.ns)))
	var messages []string
	for _, e := range list.Items {
		if e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages
}
