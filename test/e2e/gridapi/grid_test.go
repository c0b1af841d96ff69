//go:build e2e

package gridapi

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/gridname"
)

func TestSitesComeAndGo(t *testing.T) {
	w := newWorld(t)
	w.mustApply(web("web:v1", "  deletionPolicy: {gracePeriodSeconds: 2}\n"))
	w.wantCondition(gridv1.ConditionProgressing, gridv1.ReasonNoSites, "no node")
	w.node("a", "east", true)
	w.wantChildren("web-east")
	w.node("b", "plant-7", true)
	w.wantChildren("web--plant-7", "web-east")
	// A node moves, and its old site has no other.
	w.label("b", "south")
	w.wantChildren("web--plant-7", "web-east", "web-south")
	left := time.Now()
	w.wantChildren("web-east", "web-south")
	if took := time.Since(left); took < time.Second || took > 8*time.Second {
		t.Errorf("the child went %s after its site, want 2s", took)
	}
	w.wantEvent("Deleted", "web--plant-7")
}

func TestRetainedAndAdoptedAgain(t *testing.T) {
	w := newWorld(t)
	more := "  deletionPolicy: {whenSiteLeaves: Retain, gracePeriodSeconds: 0}\n"
	w.node("a", "east", true)
	w.mustApply(web("web:v1", more))
	w.wantChildren("web-east")
	w.label("a", "")
	w.eventually("the site to leave", func() error {
		if s := w.status("web"); len(s.Sites) != 1 || s.Sites[0].Phase != gridv1.PhaseRetained {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	w.mustApply(web("web:v2", more))
	w.never("a change of what is retained", func() bool { return w.image("web-east") != "web:v1" })
	w.label("a", "east")
	w.wantImage("web-east", "web:v2")
}

func TestOrphansAreAdopted(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east")
	uid := w.deployment("web-east").UID
	var g gridv1.DeploymentGrid
	g.Namespace, g.Name = w.ns, "web"
	w.must(api.Delete(t.Context(), &g, client.PropagationPolicy(metav1.DeletePropagationOrphan)))
	w.eventually("the orphan", func() error {
		if owners := w.deployment("web-east").OwnerReferences; len(owners) != 0 {
			return fmt.Errorf("it has %v", owners)
		}
		err := api.Get(t.Context(), client.ObjectKeyFromObject(&g), new(gridv1.DeploymentGrid))
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the grid is there: %w", err)
		}
		return nil
	})
	w.mustApply(web("web:v1", ""))
	w.eventually("the adoption", func() error {
		d := w.deployment("web-east")
		if len(d.OwnerReferences) != 1 || d.OwnerReferences[0].Controller == nil || d.UID != uid {
			return fmt.Errorf("owners %v, UID %s", d.OwnerReferences, d.UID)
		}
		return nil
	})
}

func TestGridDeleted(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.node("b", "west", true)
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east", "web-west")
	w.must(api.Delete(t.Context(), &gridv1.DeploymentGrid{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "web"}}))
	w.wantChildren()
}

func TestManualEditsAreCorrected(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east")
	w.patch(w.deployment("web-east"), map[string]any{"spec": map[string]any{"replicas": 5}, "metadata": map[string]any{"labels": map[string]any{gridv1.GridLabel: nil}}})
	w.eventually("the correction", func() error {
		d := w.deployment("web-east")
		if *d.Spec.Replicas != 2 || d.Labels[gridv1.GridLabel] != "web" {
			return fmt.Errorf("%d replicas, labels %v", *d.Spec.Replicas, d.Labels)
		}
		return nil
	})
	// What the grid does not say is the user's.
	w.patch(w.deployment("web-east"), map[string]any{"spec": map[string]any{"revisionHistoryLimit": 3}})
	w.never("another limit", func() bool { return *w.deployment("web-east").Spec.RevisionHistoryLimit != 3 })
	// Deleted ones come back.
	uid := w.deployment("web-east").UID
	w.must(api.Delete(t.Context(), w.deployment("web-east")))
	w.eventually("a new one", func() error {
		var d appsv1.Deployment
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web-east"}, &d); err != nil {
			return err
		}
		if d.UID == uid {
			return fmt.Errorf("it is the old one")
		}
		return nil
	})
}

