package wire

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/munnerz/goautoneg"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	typeJSON     = "application/json"
	typeYAML     = "application/yaml"
	typeProtobuf = "application/vnd.kubernetes.protobuf"
	typeCBOR     = "application/cbor"
	typeCBORSeq  = "application/cbor-seq"

	metaGroup = "meta.k8s.io"
)

var subTypes = map[Encoding]string{JSON: "json", YAML: "yaml", Protobuf: "vnd.kubernetes.protobuf", CBOR: "cbor"}

// Negotiate chooses the media type of an answer, as the API server reads the
// Accept header. builtIn says that the kind has a protobuf form; watching that
// the answer is a stream. The error is an apierrors.APIStatus: 406, or 400 for a
// bad includeObject.
func Negotiate(r *http.Request, builtIn, watching bool) (Media, error) {
	accept := r.Header.Get("Accept")
	m := Media{Encoding: JSON}
	if accept != "" {
		var ok bool
		if m, ok = choose(accept, builtIn, watching); !ok {
			return Media{}, notAcceptable(builtIn, watching)
		}
	}
	m.Pretty = m.Encoding == JSON && !watching && (m.Pretty || pretty(r))
	if m.As == AsTable {
		m.IncludeObject = metav1.IncludeObjectPolicy(r.URL.Query().Get("includeObject"))
		switch m.IncludeObject {
		case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject, "":
		default:
			return Media{}, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", m.IncludeObject))
		}
	}
	return m, nil
}

func choose(accept string, builtIn, watching bool) (Media, bool) {
	for _, clause := range goautoneg.ParseAccept(accept) {
		if clause.SubType == "cbor-seq" {
			clause.SubType = "cbor"
		}
		for _, encoding := range []Encoding{JSON, YAML, Protobuf, CBOR} { // the server's order of preference
			sub := subTypes[encoding]
			switch {
			case clause.Type == "application" && (clause.SubType == sub || clause.SubType == "*"), clause.Type == "*" && clause.SubType == "*":
			default:
				continue
			}
			if m, ok := allowed(encoding, clause.Params, builtIn, watching); ok {
				return m, true
			}
		}
	}
	return Media{}, false
}

func allowed(encoding Encoding, params map[string]string, builtIn, watching bool) (Media, bool) {
	m := Media{Encoding: encoding, Pretty: params["pretty"] == "1"}
	if stream := params["stream"]; stream != "" && (stream != "watch" || encoding == YAML) {
		return m, false
	}
	if version := params["sv"]; version != "" && version != "v1" {
		return m, false
	}
	if watching && encoding == YAML {
		return m, false
	}
	_, as := params["as"]
	_, group := params["g"]
	_, version := params["v"]
	if !as && !group && !version {
		return m, builtIn || encoding != Protobuf
	}
	m.Version = params["v"]
	if params["g"] != metaGroup || (m.Version != "v1" && m.Version != "v1beta1") {
		return m, false
	}
	switch params["as"] {
	case "Table":
		m.As = AsTable
		return m, encoding == JSON || encoding == YAML
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		m.As = AsPartial
		return m, true
	}
	return m, false
}

// pretty is upstream's: the parameter, else whether a human seems to ask.
func pretty(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if asked := r.URL.Query().Get("pretty"); asked != "" {
			yes, err := strconv.ParseBool(asked)
			return err == nil && yes
		}
	}
	agent := r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

func notAcceptable(builtIn, watching bool) error {
	types := []string{typeJSON, typeYAML, typeProtobuf, typeCBOR}
	if watching {
		types = []string{typeJSON + ";stream=watch", typeProtobuf + ";stream=watch", typeCBORSeq}
	}
	if !builtIn {
		types = slices.DeleteFunc(types, func(t string) bool { return strings.HasPrefix(t, typeProtobuf) })
	}
	return statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		"only the following media types are accepted: "+strings.Join(types, ", "))
}

func unsupportedMediaType(got string) error {
	return statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		fmt.Sprintf("the body of the request was in an unknown format (%q) - accepted media types include: %s", got,
			strings.Join([]string{typeJSON, typeYAML, typeProtobuf, typeCBOR}, ", ")))
}

func statusError(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	}}
}

// ContentType is the header's value for a media type.
func (m Media) ContentType(watching bool) string {
	switch m.Encoding {
	case Protobuf:
		if watching {
			return typeProtobuf + ";stream=watch"
		}
		return typeProtobuf
	case CBOR:
		if watching {
			return typeCBORSeq
		}
		return typeCBOR
	case YAML:
		return typeYAML
	}
	return typeJSON
}
