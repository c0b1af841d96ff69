package wire

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"

	"skerry.dev/skerry/pkg/edge/store"
)

func services(b *testing.B, n int) (Items, int64) {
	b.Helper()
	objects := make([]store.Object, n)
	size := int64(0)
	for i := range objects {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("service-%d", i), Namespace: "default", UID: "7b7a0f3c-7d0e-4f0e-9c36-0e6a4c5f1d11", ResourceVersion: "12345",
				Labels: map[string]string{"app": "a", "n": fmt.Sprint(i)}},
			Spec: corev1.ServiceSpec{ClusterIP: "10.96.3.4", ClusterIPs: []string{"10.96.3.4"}, Type: "ClusterIP", Selector: map[string]string{"app": "a"},
				Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
		}
		objects[i] = mustFrom(b, s, store.Key{Version: "v1", Resource: "services"})
		size += int64(len(objects[i].Data))
	}
	return func(yield func(store.Object) error) error {
		for _, o := range objects {
			if err := yield(o); err != nil {
				return err
			}
		}
		return nil
	}, size
}

func BenchmarkWriteList5000Services(b *testing.B) {
	items, size := services(b, 5000)
	for name, m := range map[string]Media{
		"protobuf": {Encoding: Protobuf}, "json": {Encoding: JSON}, "cbor": {Encoding: CBOR},
		"partial-protobuf": {Encoding: Protobuf, As: AsPartial, Version: "v1"},
		"table":            {Encoding: JSON, As: AsTable, Version: "v1"},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := WriteList(io.Discard, m, "", "v1", "Service", metav1.ListMeta{ResourceVersion: "1"}, items); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMatches(b *testing.B) {
	o := mustFrom(b, testPod(1), podKey())
	for name, c := range map[string]struct{ label, field string }{
		"label": {"app in (a,b),n=1", ""}, "name": {"", "metadata.name=pod-1"}, "nodeName": {"", "spec.nodeName=node-1"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			label, field := mustSelect(c.label), fields.ParseSelectorOrDie(c.field)
			for b.Loop() {
				if ok, err := Matches(o, label, field); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

func BenchmarkReadList5000Services(b *testing.B) {
	items, _ := services(b, 5000)
	for name, m := range map[string]Media{"protobuf": {Encoding: Protobuf}, "json": {Encoding: JSON}} {
		b.Run(name, func(b *testing.B) {
			body := bytes.Buffer{}
			if err := WriteList(&body, m, "", "v1", "Service", metav1.ListMeta{ResourceVersion: "1"}, items); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(body.Len()))
			b.ReportAllocs()
			for b.Loop() {
				_, err := ReadList(m.ContentType(false), bytes.NewReader(body.Bytes()), store.Key{Version: "v1", Resource: "services"}, 1<<20,
					func(store.Object) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
