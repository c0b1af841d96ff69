package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	kjsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"skerry.dev/skerry/pkg/edge/store"
)

// upstreamEncoders are the API server's own.
func upstreamEncoders() map[string]kruntime.Encoder {
	s := scheme.Scheme
	return map[string]kruntime.Encoder{
		typeJSON: kjsonserializer.NewSerializerWithOptions(kjsonserializer.DefaultMetaFactory, s, s,
			kjsonserializer.SerializerOptions{StreamingCollectionsEncoding: true}),
		typeProtobuf: protobuf.NewSerializerWithOptions(s, s, protobuf.SerializerOptions{StreamingCollectionsEncoding: true}),
		typeCBOR:     cbor.NewSerializer(s, s),
	}
}

func encodeUpstream(t testing.TB, contentType string, obj kruntime.Object) []byte {
	t.Helper()
	b := bytes.Buffer{}
	if err := upstreamEncoders()[contentType].Encode(obj, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func testPodList() *corev1.PodList {
	left := int64(4)
	return &corev1.PodList{
		TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"},
		ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "next", RemainingItemCount: &left},
		Items:    []corev1.Pod{*testPod(0), *testPod(1), *testPod(2)},
	}
}

func testWidgetList() *unstructured.UnstructuredList {
	l := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "example.org/v1", "kind": "WidgetList",
		"metadata": map[string]any{"resourceVersion": "77", "continue": "next", "remainingItemCount": int64(4)}}}
	for i := range 3 {
		l.Items = append(l.Items, *testWidget(i))
	}
	return l
}

func TestReadList(t *testing.T) {
	for contentType := range upstreamEncoders() {
		for _, c := range []struct {
			list kruntime.Object
			key  store.Key
			want func(i int) store.Object
		}{
			{testPodList(), podKey(), func(i int) store.Object { return mustFrom(t, testPod(i), podKey()) }},
			{testWidgetList(), widgetKey(), func(i int) store.Object { return mustFrom(t, testWidget(i), widgetKey()) }},
		} {
			if contentType == typeProtobuf && c.key == widgetKey() {
				continue
			}
			t.Run(contentType+" "+c.key.Resource, func(t *testing.T) {
				body := encodeUpstream(t, contentType, c.list)
				for _, r := range []io.Reader{bytes.NewReader(body), iotest.OneByteReader(bytes.NewReader(body)), iotest.DataErrReader(bytes.NewReader(body))} {
					n := 0
					meta, err := ReadList(contentType, r, c.key, 1<<20, func(o store.Object) error {
						if want := c.want(n); !reflect.DeepEqual(o, want) {
							t.Errorf("item %d is\n%+v\nwant\n%+v", n, o, want)
						}
						n++
						return nil
					})
					if err != nil || n != 3 {
						t.Fatalf("%d items, %v", n, err)
					}
					if meta.ResourceVersion != "77" || meta.Continue != "next" || *meta.RemainingItemCount != 4 {
						t.Errorf("meta %+v", meta)
					}
				}
				// No part of a list passes for the list.
				end := len(body)
				switch contentType {
				case typeJSON:
					end = len(bytes.TrimSpace(body))
				case typeProtobuf:
					end -= len(envelopeTail) // two empty fields
				}
				for cut := range end {
					if _, err := ReadList(contentType, bytes.NewReader(body[:cut]), c.key, 1<<20, func(store.Object) error { return nil }); err == nil {
						t.Fatalf("cut at %d of %d it is still a list", cut, len(body))
					}
				}
				stop := errors.New("stop")
				if _, err := ReadList(contentType, bytes.NewReader(body), c.key, 1<<20, func(store.Object) error { return stop }); !errors.Is(err, stop) {
					t.Errorf("got %v, want the callback's error", err)
				}
				if _, err := ReadList(contentType, bytes.NewReader(body), c.key, 64, func(store.Object) error { return nil }); err == nil {
					t.Error("an item larger than allowed was read")
				}
			})
		}
	}
}

