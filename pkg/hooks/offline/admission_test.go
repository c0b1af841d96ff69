package offline

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/allocation"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/cm/admission"
	"k8s.io/kubernetes/pkg/kubelet/config"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	kubepod "k8s.io/kubernetes/pkg/kubelet/pod"
	"k8s.io/kubernetes/pkg/kubelet/status"
	statustest "k8s.io/kubernetes/pkg/kubelet/status/testing"
	"k8s.io/kubernetes/pkg/kubelet/sysctl"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
)

// handler is an admit handler of the test's, where upstream's own needs
// hardware.
type handler func(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult

func (h handler) Admit(_ context.Context, attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return h(attrs)
}

// unregistered is what the container manager says of a pod with a device whose
// plugin has not registered yet.
func unregistered(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return admission.GetPodAdmitResult(errors.New("cannot allocate unregistered device example.com/camera"))
}

// newAllocation makes upstream's allocation manager as the kubelet does, with
// upstream's handlers in the kubelet's order: sysctls, devices, predicates, and
// one at the end.
func newAllocation(t *testing.T, n *v1.Node, nodeErr error, active []*v1.Pod, devices, last handler) allocation.Manager {
	t.Helper()
	logger := klog.Background()
	m := allocation.NewInMemoryManager(logger,
		status.NewManager(&fake.Clientset{}, kubepod.NewBasicPodManager(), &statustest.FakePodDeletionSafetyProvider{}, kubeletutil.NewPodStartupLatencyTracker()),
		func(context.Context, *v1.Pod) {},
		func() []*v1.Pod { return active },
		func(types.UID) (*v1.Pod, bool) { return nil, false },
		config.NewSourcesReady(func(sets.Set[string]) bool { return true }),
		record.NewFakeRecorder(100))
	sysctls, err := sysctl.NewAllowlist(sysctl.SafeSysctlAllowlist(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	containers := cm.NewFakeContainerManager(logger)
	getNode := func(context.Context, bool) (*v1.Node, error) { return n, nodeErr }
	handlers := lifecycle.PodAdmitHandlers{
		allocation.NewPodResizesAdmitHandler(containers, &containertest.FakeRuntime{}, m),
		sysctls,
	}
	if devices != nil {
		handlers = append(handlers, devices)
	}
	handlers = append(handlers, lifecycle.NewPredicateAdmitHandler(getNode, lifecycle.NewAdmissionFailureHandlerStub(), containers.UpdatePluginResources))
	if last != nil {
		handlers = append(handlers, last)
	}
	m.AddPodAdmitHandlers(handlers)
	return m
}

func testNode() *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "west-1", Labels: map[string]string{"disk": "ssd", v1.LabelOSStable: "linux"}},
		Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("4Gi"),
			v1.ResourcePods: resource.MustParse("10"), "example.com/camera": resource.MustParse("1"),
		}},
	}
}

// ran is a pod that was running on the node.
func ran() *v1.Pod {
	started := metav1.NewTime(time.Now().Add(-time.Hour))
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: "default", UID: "pod"},
		Spec: v1.PodSpec{NodeName: "west-1", Containers: []v1.Container{{Name: "c", Image: "i", Resources: v1.ResourceRequirements{
			Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")},
		}}}},
		Status: v1.PodStatus{Phase: v1.PodRunning, StartTime: &started},
	}
}

