package wire

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/edge/store"
)

func mustSelect(s string) labels.Selector {
	selector, err := labels.Parse(s)
	if err != nil {
		panic(err)
	}
	return selector
}

func typedPod(i int) *corev1.Pod {
	p := testPod(i)
	p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	return p
}

func TestDecodeEncode(t *testing.T) {
	for _, c := range []struct {
		obj  runtime.Object
		want store.Object
	}{
		{typedPod(1), mustFrom(t, testPod(1), podKey())},
		{testWidget(1), mustFrom(t, testWidget(1), widgetKey())},
	} {
		key := store.Key{Group: c.want.Group, Version: c.want.Version, Resource: c.want.Resource}
		for contentType, encoding := range map[string]Encoding{typeJSON: JSON, typeProtobuf: Protobuf, typeCBOR: CBOR} {
			if o, err := Decode(contentType+"; charset=utf-8", encodeUpstream(t, typeJSON, c.obj), key); encoding == JSON && (err != nil || o.Name == "") {
				t.Errorf("with a charset: %v", err)
			}
			if encoding == Protobuf && c.want.Format == store.FormatJSON {
				if _, err := EncodeObject(Media{Encoding: Protobuf}, c.want); !apierrors.IsNotAcceptable(err) {
					t.Errorf("a CRD as protobuf: %v", err)
				}
				continue
			}
			body := encodeUpstream(t, contentType, c.obj)
			o, err := Decode(contentType, body, key)
			if err != nil || !reflect.DeepEqual(o, c.want) {
				t.Errorf("%s is\n%+v, %v\nwant\n%+v", contentType, o, err, c.want)
				continue
			}
			got, err := EncodeObject(Media{Encoding: encoding}, o)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, body) {
				t.Errorf("%s is\n%q\nwant\n%q", contentType, got, body)
			}
		}
		y, err := EncodeObject(Media{Encoding: YAML}, c.want)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := Decode(typeYAML, y, key); err != nil || !reflect.DeepEqual(o, c.want) {
			t.Errorf("yaml is\n%+v, %v", o, err)
		}
		obj, err := Typed(c.want)
		if err != nil || !equality.Semantic.DeepEqual(obj, c.obj) {
			t.Errorf("typed is %#v, %v", obj, err)
		}
	}
	pretty, err := EncodeObject(Media{Encoding: JSON, Pretty: true}, mustFrom(t, testPod(1), podKey()))
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := json.MarshalIndent(typedPod(1), "", "  "); !bytes.Equal(pretty, want) {
		t.Errorf("pretty is %s", pretty)
	}
}

