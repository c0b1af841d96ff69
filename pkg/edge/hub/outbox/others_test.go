package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const smp = "application/strategic-merge-patch+json"

func newNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: thisNode, UID: "n-u1", ResourceVersion: "90", Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24"},
		Status: corev1.NodeStatus{
			Capacity:        corev1.ResourceList{"cpu": resource.MustParse("4"), "example.com/fpga": resource.MustParse("1")},
			Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Unix(1700000000, 0)}},
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00::1"}},
			VolumesAttached: []corev1.AttachedVolume{{Name: "v1"}},
		},
	}
}

func (s *site) shownNode() *corev1.Node {
	s.t.Helper()
	o, ok, err := s.store.Get(store.Key{Version: "v1", Resource: "nodes", Name: thisNode})
	if err != nil || !ok {
		s.t.Fatal(ok, err)
	}
	obj, err := wire.Typed(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return obj.(*corev1.Node)
}

func TestNode(t *testing.T) {
	s := newSite(t)
	s.cloud.node = newNode()
	s.show()
	write := func(body string) {
		t.Helper()
		if _, _, err := s.box.Write(t.Context(), theNode, statusRequest("nodes", thisNode), smp, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	revision := s.store.Revision()
	write(`{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":"2026-01-01T00:00:00Z"}]}}`)
	if n, _ := s.box.Pending(); n != 0 || s.store.Revision() != revision || len(s.published) != 0 {
		t.Fatalf("a heartbeat is queued (%d) or has a revision", n)
	}
	if got := s.shownNode().Status.Conditions[0].LastHeartbeatTime; got.Year() != 2026 {
		t.Fatalf("the heartbeat is not kept: %v", got)
	}
	// What a kubelet that starts sends: new capacity, addresses as a whole, and
	// a label, which is not taken.
	write(`{"metadata":{"labels":{"a":"b"}},"spec":{"podCIDR":"1.2.3.0/24"},"status":{"capacity":{"cpu":"8","memory":"1Gi"},"volumesInUse":["v1"],"volumesAttached":null,
		"addresses":[{"type":"InternalIP","address":"10.0.0.2"},{"type":"InternalIP","address":"fd00::2"},{"$patch":"replace"}],
		"conditions":[{"type":"MemoryPressure","status":"False"}]}}`)
	got := s.shownNode()
	if got.Labels["a"] != "" || got.Spec.PodCIDR != "10.244.1.0/24" || len(got.Status.VolumesAttached) != 1 || len(got.Status.Conditions) != 2 || len(got.Status.Addresses) != 2 {
		t.Fatalf("%+v", got)
	}
	// Meanwhile the cloud does not hear from the node, and others write to it.
	s.cloud.node.Status.Conditions[0].Status = corev1.ConditionUnknown
	s.cloud.node.Status.Capacity["example.com/fpga"] = resource.MustParse("2")
	s.cloud.node.Status.VolumesAttached = nil
	s.cloud.node.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoSchedule}}
	s.online = true
	s.show()
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]*corev1.Node{"shown": s.shownNode(), "in the cloud": s.cloud.node} {
		st := n.Status
		if st.Capacity.Cpu().String() != "8" || st.Capacity.Memory().String() != "1Gi" || st.Capacity["example.com/fpga"] != resource.MustParse("2") {
			t.Errorf("%s: capacity %v", name, st.Capacity)
		}
		if len(st.Addresses) != 2 || st.Addresses[0].Address != "10.0.0.2" || len(st.VolumesAttached) != 0 || len(st.VolumesInUse) != 1 || len(n.Spec.Taints) != 1 {
			t.Errorf("%s: %+v", name, n)
		}
		// Ready was only a heartbeat: the kubelet says it again when it sees this.
		ready := slices.IndexFunc(st.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
		if len(st.Conditions) != 2 || ready < 0 || st.Conditions[ready].Status != corev1.ConditionUnknown {
			t.Errorf("%s: conditions %+v", name, st.Conditions)
		}
	}
	create := &wire.Request{Verb: "create", IsResource: true, Version: "v1", Resource: "nodes"}
	s.online = false
	if _, _, err := s.box.Write(t.Context(), theNode, create, "application/json", []byte(`{}`)); !apierrors.IsAlreadyExists(err) {
		t.Errorf("registration: %v", err)
	}
}

func TestLease(t *testing.T) {
	s := newSite(t)
	key := store.Key{Group: "coordination.k8s.io", Version: "v1", Resource: "leases", Namespace: "kube-node-lease", Name: thisNode}
	request := func(verb string) *wire.Request {
		return &wire.Request{Verb: verb, IsResource: true, Group: key.Group, Version: "v1", Resource: "leases", Namespace: key.Namespace, Name: thisNode}
	}
	lease := &coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: thisNode, UID: "l1", ResourceVersion: "50"},
	}
	write := func(verb, ctype, body string) (store.Object, error) {
		o, _, err := s.box.Write(t.Context(), theNode, request(verb), ctype, []byte(body))
		return o, err
	}
	if _, err := write("update", "application/json", asJSON(t, lease)); !notOffline(err) {
		t.Fatalf("a lease that is not stored: %v", err)
	}
	o, err := wire.FromTyped(lease.DeepCopy(), key)
	if err != nil {
		t.Fatal(err)
	}
	batch := new(store.Batch)
	batch.SetView(store.View{Query: store.Query{Group: key.Group, Version: "v1", Resource: "leases", Namespace: key.Namespace, FieldSelector: "metadata.name=" + thisNode}})
	batch.Put(o)
	batch.Join(store.Query{Group: key.Group, Version: "v1", Resource: "leases", Namespace: key.Namespace, FieldSelector: "metadata.name=" + thisNode}, key)
	batch.SetRevision(70)
	if err := s.store.Apply(batch, store.Soon); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, verb, rv string
		edit           func(l *coordinationv1.Lease)
		ok             func(error) bool
		want           uint64
	}{
		{"renewal", "update", "50", nil, nil, 70},
		{"renewal of the answer", "update", "70", nil, nil, 70},
		{"of an old version", "update", "50", nil, apierrors.IsConflict, 0},
		{"of a version that only the cloud has shown", "update", "75", nil, nil, 75},
		{"no version", "update", "", nil, nil, 75},
		{"another UID", "update", "75", func(l *coordinationv1.Lease) { l.UID = "l2" }, apierrors.IsConflict, 0},
		{"another name", "update", "75", func(l *coordinationv1.Lease) { l.Name = "n2" }, apierrors.IsForbidden, 0},
		{"creation", "create", "", nil, apierrors.IsAlreadyExists, 0},
		{"creation of another", "create", "", func(l *coordinationv1.Lease) { l.Name = "n2" }, apierrors.IsForbidden, 0},
		{"garbage", "update", "x", nil, apierrors.IsBadRequest, 0},
	} {
		l := lease.DeepCopy()
		l.ResourceVersion = tt.rv
		now := metav1.NewMicroTime(time.Now())
		l.Spec.RenewTime = &now
		l.Labels = map[string]string{"not": "taken"}
		if tt.edit != nil {
			tt.edit(l)
		}
		o, err := write(tt.verb, "application/json", asJSON(t, l))
		if tt.ok != nil {
			if !tt.ok(err) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil || o.ResourceVersion != tt.want {
			t.Errorf("%s: answered %d: %v", tt.name, o.ResourceVersion, err)
		}
		obj, err := wire.Typed(o)
		if err != nil {
			t.Fatal(err)
		}
		if got := obj.(*coordinationv1.Lease); !got.Spec.RenewTime.Time.Equal(now.Truncate(time.Microsecond)) || got.UID != "l1" || len(got.Labels) != 0 {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
	if _, err := write("patch", smp, `{"spec":{"leaseDurationSeconds":7}}`); err != nil {
		t.Errorf("patch: %v", err)
	}
	if n, _ := s.box.Pending(); n != 0 || s.store.Revision() != 70 {
		t.Errorf("%d queued, revision %d", n, s.store.Revision())
	}
}

// A kubelet that could not read its lease makes one, and goes on with it.
func TestLeaseIsMade(t *testing.T) {
	s := newSite(t)
	r := &wire.Request{Verb: "create", IsResource: true, Group: "coordination.k8s.io", Version: "v1", Resource: "leases", Namespace: "kube-node-lease"}
	body := `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"%s","namespace":"kube-node-lease"},"spec":{"holderIdentity":"n1"}}`
	if _, _, err := s.box.Write(t.Context(), theNode, r, "application/json", fmt.Appendf(nil, body, "n2")); !apierrors.IsForbidden(err) {
		t.Fatalf("another node's: %v", err)
	}
	o, code, err := s.box.Write(t.Context(), theNode, r, "application/json", fmt.Appendf(nil, body, thisNode))
	if err != nil || code != http.StatusCreated || o.UID == "" || o.ResourceVersion != 1 {
		t.Fatalf("%d %+v: %v", code, o, err)
	}
	s.reopen()
	r.Verb, r.Name = "update", thisNode
	obj, err := wire.Typed(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, code, err := s.box.Write(t.Context(), theNode, r, "application/json", []byte(asJSON(t, obj))); err != nil || code != http.StatusOK {
		t.Fatalf("renewal: %d %v", code, err)
	}
	members, err := s.store.Versions(store.Query{Group: r.Group, Version: "v1", Resource: "leases", Namespace: r.Namespace, FieldSelector: "metadata.name=" + thisNode})
	if err != nil || len(members) != 1 {
		t.Fatalf("it cannot be read: %v %v", members, err)
	}
}

func eventRequest(verb, name string) *wire.Request {
	return &wire.Request{Verb: verb, IsResource: true, Version: "v1", Resource: "events", Namespace: "default", Name: name}
}

func eventBodyOf(name, message string, count int32) []byte {
	b, _ := json.Marshal(corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Message: message, Count: count,
	})
	return b
}

func TestEvents(t *testing.T) {
	s := newSite(t)
	s.options = func(o *Options) { o.MaxEvents = 5 }
	s.reopen()
	s.cloud.events["known"] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "known"}, Message: "kept", Count: 1}
	s.cloud.events["there"] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "there"}, Message: "first"}
	write := func(verb, name, ctype string, body []byte) (*corev1.Event, int, error) {
		t.Helper()
		o, code, err := s.box.Write(t.Context(), theNode, eventRequest(verb, name), ctype, body)
		if err != nil {
			return nil, 0, err
		}
		obj, err := wire.Typed(o)
		if err != nil {
			t.Fatal(err)
		}
		return obj.(*corev1.Event), code, nil
	}
	must := func(e *corev1.Event, code int, err error) *corev1.Event {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if e.ResourceVersion == "" || e.Namespace != "default" {
			t.Fatalf("answered %+v", e)
		}
		return e
	}
	// The two oldest do not fit in the end.
	for i := range 2 {
		must(write("create", "", "application/json", eventBodyOf(fmt.Sprint("old", i), "old", 1)))
	}
	e, code, err := write("create", "", "application/json", eventBodyOf("new", "one", 1))
	if must(e, code, err); code != http.StatusCreated || e.UID == "" {
		t.Fatalf("created: %d %+v", code, e)
	}
	if _, _, err := write("create", "", "application/json", eventBodyOf("new", "one", 1)); !apierrors.IsAlreadyExists(err) {
		t.Fatalf("twice: %v", err)
	}
	if e := must(write("patch", "new", smp, []byte(`{"count":2,"message":"two"}`))); e.Count != 2 || e.Message != "two" {
		t.Fatalf("patched: %+v", e)
	}
	must(write("patch", "known", smp, []byte(`{"count":2}`)))
	if e := must(write("patch", "known", smp, []byte(`{"count":3,"type":"Warning"}`))); e.Count != 3 {
		t.Fatalf("patched: %+v", e)
	}
	must(write("update", "there", "application/json", eventBodyOf("there", "second", 4)))
	generated, _ := json.Marshal(corev1.Event{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "gen-"}})
	name := must(write("create", "", "application/json", generated)).Name
	if !strings.HasPrefix(name, "gen-") || len(name) != 9 {
		t.Fatalf("named %q", name)
	}
	must(write("patch", "expired", smp, []byte(`{"count":2}`)))
	for what, err := range map[string]error{
		"too large":         second(write("create", "", "application/json", make([]byte, maxEvent+1))),
		"another namespace": second(write("create", "", "application/json", []byte(`{"apiVersion":"v1","kind":"Event","metadata":{"name":"x","namespace":"other"}}`))),
		"no name":           second(write("create", "", "application/json", []byte(`{"apiVersion":"v1","kind":"Event","metadata":{"namespace":"default"}}`))),
		"no event":          second(write("create", "", "application/json", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`))),
		"a renaming patch":  second(write("patch", "new", smp, []byte(`{"metadata":{"name":"y"}}`))),
		"JSON patch of an unknown one": second(write("patch", "nobody", "application/json-patch+json",
			[]byte(`[{"op":"add","path":"/count","value":3}]`))),
	} {
		if err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	s.reopen()
	if n, _ := s.box.Pending(); n != 5 {
		t.Fatalf("%d queued", n)
	}
	s.online = true
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for n, e := range s.cloud.events {
		got[n] = fmt.Sprintf("%s×%d %s", e.Message, e.Count, e.Type)
	}
	want := map[string]string{"known": "kept×3 Warning", "there": "second×4 ", "new": "two×2 ", name: "×0 "}
	if asJSON(t, got) != asJSON(t, want) {
		t.Errorf("the cloud has %v\nwant %v", got, want)
	}
	if n, _ := s.box.Pending(); n != 0 {
		t.Errorf("%d left", n)
	}
}

func second(_ *corev1.Event, _ int, err error) error { return err }

// Events of a long outage are bounded; the newest ones go.
func TestOldEvents(t *testing.T) {
	s := newSite(t)
	s.options = func(o *Options) { o.MaxOldEvents = 3 }
	s.reopen()
	start := time.Now()
	for i := range 6 {
		s.now = func() time.Time { return start.Add(time.Duration(i) * time.Minute) }
		if _, _, err := s.box.Write(t.Context(), theNode, eventRequest("create", ""), "application/json", eventBodyOf(fmt.Sprint("e", i), "", 1)); err != nil {
			t.Fatal(err)
		}
	}
	s.now = func() time.Time { return start.Add(time.Hour + 4*time.Minute + 30*time.Second) } // five are old
	s.online = true
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.cloud.events) != 4 || s.cloud.events["e1"] != nil || s.cloud.events["e2"] == nil {
		t.Errorf("%d events arrived", len(s.cloud.events))
	}
	if got := counter(t, s.box.m.dropped.WithLabelValues(dropExpired)); got != 2 {
		t.Errorf("%v are counted", got)
	}
}

// Run sends when the cloud comes back, retries what did not go, and does so at
// the rate that is asked for.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		changes := make(chan struct{})
		s.options = func(o *Options) {
			o.Changes = func() <-chan struct{} { return changes }
			o.Rate = 10
		}
		s.reopen()
		for i := range 5 {
			if _, _, err := s.box.Write(t.Context(), theNode, eventRequest("create", ""), "application/json", eventBodyOf(fmt.Sprint("e", i), "", 1)); err != nil {
				t.Fatal(err)
			}
		}
		refuse := 3
		s.cloud.answer = func(*http.Request) int {
			if refuse--; refuse >= 0 {
				return 503
			}
			return 0
		}
		ended := make(chan error)
		ctx, cancel := contextOf(t)
		go func() { ended <- s.box.Run(ctx) }()
		synctest.Wait()
		if len(s.cloud.calls) != 0 {
			t.Fatal("it sends while offline")
		}
		s.online = true
		close(changes)
		changes = make(chan struct{})
		time.Sleep(6900 * time.Millisecond) // 1, 2 and 4 s until the fourth try
		synctest.Wait()
		if len(s.cloud.calls) != 3 {
			t.Fatalf("%d tries", len(s.cloud.calls))
		}
		time.Sleep(450 * time.Millisecond)
		synctest.Wait()
		if n := len(s.cloud.events); n != 4 {
			t.Fatalf("%d of 5 are sent after 350 ms at 10 a second", n)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n, _ := s.box.Pending(); n != 0 {
			t.Fatalf("%d left", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if err := s.store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Without a crash in between, an answer that is lost makes no second effect.
func TestLostAnswers(t *testing.T) {
	for _, lost := range []string{"before", "after"} {
		s := newSite(t)
		s.cloud.create(newPod("a", "u1"))
		s.show()
		if err := s.report("a", finished); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.box.Write(t.Context(), theNode, eventRequest("create", ""), "application/json", eventBodyOf("e", "", 1)); err != nil {
			t.Fatal(err)
		}
		s.online = true
		lostOnce := map[string]bool{"GET": true}
		s.lose = func(method string) string {
			if lostOnce[method] {
				return ""
			}
			lostOnce[method] = true
			return lost
		}
		for i := range 2 {
			if err := s.box.Replay(t.Context()); err == nil {
				t.Fatalf("%s: pass %d says that nothing is left", lost, i)
			}
			s.reopen()
		}
		if err := s.box.Replay(t.Context()); err != nil {
			t.Fatal(err)
		}
		patches := strings.Count(strings.Join(s.cloud.calls, ","), "PATCH")
		if n, _ := s.box.Pending(); n != 0 || patches != 1 || len(s.cloud.events) != 1 {
			t.Errorf("%s: %d left, %d patches, %d events: %v", lost, n, patches, len(s.cloud.events), s.cloud.calls)
		}
	}
}

// A status is not sent before the cloud is beyond the resourceVersion that it
// was shown with here; unless the cloud has been restored from a backup.
func TestCloudIsBehind(t *testing.T) {
	s := newSite(t)
	s.cloud.create(newPod("a", "u1"))
	s.show()
	if err := s.report("a", finished); err != nil {
		t.Fatal(err)
	}
	shown := s.store.Revision()
	s.online, s.behind = true, true
	s.cloud.revision = shown
	for range 2 {
		if err := s.box.Replay(t.Context()); !errors.Is(err, errBehind) {
			t.Fatalf("at the same revision: %v", err)
		}
		s.reopen()
	}
	s.cloud.revision = shown + 1
	if err := s.box.Replay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rv := s.cloud.pod("a").ResourceVersion; rv != strconv.FormatUint(shown+2, 10) {
		t.Fatalf("shown at %d, and now at %s", shown, rv)
	}
	b := new(store.Batch)
	b.SetRevision(behindBy + 1000)
	if err := s.store.Apply(b, store.Soon); err != nil {
		t.Fatal(err)
	}
	if s.box.taken = behindBy + 1000; s.box.behind(999) {
		t.Error("a cloud that was restored is waited for")
	}
	if !s.box.behind(1001) {
		t.Error("a cloud that is behind is not waited for")
	}
	b = new(store.Batch)
	b.ResetRevision(900)
	if err := s.store.Apply(b, store.Soon); err != nil {
		t.Fatal(err)
	}
	if s.box.behind(1001) {
		t.Error("a cloud is waited for that was restored a moment before")
	}
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	s := newSite(t)
	s.options = func(o *Options) { o.Registry = r }
	s.reopen()
	s.cloud.create(newPod("a", "u1"))
	s.show()
	if err := s.report("a", finished); err != nil {
		t.Fatal(err)
	}
	written := time.Now()
	s.now = func() time.Time { return written.Add(time.Minute) }
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if got["skerry_hub_outbox_entries"] != 1 || got["skerry_hub_outbox_oldest_seconds"] < 50 {
		t.Errorf("%v", got)
	}
	if _, ok := got["skerry_hub_outbox_replayed_total"]; !ok {
		t.Error("nothing says what was replayed")
	}
}
