package outbox

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

func finished(st *corev1.PodStatus) {
	st.Phase = corev1.PodSucceeded
	st.Conditions = setCondition(st.Conditions, condition(corev1.PodReady, false))
	st.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}}}
}

func restarted(n int32) func(*corev1.PodStatus) {
	return func(st *corev1.PodStatus) {
		st.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Ready: true, RestartCount: n, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	}
}

// A status that is written offline is seen here, survives a restart, and reaches
// the cloud.
func TestJobFinishesOffline(t *testing.T) {
	s := newSite(t)
	s.cloud.create(newPod("job", "u1"))
	s.show()
	shown := s.store.Revision()
	if err := s.report("job", finished); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	got := s.shown("job")
	if got.Status.Phase != corev1.PodSucceeded {
		t.Fatalf("phase after a restart is %s", got.Status.Phase)
	}
	if rv := s.store.Revision(); rv != shown+1 || got.ResourceVersion != "102" {
		t.Fatalf("revision went from %d to %d, the pod's is %s", shown, rv, got.ResourceVersion)
	}
	if len(s.published) != 1 {
		t.Fatalf("told watchers %v", s.published)
	}
	if n, oldest := s.box.Pending(); n != 1 || oldest.IsZero() {
		t.Fatalf("%d pending since %v", n, oldest)
	}
	s.online = true
	s.show()
	if got := s.shown("job"); got.Status.Phase != corev1.PodSucceeded {
		t.Fatalf("the cloud's version is presented with phase %s", got.Status.Phase)
	}
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.cloud.pod("job"); got.Status.Phase != corev1.PodSucceeded || conditionOf(got, corev1.PodReady) != "False" || got.Status.ContainerStatuses[0].State.Terminated == nil {
		t.Fatalf("the cloud has %+v", got.Status)
	}
	if n, _ := s.box.Pending(); n != 0 || s.box.Holds(podKey("job")) {
		t.Fatalf("%d pending after the replay", n)
	}
}

