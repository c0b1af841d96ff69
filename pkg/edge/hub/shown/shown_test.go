package shown

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"skerry.dev/skerry/pkg/edge/store"
)

func pod(rv string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: strings.Repeat("n", 253), Namespace: strings.Repeat("m", 63), UID: "u", ResourceVersion: rv,
			Annotations: map[string]string{"resourceVersion": "777", "metadata": `{"resourceVersion":"778"}`},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: `a"{}[],:\`}}},
	}
}

func pods(rv string, n int) *corev1.PodList {
	l := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: rv}}
	for i := range n {
		l.Items = append(l.Items, *pod(fmt.Sprint(1 + i)))
	}
	return l
}

func asJSON(t testing.TB, o any) []byte {
	t.Helper()
	return must(t)(runtime.Encode(scheme.Codecs.LegacyCodec(corev1.SchemeGroupVersion), o.(runtime.Object)))
}

func asProto(t testing.TB, o any) []byte {
	t.Helper()
	return must(t)(runtime.Encode(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme), o.(runtime.Object)))
}

func asCBOR(t testing.TB, o any) []byte {
	t.Helper()
	u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return must(t)(direct.Marshal(u))
}

func must(t testing.TB) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func protoEvents(t testing.TB, objects ...runtime.Object) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, o := range objects {
		event := metav1.WatchEvent{Type: "ADDED", Object: runtime.RawExtension{Raw: asProto(t, o)}}
		b := must(t)(event.Marshal())
		out.Write([]byte{byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))})
		out.Write(b)
	}
	return out.Bytes()
}

func jsonEvents(t testing.TB, objects ...runtime.Object) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, o := range objects {
		fmt.Fprintf(&out, `{"type":"MODIFIED","object":%s}`+"\n", bytes.TrimSpace(asJSON(t, o)))
	}
	return out.Bytes()
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

const (
	jsonType  = "application/json"
	protoType = "application/vnd.kubernetes.protobuf"
	cborType  = "application/cbor"
)

type answer struct {
	name string
	Answer
	body []byte
	want []uint64
}

func answers(t testing.TB) []answer {
	key := store.Key{Version: "v1", Resource: "pods"}
	// As the API server writes custom resources: keys in order, items first.
	custom := []byte(`{"apiVersion":"example.com/v1","items":[{"apiVersion":"example.com/v1","kind":"Till","metadata":{"name":"a","resourceVersion":"12"},"spec":{"metadata":{"resourceVersion":"99999"}}}],"kind":"TillList","metadata":{"continue":"","resourceVersion":"60"}}`)
	one := []byte(`{"apiVersion":"example.com/v1","data":{"metadata":{"resourceVersion":"5"},"x":[{"metadata":{"resourceVersion":"6"}}]},"kind":"Till","metadata":{"annotations":{"resourceVersion":"7"},"managedFields":[{"resourceVersion":"8"}],"ownerReferences":[{"metadata":{"resourceVersion":"9"}}],"resourceVersion":"61"},"resourceVersion":"62"}`)
	all := []answer{
		{"object", Answer{ContentType: jsonType}, asJSON(t, pod("41")), []uint64{41}},
		{"object, protobuf", Answer{ContentType: protoType}, asProto(t, pod("42")), []uint64{42}},
		{"object, CBOR", Answer{ContentType: cborType, Key: key}, asCBOR(t, pod("43")), []uint64{43}},
		{"list", Answer{ContentType: jsonType + ";charset=utf-8", List: true}, asJSON(t, pods("44", 20)), []uint64{44}},
		{"list, protobuf", Answer{ContentType: protoType, List: true}, asProto(t, pods("45", 20)), []uint64{45}},
		{"list, CBOR", Answer{ContentType: cborType, List: true, Key: key}, asCBOR(t, pods("46", 20)), []uint64{46}},
		{"custom resources", Answer{ContentType: jsonType, List: true}, custom, []uint64{60}},
		{"a custom resource", Answer{ContentType: jsonType}, one, []uint64{61}},
		{"table", Answer{ContentType: jsonType + ";as=Table;g=meta.k8s.io;v=v1", List: true},
			[]byte(`{"kind":"Table","metadata":{"resourceVersion":"63"},"rows":[{"object":{"metadata":{"resourceVersion":"64"}}}]}`), []uint64{63}},
		{"watch", Answer{ContentType: jsonType, Watch: true}, jsonEvents(t, pod("51"), pod("52"), pod("53")), []uint64{51, 52, 53}},
		{"watch, protobuf", Answer{ContentType: protoType + ";stream=watch", Watch: true}, protoEvents(t, pod("54"), pod("55")), []uint64{54, 55}},
		{"status", Answer{ContentType: jsonType}, asJSON(t, &metav1.Status{Status: "Failure"}), nil},
		{"status, protobuf", Answer{ContentType: protoType}, asProto(t, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure"}), nil},
		{"a page", Answer{ContentType: "text/html"}, []byte(`{"metadata":{"resourceVersion":"1"}}`), nil},
		{"no number", Answer{ContentType: jsonType}, []byte(`{"metadata":{"resourceVersion":"99999999999999999999"}}`), nil},
		{"an array", Answer{ContentType: jsonType}, []byte(`[{"metadata":{"resourceVersion":"1"}}]`), nil},
	}
	for _, a := range slices.Clone(all) {
		a.name, a.Encoding, a.body = a.name+", gzip", "gzip", zipped(a.body)
		all = append(all, a)
	}
	return all
}

// TestReader reads each answer whole, byte by byte and in random pieces: the
// bytes pass unchanged, and each resourceVersion is told before its last byte is
// out.
func TestReader(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, a := range answers(t) {
		for _, way := range []string{"whole", "byte by byte", "in pieces"} {
			t.Run(a.name+", "+way, func(t *testing.T) {
				var got []uint64
				var in io.Reader = bytes.NewReader(a.body)
				switch way {
				case "byte by byte":
					in = iotest.OneByteReader(in)
				case "in pieces":
					in = &pieces{in, r}
				}
				body := Reader(io.NopCloser(in), a.Answer, func(rv uint64) { got = append(got, rv) })
				var out bytes.Buffer
				buffer := make([]byte, 32<<10)
				for {
					n, err := body.Read(buffer)
					out.Write(buffer[:n])
					if last := len(a.want); a.Encoding == "" && a.ContentType != cborType && last > 0 && !a.Watch {
						if told := bytes.Contains(out.Bytes(), fmt.Appendf(nil, "%d", a.want[last-1])); told && way == "byte by byte" && len(got) == 0 && bytes.HasSuffix(out.Bytes(), []byte(`"}`)) {
							t.Fatal("the client has the resourceVersion, and nobody was told")
						}
					}
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				if err := body.Close(); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(out.Bytes(), a.body) {
					t.Error("the body changed on the way")
				}
				if !slices.Equal(got, a.want) {
					t.Errorf("found %v, want %v", got, a.want)
				}
			})
		}
	}
}

