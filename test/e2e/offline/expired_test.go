//go:build e2e

package offline

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skerry.dev/skerry/test/sandbox"
)

// TestExpired lets the node's certificate and its tokens run out while the
// cloud is away: minutes here stand for the months of a real outage.
func TestExpired(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of an hour")
	}
	s := load(t, sandbox.New(t, description+`
controlPlane:
  extraArgs:
    kube-apiserver: {service-account-extend-token-expiration: "false"}
    kube-controller-manager: {cluster-signing-duration: 10m}
`), "edge", "edge-1")
	expires := s.certificateExpires()
	s.Step("the node's certificate expires %s", expires.Format(time.TimeOnly))
	s.site.Cut()
	s.waitOffline()
	s.Sleep(time.Until(expires)+time.Minute, "certificate and tokens expire")
	out := s.node.Exec("skerry", "status")
	s.Step("skerry status:\n%s", out)
	s.powerCycle(s.node)
	s.Sleep(10*time.Second, "the kubelet goes on")
	s.site.Heal()
	s.Eventually(2*time.Minute, "the node got a new certificate by itself", func() error {
		if now := s.certificateExpires(); !now.After(time.Now()) {
			return fmt.Errorf("it expired %s", now.Format(time.TimeOnly))
		}
		return nil
	})
	s.WaitReady(2*time.Minute, corev1.ConditionTrue, s.node.Name())
	s.Eventually(2*time.Minute, "the cloud sees all pods Ready", func() error {
		pods, err := s.inCloud()
		if err != nil {
			return err
		}
		return allReady(pods, time.Time{})
	})
	s.Step("a pod that is made now runs")
	if _, err := s.Kube().AppsV1().Deployments(namespace).Patch(s.Context(), "web", types.MergePatchType,
		[]byte(`{"spec":{"replicas":`+strconv.Itoa(5)+`}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.Eventually(2*time.Minute, "five replicas are ready", func() error {
		d, err := s.Kube().AppsV1().Deployments(namespace).Get(s.Context(), "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ReadyReplicas != ptr.Deref(d.Spec.Replicas, 0) {
			return fmt.Errorf("%d of %d are", d.Status.ReadyReplicas, *d.Spec.Replicas)
		}
		return nil
	})
}