// The rules of the package, one by one.
func TestRules(t *testing.T) {
	gate := corev1.PodConditionType("example.com/gate")
	for _, tt := range []struct {
		name    string
		local   func(*corev1.PodStatus)
		cloud   func(s *site)
		check   func(t *testing.T, p *corev1.Pod)
		dropped string
	}{
		{
			name: "nothing else happened", local: finished,
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.Phase != corev1.PodSucceeded {
					t.Errorf("phase %s", p.Status.Phase)
				}
			},
		},
		{
			name: "another pod has the name", local: finished, dropped: dropUID,
			cloud: func(s *site) { s.cloud.remove("a"); s.cloud.create(newPod("a", "u2")) },
			check: func(t *testing.T, p *corev1.Pod) {
				if p.UID != "u2" || p.Status.Phase != corev1.PodRunning {
					t.Errorf("uid %s, phase %s", p.UID, p.Status.Phase)
				}
			},
		},
		{
			name: "the pod is gone", local: finished, dropped: dropGone,
			cloud: func(s *site) { s.cloud.remove("a") },
			check: func(t *testing.T, p *corev1.Pod) {
				if p != nil {
					t.Errorf("it is back: %s", p.UID)
				}
			},
		},
		{
			name: "the spec changed", local: finished,
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "image:2"; p.Labels["v"] = "2"; p.Generation = 2 })
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Spec.Containers[0].Image != "image:2" || p.Labels["v"] != "2" || p.Generation != 2 || p.Status.Phase != corev1.PodSucceeded {
					t.Errorf("%+v", p)
				}
			},
		},
		{
			name: "another manager changed conditions", local: finished,
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) {
					p.Status.Conditions = append([]corev1.PodCondition{condition(gate, true)}, p.Status.Conditions...)
				})
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if conditionOf(p, gate) != "True" || conditionOf(p, corev1.PodReady) != "False" || conditionOf(p, corev1.PodScheduled) != "True" || len(p.Status.Conditions) != 3 {
					t.Errorf("conditions %+v", p.Status.Conditions)
				}
			},
		},
		{
			name: "both changed one condition", local: func(st *corev1.PodStatus) {
				c := condition(corev1.PodReady, true)
				c.LastTransitionTime = metav1.Unix(1700000100, 0)
				st.Conditions = setCondition(st.Conditions, c)
			},
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) {
					c := condition(corev1.PodReady, false)
					c.Reason, c.Message = "NodeNotReady", "node lost"
					p.Status.Conditions = setCondition(p.Status.Conditions, c)
				})
			},
			check: func(t *testing.T, p *corev1.Pod) {
				c := p.Status.Conditions[1]
				if c.Status != corev1.ConditionTrue || c.Reason != "" || c.Message != "" || c.LastTransitionTime.Unix() != 1700000100 {
					t.Errorf("the kubelet's word is lost, or mixed: %+v", c)
				}
			},
		},
		{
			name: "the pod is being deleted", local: restarted(1),
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) {
					p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: metav1.Unix(1700000200, 0).Time}, new(int64)
				})
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if p.DeletionTimestamp == nil || p.Status.ContainerStatuses[0].RestartCount != 1 {
					t.Errorf("%+v", p)
				}
			},
		},
		{
			name: "it was failed by the cloud", local: restarted(1), dropped: dropTerminal,
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "NodeLost" })
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.Phase != corev1.PodFailed || p.Status.ContainerStatuses[0].RestartCount != 0 {
					t.Errorf("%+v", p.Status)
				}
			},
		},
		{
			name: "it was failed by the cloud and succeeded here", local: finished, dropped: dropTerminal,
			cloud: func(s *site) {
				s.cloud.change("a", func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "NodeLost" })
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.Phase != corev1.PodFailed {
					t.Errorf("%+v", p.Status)
				}
			},
		},
		{
			name: "the container restarted here", local: restarted(3),
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.ContainerStatuses[0].RestartCount != 3 {
					t.Errorf("%+v", p.Status.ContainerStatuses)
				}
			},
		},
		{
			name: "the cloud knows of a later restart", local: restarted(3),
			cloud: func(s *site) { s.cloud.change("a", func(p *corev1.Pod) { restarted(4)(&p.Status) }) },
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.ContainerStatuses[0].RestartCount != 4 {
					t.Errorf("%+v", p.Status.ContainerStatuses)
				}
			},
		},
		{
			name: "addresses and conditions go", local: func(st *corev1.PodStatus) {
				st.PodIP, st.PodIPs = "10.244.1.9", []corev1.PodIP{{IP: "10.244.1.9"}}
				st.Conditions = st.Conditions[:1]
			},
			check: func(t *testing.T, p *corev1.Pod) {
				if len(p.Status.PodIPs) != 1 || p.Status.PodIPs[0].IP != "10.244.1.9" || len(p.Status.Conditions) != 1 {
					t.Errorf("%+v", p.Status)
				}
			},
		},
		{
			name: "observedGeneration does not go down", local: func(st *corev1.PodStatus) { st.ObservedGeneration = 2 },
			cloud: func(s *site) { s.cloud.change("a", func(p *corev1.Pod) { p.Status.ObservedGeneration = 3 }) },
			check: func(t *testing.T, p *corev1.Pod) {
				if p.Status.ObservedGeneration != 3 {
					t.Errorf("%d", p.Status.ObservedGeneration)
				}
			},
		},
	} {
		for _, order := range []string{"replay first", "shown first"} {
			t.Run(tt.name+"/"+order, func(t *testing.T) {
				s := newSite(t)
				s.cloud.create(newPod("a", "u1"))
				s.show()
				if err := s.report("a", tt.local); err != nil {
					t.Fatal(err)
				}
				if tt.cloud != nil {
					tt.cloud(s)
				}
				s.reopen()
				s.online = true
				before := s.store.Revision()
				if order == "shown first" {
					s.show()
					if p := s.shown("a"); p != nil || tt.dropped != dropGone {
						tt.check(t, p)
					}
				}
				if err := s.box.Replay(t.Context()); err != nil {
					t.Fatal(err)
				}
				tt.check(t, s.cloud.pod("a"))
				s.show()
				tt.check(t, s.shown("a"))
				if p := s.shown("a"); p != nil && s.cloud.pod("a").ResourceVersion != p.ResourceVersion {
					t.Errorf("shown at %s, the cloud is at %s", p.ResourceVersion, s.cloud.pod("a").ResourceVersion)
				}
				if s.store.Revision() < before {
					t.Errorf("revision went back from %d to %d", before, s.store.Revision())
				}
				if n, _ := s.box.Pending(); n != 0 {
					t.Errorf("%d are left", n)
				}
				for _, reason := range []string{dropUID, dropGone, dropTerminal, dropInvalid, dropDamaged, dropDenied} {
					want := 0.0
					if reason == tt.dropped {
						want = 1
					}
					if got := counter(t, s.box.m.dropped.WithLabelValues(reason)); got != want {
						t.Errorf("dropped %v times because of %q", got, reason)
					}
				}
			})
		}
	}
}

