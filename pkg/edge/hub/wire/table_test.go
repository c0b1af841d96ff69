package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"

	"skerry.dev/skerry/pkg/edge/store"
)

// upstreamTable is what the API server makes of objects without a convertor of
// their own.
func upstreamTable(t *testing.T, obj runtime.Object, include metav1.IncludeObjectPolicy) *metav1.Table {
	t.Helper()
	table, err := rest.NewDefaultTableConvertor(schema.GroupResource{Resource: "pods"}).ConvertToTable(context.Background(), obj, &metav1.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	table.TypeMeta = metav1.TypeMeta{Kind: "Table", APIVersion: "meta.k8s.io/v1"}
	for i := range table.Rows {
		p := table.Rows[i].Object.Object.(*corev1.Pod)
		switch include {
		case metav1.IncludeNone:
			table.Rows[i].Object.Object = nil
		case metav1.IncludeObject:
			p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
		default:
			table.Rows[i].Object.Object = &metav1.PartialObjectMetadata{
				TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"}, ObjectMeta: p.ObjectMeta,
			}
		}
	}
	return table
}

func sameJSON(t *testing.T, what string, got []byte, want any) {
	t.Helper()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Errorf("%s: %v in %s", what, err, got)
		return
	}
	if err := json.Unmarshal(b, &w); err != nil {
		t.Fatal(err)
	}
	gb, _ := json.Marshal(g)
	wb, _ := json.Marshal(w)
	if !bytes.Equal(gb, wb) {
		t.Errorf("%s:\n got %s\nwant %s", what, gb, wb)
	}
}

func TestTable(t *testing.T) {
	for _, include := range []metav1.IncludeObjectPolicy{"", metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject} {
		m := Media{Encoding: JSON, As: AsTable, Version: "v1", IncludeObject: include}
		one, err := EncodeObject(m, mustFrom(t, testPod(1), podKey()))
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, "object, include "+string(include), one, upstreamTable(t, testPod(1), include))

		list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: "c"}, Items: []corev1.Pod{*testPod(0), *testPod(1)}}
		b := bytes.Buffer{}
		err = WriteList(&b, m, "", "v1", "Pod", list.ListMeta, func(yield func(store.Object) error) error {
			for i := range list.Items {
				if err := yield(mustFrom(t, &list.Items[i], podKey())); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, "list, include "+string(include), b.Bytes(), upstreamTable(t, list, include))
	}
}

func TestTableEvents(t *testing.T) {
	m := Media{Encoding: JSON, As: AsTable, Version: "v1", IncludeObject: metav1.IncludeNone}
	o := mustFrom(t, testPod(1), podKey())
	read := func(e Event) *metav1.Table {
		t.Helper()
		b, err := EncodeEvent(m, e)
		if err != nil {
			t.Fatal(err)
		}
		frame := struct {
			Type   string
			Object metav1.Table
		}{}
		if err := json.Unmarshal(b, &frame); err != nil || frame.Type != string(e.Type) || frame.Object.Kind != "Table" {
			t.Fatalf("%s: %v", b, err)
		}
		return &frame.Object
	}
	if first := read(Event{Type: watch.Added, Object: o}); len(first.ColumnDefinitions) != 2 || first.Rows[0].Object.Raw != nil && string(first.Rows[0].Object.Raw) != "null" {
		t.Errorf("first event %+v", first)
	}
	m.NoHeaders = true
	if second := read(Event{Type: watch.Deleted, Object: o}); len(second.ColumnDefinitions) != 0 || len(second.Rows) != 1 {
		t.Errorf("second event %+v", second)
	}
	mark := store.Object{Key: podKey(), Kind: "Pod", ResourceVersion: 12}
	end := read(Event{Type: watch.Bookmark, Object: mark, InitialEventsEnd: true})
	p := metav1.PartialObjectMetadata{}
	if err := json.Unmarshal(end.Rows[0].Object.Raw, &p); err != nil || end.ResourceVersion != "12" || p.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("bookmark %+v %v", end, err)
	}
}