func TestReadListLayouts(t *testing.T) {
	item := `{"metadata":{"name":"a"}}`
	typed := `{"kind":"Widget","apiVersion":"example.org/v1","metadata":{"name":"a"}}`
	for _, c := range []struct {
		body  string
		key   store.Key
		items int // -1: refused
	}{
		{`{"items":[` + item + `],"metadata":{"resourceVersion":"5"},"kind":"PodList","apiVersion":"v1"}`, podKey(), 1},
		{` { "metadata" : {"resourceVersion":"5"} , "more":{"a":[1,2]}, "items" : [ ] , "kind":"PodList"} ` + "\n", podKey(), 0},
		{`{"kind":"PodList","metadata":{"resourceVersion":"5"},"items":null}`, podKey(), 0},
		{`{"apiVersion":"example.org/v1","items":[` + typed + `,` + typed + `],"kind":"WidgetList","metadata":{"resourceVersion":"5"}}`, widgetKey(), 2},
		{`{"items":[` + item + `],"kind":"WidgetList"}`, widgetKey(), -1},
		{`{"kind":"PodList","metadata":{}}`, podKey(), -1},
		{`{"kind":"PodList","items":[],"items":[]}`, podKey(), -1},
		{`{"kind":"PodList","items":{}}`, podKey(), -1},
		{`{"kind":"PodList","items":[1]}`, podKey(), -1},
		{`{"kind":"PodList","items":[{}]}`, podKey(), -1},
		{`{"kind":"PodList","apiVersion":"v2","items":[]}`, podKey(), -1},
		{`{"kind":"Status","status":"Failure"}`, podKey(), -1},
		{`{"kind":"PodList","items":[]}{}`, podKey(), -1},
		{`{"kind":"Table","apiVersion":"meta.k8s.io/v1","rows":[]}`, podKey(), -1},
		{`{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","items":[]}`, podKey(), -1},
		{`[]`, podKey(), -1},
		{``, podKey(), -1},
	} {
		n := 0
		_, err := ReadList(typeJSON, strings.NewReader(c.body), c.key, 1<<20, func(store.Object) error { n++; return nil })
		if (err != nil) != (c.items < 0) || err == nil && n != c.items {
			t.Errorf("%s: %d items, %v", c.body, n, err)
		}
	}
	for _, contentType := range []string{"text/plain", "application/yaml", ";"} {
		if _, err := ReadList(contentType, strings.NewReader(""), podKey(), 1, nil); err == nil {
			t.Errorf("%s was read", contentType)
		}
	}
}

// endless gives zeros behind a beginning.
type endless struct{ head io.Reader }

func (e endless) Read(p []byte) (int, error) {
	if n, err := e.head.Read(p); n > 0 || err != io.EOF {
		return n, err
	}
	clear(p)
	return len(p), nil
}