func TestWhatIsNotKept(t *testing.T) {
	fail := func(reason, message string) func(*corev1.PodStatus) {
		return func(st *corev1.PodStatus) { st.Phase, st.Reason, st.Message = corev1.PodFailed, reason, message }
	}
	for _, tt := range []struct {
		name  string
		local func(*corev1.PodStatus)
		kept  bool
	}{
		{"shutdown of the machine", fail("Terminated", "Pod was terminated in response to imminent node shutdown."), false},
		{"pod of a node that shuts down", fail("NodeShutdown", "Pod was rejected as the node is shutting down."), false},
		{"device plugin not there yet", fail("UnexpectedAdmissionError", "Pod was rejected: Allocate failed"), false},
		{"out of a resource", fail("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu"), false},
		{"disk pressure", fail("Evicted", "The node was low on resource: ephemeral-storage."), true},
		{"preempted", fail("Preempting", "Preempted in order to admit critical pod"), true},
		{"deadline", fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"), true},
		{"a container failed", fail("", ""), true},
		{"finished while the machine went down", func(st *corev1.PodStatus) {
			finished(st)
			st.Reason, st.Message = "Terminated", "Pod was terminated in response to imminent node shutdown."
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.cloud.create(newPod("a", "u1"))
			s.show()
			if err := s.report("a", tt.local); err != nil {
				t.Fatalf("it is not acknowledged: %v", err)
			}
			kept := s.shown("a").Status.Phase != corev1.PodRunning
			n, _ := s.box.Pending()
			if kept != tt.kept || (n == 1) != tt.kept {
				t.Errorf("kept: %t, queued: %d", kept, n)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	s := newSite(t)
	other := newPod("elsewhere", "u2")
	other.Spec.NodeName = "n2"
	s.cloud.create(newPod("a", "u1"))
	s.cloud.create(other)
	s.show()
	const smp = "application/strategic-merge-patch+json"
	status := func(phase string) []byte { return []byte(`{"status":{"phase":"` + phase + `"}}`) }
	for _, tt := range []struct {
		name   string
		caller identity.Caller
		edit   func(s *site)
		verb   string
		res    string
		sub    string
		object string
		ctype  string
		body   []byte
		want   func(error) bool
	}{
		{"not the node", identity.Caller{Verified: true}, nil, "patch", "pods", "status", "a", smp, status("Failed"), notOffline},
		{"a pod that is not stored", theNode, nil, "patch", "pods", "status", "b", smp, status("Failed"), notOffline},
		{"another node's pod", theNode, nil, "patch", "pods", "status", "elsewhere", smp, status("Failed"), apierrors.IsForbidden},
		{"another node", theNode, nil, "patch", "nodes", "status", "n2", smp, status("x"), apierrors.IsForbidden},
		{"the pod itself", theNode, nil, "patch", "pods", "", "a", smp, []byte(`{"metadata":{"labels":{"a":"b"}}}`), notOffline},
		{"the node itself", theNode, nil, "patch", "nodes", "", "n1", smp, []byte(`{"metadata":{"labels":{"a":"b"}}}`), notOffline},
		{"deletion", theNode, nil, "delete", "pods", "", "a", "application/json", nil, notOffline},
		{"eviction", theNode, nil, "create", "pods", "eviction", "a", "application/json", nil, notOffline},
		{"a secret", theNode, nil, "create", "secrets", "", "a", "application/json", []byte(`{}`), notOffline},
		{"another UID", theNode, nil, "patch", "pods", "status", "a", smp, []byte(`{"metadata":{"uid":"u9"},"status":{"phase":"Failed"}}`), apierrors.IsConflict},
		{"another version", theNode, nil, "patch", "pods", "status", "a", smp, []byte(`{"metadata":{"resourceVersion":"7"},"status":{"phase":"Failed"}}`), apierrors.IsConflict},
		{"another name", theNode, nil, "patch", "pods", "status", "a", smp, []byte(`{"metadata":{"name":"b"},"status":{"phase":"Failed"}}`), apierrors.IsBadRequest},
		{"server-side apply", theNode, nil, "patch", "pods", "status", "a", "application/apply-patch+yaml", []byte(`{}`), code(415)},
		{"no JSON", theNode, nil, "patch", "pods", "status", "a", smp, []byte(`{"status":`), apierrors.IsBadRequest},
		{"a wrong type", theNode, nil, "patch", "pods", "status", "a", smp, []byte(`{"status":{"phase":{"a":1}}}`), code(422)},
		{"too large", theNode, nil, "patch", "pods", "status", "a", smp, make([]byte, maxBody+1), code(413)},
		{"too many operations", theNode, nil, "patch", "pods", "status", "a", "application/json-patch+json",
			[]byte("[" + strings.Repeat(`{"op":"test","path":"/kind","value":"Pod"},`, maxOperations) + `{"op":"test","path":"/kind","value":"Pod"}]`), code(413)},
		{"registration of an unknown node", theNode, nil, "create", "nodes", "", "", "application/json", []byte(`{}`), notOffline},
		{"online", theNode, func(s *site) { s.online = true }, "patch", "pods", "status", "a", smp, status("Failed"), notOffline},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.online = false
			if tt.edit != nil {
				tt.edit(s)
			}
			r := statusRequest(tt.res, tt.object)
			r.Verb, r.Subresource = tt.verb, tt.sub
			if tt.res == "secrets" {
				r.Namespace = "default"
			}
			_, _, err := s.box.Write(t.Context(), tt.caller, r, tt.ctype, tt.body)
			if !tt.want(err) {
				t.Fatalf("got %v", err)
			}
			if n, _ := s.box.Pending(); n != 0 || s.shown("a").Status.Phase != corev1.PodRunning {
				t.Fatal("it had an effect")
			}
		})
	}
}

func notOffline(err error) bool { return errors.Is(err, ErrNotOffline) }

func code(want int32) func(error) bool {
	return func(err error) bool {
		s, ok := err.(apierrors.APIStatus)
		return ok && s.Status().Code == want
	}
}

// Only .status changes, whatever else a patch has in it; and of it only what is
// the kubelet's.
func TestOnlyStatusChanges(t *testing.T) {
	for _, ctype := range []string{"application/strategic-merge-patch+json", "application/merge-patch+json"} {
		s := newSite(t)
		s.cloud.create(newPod("a", "u1"))
		s.show()
		body := `{"metadata":{"labels":{"app":"x"},"ownerReferences":[],"deletionTimestamp":"2020-01-01T00:00:00Z"},"spec":{"nodeName":"n2","containers":[{"name":"main","image":"evil"}]},
			"status":{"message":"hello","qosClass":"Guaranteed","resourceClaimStatuses":[{"name":"x"}]}}`
		if _, _, err := s.box.Write(t.Context(), theNode, statusRequest("pods", "a"), ctype, []byte(body)); err != nil {
			t.Fatal(err)
		}
		got := s.shown("a")
		want := newPod("a", "u1")
		want.Status.Message = "hello"
		want.ResourceVersion, want.TypeMeta = got.ResourceVersion, got.TypeMeta
		if a, b := asJSON(t, got), asJSON(t, want); a != b {
			t.Errorf("%s:\n got %s\nwant %s", ctype, a, b)
		}
	}
}

func TestPut(t *testing.T) {
	s := newSite(t)
	s.cloud.create(newPod("a", "u1"))
	s.show()
	put := statusRequest("pods", "a")
	put.Verb = "update"
	p := s.shown("a")
	p.APIVersion, p.Kind = "v1", "Pod"
	p.Spec.Containers[0].Image = "evil"
	restarted(2)(&p.Status)
	obj, code, err := s.box.Write(t.Context(), theNode, put, "application/json", []byte(asJSON(t, p)))
	if err != nil || code != http.StatusOK {
		t.Fatal(code, err)
	}
	got := s.shown("a")
	if got.Status.ContainerStatuses[0].RestartCount != 2 || got.Spec.Containers[0].Image != "image" || obj.ResourceVersion != s.store.Revision() {
		t.Fatalf("%+v, answered at %d", got, obj.ResourceVersion)
	}
	if _, _, err := s.box.Write(t.Context(), theNode, put, "application/json", []byte(asJSON(t, p))); !apierrors.IsConflict(err) {
		t.Fatalf("a second one of the same version: %v", err)
	}
}

// While a status is unsent, newer ones of the same object go behind it, online
// too, and no resourceVersion is taken.
func TestHolds(t *testing.T) {
	s := newSite(t)
	s.cloud.create(newPod("a", "u1"))
	s.show()
	if err := s.report("a", restarted(1)); err != nil {
		t.Fatal(err)
	}
	if !s.box.Holds(podKey("a")) || s.box.Holds(podKey("b")) {
		t.Fatal("it does not hold")
	}
	s.online = true
	s.show()
	revision := s.store.Revision()
	if err := s.report("a", restarted(2)); err != nil {
		t.Fatal(err)
	}
	if s.store.Revision() != revision || len(s.published) != 1 {
		t.Fatal("it took a resourceVersion of the cloud's")
	}
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.cloud.pod("a").Status.ContainerStatuses[0].RestartCount; n != 2 {
		t.Fatalf("the cloud has %d restarts", n)
	}
	if s.box.Holds(podKey("a")) {
		t.Fatal("it still holds")
	}
}

// A version that is older than the one that the replay made is shown with our
// status, though the queue is empty.
func TestOldVersionAfterReplay(t *testing.T) {
	s := newSite(t)
	s.cloud.create(newPod("a", "u1"))
	s.show()
	if err := s.report("a", finished); err != nil {
		t.Fatal(err)
	}
	s.online = true
	s.cloud.change("a", func(p *corev1.Pod) { p.Labels["x"] = "1" })
	late := s.stored(s.cloud.pod("a"))
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range []store.Object{late, s.stored(s.cloud.pod("a"))} {
		got, err := s.box.Rebase(o)
		if err != nil {
			t.Fatal(err)
		}
		if phase := typedPod(t, got).Status.Phase; phase != corev1.PodSucceeded || got.ResourceVersion != o.ResourceVersion {
			t.Errorf("version %d is shown as %d with phase %s", o.ResourceVersion, got.ResourceVersion, phase)
		}
	}
	if len(s.box.sent) != 0 {
		t.Error("it is remembered for ever")
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		code     int
		left     int  // entries after the first pass
		goes     bool // the entry behind is sent in the same pass
		dropped  string
		afterAll int // left after ForbiddenFor
	}{
		{code: 422, left: 0, goes: true, dropped: dropInvalid},
		{code: 400, left: 0, goes: true, dropped: dropInvalid},
		{code: 404, left: 0, goes: true, dropped: dropGone},
		{code: 403, left: 1, goes: true, dropped: dropDenied},
		{code: 409, left: 1, goes: true, dropped: dropDenied},
		{code: 401, left: 2, afterAll: 2},
		{code: 429, left: 2, afterAll: 2},
		{code: 500, left: 2, afterAll: 2},
		{code: 503, left: 2, afterAll: 2},
	} {
		t.Run(http.StatusText(tt.code), func(t *testing.T) {
			s := newSite(t)
			s.cloud.create(newPod("a", "u1"))
			s.cloud.create(newPod("b", "u2"))
			s.show()
			for _, name := range []string{"a", "b"} {
				if err := s.report(name, finished); err != nil {
					t.Fatal(err)
				}
			}
			s.online = true
			s.cloud.answer = func(r *http.Request) int {
				if r.Method == "PATCH" && strings.Contains(r.URL.Path, "/pods/a/") {
					return tt.code
				}
				return 0
			}
			err := s.box.Replay(t.Context())
			if n, _ := s.box.Pending(); n != tt.left || (err == nil) != (tt.left == 0) {
				t.Fatalf("%d left: %v", n, err)
			}
			if goes := s.cloud.pod("b").Status.Phase == corev1.PodSucceeded; goes != tt.goes {
				t.Fatalf("the next one was sent: %t", goes)
			}
			later := s.now().Add(s.box.o.ForbiddenFor)
			s.now = func() time.Time { return later }
			_ = s.box.Replay(t.Context())
			if n, _ := s.box.Pending(); n != tt.afterAll {
				t.Fatalf("%d left in the end", n)
			}
			if tt.dropped != "" && counter(t, s.box.m.dropped.WithLabelValues(tt.dropped)) != 1 {
				t.Fatal("it is not counted")
			}
		})
	}
}
