//go:build e2e

package history

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
)

// kubelet reports the statuses of the pods that it sees, as the real one does: a
// GET, and a patch of the difference with the UID. It repeats what was not
// acknowledged, and nothing that was.
type kubelet struct {
	set  *kubernetes.Clientset
	pods *follower
	// answers are what it is told outside lists and watches.
	answers *answers

	r    *rand.Rand
	last map[types.UID]*word
	// lease is the last one that it read or wrote.
	lease *coordinationv1.Lease
	// insists makes it repeat what it sees forgotten, as the real one does. Only
	// while the cloud really forgets: else it would hide what the hub loses.
	insists bool

	acknowledged, refused, removed int
}

// word is its last word about a pod.
type word struct {
	name     string
	seq      int // in the message of condition Ready: each word is another one
	restarts int32
	phase    corev1.PodPhase
	said     bool // acknowledged
}

// step has something new to say about one of its pods.
func (k *kubelet) step(ctx context.Context) {
	all := k.pods.state()
	keys := slices.Sorted(maps.Keys(all))
	if len(keys) == 0 {
		return
	}
	pod := all[keys[k.r.IntN(len(keys))]].typed.(*corev1.Pod)
	if !strings.HasPrefix(pod.Name, "pod-") || isTerminal(pod) {
		return
	}
	w := k.last[pod.UID]
	if w == nil {
		w = &word{name: pod.Name, phase: corev1.PodRunning}
		k.last[pod.UID] = w
	}
	if w.phase != corev1.PodRunning {
		k.flush(ctx)
		return
	}
	w.seq++
	w.said = false
	switch k.r.IntN(10) {
	case 0:
		w.phase = corev1.PodSucceeded
	case 1, 2:
		w.restarts++
	}
	k.say(ctx, pod.UID, w)
}

func isTerminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// flush repeats what was not acknowledged, and ends pods that are to go.
func (k *kubelet) flush(ctx context.Context) {
	for _, o := range k.pods.state() {
		pod := o.typed.(*corev1.Pod)
		w := k.last[pod.UID]
		if pod.DeletionTimestamp != nil {
			k.finish(ctx, pod, w)
		} else if w != nil && (!w.said || k.insists && !isTerminal(pod) && !wordOf(pod).equal(w)) {
			k.say(ctx, pod.UID, w)
		}
	}
}

// heartbeat renews the node's lease: what a kubelet says when it has nothing to
// say, and how the agent learns of a black hole.
func (k *kubelet) heartbeat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	leases := k.set.CoordinationV1().Leases("kube-node-lease")
	if k.lease == nil {
		lease, err := leases.Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return
		}
		k.lease = lease
	}
	lease, now := k.lease.DeepCopy(), metav1.NowMicro()
	lease.Spec.RenewTime = &now
	got, err := leases.Update(ctx, lease, metav1.UpdateOptions{})
	if k.lease = got; err != nil {
		k.lease = nil
	}
}

// finish kills a pod that is being deleted, and then removes it.
func (k *kubelet) finish(ctx context.Context, pod *corev1.Pod, w *word) {
	if !isTerminal(pod) {
		if w == nil {
			w = &word{name: pod.Name, phase: corev1.PodRunning}
			k.last[pod.UID] = w
		}
		if w.phase == corev1.PodRunning {
			w.phase, w.said = corev1.PodFailed, false
			w.seq++
		}
		if !w.said {
			k.say(ctx, pod.UID, w)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	err := k.set.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
	if err == nil {
		k.removed++
	}
}

// say writes a word; it stays unsaid if the hub does not acknowledge it.
func (k *kubelet) say(ctx context.Context, uid types.UID, w *word) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	pods := k.set.CoreV1().Pods("default")
	pod, err := pods.Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		k.refused++
		return
	}
	k.answers.tell(pod)
	if pod.UID != uid || isTerminal(pod) && pod.Status.Phase != w.phase {
		w.said = true // somebody else has ended it
		return
	}
	status := pod.Status.DeepCopy()
	status.Phase = w.phase
	status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Image: "image", RestartCount: w.restarts, Ready: w.phase == corev1.PodRunning}}
	ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, Message: fmt.Sprint("word ", w.seq)}
	if w.phase != corev1.PodRunning {
		ready.Status = corev1.ConditionFalse
	}
	if i := slices.IndexFunc(status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady }); i >= 0 {
		status.Conditions[i] = ready
	} else {
		status.Conditions = append(status.Conditions, ready)
	}
	before, _ := json.Marshal(corev1.Pod{Status: pod.Status})
	after, _ := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: *status})
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		panic(err)
	}
	k.answers.send(string(uid), w.seq)
	got, err := pods.Patch(ctx, w.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return // another pod by now; the watch tells
	}
	if err != nil {
		k.refused++
		return
	}
	k.answers.tell(got)
	k.answers.send(string(uid), 0)
	w.said = wordOf(got).equal(w)
	k.acknowledged++
}

func (w *word) equal(other *word) bool {
	return w.seq == other.seq && w.restarts == other.restarts && w.phase == other.phase
}

// wordOf reads what a pod's status says.
func wordOf(p *corev1.Pod) *word {
	w := &word{name: p.Name, phase: p.Status.Phase}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			_, _ = fmt.Sscanf(c.Message, "word %d", &w.seq)
		}
	}
	if len(p.Status.ContainerStatuses) > 0 {
		w.restarts = p.Status.ContainerStatuses[0].RestartCount
	}
	return w
}