// The field replicas changes hands without a moment at Kubernetes' default of 1.
func TestReplicasAreHandedOver(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(strings.Replace(web("web:v1", ""), "replicas: 2", "replicas: 6", 1))
	w.wantChildren("web-east")
	w.mustApply(strings.Replace(web("web:v2", ""), "    replicas: 2\n", "", 1))
	w.wantImage("web-east", "web:v2")
	if n := *w.deployment("web-east").Spec.Replicas; n != 6 {
		t.Errorf("replicas is %d, want 6 until somebody else says", n)
	}
	w.patch(w.deployment("web-east"), map[string]any{"spec": map[string]any{"replicas": 9}})
	w.never("another number", func() bool { return *w.deployment("web-east").Spec.Replicas != 9 })
}

func TestOverrides(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.node("b", "west", true)
	w.mustApply(web("web:v1", `
  overrides:
  - name: west
    sites: [west]
    patch:
      replicas: 5
      template:
        spec:
          nodeSelector: {disk: ssd}
          tolerations: [{key: cold, operator: Exists}]
          containers: [{name: web, image: "web:west", env: [{name: B, value: "2"}]}]
  - name: scaled
    selector: {matchExpressions: [{key: KEY, operator: In, values: [west]}]}
    patch: {replicas: null}
`))
	w.wantChildren("web-east", "web-west")
	east, west := w.deployment("web-east"), w.deployment("web-west")
	if c := east.Spec.Template.Spec.Containers[0]; *east.Spec.Replicas != 2 || c.Image != "web:v1" || len(c.Env) != 1 || len(east.Spec.Template.Spec.NodeSelector) != 1 || east.Spec.Template.Spec.Tolerations != nil {
		t.Errorf("east: %+v", east.Spec)
	}
	spec := west.Spec.Template.Spec
	if c := spec.Containers[0]; *west.Spec.Replicas != 1 || len(spec.Containers) != 1 || c.Image != "web:west" || len(c.Env) != 2 || len(c.Ports) != 1 ||
		spec.NodeSelector["disk"] != "ssd" || spec.NodeSelector[w.key] != "west" || len(spec.Tolerations) != 1 {
		t.Errorf("west: %+v", west.Spec)
	}
}

func TestSitesAreSelectedByTheirObjects(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b"} {
		site := w.ns + name
		w.must(api.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: site, Labels: map[string]string{gridv1.DefaultGridKey: site}}}))
		w.must(api.Create(t.Context(), &sitev1.Site{ObjectMeta: metav1.ObjectMeta{Name: site, Labels: map[string]string{"test": w.ns + name}}}))
	}
	text := strings.Replace(web("web:v1", "  selector: {matchLabels: {test: "+w.ns+"a}}\n  deletionPolicy: {gracePeriodSeconds: 0}\n"), "  gridKey: KEY\n", "", 1)
	w.mustApply(text)
	w.wantChildren("web-" + w.ns + "a")
	for name, label := range map[string]string{"a": "other", "b": w.ns + "a"} {
		w.patch(&sitev1.Site{ObjectMeta: metav1.ObjectMeta{Name: w.ns + name}}, map[string]any{"metadata": map[string]any{"labels": map[string]any{"test": label}}})
	}
	w.wantChildren("web-" + w.ns + "b")
}

