package serve_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"skerry.dev/skerry/pkg/edge/store"
)

// afterPowerCut opens what would be on the disk if the machine lost its power
// now: the file alone, without what waits in memory and in the tmpfs.
func (h *hub) afterPowerCut() *store.Store {
	h.t.Helper()
	dir := h.t.TempDir()
	for _, name := range []string{"store.db", "store.key"} {
		data, err := os.ReadFile(filepath.Join(h.dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
	st, err := store.Open(store.Options{Path: filepath.Join(dir, "store.db"), KeyFile: filepath.Join(dir, "store.key"), JournalPath: filepath.Join(dir, "journal")})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = st.Close() })
	return st
}

// TestEndOfAPodOutlivesAPowerCut: the cloud has acknowledged that a pod is over,
// or that a container of it is for good; the power is lost at the moment when the
// kubelet has the answer. The stored pod is not running: it would run twice.
func TestEndOfAPodOutlivesAPowerCut(t *testing.T) {
	t.Parallel()
	for i, tc := range []struct {
		name, patch string
		policy      corev1.RestartPolicy
	}{
		{"it succeeded", `{"status":{"phase":"Succeeded"}}`, corev1.RestartPolicyNever},
		{"it failed", `{"status":{"phase":"Failed"}}`, corev1.RestartPolicyAlways},
		{"a container ended well", `{"status":{"containerStatuses":[{"name":"main","state":{"terminated":{"exitCode":0}}}]}}`, corev1.RestartPolicyOnFailure},
		{"a container failed, and stays so", `{"status":{"initContainerStatuses":[{"name":"first","state":{"terminated":{"exitCode":1}}}]}}`, corev1.RestartPolicyNever},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCloud(t)
			p := pod("p1", nodeName, nil)
			p.Spec.RestartPolicy = tc.policy
			c.put("pods", p)
			h := newHub(t, c)
			client := typed(t, protobufOf(h.asNode()))
			if i%2 == 0 {
				client = typed(t, h.asNode())
			}
			if _, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName, ResourceVersion: "0"}); err != nil {
				t.Fatal(err)
			}
			if err := h.store.Sync(); err != nil {
				t.Fatal(err)
			}
			answered, err := client.CoreV1().Pods("default").Patch(ctx, "p1", types.StrategicMergePatchType, []byte(tc.patch), metav1.PatchOptions{}, "status")
			disk := h.afterPowerCut()
			if err != nil {
				t.Fatal(err)
			}
			o, ok, err := disk.Get(store.Key{Version: "v1", Resource: "pods", Namespace: "default", Name: "p1"})
			if err != nil || !ok {
				t.Fatalf("the pod is not stored: %v", err)
			}
			if want, _ := strconv.ParseUint(answered.ResourceVersion, 10, 64); o.ResourceVersion != want {
				t.Errorf("on the disk at %d, acknowledged at %d", o.ResourceVersion, want)
			}
		})
	}
}

// TestLocalVersionsCountOnFromWhatPassed: whatever a client has been shown, by
// whatever way, what is changed here afterwards has a higher resourceVersion, also
// after a kill of the agent.
func TestLocalVersionsCountOnFromWhatPassed(t *testing.T) {
	t.Parallel()
	stranger := func(h *hub) kubernetes.Interface {
		h.cloud.allow("default:stranger", "", "", "configmaps", []string{"get", "list", "watch", "update", "create", "delete"})
		return typed(t, h.as(h.cloud.token("default:stranger", "p1", "uid-p1", time.Now().Add(time.Hour))))
	}
	for name, pass := range map[string]func(t *testing.T, h *hub) (shown string){
		"a list of a client that is not kept": func(t *testing.T, h *hub) string {
			got, err := stranger(h).CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return got.ResourceVersion
		},
		"an answer to a write": func(t *testing.T, h *hub) string {
			got, err := stranger(h).CoreV1().ConfigMaps("default").Create(ctx, configMap("default", "new", nil), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return got.ResourceVersion
		},
		"an event of a watch that passed": func(t *testing.T, h *hub) string {
			w, err := stranger(h).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: "0"})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			h.cloud.put("configmaps", configMap("default", "later", nil))
			for e := range w.ResultChan() {
				if m, ok := e.Object.(*corev1.ConfigMap); ok && e.Type == watch.Added && m.Name == "later" {
					return m.ResourceVersion
				}
			}
			t.Fatal("no event")
			return ""
		},
		"a table": func(t *testing.T, h *hub) string {
			resp := h.raw(h.asNode(), http.MethodGet, "/api/v1/namespaces/default/configmaps/m", http.Header{"Accept": {"application/json;as=Table;g=meta.k8s.io;v=v1"}})
			b, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(b, []byte("resourceVersion")) {
				t.Fatalf("%s %v: %s", resp.Status, err, b)
			}
			return h.cloud.get("configmaps", "default", "m").GetResourceVersion()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t)
			c.put("pods", pod("p1", nodeName, nil))
			h := newHub(t, c)
			client := typed(t, protobufOf(h.asNode()))
			if _, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + nodeName, ResourceVersion: "0"}); err != nil {
				t.Fatal(err)
			}
			c.put("configmaps", configMap("default", "m", nil))
			shown, err := strconv.ParseUint(pass(t, h), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.store.Revision(); got < shown {
				t.Errorf("the store's revision is %d, %d has been shown", got, shown)
			}
			h.cut()
			patched, err := client.CoreV1().Pods("default").Patch(ctx, "p1", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status")
			if err != nil {
				t.Fatal(err)
			}
			if rv, _ := strconv.ParseUint(patched.ResourceVersion, 10, 64); rv <= shown {
				t.Errorf("changed here at %d, and %d has been shown", rv, shown)
			}
		})
	}
}
