package wire

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	kubectlTable = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
	partialProto = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
)

func TestNegotiate(t *testing.T) {
	const proto = "application/vnd.kubernetes.protobuf"
	for _, c := range []struct {
		accept            string
		builtIn, watching bool
		want              Media
		contentType       string
	}{
		{"", true, false, Media{Encoding: JSON}, "application/json"},
		{"*/*", true, false, Media{Encoding: JSON}, "application/json"},
		{"application/*", true, true, Media{Encoding: JSON}, "application/json"},
		{"application/json", true, false, Media{Encoding: JSON}, "application/json"},
		{proto, true, false, Media{Encoding: Protobuf}, proto},
		{proto + ";stream=watch", true, true, Media{Encoding: Protobuf}, proto + ";stream=watch"},
		{proto + ",application/json", true, true, Media{Encoding: Protobuf}, proto + ";stream=watch"},
		{proto + ",application/json", false, false, Media{Encoding: JSON}, "application/json"},
		{"application/json;q=0.5," + proto + ";q=0.9", true, false, Media{Encoding: Protobuf}, proto},
		{"application/cbor", false, false, Media{Encoding: CBOR}, "application/cbor"},
		{"application/cbor,application/json;q=0.9", false, true, Media{Encoding: CBOR}, "application/cbor-seq"},
		{"application/cbor-seq", false, true, Media{Encoding: CBOR}, "application/cbor-seq"},
		{"application/yaml", true, false, Media{Encoding: YAML}, "application/yaml"},
		{"text/html,application/xhtml+xml,*/*;q=0.8", true, false, Media{Encoding: JSON}, "application/json"},
		{"application/json;pretty=1", true, false, Media{Encoding: JSON, Pretty: true}, "application/json"},
		{kubectlTable, true, false, Media{Encoding: JSON, As: AsTable, Version: "v1"}, "application/json"},
		{"application/json;as=Table;v=v2;g=meta.k8s.io,application/json", true, false, Media{Encoding: JSON}, "application/json"},
		{partialProto, true, false, Media{Encoding: Protobuf, As: AsPartial, Version: "v1"}, proto},
		{partialProto, false, false, Media{Encoding: Protobuf, As: AsPartial, Version: "v1"}, proto},
		{"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1beta1", false, false, Media{Encoding: JSON, As: AsPartial, Version: "v1beta1"}, "application/json"},
	} {
		r := newRequest(t, "GET", "/api/v1/pods")
		r.Header.Set("Accept", c.accept)
		got, err := Negotiate(r, c.builtIn, c.watching)
		if err != nil || got != c.want {
			t.Errorf("%s (%v, %v): %+v, %v", c.accept, c.builtIn, c.watching, got, err)
		} else if s := got.ContentType(c.watching); s != c.contentType {
			t.Errorf("%s: content type %s", c.accept, s)
		}
	}
	for _, c := range []struct {
		accept            string
		builtIn, watching bool
	}{
		{"text/plain", true, false},
		{"application/vnd.kubernetes.protobuf", false, false},
		{"application/yaml", true, true},
		{"application/json;stream=other", true, true},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", true, false},
		{"application/cbor;as=Table;v=v1;g=meta.k8s.io", true, false},
		{"application/json;as=Table;v=v1;g=other", true, false},
		{"application/json;as=Something;v=v1;g=meta.k8s.io", true, false},
		{";;;,,", true, false},
	} {
		r := newRequest(t, "GET", "/api/v1/pods")
		r.Header.Set("Accept", c.accept)
		if _, err := Negotiate(r, c.builtIn, c.watching); !apierrors.IsNotAcceptable(err) {
			t.Errorf("%s (%v, %v): %v", c.accept, c.builtIn, c.watching, err)
		}
	}
}

func TestNegotiatePrettyAndTable(t *testing.T) {
	for _, c := range []struct {
		agent, query string
		watching     bool
		want         bool
	}{
		{"curl/8", "", false, true},
		{"Mozilla/5.0 (X11)", "", false, true},
		{"kubectl/v1.37", "", false, false},
		{"kubectl/v1.37", "pretty=true", false, true},
		{"curl/8", "pretty=false", false, false},
		{"curl/8", "pretty=maybe", false, false},
		{"curl/8", "", true, false},
	} {
		r := newRequest(t, "GET", "/api/v1/pods?"+c.query)
		r.Header.Set("User-Agent", c.agent)
		if m, err := Negotiate(r, true, c.watching); err != nil || m.Pretty != c.want {
			t.Errorf("%+v: %v, %v", c, m.Pretty, err)
		}
	}
	for include, ok := range map[string]bool{"": true, "None": true, "Metadata": true, "Object": true, "All": false} {
		r := newRequest(t, "GET", "/api/v1/pods?includeObject="+include)
		r.Header.Set("Accept", kubectlTable)
		m, err := Negotiate(r, true, false)
		if ok && (err != nil || m.IncludeObject != metav1.IncludeObjectPolicy(include)) || !ok && !apierrors.IsBadRequest(err) {
			t.Errorf("includeObject=%s: %+v, %v", include, m, err)
		}
	}
}

func TestWriteStatus(t *testing.T) {
	unavailable := apierrors.NewServiceUnavailable("the cloud is away")
	unavailable.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 3}
	for _, c := range []struct {
		accept, contentType string
		err                 error
		code                int
		retry               string
	}{
		{"", "application/json", unavailable, 503, "3"},
		{"application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf", unavailable, 503, "3"},
		{"application/vnd.kubernetes.protobuf;stream=watch", "application/vnd.kubernetes.protobuf", unavailable, 503, "3"},
		{"application/cbor", "application/cbor", unavailable, 503, "3"},
		{"application/yaml", "application/yaml", unavailable, 503, "3"},
		{kubectlTable, "application/json", fmt.Errorf("asked: %w", apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "x")), 404, ""},
		{"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json", unavailable, 503, "3"},
		{"text/plain", "application/json", fmt.Errorf("plain"), 500, ""},
	} {
		r := newRequest(t, "GET", "/api/v1/pods")
		r.Header.Set("Accept", c.accept)
		w := httptest.NewRecorder()
		WriteStatus(w, r, c.err)
		if w.Code != c.code || w.Header().Get("Content-Type") != c.contentType || w.Header().Get("Retry-After") != c.retry {
			t.Errorf("%s: %d %v", c.accept, w.Code, w.Header())
		}
		if c.contentType == typeYAML || c.contentType == typeCBOR {
			continue
		}
		info := scheme.Codecs.UniversalDeserializer()
		obj, _, err := info.Decode(w.Body.Bytes(), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", c.accept, err)
			continue
		}
		if s := obj.(*metav1.Status); s.Status != "Failure" || int(s.Code) != c.code || s.Message == "" {
			t.Errorf("%s: %+v", c.accept, s)
		}
	}
	r := newRequest(t, "GET", "/api/v1/pods?pretty=1")
	w := httptest.NewRecorder()
	WriteStatus(w, r, unavailable)
	if !json.Valid(w.Body.Bytes()) || w.Body.String()[:4] != "{\n  " {
		t.Errorf("not pretty: %q", w.Body)
	}
	if w.Code != http.StatusServiceUnavailable {
		t.Error(w.Code)
	}
}