func TestHostileLengthsCostNoMemory(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<40)
	for name, read := range map[string]func() error{
		"list: huge body, huge item": func() error {
			b := append(append([]byte("k8s\x00\x12"), huge...), 0x12)
			b = append(b, binary.AppendUvarint(nil, 1<<39)...)
			_, err := ReadList(typeProtobuf, endless{bytes.NewReader(b)}, podKey(), 1<<20, nil)
			return err
		},
		"list: item of the largest size, cut": func() error {
			b := append(append([]byte("k8s\x00\x12"), huge...), 0x12)
			b = append(b, binary.AppendUvarint(nil, 1<<30)...)
			_, err := ReadList(typeProtobuf, bytes.NewReader(b), podKey(), 1<<30, nil)
			return err
		},
		"list: endless JSON string": func() error {
			_, err := ReadList(typeJSON, endless{strings.NewReader(`{"kind":"`)}, podKey(), 1<<20, nil)
			return err
		},
		"list: endless JSON spaces": func() error {
			_, err := ReadList(typeJSON, io.MultiReader(strings.NewReader(`{"items":[`), spaces{}), podKey(), 1<<20, nil)
			return err
		},
		"list: CBOR array of 2^60": func() error {
			_, err := ReadList(typeCBOR, bytes.NewReader(append([]byte{0xa1, 0x65, 'i', 't', 'e', 'm', 's'}, cborHead(4, 1<<60)...)), podKey(), 1<<20, nil)
			return err
		},
		"event: frame of 4 GiB": func() error {
			r, err := NewEventReader(typeProtobuf, endless{bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})}, podKey(), 1<<20)
			if err == nil {
				_, err = r.Next()
			}
			return err
		},
		"event: frame of 1 GiB, cut": func() error {
			r, err := NewEventReader(typeProtobuf, bytes.NewReader([]byte{0x40, 0, 0, 0, 1}), podKey(), 1<<31)
			if err == nil {
				_, err = r.Next()
			}
			return err
		},
		"event: CBOR string of 1 GiB, cut": func() error {
			r, err := NewEventReader(typeCBOR, bytes.NewReader(cborHead(2, 1<<30)), podKey(), 1<<31)
			if err == nil {
				_, err = r.Next()
			}
			return err
		},
		"event: CBOR nested": func() error {
			r, err := NewEventReader(typeCBOR, bytes.NewReader(bytes.Repeat([]byte{0x81}, 1<<20)), podKey(), 1<<21)
			if err == nil {
				_, err = r.Next()
			}
			return err
		},
		"event: JSON nested": func() error {
			r, err := NewEventReader(typeJSON, bytes.NewReader(bytes.Repeat([]byte{'['}, 1<<20)), podKey(), 1<<21)
			if err == nil {
				_, err = r.Next()
			}
			return err
		},
	} {
		before, after := runtime.MemStats{}, runtime.MemStats{}
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
			t.Errorf("%s: allocated %d MiB", name, used>>20)
		}
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestEventReader(t *testing.T) {
	pod, widget := mustFrom(t, testPod(1), podKey()), mustFrom(t, testWidget(1), widgetKey())
	for _, o := range []store.Object{pod, widget} {
		key := store.Key{Group: o.Group, Version: o.Version, Resource: o.Resource}
		want := []Event{
			{Type: watch.Added, Object: o},
			{Type: watch.Modified, Object: o},
			{Type: watch.Deleted, Object: o},
			{Type: watch.Bookmark, Object: store.Object{Key: key, Kind: o.Kind, ResourceVersion: 12}},
			{Type: watch.Bookmark, Object: store.Object{Key: key, Kind: o.Kind, ResourceVersion: 13}, InitialEventsEnd: true},
			{Type: watch.Error, Status: &metav1.Status{Status: "Failure", Code: 410, Reason: "Expired", Message: "too old"}},
		}
		for _, encoding := range []Encoding{JSON, Protobuf, CBOR} {
			if encoding == Protobuf && o.Format == store.FormatJSON {
				continue
			}
			m := Media{Encoding: encoding}
			stream := bytes.Buffer{}
			for _, e := range want {
				b, err := EncodeEvent(m, e)
				if err != nil {
					t.Fatal(err)
				}
				stream.Write(b)
			}
			whole := stream.Bytes()
			r, err := NewEventReader(m.ContentType(true), iotest.OneByteReader(&stream), key, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range want {
				got, err := r.Next()
				if err != nil {
					t.Fatalf("%s event %d: %v", m.ContentType(true), i, err)
				}
				if got.Status != nil {
					got.Status.TypeMeta = metav1.TypeMeta{}
				}
				if !reflect.DeepEqual(got, w) {
					t.Errorf("%s event %d is\n%+v\nwant\n%+v", m.ContentType(true), i, got, w)
				}
			}
			for range 2 {
				if _, err := r.Next(); !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v at the end", m.ContentType(true), err)
				}
			}
			cut, err := NewEventReader(m.ContentType(true), bytes.NewReader(whole[:40]), key, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cut.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: a frame cut off gives %v", m.ContentType(true), err)
			}
			small, err := NewEventReader(m.ContentType(true), bytes.NewReader(whole), key, 100)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := small.Next(); !errors.Is(err, errTooMuch) {
				t.Errorf("%s: a frame too large gives %v", m.ContentType(true), err)
			}
		}
	}
}

func TestEventReaderRefuses(t *testing.T) {
	for _, frame := range []string{
		`{"type":"OTHER","object":{"metadata":{"name":"a"}}}`,
		`{"type":"ADDED","object":{"metadata":{}}}`,
		`{"type":"ADDED"}`,
		`{"type":"BOOKMARK","object":{"metadata":{}}}`,
		`{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"x"}}}`,
		`{"type":"ADDED","object":{"apiVersion":"v2","kind":"Pod","metadata":{"name":"a"}}}`,
		`{"type":"ADDED",`, `nonsense`, `[]`,
	} {
		r, err := NewEventReader(typeJSON, strings.NewReader(frame), podKey(), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %+v, %v", frame, e, err)
		}
	}
}

