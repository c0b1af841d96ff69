package tokens

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"

	"skerry.dev/skerry/pkg/edge/store"
)

const (
	protobuf = runtime.ContentTypeProtobuf
	jsonType = runtime.ContentTypeJSON
	planted  = "eyJhbGciOiJSUzI1NiJ9.PLANTED-SECRET.sig"
)

// write encodes as the kubelet's client does: with client-go's own codecs.
func write(t testing.TB, mediaType string, tr *authenticationv1.TokenRequest) []byte {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
	if !ok {
		t.Fatalf("no serializer for %s", mediaType)
	}
	data, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, authenticationv1.SchemeGroupVersion), tr)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func read(t testing.TB, data []byte) *authenticationv1.TokenRequest {
	t.Helper()
	obj, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), data)
	if err != nil {
		t.Fatal(err)
	}
	return obj.(*authenticationv1.TokenRequest)
}

type question struct {
	audiences []string
	seconds   *int64
	uid       string
}

func (q question) request() *authenticationv1.TokenRequest {
	tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: q.audiences, ExpirationSeconds: q.seconds}}
	if q.uid != "" {
		tr.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "till-0", UID: types.UID(q.uid)}
	}
	return tr
}

func open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func answer(tr *authenticationv1.TokenRequest, token string, expires time.Time) *authenticationv1.TokenRequest {
	out := tr.DeepCopy()
	out.Name, out.Namespace = "till", "shop"
	if out.Spec.ExpirationSeconds == nil {
		out.Spec.ExpirationSeconds = ptr.To[int64](3600)
	}
	out.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires.Truncate(time.Second))}
	return out
}

func TestTheLastGoodTokenComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := open(t, path)
	now := time.Now()
	tk := New(Options{Store: s, Now: func() time.Time { return now }})
	q := question{audiences: []string{"b", "a"}, seconds: ptr.To[int64](3607), uid: "u1"}.request()
	swapped := question{audiences: []string{"a", "b"}, seconds: ptr.To[int64](3607), uid: "u1"}.request()
	keep := func(code int, token string) {
		t.Helper()
		err := tk.Keep("shop", "till", protobuf, write(t, protobuf, q), code, protobuf, write(t, protobuf, answer(q, token, now.Add(time.Hour))))
		if err != nil {
			t.Fatal(err)
		}
	}
	lookup := func(tr *authenticationv1.TokenRequest, in, accept, wantType string) *authenticationv1.TokenRequest {
		t.Helper()
		resp, respType, ok, err := tk.Lookup("shop", "till", in, write(t, in, tr), accept)
		if err != nil || !ok || respType != wantType {
			t.Fatalf("ok %v, type %s, %v", ok, respType, err)
		}
		return read(t, resp)
	}
	keep(201, "first")
	keep(201, planted)
	keep(201, "")
	keep(200, "not created")
	keep(403, "refused")
	keep(500, "broken")

	got := lookup(q, protobuf, "application/vnd.kubernetes.protobuf,application/json", protobuf)
	if got.Status.Token != planted || got.Name != "till" || *got.Spec.ExpirationSeconds != 3607 ||
		!got.Status.ExpirationTimestamp.Time.Equal(now.Add(time.Hour).Truncate(time.Second)) {
		t.Errorf("got %+v", got)
	}
	for _, accept := range []string{"application/json", "", "*/*", "application/yaml", "application/json;as=Table;g=meta.k8s.io;v=v1"} {
		if got := lookup(swapped, jsonType, accept, jsonType); got.Status.Token != planted {
			t.Errorf("Accept %q: %+v", accept, got)
		}
	}

	// A week later, after a restart: the same token, and its answer asks to come
	// back soon.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil || bytes.Contains(file, []byte("PLANTED-SECRET")) {
		t.Errorf("the token can be read in the store's file (%v)", err)
	}
	s = open(t, path)
	defer s.Close()
	now = now.Add(7 * 24 * time.Hour)
	tk = New(Options{Store: s, Now: func() time.Time { return now }})
	got = lookup(q, protobuf, protobuf, protobuf)
	left := got.Status.ExpirationTimestamp.Sub(now)
	if got.Status.Token != planted || left < validFor || left > validFor+2*time.Second {
		t.Errorf("token %s, valid for %s", got.Status.Token, left)
	}
}