func TestDecodeFillsNamespace(t *testing.T) {
	for body, key := range map[string]store.Key{
		`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}`:                {Version: "v1", Resource: "pods", Namespace: "ns"},
		`{"kind":"Widget","apiVersion":"example.org/v1","metadata":{"name":"a"}}`: {Group: "example.org", Version: "v1", Resource: "widgets", Namespace: "ns"},
	} {
		o, err := Decode(typeJSON, []byte(body), key)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := Meta(o); err != nil || o.Namespace != "ns" || p.Namespace != "ns" || p.Name != "a" {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	pod := podKey()
	named := pod
	named.Namespace, named.Name = "default", "other"
	elsewhere := pod
	elsewhere.Namespace = "elsewhere"
	body := string(encodeUpstream(t, typeJSON, typedPod(1)))
	for _, c := range []struct {
		contentType, body string
		key               store.Key
		ok                func(error) bool
	}{
		{"text/plain", body, pod, apierrors.IsUnsupportedMediaType},
		{typeJSON + ";as=Table;v=v1;g=meta.k8s.io", body, pod, apierrors.IsUnsupportedMediaType},
		{typeJSON, `{"kind":"Status","apiVersion":"v1","status":"Failure"}`, pod, apierrors.IsBadRequest},
		{typeJSON, `{"kind":"Table","apiVersion":"meta.k8s.io/v1"}`, pod, apierrors.IsBadRequest},
		{typeJSON, body, named, apierrors.IsBadRequest},
		{typeJSON, body, elsewhere, apierrors.IsBadRequest},
		{typeJSON, strings.Replace(body, `"apiVersion":"v1"`, `"apiVersion":"v2"`, 1), pod, apierrors.IsBadRequest},
		{typeJSON, `{"metadata":{"name":"x"}}`, widgetKey(), apierrors.IsBadRequest},
		{typeJSON, `{"kind":"Widget","Metadata":{"name":"x"},"metadata":7}`, widgetKey(), apierrors.IsBadRequest},
		{typeJSON, `{"spec":`, pod, apierrors.IsBadRequest},
		{typeJSON, `null`, widgetKey(), apierrors.IsBadRequest},
		{typeYAML, "a: [", pod, apierrors.IsBadRequest},
		{typeProtobuf, body, pod, apierrors.IsBadRequest},
		{typeProtobuf, string(envelope("v1", "Pod", []byte{0x0a, 0x7f})), pod, apierrors.IsBadRequest},
		{typeProtobuf, string(envelope("v1", "Pod", []byte{0x12, 0x02, 0x0a, 0x7f})), pod, apierrors.IsBadRequest},
		{typeCBOR, "\xff", pod, apierrors.IsBadRequest},
	} {
		if o, err := Decode(c.contentType, []byte(c.body), c.key); err == nil || !c.ok(err) {
			t.Errorf("%s %.80q: %+v, %v", c.contentType, c.body, o, err)
		}
	}
}

func TestWithResourceVersion(t *testing.T) {
	// Fields that nobody here knows, at both levels.
	pod := mustFrom(t, testPod(1), podKey())
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 4000, protowire.BytesType), []byte("kept"))
	inMeta, err := testPod(1).ObjectMeta.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	odd := pod
	odd.Data = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), append(inMeta, unknown...))
	odd.Data = append(odd.Data, unknown...)
	bare := pod
	bare.Data = nil
	for name, o := range map[string]store.Object{"pod": pod, "unknown fields": odd, "empty": bare} {
		got, err := WithResourceVersion(o, 4711)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Meta(got)
		if err != nil || p.ResourceVersion != "4711" || got.ResourceVersion != 4711 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		if a, b := bytes.Count(got.Data, []byte("kept")), bytes.Count(o.Data, []byte("kept")); a != b {
			t.Errorf("%s: %d of %d unknown fields left", name, a, b)
		}
		back, err := WithResourceVersion(got, o.ResourceVersion)
		if err != nil || name != "empty" && !bytes.Equal(back.Data, o.Data) {
			t.Errorf("%s: back again it is %q\nwant %q", name, back.Data, o.Data)
		}
	}
	for in, want := range map[string]string{
		`{"a":1e400,"metadata":{"name":"x","resourceVersion":"1"},"z":9007199254740993}`: `{"a":1e400,"metadata":{"name":"x","resourceVersion":"5"},"z":9007199254740993}`,
		`{"metadata":{"name":"x"}}`: `{"metadata":{"resourceVersion":"5","name":"x"}}`,
		`{"metadata":{}}`:           `{"metadata":{"resourceVersion":"5"}}`,
		`{"metadata":null,"a":"}"}`: `{"metadata":{"resourceVersion":"5"},"a":"}"}`,
		`{}`:                        `{"metadata":{"resourceVersion":"5"}}`,
		`{"spec":{"metadata":{"resourceVersion":"1"}},"metadata":{}}`:     `{"spec":{"metadata":{"resourceVersion":"1"}},"metadata":{"resourceVersion":"5"}}`,
		`{"metadata":{"resource\u0056ersion":"1","resourceVersion":"2"}}`: `{"metadata":{"resource\u0056ersion":"5","resourceVersion":"5"}}`,
	} {
		got, err := WithResourceVersion(store.Object{Format: store.FormatJSON, Data: []byte(in)}, 5)
		if err != nil || string(got.Data) != want {
			t.Errorf("%s became %s, %v\nwant %s", in, got.Data, err, want)
		}
	}
	for _, bad := range []store.Object{
		{Format: store.FormatJSON, Data: []byte(`[]`)}, {Format: store.FormatJSON, Data: []byte(`{"metadata":7}`)}, {Format: store.FormatJSON},
		{Format: store.FormatProtobuf, Data: []byte{0x0a}}, {Format: store.FormatProtobuf, Data: []byte{0x08, 0x01}},
	} {
		if got, err := WithResourceVersion(bad, 5); err == nil {
			t.Errorf("%q became %q", bad.Data, got.Data)
		}
	}
}

// TestEncodeLeavesTheBytes: an object's bytes may lie in the store's memory.
func TestEncodeLeavesTheBytes(t *testing.T) {
	for _, o := range []store.Object{mustFrom(t, testPod(1), podKey()), mustFrom(t, testWidget(1), widgetKey())} {
		guarded := append(bytes.Clone(o.Data), "guard"...)
		o.Data = guarded[:len(o.Data)]
		before := bytes.Clone(guarded)
		for _, encoding := range []Encoding{JSON, Protobuf, CBOR, YAML} {
			for _, m := range []Media{{Encoding: encoding}, {Encoding: encoding, As: AsPartial, Version: "v1"}, {Encoding: encoding, As: AsTable, Version: "v1"}} {
				_, _ = EncodeObject(m, o)
				_, _ = EncodeEvent(m, Event{Type: watch.Added, Object: o})
				_ = WriteList(io.Discard, m, o.Group, o.Version, o.Kind, metav1.ListMeta{}, func(yield func(store.Object) error) error { return yield(o) })
			}
		}
		if _, err := WithResourceVersion(o, 1); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(guarded, before) {
			t.Errorf("the bytes of a %s were changed", o.Kind)
		}
	}
}