func TestRefusedAtAdmission(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.node("b", "west", true)
	w.sitesAreKnown()
	w.mustApply(web("web:v1", ""))
	w.wantChildren("web-east", "web-west")
	for name, c := range map[string]struct{ text, want string }{
		"unknown field":       {strings.Replace(web("web:v1", ""), "ports:", "prots:", 1), `spec.template.template.spec.containers[0].prots`},
		"wrong type":          {strings.Replace(web("web:v1", ""), "replicas: 2", "replicas: two", 1), `spec.template.replicas`},
		"invalid value":       {strings.Replace(web("web:v1", ""), "containerPort: 80", "containerPort: 800000", 1), `spec.template.template.spec.containers[0].ports[0].containerPort`},
		"immutable":           {strings.Replace(web("web:v1", ""), "app: web}}", "app: other}}", 1), `spec.template.selector`},
		"no template":         {"apiVersion: apps.skerry.dev/v1alpha1\nkind: DeploymentGrid\nmetadata: {name: empty}\nspec: {template: {}}\n", `spec.template`},
		"site set by hand":    {strings.Replace(web("web:v1", ""), "        containers:", "        nodeSelector: {KEY: east}\n        containers:", 1), `spec.template.template.spec.nodeSelector[` + w.key + `]: Forbidden`},
		"label set by hand":   {strings.Replace(web("web:v1", ""), "{labels: {app: web}}", "{labels: {app: web, skerry.dev/grid: x}}", 1), `spec.template.template.metadata.labels[skerry.dev/grid]: Forbidden`},
		"override: unknown":   {web("web:v1", "  overrides: [{name: b, sites: [west], patch: {template: {spec: {containers: [{name: web, imag: x}]}}}}]\n"), `spec.overrides[0].patch.template.spec.containers[0].imag`},
		"override: type":      {web("web:v1", "  overrides: [{name: b, sites: [west], patch: {template: 7}}]\n"), `spec.overrides[0].patch`},
		"override: value":     {web("web:v1", "  overrides: [{name: b, sites: [west], patch: {replicas: -1}}]\n"), `spec.overrides[0].patch.replicas`},
		"override: container": {web("web:v1", "  overrides: [{name: b, sites: [nobody], patch: {template: {spec: {containers: [{name: typo, env: [{name: A}]}]}}}}]\n"), `spec.overrides[0].patch.template.spec.containers[0].image`},
		"override: directive": {web("web:v1", "  overrides: [{name: b, sites: [west], patch: {template: {$patch: merge-it}}}]\n"), `spec.overrides[0].patch`},
		"override: no sites":  {web("web:v1", "  overrides: [{name: b, patch: {replicas: 1}}]\n"), `sites or selector is required`},
		"selector":            {web("web:v1", "  selector: {matchExpressions: [{key: a, operator: Near}]}\n"), `spec.selector`},
		"maxUnavailable":      {web("web:v1", "  rollout: {maxUnavailable: lots}\n"), `spec.rollout.maxUnavailable`},
		"gridKey":             {strings.Replace(web("web:v1", ""), "gridKey: KEY", "gridKey: other", 1), `spec.gridKey`},
		"name with --":        {strings.Replace(web("web:v1", ""), "name: web}", "name: we--b}", 1), `the name must be`},
		"name too long":       {strings.Replace(web("web:v1", ""), "name: web}", "name: "+strings.Repeat("w", 53)+"}", 1), `the name must be`},
		"metadata":            {web("web:v1", "  metadata: {labels: {skerry.dev/grid: other}}\n"), `skerry.dev/ is taken`},
		"service":             {"apiVersion: apps.skerry.dev/v1alpha1\nkind: ServiceGrid\nmetadata: {name: s}\nspec: {template: {ports: [{port: 70000}]}}\n", `spec.template.ports[0].port`},
	} {
		err := w.apply(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "is invalid") {
			t.Errorf("%s: not an Invalid error: %v", name, err)
		}
	}
}

// sitesAreKnown waits until the webhook can have seen the nodes.
func (w *world) sitesAreKnown() { time.Sleep(500 * time.Millisecond) }

func TestStatefulSetGrid(t *testing.T) {
	w := newWorld(t)
	w.node("a", "east", true)
	w.mustApply(`
apiVersion: apps.skerry.dev/v1alpha1
kind: ServiceGrid
metadata: {name: db}
spec:
  gridKey: KEY
  template: {clusterIP: None, ports: [{port: 5432}], selector: {app: db}}
`)
	w.mustApply(`
apiVersion: apps.skerry.dev/v1alpha1
kind: StatefulSetGrid
metadata: {name: db}
spec:
  gridKey: KEY
  template:
    replicas: 1
    serviceName: db
    selector: {matchLabels: {app: db}}
    template:
      metadata: {labels: {app: db}}
      spec: {containers: [{name: db, image: "db:v1"}]}
    volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`)
	var s appsv1.StatefulSet
	w.eventually("the StatefulSet", func() error {
		return api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: gridname.Child("db", "east")}, &s)
	})
	w.eventually("the names of pods in the Service", func() error {
		var service corev1.Service
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "db"}, &service); err != nil {
			return err
		}
		if got := service.Annotations[gridv1.StatefulSetGridsAnnotation]; got != `["db"]` {
			return fmt.Errorf("annotations %v", service.Annotations)
		}
		return nil
	})
	w.patchStatus(&s, map[string]any{"observedGeneration": s.Generation, "replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "a"})
	w.eventually("the grid to be ready", func() error {
		var g gridv1.StatefulSetGrid
		w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "db"}, &g))
		if g.Status.Phase != gridv1.PhaseReady || g.Status.ReadyReplicas != 1 {
			return fmt.Errorf("%+v", g.Status)
		}
		return nil
	})
	// What the API server fills in is no change: nothing is written again.
	generation := s.Generation
	w.never("another write", func() bool {
		w.must(api.Get(t.Context(), client.ObjectKeyFromObject(&s), &s))
		return s.Generation != generation
	})
}

