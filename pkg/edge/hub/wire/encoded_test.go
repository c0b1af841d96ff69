package wire

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skerry.dev/skerry/pkg/edge/store"
)

func maps(t *testing.T, n int) Items {
	t.Helper()
	objects := make([]store.Object, n)
	for i := range objects {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m-", i), Namespace: "shop", ResourceVersion: fmt.Sprint(100 + i), Labels: map[string]string{"a": "b"}},
			Data: map[string]string{"text": string(bytes.Repeat([]byte{'x'}, i*7%40_000))}}
		var err error
		if objects[i], err = FromTyped(m, store.Key{Version: "v1", Resource: "configmaps"}); err != nil {
			t.Fatal(err)
		}
	}
	return func(yield func(store.Object) error) error {
		for _, o := range objects {
			if err := yield(o); err != nil {
				return err
			}
		}
		return nil
	}
}

// What is encoded once is what WriteList writes, byte for byte.
func TestEncodedList(t *testing.T) {
	meta := metav1.ListMeta{ResourceVersion: "4711", RemainingItemCount: ptr.To[int64](3), Continue: "next"}
	for _, n := range []int{0, 1, 2, 300} {
		items := maps(t, n)
		for _, m := range []Media{
			{Encoding: JSON}, {Encoding: Protobuf}, {Encoding: CBOR},
			{Encoding: JSON, As: AsPartial, Version: "v1"}, {Encoding: Protobuf, As: AsPartial, Version: "v1"},
			{Encoding: Protobuf, As: AsPartial, Version: "v1beta1"}, {Encoding: CBOR, As: AsPartial, Version: "v1"},
		} {
			var want, got bytes.Buffer
			if err := WriteList(&want, m, "", "v1", "ConfigMap", meta, items); err != nil {
				t.Fatal(err)
			}
			asked := 0
			e, err := EncodeItems(m, "", "v1", "ConfigMap", func(n int) bool { asked += n; return true }, items)
			if err != nil {
				t.Fatalf("%d, %+v: %v", n, m, err)
			}
			list, err := e.List(meta)
			if err != nil {
				t.Fatalf("%d, %+v: %v", n, m, err)
			}
			written, err := list.WriteTo(&got)
			if err != nil || int(written) != got.Len() || list.Len() != got.Len() || !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Errorf("%d, %+v: %v; wrote %d of %d bytes, want %d", n, m, err, written, list.Len(), want.Len())
			}
			if asked < e.size || asked > 2*e.size+lastChunk {
				t.Errorf("%d, %+v: asked for %d bytes to hold %d", n, m, asked, e.size)
			}
		}
	}
}

func TestEncodeItemsRefuses(t *testing.T) {
	items := maps(t, 300)
	all := func(int) bool { return true }
	left := 100_000
	for name, c := range map[string]struct {
		m    Media
		grow func(int) bool
	}{
		"a Table":     {Media{Encoding: JSON, As: AsTable, Version: "v1"}, all},
		"pretty JSON": {Media{Encoding: JSON, Pretty: true}, all},
		"YAML":        {Media{Encoding: YAML}, all},
		"too long":    {Media{Encoding: Protobuf}, func(n int) bool { left -= n; return left >= 0 }},
	} {
		if _, err := EncodeItems(c.m, "", "v1", "ConfigMap", c.grow, items); !errors.Is(err, ErrNotEncoded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	damaged := errors.New("damaged")
	_, err := EncodeItems(Media{Encoding: Protobuf}, "", "v1", "ConfigMap", all, func(func(store.Object) error) error { return damaged })
	if !errors.Is(err, damaged) {
		t.Errorf("items that fail: %v", err)
	}
}