func TestPartialListProtobuf(t *testing.T) {
	for _, version := range []string{"v1", "v1beta1"} {
		b := bytes.Buffer{}
		err := WriteList(&b, Media{Encoding: Protobuf, As: AsPartial, Version: version}, "", "v1", "Pod", metav1.ListMeta{ResourceVersion: "9"},
			func(yield func(store.Object) error) error { return yield(mustFrom(t, testPod(1), podKey())) })
		if err != nil {
			t.Fatal(err)
		}
		e, err := openEnvelope(b.Bytes())
		if err != nil || e.kind != "PartialObjectMetadataList" || e.apiVersion != "meta.k8s.io/"+version {
			t.Fatalf("%+v, %v", e, err)
		}
		want, _ := testPod(1).ObjectMeta.Marshal()
		var items []metav1.PartialObjectMetadata
		var rv string
		if version == "v1" {
			l := metav1.PartialObjectMetadataList{}
			err = l.Unmarshal(e.raw)
			items, rv = l.Items, l.ResourceVersion
		} else {
			l := metav1beta1.PartialObjectMetadataList{}
			err = l.Unmarshal(e.raw)
			items, rv = l.Items, l.ResourceVersion
		}
		if err != nil || len(items) != 1 || rv != "9" {
			t.Fatalf("%s: %v, %v, %s", version, err, items, rv)
		}
		if got, _ := items[0].ObjectMeta.Marshal(); !bytes.Equal(got, want) {
			t.Errorf("%s: %v", version, items[0])
		}
	}
}

func TestMeta(t *testing.T) {
	for _, o := range []store.Object{mustFrom(t, testPod(1), podKey()), mustFrom(t, testWidget(1), widgetKey())} {
		p, err := Meta(o)
		if err != nil || p.Name != o.Name || p.Labels["app"] != "a" || p.Kind != o.Kind || p.APIVersion == "" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	p, _ := Meta(mustFrom(t, testPod(1), podKey()))
	if !equality.Semantic.DeepEqual(p.ObjectMeta, testPod(1).ObjectMeta) {
		t.Errorf("%+v", p.ObjectMeta)
	}
}

func TestFromTyped(t *testing.T) {
	// Unstructured content of a built-in kind becomes protobuf.
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typedPod(1))
	if err != nil {
		t.Fatal(err)
	}
	u := testWidget(0)
	u.Object = content
	if got, want := mustFrom(t, u, podKey()), mustFrom(t, testPod(1), podKey()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if o, err := FromTyped(testPod(1), store.Key{Group: "apps", Version: "v1", Resource: "deployments"}); err == nil {
		t.Errorf("a pod of apps/v1: %+v", o)
	}
}

func TestYAMLList(t *testing.T) {
	objects := []store.Object{mustFrom(t, testWidget(0), widgetKey()), mustFrom(t, testWidget(1), widgetKey())}
	for n := range 3 {
		b := bytes.Buffer{}
		err := WriteList(&b, Media{Encoding: YAML}, "example.org", "v1", "Widget", metav1.ListMeta{ResourceVersion: "3"}, func(yield func(store.Object) error) error {
			for _, o := range objects[:n] {
				if err := yield(o); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got := struct {
			Kind     string
			Metadata metav1.ListMeta
			Items    []map[string]any
		}{}
		if err := yaml.UnmarshalStrict(b.Bytes(), &got, yaml.DisallowUnknownFields); err != nil && !strings.Contains(err.Error(), "apiVersion") {
			t.Errorf("%v in\n%s", err, &b)
		}
		if err := yaml.Unmarshal(b.Bytes(), &got); err != nil || len(got.Items) != n || got.Kind != "WidgetList" || got.Metadata.ResourceVersion != "3" {
			t.Errorf("%d items: %+v, %v\n%s", n, got, err, &b)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for contentType := range upstreamEncoders() {
		f.Add(contentType, encodeUpstream(f, contentType, typedPod(1)), true)
		if contentType != typeProtobuf {
			f.Add(contentType, encodeUpstream(f, contentType, testWidget(1)), false)
		}
	}
	f.Add(typeYAML, []byte("kind: Widget\napiVersion: example.org/v1\nmetadata: {name: a}\n"), false)
	f.Fuzz(func(t *testing.T, contentType string, body []byte, builtIn bool) {
		if len(body) > 1<<16 {
			return
		}
		key := widgetKey()
		if builtIn {
			key = podKey()
		}
		o, err := Decode(contentType, body, key)
		if err != nil {
			if _, ok := err.(apierrors.APIStatus); !ok {
				t.Errorf("%v is no status", err)
			}
			return
		}
		useObject(t, o)
		// What was decoded can be written and is the same then.
		for _, m := range []Media{{Encoding: Protobuf}, {Encoding: JSON}} {
			b, err := EncodeObject(m, o)
			if err != nil {
				continue
			}
			again, err := Decode(m.ContentType(false), b, key)
			if err != nil {
				t.Errorf("%s: not read again: %v", m.ContentType(false), err)
			} else if again.Name != o.Name || again.UID != o.UID || again.ResourceVersion != o.ResourceVersion || again.Kind != o.Kind {
				t.Errorf("%s: %+v became %+v", m.ContentType(false), o, again)
			}
		}
	})
}