type pieces struct {
	io.Reader
	r *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	return p.Reader.Read(b[:min(len(b), 1+p.r.IntN(200))])
}

// TestBeforeTheEnd checks the order: when the last byte of the answer is handed
// out, its resourceVersion is known, compressed or not.
func TestBeforeTheEnd(t *testing.T) {
	for _, a := range answers(t) {
		if len(a.want) == 0 {
			continue
		}
		var got []uint64
		body := Reader(io.NopCloser(bytes.NewReader(a.body)), a.Answer, func(rv uint64) { got = append(got, rv) })
		// All bytes, and not yet the end.
		if _, err := io.ReadFull(body, make([]byte, len(a.body))); err != nil {
			t.Fatal(err)
		}
		if a.ContentType != cborType && !slices.Equal(got, a.want) {
			t.Errorf("%s: %v at the last byte, want %v", a.name, got, a.want)
		}
		_ = body.Close()
	}
}

// FuzzReader: whatever comes passes unchanged, and nothing panics or hangs.
func FuzzReader(f *testing.F) {
	for _, a := range answers(f) {
		f.Add(a.body, a.ContentType, a.Encoding, a.Watch, a.List, uint8(7))
	}
	f.Fuzz(func(t *testing.T, body []byte, contentType, encoding string, watch, list bool, piece uint8) {
		in := &pieces{bytes.NewReader(body), rand.New(rand.NewPCG(uint64(piece), 1))}
		r := Reader(io.NopCloser(in), Answer{ContentType: contentType, Encoding: encoding, Watch: watch, List: list}, func(rv uint64) {
			if rv == 0 {
				t.Fatal("told 0")
			}
		})
		out, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(out, body) {
			t.Fatalf("the body changed on the way: %v", err)
		}
		_ = r.Close()
	})
}

func BenchmarkReader(b *testing.B) {
	long := bytes.Replace(asJSON(b, pods("1", 2000)), []byte(`"metadata":{"resourceVersion":"1"}`), []byte(`"metadata":{}`), 1)
	for _, a := range []answer{
		{"to the end", Answer{ContentType: jsonType, List: true}, long, nil},
		{"head", Answer{ContentType: protoType, List: true}, asProto(b, pods("1", 2000)), nil},
	} {
		b.Run(a.name, func(b *testing.B) {
			b.SetBytes(int64(len(a.body)))
			b.ReportAllocs()
			for b.Loop() {
				r := Reader(io.NopCloser(bytes.NewReader(a.body)), a.Answer, func(uint64) {})
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
