//go:build e2e

package install

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/test/sandbox"
)

func rebootBringsBack(c *cluster) {
	c.Deployment("web", "east", 1)
	east := c.Node("east-1")
	before, podsBefore := c.node("east-1"), c.podsOn(east)
	if len(podsBefore) < 2 {
		c.t.Fatalf("only %d pods on east-1, want that of web and kube-proxy's", len(podsBefore))
	}

	east.PowerOff()
	east.PowerOn()

	c.Eventually(readyTimeout, "the Node is Ready and tells of the new boot", func() error {
		now := c.node("east-1")
		ready, err := c.NodeReady("east-1")
		if err == nil && (ready != corev1.ConditionTrue || now.Status.NodeInfo.BootID == before.Status.NodeInfo.BootID) {
			err = fmt.Errorf("Ready is %s, boot id %s", ready, now.Status.NodeInfo.BootID)
		}
		return err
	})
	wants(c.t, "the Node's UID", c.node("east-1").UID, before.UID)
	c.status(east) // with exit code 0: its units run
	c.Eventually(time.Minute, "its pods run again", func() error {
		for name, was := range podsBefore {
			now, err := c.Kube().CoreV1().Pods(was.Namespace).Get(c.Context(), name, metav1.GetOptions{})
			switch {
			case err != nil:
				return err
			case now.UID != was.UID:
				c.t.Fatalf("pod %s was replaced", name)
			case !ready(*now) || now.Status.ContainerStatuses[0].RestartCount <= was.Status.ContainerStatuses[0].RestartCount:
				return fmt.Errorf("pod %s: %+v", name, now.Status.ContainerStatuses)
			}
		}
		return nil
	})
	c.Eventually(time.Minute, "the cloud reaches the application", func() error {
		return c.Kube().CoreV1().RESTClient().Get().Namespace("default").Resource("services").Name("web:80").SubResource("proxy").
			Suffix("healthz").Timeout(2 * time.Second).Do(c.Context()).Error()
	})
	wants(c.t, "pods on east-1 after the reboot", len(c.podsOn(east)), len(podsBefore))
}

// podsOn lists the pods on a machine, by name.
func (c *cluster) podsOn(n *sandbox.Node) map[string]corev1.Pod {
	c.t.Helper()
	list, err := c.Kube().CoreV1().Pods("").List(c.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name()})
	c.must(err)
	pods := map[string]corev1.Pod{}
	for _, p := range list.Items {
		pods[p.Name] = p
	}
	return pods
}

func ready(p corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