func FuzzReadListProtobuf(f *testing.F) {
	f.Add(encodeUpstream(f, typeProtobuf, testPodList()))
	f.Add(encodeUpstream(f, typeProtobuf, &corev1.PodList{}))
	f.Add([]byte("k8s\x00\x12\xff\xff\xff\xff\x0f\x12\x01"))
	f.Fuzz(func(t *testing.T, body []byte) { fuzzList(t, typeProtobuf, body, podKey()) })
}

func FuzzReadListJSON(f *testing.F) {
	f.Add(encodeUpstream(f, typeJSON, testPodList()), true)
	f.Add(encodeUpstream(f, typeJSON, testWidgetList()), false)
	f.Add([]byte(`{"items":[{"metadata":{"name":"a"}}],"kind":"PodList"}`), true)
	f.Fuzz(func(t *testing.T, body []byte, builtIn bool) {
		key := widgetKey()
		if builtIn {
			key = podKey()
		}
		fuzzList(t, typeJSON, body, key)
	})
}

func FuzzReadListCBOR(f *testing.F) {
	f.Add(encodeUpstream(f, typeCBOR, testPodList()), true)
	f.Add(encodeUpstream(f, typeCBOR, testWidgetList()), false)
	f.Fuzz(func(t *testing.T, body []byte, builtIn bool) {
		key := widgetKey()
		if builtIn {
			key = podKey()
		}
		fuzzList(t, typeCBOR, body, key)
	})
}

// fuzzList checks that what was read can be written and read again.
func fuzzList(t *testing.T, contentType string, body []byte, key store.Key) {
	var items []store.Object
	meta, err := ReadList(contentType, bytes.NewReader(body), key, 1<<16, func(o store.Object) error {
		items = append(items, o)
		return nil
	})
	if err != nil || len(items) == 0 {
		return
	}
	for _, o := range items {
		useObject(t, o)
	}
	if contentType != typeProtobuf {
		return
	}
	out := bytes.Buffer{}
	all := func(yield func(store.Object) error) error {
		for _, o := range items {
			if err := yield(o); err != nil {
				return err
			}
		}
		return nil
	}
	if err := WriteList(&out, Media{Encoding: Protobuf}, key.Group, key.Version, items[0].Kind, meta, all); err != nil {
		t.Fatal(err)
	}
	n := 0
	again, err := ReadList(typeProtobuf, &out, key, 1<<16, func(o store.Object) error {
		if !reflect.DeepEqual(o, items[n]) {
			t.Errorf("item %d is %+v, was %+v", n, o, items[n])
		}
		n++
		return nil
	})
	if err != nil || n != len(items) || again.ResourceVersion != meta.ResourceVersion {
		t.Errorf("%d of %d items read again, %+v: %v", n, len(items), again, err)
	}
}

// useObject does with an object what the hub does.
func useObject(t *testing.T, o store.Object) {
	for _, m := range []Media{{Encoding: JSON}, {Encoding: Protobuf}, {Encoding: CBOR}, {Encoding: JSON, As: AsTable, Version: "v1"},
		{Encoding: Protobuf, As: AsPartial, Version: "v1"}, {Encoding: JSON, As: AsPartial, Version: "v1"}} {
		b, err := EncodeObject(m, o)
		if err == nil && m.Encoding == JSON && !json.Valid(b) {
			t.Errorf("%+v gave bad JSON: %q", m, b)
		}
	}
	for field := range selectablesOf(o.Group, o.Resource) {
		value := fields.OneTermEqualSelector(field, "x")
		other := fields.OneTermNotEqualSelector(field, "x")
		yes, err := Matches(o, nil, value)
		no, err2 := Matches(o, nil, other)
		if err == nil && err2 == nil && yes == no {
			t.Errorf("%s both is and is not x", field)
		}
	}
	if ok, err := Matches(o, mustSelect("app in (a,b),!c"), nil); ok && err != nil {
		t.Error("matched with an error")
	}
	changed, err := WithResourceVersion(o, 4711)
	if err != nil {
		return
	}
	head, err := headOf(changed)
	if err != nil || head.resourceVersion != "4711" || head.name != o.Name {
		t.Errorf("after WithResourceVersion: %+v, %v", head, err)
	}
}

