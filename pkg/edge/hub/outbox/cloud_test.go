package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const thisNode = "n1"

var (
	theNode   = identity.Caller{Node: true, Verified: true, User: identity.User{Name: "system:node:" + thisNode}}
	nodesPods = store.Query{Version: "v1", Resource: "pods", FieldSelector: "spec.nodeName=" + thisNode}
	ownNode   = store.Query{Version: "v1", Resource: "nodes", FieldSelector: "metadata.name=" + thisNode}
)

// cloud answers the outbox's calls as an API server does: patches are applied
// with preconditions, status strategies and revisions.
type cloud struct {
	mu       sync.Mutex
	revision uint64
	pods     map[string]*corev1.Pod
	node     *corev1.Node
	events   map[string]*corev1.Event
	calls    []string
	answer   func(r *http.Request) (code int) // 0: go on
}

func newCloud() *cloud {
	return &cloud{revision: 100, pods: map[string]*corev1.Pod{}, events: map[string]*corev1.Event{}}
}

func (c *cloud) next() string {
	c.revision++
	return strconv.FormatUint(c.revision, 10)
}

// change is what somebody else in the cloud does to a pod.
func (c *cloud) change(name string, fn func(p *corev1.Pod)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pods[name]; p != nil {
		p = p.DeepCopy()
		fn(p)
		p.ResourceVersion = c.next()
		c.pods[name] = p
	}
}

func (c *cloud) create(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.ResourceVersion = c.next()
	c.pods[p.Name] = p
}

func (c *cloud) remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, name)
	c.next()
}

func (c *cloud) pod(name string) *corev1.Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[name].DeepCopy()
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, r.Method+" "+r.URL.Path)
	if c.answer != nil {
		if code := c.answer(r); code != 0 {
			fail(w, apierrors.NewGenericServerResponse(code, "", schema.GroupResource{}, "", "told to", 0, false))
			return
		}
	}
	body, _ := io.ReadAll(r.Body)
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.Method == "GET" && r.URL.Path == "/api/v1/pods":
		c.list(w, r)
	case r.Method == "GET" && r.URL.Path == "/api/v1/nodes" && r.URL.Query().Get("fieldSelector") == "metadata.name="+thisNode:
		list := corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(c.revision, 10)}}
		list.APIVersion, list.Kind = "v1", "NodeList"
		if c.node != nil {
			list.Items = []corev1.Node{*c.node}
		}
		reply(w, 200, &list)
	case r.Method == "PATCH" && len(parts) == 5 && parts[2] == "nodes":
		if c.node == nil {
			fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, parts[3]))
			return
		}
		got := new(corev1.Node)
		if !patchStatus(w, r, body, c.node, got, c.node.UID) {
			return
		}
		node := c.node.DeepCopy()
		node.Status = got.Status
		node.ResourceVersion = c.next()
		c.node = node
		reply(w, 200, node)
	case r.Method == "PATCH" && len(parts) == 7 && parts[4] == "pods" && parts[6] == "status":
		old := c.pods[parts[5]]
		if old == nil {
			fail(w, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, parts[5]))
			return
		}
		got := new(corev1.Pod)
		if !patchStatus(w, r, body, old, got, old.UID) {
			return
		}
		pod := old.DeepCopy()
		pod.Status = got.Status
		if pod.Status.QOSClass != old.Status.QOSClass {
			fail(w, apierrors.NewGenericServerResponse(422, "", schema.GroupResource{}, "", "qosClass is immutable", 0, false))
			return
		}
		pod.ResourceVersion = c.next()
		c.pods[pod.Name] = pod
		reply(w, 200, pod)
	case len(parts) >= 5 && slices.Contains(parts, "events"):
		c.event(w, r, parts, body)
	default:
		fail(w, apierrors.NewMethodNotSupported(schema.GroupResource{}, r.Method+" "+r.URL.Path))
	}
}

func (c *cloud) list(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("fieldSelector") != "spec.nodeName="+thisNode {
		fail(w, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("can only list pods with spec.nodeName field selector")))
		return
	}
	list := corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(c.revision, 10)}}
	names := slices.Sorted(maps.Keys(c.pods))
	// Pages of two, so that the continuation is used.
	start, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	for i := start; i < len(names); i++ {
		if len(list.Items) == 2 {
			list.Continue = strconv.Itoa(i)
			break
		}
		if p := c.pods[names[i]]; p.Spec.NodeName == thisNode {
			list.Items = append(list.Items, *p)
		}
	}
	list.APIVersion, list.Kind = "v1", "PodList"
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&list)
}

