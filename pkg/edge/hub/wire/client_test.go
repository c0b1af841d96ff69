package wire

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/edge/store"
)

func testPod(i int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("pod-%d", i), Namespace: "default", UID: "u-1", ResourceVersion: fmt.Sprint(100 + i),
			Labels: map[string]string{"app": "a", "n": fmt.Sprint(i), "empty": ""}, Annotations: map[string]string{"note": "a <b> & c"},
			CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0)), Generation: 3,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "u-0"}},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1",
				FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{}}`)}},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", RestartPolicy: "Always", SchedulerName: "default-scheduler", ServiceAccountName: "sa", HostNetwork: true,
			Containers: []corev1.Container{{Name: "c", Image: "i"}},
		},
		Status: corev1.PodStatus{Phase: "Running", PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}, NominatedNodeName: "node-2"},
	}
}

func podKey() store.Key { return store.Key{Version: "v1", Resource: "pods"} }

func mustFrom(t testing.TB, obj any, k store.Key) store.Object {
	t.Helper()
	var o store.Object
	var err error
	switch obj := obj.(type) {
	case *corev1.Pod:
		o, err = FromTyped(obj, k)
	case *corev1.Service:
		o, err = FromTyped(obj, k)
	case *unstructured.Unstructured:
		o, err = FromTyped(obj, k)
	default:
		t.Fatalf("no %T", obj)
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func testWidget(i int) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.org/v1", "kind": "Widget",
		"metadata": map[string]any{"name": fmt.Sprintf("w-%d", i), "namespace": "default", "resourceVersion": fmt.Sprint(200 + i), "uid": "w-1",
			"labels": map[string]any{"app": "a"}},
		"spec": map[string]any{"big": int64(9007199254740993), "ratio": 0.5, "text": "a <b>"},
	}}
}

var widgetGVR = schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "widgets"}

func widgetKey() store.Key {
	return store.Key{Group: "example.org", Version: "v1", Resource: "widgets"}
}

// api serves objects with nothing but this package.
func api(t *testing.T, objects map[string][]store.Object, kinds map[string]string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := Parse(r)
		if err != nil {
			WriteStatus(w, r, err)
			return
		}
		watching := req.Verb == "watch"
		m, err := Negotiate(r, BuiltIn(req.Group, req.Version), watching)
		if err != nil {
			WriteStatus(w, r, err)
			return
		}
		items := func(yield func(store.Object) error) error {
			for _, o := range objects[req.Resource] {
				ok, err := Matches(o, req.Options.Label, req.Options.Field)
				if err != nil {
					return err
				}
				if !ok {
					continue
				}
				if err := yield(o); err != nil {
					return err
				}
			}
			return nil
		}
		kind := kinds[req.Resource]
		switch req.Verb {
		case "get":
			for _, o := range objects[req.Resource] {
				if o.Name == req.Name {
					b, err := EncodeObject(m, o)
					if err != nil {
						WriteStatus(w, r, err)
						return
					}
					w.Header().Set("Content-Type", m.ContentType(false))
					_, _ = w.Write(b)
					return
				}
			}
			WriteStatus(w, r, apierrors.NewNotFound(schema.GroupResource{Group: req.Group, Resource: req.Resource}, req.Name))
		case "list":
			w.Header().Set("Content-Type", m.ContentType(false))
			left := int64(7)
			meta := metav1.ListMeta{ResourceVersion: "999", Continue: "more", RemainingItemCount: &left}
			if err := WriteList(w, m, req.Group, req.Version, kind, meta, items); err != nil {
				t.Error(err)
				panic(http.ErrAbortHandler)
			}
		case "watch":
			w.Header().Set("Content-Type", m.ContentType(true))
			send := func(e Event) error {
				b, err := EncodeEvent(m, e)
				if err != nil {
					return err
				}
				m.NoHeaders = true
				_, err = w.Write(b)
				return err
			}
			mark := store.Object{Key: store.Key{Group: req.Group, Version: req.Version, Resource: req.Resource}, Kind: kind, ResourceVersion: 999}
			err := items(func(o store.Object) error { return send(Event{Type: watch.Added, Object: o}) })
			for _, e := range []Event{
				{Type: watch.Bookmark, Object: mark, InitialEventsEnd: true},
				{Type: watch.Error, Status: &apierrors.NewResourceExpired("too old").ErrStatus},
			} {
				if err == nil {
					err = send(e)
				}
			}
			if err != nil {
				t.Error(err)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func testAPI(t *testing.T) *httptest.Server {
	t.Helper()
	objects := map[string][]store.Object{}
	for i := range 3 {
		objects["pods"] = append(objects["pods"], mustFrom(t, testPod(i), podKey()))
		objects["widgets"] = append(objects["widgets"], mustFrom(t, testWidget(i), widgetKey()))
	}
	return api(t, objects, map[string]string{"pods": "Pod", "services": "Service", "widgets": "Widget"})
}

// events reads a watch of three objects, a bookmark and an error.
func events(t *testing.T, w watch.Interface, check func(i int, e watch.Event)) {
	t.Helper()
	defer w.Stop()
	n := 0
	for e := range w.ResultChan() {
		switch {
		case n < 3 && e.Type == watch.Added:
			check(n, e)
		case n == 3 && e.Type == watch.Bookmark:
			m := e.Object.(metav1.Object)
			if m.GetResourceVersion() != "999" || m.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
				t.Errorf("bookmark %v", e.Object)
			}
		case n == 4 && e.Type == watch.Error:
			if err := apierrors.FromObject(e.Object); !apierrors.IsResourceExpired(err) {
				t.Errorf("error %v", err)
			}
		default:
			t.Errorf("event %d is %s %#v", n, e.Type, e.Object)
		}
		n++
	}
	if n != 5 {
		t.Errorf("%d events", n)
	}
}

func TestTypedClients(t *testing.T) {
	s := testAPI(t)
	for _, contentType := range []string{"application/vnd.kubernetes.protobuf", "application/json"} {
		t.Run(contentType, func(t *testing.T) {
			c := kubernetes.NewForConfigOrDie(&rest.Config{Host: s.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
			ctx := context.Background()
			got, err := c.CoreV1().Pods("default").Get(ctx, "pod-1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got.TypeMeta = metav1.TypeMeta{}
			if want := testPod(1); !equality.Semantic.DeepEqual(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
			list, err := c.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "n in (0,2)"})
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) != 2 || !equality.Semantic.DeepEqual(&list.Items[1], testPod(2)) {
				t.Errorf("list %v", list.Items)
			}
			if list.ResourceVersion != "999" || list.Continue != "more" || *list.RemainingItemCount != 7 {
				t.Errorf("list meta %v", list.ListMeta)
			}
			none, err := c.CoreV1().Services("").List(ctx, metav1.ListOptions{})
			if err != nil || len(none.Items) != 0 {
				t.Errorf("empty list: %v, %v", none, err)
			}
			if _, err := c.CoreV1().Pods("default").Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("got %v, want not found", err)
			}
			w, err := c.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{AllowWatchBookmarks: true})
			if err != nil {
				t.Fatal(err)
			}
			events(t, w, func(i int, e watch.Event) {
				if !equality.Semantic.DeepEqual(e.Object, testPod(i)) {
					t.Errorf("event %v", e.Object)
				}
			})
		})
	}
}

func TestDynamicClients(t *testing.T) {
	s := testAPI(t)
	for _, cbor := range []bool{false, true} {
		t.Run(fmt.Sprintf("cbor=%v", cbor), func(t *testing.T) {
			clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.ClientsAllowCBOR, cbor)
			clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.ClientsPreferCBOR, cbor)
			seen := ""
			config := &rest.Config{Host: s.URL}
			config.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTrip(func(r *http.Request) (*http.Response, error) {
					resp, err := next.RoundTrip(r)
					if err == nil {
						seen = resp.Header.Get("Content-Type")
					}
					return resp, err
				})
			})
			c := dynamic.NewForConfigOrDie(config)
			ctx := context.Background()
			got, err := c.Resource(widgetGVR).Namespace("default").Get(ctx, "w-1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if want := testWidget(1); !equality.Semantic.DeepEqual(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
			if (seen == "application/cbor") != cbor {
				t.Errorf("content type %s", seen)
			}
			for _, gvr := range []schema.GroupVersionResource{widgetGVR, {Version: "v1", Resource: "pods"}} {
				list, err := c.Resource(gvr).List(ctx, metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if len(list.Items) != 3 || list.GetResourceVersion() != "999" || list.GetContinue() != "more" {
					t.Errorf("list %v", list)
				}
				for _, u := range list.Items {
					if u.GetKind() == "" || u.GetAPIVersion() == "" {
						t.Errorf("an item of %s without a type", gvr)
					}
				}
				w, err := c.Resource(gvr).Watch(ctx, metav1.ListOptions{AllowWatchBookmarks: true})
				if err != nil {
					t.Fatal(err)
				}
				events(t, w, func(i int, e watch.Event) {
					if !equality.Semantic.DeepEqual(e.Object, &list.Items[i]) {
						t.Errorf("event %v\nwant %v", e.Object, list.Items[i])
					}
				})
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestMetadataClient(t *testing.T) {
	s := testAPI(t)
	for _, contentType := range []string{"", "application/json", "application/cbor"} {
		for resource, gvr := range map[string]schema.GroupVersionResource{"pod-1": {Version: "v1", Resource: "pods"}, "w-1": widgetGVR} {
			t.Run(contentType+" "+gvr.Resource, func(t *testing.T) {
				config := metadata.ConfigFor(&rest.Config{Host: s.URL})
				if contentType != "" {
					config.ContentType, config.AcceptContentTypes = contentType, contentType
				}
				c := metadata.NewForConfigOrDie(config)
				ctx := context.Background()
				got, err := c.Resource(gvr).Namespace("default").Get(ctx, resource, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got.Name != resource || got.Labels["app"] != "a" || got.ResourceVersion == "" {
					t.Errorf("got %v", got)
				}
				list, err := c.Resource(gvr).List(ctx, metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if len(list.Items) != 3 || list.ResourceVersion != "999" || list.Items[2].Labels["app"] != "a" {
					t.Errorf("list %v", list)
				}
				w, err := c.Resource(gvr).Watch(ctx, metav1.ListOptions{AllowWatchBookmarks: true})
				if err != nil {
					t.Fatal(err)
				}
				events(t, w, func(i int, e watch.Event) {
					if e.Object.(*metav1.PartialObjectMetadata).Name != list.Items[i].Name {
						t.Errorf("event %v", e.Object)
					}
				})
			})
		}
	}
}