func FuzzEventReader(f *testing.F) {
	o := mustFrom(f, testPod(1), podKey())
	for _, encoding := range []Encoding{JSON, Protobuf, CBOR} {
		stream := []byte{}
		for _, e := range []Event{
			{Type: watch.Added, Object: o},
			{Type: watch.Bookmark, Object: store.Object{Key: podKey(), ResourceVersion: 5}, InitialEventsEnd: true},
			{Type: watch.Error, Status: &metav1.Status{Code: 410}},
		} {
			b, err := EncodeEvent(Media{Encoding: encoding}, e)
			if err != nil {
				f.Fatal(err)
			}
			stream = append(stream, b...)
		}
		f.Add(stream, uint8(encoding))
	}
	f.Fuzz(func(t *testing.T, stream []byte, encoding uint8) {
		m := Media{Encoding: Encoding(encoding%3 + 1)}
		r, err := NewEventReader(m.ContentType(true), bytes.NewReader(stream), podKey(), 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			e, err := r.Next()
			if err != nil {
				return
			}
			switch e.Type {
			case watch.Error:
				if e.Status == nil {
					t.Error("an error without a status")
				}
			case watch.Bookmark:
				if e.Object.ResourceVersion == 0 {
					t.Error("a bookmark without a resourceVersion")
				}
			default:
				useObject(t, e.Object)
			}
		}
		if len(stream) < 1000 {
			t.Error("more events than bytes")
		}
	})
}

func TestWriteListChanged(t *testing.T) {
	for _, encoding := range []Encoding{Protobuf, CBOR} {
		for _, second := range []int{0, 1, 3} {
			calls := 0
			err := WriteList(io.Discard, Media{Encoding: encoding}, "", "v1", "Pod", metav1.ListMeta{}, func(yield func(store.Object) error) error {
				calls++
				n := 2
				if calls == 2 {
					n = second
				}
				for i := range n {
					if err := yield(mustFrom(t, testPod(i), podKey())); err != nil {
						return err
					}
				}
				return nil
			})
			if !errors.Is(err, errChanged) {
				t.Errorf("encoding %d, %d items the second time: %v", encoding, second, err)
			}
		}
	}
}

func TestWriteListIsUpstreams(t *testing.T) {
	list := testPodList()
	items := func(yield func(store.Object) error) error {
		for i := range list.Items {
			if err := yield(mustFrom(t, &list.Items[i], podKey())); err != nil {
				return err
			}
		}
		return nil
	}
	for contentType, encoding := range map[string]Encoding{typeJSON: JSON, typeProtobuf: Protobuf, typeCBOR: CBOR} {
		b := bytes.Buffer{}
		if err := WriteList(&b, Media{Encoding: encoding}, "", "v1", "Pod", list.ListMeta, items); err != nil {
			t.Fatal(err)
		}
		if want := encodeUpstream(t, contentType, list); !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s is\n%q\nwant\n%q", contentType, b.Bytes(), want)
		}
	}
	pretty := bytes.Buffer{}
	if err := WriteList(&pretty, Media{Encoding: JSON, Pretty: true}, "", "v1", "Pod", list.ListMeta, items); err != nil {
		t.Fatal(err)
	}
	if want, _ := json.MarshalIndent(list, "", "  "); !bytes.Equal(pretty.Bytes(), want) {
		t.Errorf("pretty is\n%s\nwant\n%s", pretty.Bytes(), want)
	}
	none := bytes.Buffer{}
	if err := WriteList(&none, Media{Encoding: JSON, Pretty: true}, "", "v1", "Pod", list.ListMeta, func(func(store.Object) error) error { return nil }); err != nil {
		t.Fatal(err)
	}
	empty := *list
	empty.Items = []corev1.Pod{}
	if want, _ := json.MarshalIndent(&empty, "", "  "); !bytes.Equal(none.Bytes(), want) {
		t.Errorf("empty is\n%s\nwant\n%s", none.Bytes(), want)
	}
}
