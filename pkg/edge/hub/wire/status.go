package wire

import (
	"errors"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// WriteStatus answers a request with a Status in a media type that the client
// reads (JSON if there is none), and the Status's code. err is an
// apierrors.APIStatus, or becomes a 500.
func WriteStatus(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if d := status.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(d.RetryAfterSeconds)))
	}
	m := Media{Encoding: JSON}
	if accept := r.Header.Get("Accept"); accept != "" {
		// A Status is never turned into something else; who asks for a Table
		// and nothing else reads JSON.
		if chosen, ok := choose(accept, true, false); ok && chosen.As == AsIs {
			m = chosen
		}
	}
	m.Pretty = m.Encoding == JSON && (m.Pretty || pretty(r))
	body, encodeErr := encodeStatus(m.Encoding, &status)
	if encodeErr == nil {
		switch {
		case m.Encoding == YAML:
			body, encodeErr = yaml.JSONToYAML(body)
		case m.Pretty:
			body, encodeErr = indent(body, "")
		case m.Encoding == JSON:
			body = append(body, '\n')
		}
	}
	if encodeErr != nil {
		http.Error(w, string(status.Reason)+": "+status.Message, int(status.Code))
		return
	}
	w.Header().Set("Content-Type", m.ContentType(false))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(int(status.Code))
	// The client is gone if this fails; there is nobody to tell.
	_, _ = w.Write(body)
}

func statusOf(err error) metav1.Status {
	status := metav1.Status{Code: http.StatusInternalServerError, Reason: metav1.StatusReasonUnknown}
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		status = api.Status()
	} else if err != nil {
		status.Message = err.Error()
	}
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code < 200 || status.Code > 599 {
		status.Code = http.StatusInternalServerError
	}
	return status
}