func (c *cloud) event(w http.ResponseWriter, r *http.Request, parts []string, body []byte) {
	gr := schema.GroupResource{Resource: "events"}
	name := parts[len(parts)-1]
	if r.Method == "PATCH" {
		old := c.events[name]
		if old == nil {
			fail(w, apierrors.NewNotFound(gr, name))
			return
		}
		got := new(corev1.Event)
		if err := applyPatch(old, got, r.Header.Get("Content-Type"), body); err != nil {
			fail(w, err)
			return
		}
		c.events[name] = got
		reply(w, 200, got)
		return
	}
	e := new(corev1.Event)
	if parts[0] == "apis" {
		n := new(eventsv1.Event)
		if err := json.Unmarshal(body, n); err != nil {
			fail(w, apierrors.NewBadRequest(err.Error()))
			return
		}
		e.ObjectMeta, e.Reason, e.Message = n.ObjectMeta, n.Reason, n.Note
	} else if err := json.Unmarshal(body, e); err != nil {
		fail(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	if e.ResourceVersion != "" && r.Method == "POST" {
		fail(w, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created"))
		return
	}
	if c.events[e.Name] != nil && r.Method == "POST" {
		fail(w, apierrors.NewAlreadyExists(gr, e.Name))
		return
	}
	e.ResourceVersion = c.next()
	c.events[e.Name] = e
	reply(w, 201, e)
}

func patchStatus[T interface {
	runtime.Object
	metav1.Object
}](w http.ResponseWriter, r *http.Request, body []byte, old, into T, uid types.UID) bool {
	if err := applyPatch(old, into, r.Header.Get("Content-Type"), body); err != nil {
		fail(w, err)
		return false
	}
	if into.GetUID() != uid {
		fail(w, apierrors.NewConflict(schema.GroupResource{}, old.GetName(), fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", into.GetUID(), uid)))
		return false
	}
	return true
}

func reply(w http.ResponseWriter, code int, obj any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(obj)
}

func fail(w http.ResponseWriter, err error) {
	status := err.(apierrors.APIStatus).Status()
	reply(w, int(status.Code), status)
}

// site is a node with its store and outbox, and its link to the cloud.
type site struct {
	t      testing.TB
	cloud  *cloud
	dir    string
	store  *store.Store
	box    *Outbox
	online bool
	now    func() time.Time
	// lose says what becomes of a request: "before" it is lost, or the answer
	// "after" it has had its effect.
	lose      func(method string) string
	published []string
	behind    bool // nobody catches up with the local revision
	options   func(*Options)
}

func newSite(t testing.TB) *site {
	s := &site{t: t, cloud: newCloud(), dir: t.TempDir(), now: time.Now}
	s.open()
	t.Cleanup(func() { _ = s.store.Close() })
	return s
}

func (s *site) open() {
	s.t.Helper()
	var err error
	s.store, err = store.Open(store.Options{
		Path: filepath.Join(s.dir, "store.db"), JournalPath: filepath.Join(s.dir, "journal"), KeyFile: filepath.Join(s.dir, "store.key"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	o := Options{
		Store: s.store, NodeName: thisNode, Online: func() bool { return s.online }, Do: s.do, Rate: 1e6,
		Now: func() time.Time { return s.now() },
		Publish: func(_ context.Context, old, new *store.Object) error {
			if old == nil || old.Key != new.Key || new.ResourceVersion <= old.ResourceVersion {
				s.t.Errorf("published %+v after %+v", new, old)
			}
			s.published = append(s.published, new.Name)
			return nil
		},
	}
	if s.options != nil {
		s.options(&o)
	}
	if s.box, err = New(o); err != nil {
		s.t.Fatal(err)
	}
}

// reopen is a restart of the agent.
func (s *site) reopen() {
	s.t.Helper()
	if err := s.store.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

func (s *site) do(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error) {
	if !s.online {
		return nil, errors.New("the link is cut")
	}
	lost := ""
	if s.lose != nil {
		lost = s.lose(method)
	}
	if lost == "before" {
		return nil, errors.New("connection reset")
	}
	if !s.behind {
		s.catchUp() // as the views do before they show anything
	}
	r := httptest.NewRequestWithContext(ctx, method, "https://cloud"+path+"?"+query.Encode(), bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", accept)
	rec := httptest.NewRecorder()
	s.cloud.ServeHTTP(rec, r)
	if lost == "after" {
		return nil, errors.New("unexpected EOF")
	}
	return rec.Result(), nil
}

func (s *site) catchUp() {
	s.cloud.mu.Lock()
	defer s.cloud.mu.Unlock()
	s.cloud.revision = max(s.cloud.revision, s.store.Revision()+1)
}

// show brings what the cloud has into the store, as the views do: through
// Rebase, and beyond every revision that was shown.
func (s *site) show() {
	s.t.Helper()
	s.cloud.mu.Lock()
	defer s.cloud.mu.Unlock()
	s.box.Settle()
	s.cloud.revision = max(s.cloud.revision, s.store.Revision()+1)
	batch := new(store.Batch)
	have, err := s.store.Versions(nodesPods)
	if err != nil {
		s.t.Fatal(err)
	}
	for k := range have {
		if s.cloud.pods[k.Name] == nil {
			batch.Delete(k)
		}
	}
	objs := map[store.Query][]runtime.Object{}
	for _, p := range s.cloud.pods {
		objs[nodesPods] = append(objs[nodesPods], p)
	}
	if s.cloud.node != nil {
		objs[ownNode] = append(objs[ownNode], s.cloud.node)
	}
	for q, list := range objs {
		batch.SetView(store.View{Query: q, Node: true, Complete: true, ResourceVersion: s.cloud.revision})
		for _, obj := range list {
			o := s.stored(obj)
			o, err := s.box.Rebase(o)
			if err != nil {
				s.t.Fatal(err)
			}
			batch.Put(o)
			batch.Join(q, o.Key)
		}
	}
	batch.SetRevision(s.cloud.revision)
	if err := s.store.Apply(batch, store.Soon); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) stored(obj runtime.Object) store.Object {
	s.t.Helper()
	m := obj.(metav1.Object)
	k := store.Key{Version: "v1", Resource: "pods", Namespace: m.GetNamespace(), Name: m.GetName()}
	kind := "Pod"
	if _, ok := obj.(*corev1.Node); ok {
		k.Resource, kind = "nodes", "Node"
	}
	o, err := wire.FromTyped(obj.DeepCopyObject(), k)
	if err != nil {
		s.t.Fatal(err)
	}
	if o.Kind != kind || o.UID != string(m.GetUID()) || strconv.FormatUint(o.ResourceVersion, 10) != m.GetResourceVersion() {
		s.t.Fatalf("FromTyped made %+v of %s", o, m.GetName())
	}
	return o
}

// shown is a pod as clients of this node see it; nil if there is none.
func (s *site) shown(name string) *corev1.Pod {
	s.t.Helper()
	o, ok, err := s.store.Get(podKey(name))
	if err != nil {
		s.t.Fatal(err)
	}
	if !ok {
		return nil
	}
	obj, err := wire.Typed(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return obj.(*corev1.Pod)
}

func podKey(name string) store.Key {
	return store.Key{Version: "v1", Resource: "pods", Namespace: "default", Name: name}
}

func statusRequest(resource, name string) *wire.Request {
	r := &wire.Request{Verb: "patch", IsResource: true, Version: "v1", Resource: resource, Subresource: "status", Name: name}
	if resource == "pods" {
		r.Namespace = "default"
	}
	return r
}

// patch is what the kubelet sends: a two-way strategic merge patch with the UID.
func kubeletPatch(t testing.TB, uid types.UID, old, new corev1.PodStatus) []byte {
	t.Helper()
	a, _ := json.Marshal(corev1.Pod{Status: old})
	b, _ := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: new})
	p, err := strategicpatch.CreateTwoWayMergePatch(a, b, corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// report lets the kubelet report a change of a pod's status to the hub.
func (s *site) report(name string, fn func(st *corev1.PodStatus)) error {
	s.t.Helper()
	pod := s.shown(name)
	if pod == nil {
		s.t.Fatalf("no pod %s", name)
	}
	if s.online {
		// A GET goes through to the cloud, and its answer through Rebase.
		o, err := s.box.Rebase(s.stored(pod))
		if err != nil {
			s.t.Fatal(err)
		}
		pod = typedPod(s.t, o)
	}
	status := pod.Status.DeepCopy()
	fn(status)
	_, _, err := s.box.Write(s.t.Context(), theNode, statusRequest("pods", name), "application/strategic-merge-patch+json", kubeletPatch(s.t, pod.UID, pod.Status, *status))
	return err
}

func newPod(name string, uid types.UID) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid, Labels: map[string]string{"app": name}, CreationTimestamp: metav1.Unix(1700000000, 0)},
		Spec:       corev1.PodSpec{NodeName: thisNode, Containers: []corev1.Container{{Name: "main", Image: "image"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBestEffort,
			Conditions:        []corev1.PodCondition{condition(corev1.PodScheduled, true), condition(corev1.PodReady, true)},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Ready: true, ContainerID: "containerd://0", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
			PodIPs:            []corev1.PodIP{{IP: "10.244.1.2"}}, PodIP: "10.244.1.2",
		},
	}
}

func condition(t corev1.PodConditionType, ok bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Unix(1700000000, 0)}
	if ok {
		c.Status = corev1.ConditionTrue
	}
	return c
}

func setCondition(list []corev1.PodCondition, c corev1.PodCondition) []corev1.PodCondition {
	for i := range list {
		if list[i].Type == c.Type {
			list[i] = c
			return list
		}
	}
	return append(list, c)
}

func conditionOf(p *corev1.Pod, t corev1.PodConditionType) string {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return string(c.Status)
		}
	}
	return ""
}