// The status of a grid with a thousand sites, none of them well, is far below
// what etcd takes, and a summary stays readable.
func TestThousandSites(t *testing.T) {
	w := newWorld(t)
	const many = 1000
	for i := range many {
		name := fmt.Sprintf("%s-%04d", w.ns, i)
		w.must(api.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{w.key: fmt.Sprintf("%s-%04d", strings.Repeat("s", 40), i)}}}))
	}
	t.Cleanup(func() {
		for i := range many {
			_ = api.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%04d", w.ns, i)}})
		}
	})
	w.mustApply(web("web:v1", ""))
	end := time.Now().Add(60 * time.Second)
	for len(w.children()) < many && time.Now().Before(end) {
		time.Sleep(500 * time.Millisecond)
	}
	w.eventually("the status", func() error {
		if s := w.status("web"); s.DesiredSites != many || s.OfflineSites != many || len(s.Sites) != many || s.UpdatedSites != many {
			return fmt.Errorf("%d sites, %d updated, %d offline, %d listed", s.DesiredSites, s.UpdatedSites, s.OfflineSites, len(s.Sites))
		}
		return nil
	})
	var g gridv1.DeploymentGrid
	w.must(api.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "web"}, &g))
	text, err := json.Marshal(g)
	w.must(err)
	if len(text) > 300<<10 || len(g.Status.Attention) > 128 {
		t.Errorf("the grid has %d bytes, attention %d: %s", len(text), len(g.Status.Attention), g.Status.Attention)
	}
	t.Logf("the grid has %d bytes; attention: %s", len(text), g.Status.Attention)
}

// A controller that starts again finds what it did: one write for each variant,
// and none for each child. After that it asks nothing at all.
func TestRestartAndSteadyState(t *testing.T) {
	w := newWorldAlone(t)
	for i := range 40 {
		w.node(fmt.Sprint("n", i), fmt.Sprint("s", i), true)
	}
	w.mustApply(web("web:v1", "  overrides: [{name: a, sites: [s1, s2], patch: {replicas: 3}}]\n"))
	w.eventually("the children", func() error {
		if n := len(w.children()); n != 40 {
			return fmt.Errorf("%d children", n)
		}
		return nil
	})
	for _, name := range w.children() {
		w.become(name, true)
	}
	w.wantPhase(gridv1.PhaseReady)
	log, err := os.Create(filepath.Join(t.TempDir(), "controller.log"))
	w.must(err)
	defer log.Close()
	quiet := func() (requests int64) {
		// Nothing for two seconds.
		begin := writes.Load()
		for last, at := begin, time.Now(); time.Since(at) < 2*time.Second; time.Sleep(50 * time.Millisecond) {
			if n := writes.Load(); n != last {
				last, at = n, time.Now()
			}
		}
		return writes.Load() - begin
	}
	quiet()
	begin := writes.Load()
	time.Sleep(5 * time.Second)
	if n := writes.Load() - begin; n != 0 {
		t.Errorf("%d requests in five seconds of steady state, want none", n)
	}
	begin = writes.Load()
	stop, err := startController(t.Context(), log, false)
	w.must(err)
	defer stop()
	time.Sleep(2 * time.Second)
	quiet()
	// Discovery, seven lists, and two variants.
	if n := writes.Load() - begin; n > 25 {
		t.Errorf("%d requests after a restart, want at most 25", n)
	} else {
		t.Logf("%d requests after a restart", n)
	}
}