func TestAdmission(t *testing.T) {
	type world struct {
		pod           *v1.Pod
		node          *v1.Node
		nodeErr       error
		active        []*v1.Pod
		devices, last handler
		online        bool
	}
	for _, tc := range []struct {
		name string
		do   func(w *world)
		// reason is upstream's; "" when it admits.
		reason string
		// ours: admitted with our hook.
		ours bool
	}{
		{"nothing against it", func(*world) {}, "", true},
		{"device plugin not back", func(w *world) { w.devices = unregistered }, "UnexpectedAdmissionError", true},
		{"the same, pod was still starting", func(w *world) { w.devices, w.pod.Status.Phase = unregistered, v1.PodPending }, "UnexpectedAdmissionError", true},
		{"the same, online", func(w *world) { w.devices, w.online = unregistered, true }, "UnexpectedAdmissionError", false},
		{"the same, pod never ran here", func(w *world) { w.devices, w.pod.Status = unregistered, v1.PodStatus{Phase: v1.PodPending} }, "UnexpectedAdmissionError", false},
		{"the same, pod has failed", func(w *world) { w.devices, w.pod.Status.Phase = unregistered, v1.PodFailed }, "UnexpectedAdmissionError", false},
		{"the same, pod is done", func(w *world) { w.devices, w.pod.Status.Phase = unregistered, v1.PodSucceeded }, "UnexpectedAdmissionError", false},
		{"the same, static pod", func(w *world) {
			w.devices = unregistered
			w.pod.Annotations = map[string]string{kubetypes.ConfigSourceAnnotationKey: kubetypes.FileSource}
			w.pod.Status = v1.PodStatus{Phase: v1.PodPending} // as the file says
		}, "UnexpectedAdmissionError", false},
		{"alignment", func(w *world) {
			w.devices = func(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
				return lifecycle.PodAdmitResult{Reason: "TopologyAffinityError"}
			}
		}, "TopologyAffinityError", true},
		{"node labels changed", func(w *world) { w.pod.Spec.NodeSelector = map[string]string{"disk": "hdd"} }, "NodeAffinity", true},
		{"taint", func(w *world) {
			w.node.Spec.Taints = []v1.Taint{{Key: "repair", Effect: v1.TaintEffectNoExecute}}
		}, "TaintToleration", true},
		{"stale capacity: cpu", func(w *world) { w.node.Status.Allocatable[v1.ResourceCPU] = resource.MustParse("0") }, "OutOfcpu", true},
		{"stale capacity: device", func(w *world) {
			w.pod.Spec.Containers[0].Resources.Requests["example.com/camera"] = resource.MustParse("1")
			w.node.Status.Allocatable["example.com/camera"] = resource.MustParse("0")
		}, "OutOfexample.com/camera", true},
		{"stale capacity: pods", func(w *world) { w.node.Status.Allocatable[v1.ResourcePods] = resource.MustParse("0") }, "OutOfpods", true},
		{"stale capacity, pod never ran here", func(w *world) {
			w.node.Status.Allocatable[v1.ResourceCPU] = resource.MustParse("0")
			w.pod.Status = v1.PodStatus{Phase: v1.PodPending}
		}, "OutOfcpu", false},
		{"Node cannot be read", func(w *world) { w.nodeErr = errors.New("hub is starting") }, "InvalidNodeInfo", true},
		{"other operating system", func(w *world) { w.pod.Spec.OS = &v1.PodOS{Name: v1.Windows} }, "PodOSNotSupported", false},
		{"other operating system by label", func(w *world) { w.pod.Labels = map[string]string{v1.LabelOSStable: "windows"} }, "PodOSSelectorNodeLabelDoesNotMatch", false},
		{"sysctl", func(w *world) {
			w.pod.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}
		}, "SysctlForbidden", false},
		{"host port in use", func(w *world) {
			port := []v1.ContainerPort{{HostPort: 80, ContainerPort: 80, Protocol: v1.ProtocolTCP}}
			other := ran()
			other.UID, other.Name = "other", "other"
			other.Spec.Containers[0].Ports = port
			w.active = []*v1.Pod{other}
			w.pod.Spec.Containers[0].Ports = port
		}, "NodePorts", false},
		{"node is shutting down", func(w *world) {
			w.last = func(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
				return lifecycle.PodAdmitResult{Reason: "NodeShutdown"}
			}
		}, "NodeShutdown", false},
		{"device plugin not back, and forbidden", func(w *world) {
			w.devices = unregistered
			w.last = func(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
				return lifecycle.PodAdmitResult{Reason: "AppArmor"}
			}
		}, "UnexpectedAdmissionError", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, ours := range []bool{false, true} {
				w := &world{pod: ran(), node: testNode()}
				tc.do(w)
				if ours {
					allocation.SkerryTolerate = tolerate(func() bool { return !w.online })
					defer func() { allocation.SkerryTolerate = nil }()
				}
				m := newAllocation(t, w.node, w.nodeErr, w.active, w.devices, w.last)
				for _, other := range w.active {
					if err := m.SetAllocatedResources(klog.Background(), other); err != nil {
						t.Fatal(err)
					}
				}
				ok, reason, message := m.AddPod(context.Background(), w.active, w.pod)
				want := tc.reason == ""
				if ours {
					want = tc.ours
				}
				if ok != want {
					t.Errorf("hook=%v: admitted=%v (%s: %s), want %v", ours, ok, reason, message, want)
				}
				if !ours && reason != tc.reason {
					t.Errorf("upstream's reason is %q (%s), want %q", reason, message, tc.reason)
				}
				// What the kubelet asks before it handles updates of the pod.
				if got := m.HasPodAllocatedResources(w.pod.UID); got != ok {
					t.Errorf("hook=%v: resources allocated=%v, admitted=%v", ours, got, ok)
				}
			}
		})
	}
}

// A resize that does not fit is upstream's affair, also for a pod that ran here.
func TestResizeIsNotTolerated(t *testing.T) {
	hook := tolerate(func() bool { return true })
	rejection := lifecycle.PodAdmitResult{Reason: lifecycle.OutOfCPU}
	for operation, want := range map[lifecycle.Operation]bool{lifecycle.AddOperation: true, lifecycle.ResizeOperation: false} {
		if got := hook(context.Background(), &lifecycle.PodAdmitAttributes{Pod: ran(), Operation: operation}, rejection); got != want {
			t.Errorf("%s: tolerated=%v, want %v", operation, got, want)
		}
	}
}

// The link is asked only when there is a rejection that it decides about.
func TestLinkIsAskedLast(t *testing.T) {
	asked := 0
	hook := tolerate(func() bool { asked++; return true })
	attrs := &lifecycle.PodAdmitAttributes{Pod: ran(), Operation: lifecycle.AddOperation}
	for _, reason := range strings.Fields("SysctlForbidden AppArmor Evicted NodeShutdown NodePorts NodeName SMTAlignmentError PodFeatureUnsupported UnknownReason") {
		if hook(context.Background(), attrs, lifecycle.PodAdmitResult{Reason: reason}) {
			t.Errorf("%s is tolerated", reason)
		}
	}
	if asked != 0 {
		t.Errorf("the agent was asked %d times", asked)
	}
}
