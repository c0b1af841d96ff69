// Package shown reads, out of an answer of the API server that streams past, the
// resourceVersions that its client is about to see, without decoding or holding
// the answer. It must not know what they are good for.
//
// Only metadata.resourceVersion of the answer itself counts, or of an event's
// object: what users write into objects may look the same, and must not.
package shown

import (
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"

	"skerry.dev/skerry/pkg/edge/store"
)

// Answer says what streams past.
type Answer struct {
	ContentType string
	Encoding    string // Content-Encoding
	Watch, List bool   // events, or a list; else one object
	Key         store.Key
}

// scanner takes the bytes of an answer as they come.
type scanner interface {
	// write returns false when nothing more is to be looked for.
	write(p []byte) bool
}

// Reader wraps the body of an answer: fn is called with each resourceVersion
// before Read returns the bytes that end it. It returns body itself if the answer
// is none that has any.
func Reader(body io.ReadCloser, a Answer, fn func(rv uint64)) io.ReadCloser {
	base, _, _ := strings.Cut(a.ContentType, ";")
	var s scanner
	switch strings.TrimSpace(base) {
	case runtime.ContentTypeJSON:
		s = newJSON(a.Watch, fn)
	case runtime.ContentTypeProtobuf:
		s = &protoHead{fn: fn}
		if a.Watch {
			s = &protoFrames{fn: fn}
		}
	case runtime.ContentTypeCBOR:
		s = newFed(func(r io.Reader) { scanCBOR(r, a, fn) })
	default:
		return body
	}
	switch a.Encoding {
	case "", "identity":
	case "gzip":
		s = newInflated(s)
	default:
		return body
	}
	return &reader{ReadCloser: body, s: s}
}

type reader struct {
	io.ReadCloser
	s scanner // nil: nothing more is looked for
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.s != nil && n > 0 && !r.s.write(p[:n]) {
		r.end()
	}
	if err != nil {
		r.end()
	}
	return n, err
}

func (r *reader) Close() error {
	r.end()
	return r.ReadCloser.Close()
}

func (r *reader) end() {
	if f, ok := r.s.(*fed); ok {
		f.stop()
	}
	r.s = nil
}

// number reads a resourceVersion; 0 if it is none.
func number(b []byte) uint64 {
	if len(b) == 0 || len(b) > 19 {
		return 0
	}
	n := uint64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}
