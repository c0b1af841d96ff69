package serve

import (
	"bytes"
	"encoding/json"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
)

// decodeStatus reads a Status; false if the body is something else.
func decodeStatus(contentType string, body []byte) (metav1.Status, bool) {
	var status metav1.Status
	base, _, _ := strings.Cut(contentType, ";")
	switch strings.TrimSpace(base) {
	case runtime.ContentTypeProtobuf:
		raw, ok := bytes.CutPrefix(body, []byte("k8s\x00"))
		var outer runtime.Unknown
		if !ok || outer.Unmarshal(raw) != nil || outer.Kind != "Status" || status.Unmarshal(outer.Raw) != nil {
			return metav1.Status{}, false
		}
		status.Kind = outer.Kind
	case runtime.ContentTypeCBOR:
		if direct.Unmarshal(body, &status) != nil {
			return metav1.Status{}, false
		}
	default:
		if json.Unmarshal(body, &status) != nil {
			return metav1.Status{}, false
		}
	}
	return status, status.Kind == "Status"
}