func TestOnlyTheSameQuestionIsAnswered(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	tk := New(Options{Store: s})
	for _, seconds := range []int64{600, 7200} {
		q := question{audiences: []string{"a"}, seconds: &seconds, uid: "u1"}.request()
		err := tk.Keep("shop", "till", jsonType, write(t, jsonType, q), 201, jsonType, write(t, jsonType, answer(q, map[int64]string{600: "short", 7200: "long"}[seconds], time.Now())))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name               string
		namespace, account string
		q                  question
		want               string
	}{
		{"exactly", "shop", "till", question{[]string{"a"}, ptr.To[int64](600), "u1"}, "short"},
		{"nearest below", "shop", "till", question{[]string{"a"}, ptr.To[int64](601), "u1"}, "short"},
		{"nearest above", "shop", "till", question{[]string{"a"}, ptr.To[int64](86400), "u1"}, "long"},
		{"no life asked", "shop", "till", question{[]string{"a"}, nil, "u1"}, "short"},
		{"another pod", "shop", "till", question{[]string{"a"}, ptr.To[int64](600), "u2"}, ""},
		{"no pod", "shop", "till", question{[]string{"a"}, ptr.To[int64](600), ""}, ""},
		{"another audience", "shop", "till", question{[]string{"b"}, ptr.To[int64](600), "u1"}, ""},
		{"one more audience", "shop", "till", question{[]string{"a", "b"}, ptr.To[int64](600), "u1"}, ""},
		{"no audience", "shop", "till", question{nil, ptr.To[int64](600), "u1"}, ""},
		{"another account", "shop", "clerk", question{[]string{"a"}, ptr.To[int64](600), "u1"}, ""},
		{"another namespace", "bank", "till", question{[]string{"a"}, ptr.To[int64](600), "u1"}, ""},
	} {
		resp, _, ok, err := tk.Lookup(tc.namespace, tc.account, jsonType, write(t, jsonType, tc.q.request()), jsonType)
		if err != nil || ok != (tc.want != "") {
			t.Errorf("%s: ok %v, %v", tc.name, ok, err)
			continue
		}
		if ok && read(t, resp).Status.Token != tc.want {
			t.Errorf("%s: %s", tc.name, resp)
		}
		if ok && tc.q.seconds != nil && *read(t, resp).Spec.ExpirationSeconds != *tc.q.seconds {
			t.Errorf("%s: the answer is to another question: %s", tc.name, resp)
		}
	}
}

func TestNamesDoNotRunTogether(t *testing.T) {
	a := record{Namespace: "ab", ServiceAccount: "c"}
	b := record{Namespace: "a", ServiceAccount: "bc"}
	c := record{Namespace: "a", ServiceAccount: "b", Audiences: []string{"c"}}
	if a.name() == b.name() || b.name() == c.name() {
		t.Error("different questions have one name")
	}
}

func TestCollect(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	tk := New(Options{Store: s})
	for _, uid := range []string{"u1", "u2", ""} {
		q := question{audiences: []string{"a"}, uid: uid}.request()
		if err := tk.Keep("shop", "till", jsonType, write(t, jsonType, q), 201, jsonType, write(t, jsonType, answer(q, "token-"+uid, time.Now()))); err != nil {
			t.Fatal(err)
		}
	}
	n, err := tk.Collect(func(kind, namespace, name, uid string) bool {
		if kind != "Pod" || namespace != "shop" || name != "till-0" {
			t.Errorf("asked about %s %s/%s %s", kind, namespace, name, uid)
		}
		return uid == "u1"
	})
	if n != 1 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	for uid, want := range map[string]bool{"u1": false, "u2": true, "": true} {
		q := question{audiences: []string{"a"}, uid: uid}.request()
		if _, _, ok, err := tk.Lookup("shop", "till", jsonType, write(t, jsonType, q), ""); ok != want || err != nil {
			t.Errorf("%q: %v %v", uid, ok, err)
		}
	}
}

func TestBadBodies(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	tk := New(Options{Store: s})
	good := write(t, jsonType, question{}.request())
	for name, tc := range map[string]struct {
		mediaType string
		body      []byte
	}{
		"another kind":  {jsonType, []byte(`{"apiVersion":"v1","kind":"Pod"}`)},
		"torn":          {protobuf, write(t, protobuf, question{uid: "x"}.request())[:20]},
		"empty":         {protobuf, nil},
		"no media type": {"nonsense;;", good},
		"yaml":          {"application/yaml", []byte("kind: TokenRequest\napiVersion: authentication.k8s.io/v1\n")},
		"too long":      {jsonType, append(bytes.Repeat([]byte(" "), MaxBody), good...)},
		"secret":        {jsonType, []byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","status":{"token":"` + planted + `"`)},
	} {
		if _, _, ok, err := tk.Lookup("shop", "till", tc.mediaType, tc.body, ""); err == nil || ok {
			t.Errorf("%s: taken as a request", name)
		}
		err := tk.Keep("shop", "till", jsonType, good, 201, tc.mediaType, tc.body)
		if err == nil {
			t.Errorf("%s: taken as an answer", name)
		} else if strings.Contains(err.Error(), "PLANTED") {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
}
