// Package wire speaks the API server's language over bytes: it parses requests,
// negotiates media types, reads and writes objects, lists and watch events in
// protobuf, JSON and CBOR, and evaluates selectors. It keeps nothing, and must
// not know the store's file, the network or who asks.
package wire

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/store"
)

// Request is what an HTTP request asks of the API.
type Request struct {
	Verb                     string // get, list, watch, create, update, patch, delete, deletecollection; of a document: get, ...
	IsResource               bool
	Group, Version, Resource string
	Subresource              string
	Namespace, Name          string
	Path                     string
	Options                  Options // of get, list and watch
}

// Options are the parameters of get, list and watch.
type Options struct {
	Label                labels.Selector // never nil for get, list and watch
	Field                fields.Selector // never nil for get, list and watch
	ResourceVersion      string          // "", "0" or a number, checked
	ResourceVersionMatch metav1.ResourceVersionMatch
	Limit                int64 // 0: no limit
	Continue             string
	AllowWatchBookmarks  bool
	// SendInitialEvents is set, as upstream does it, for a watch that asks for
	// no resourceVersion or for "0": such a watch begins with what exists.
	SendInitialEvents *bool
	Timeout           time.Duration // 0: none asked
}

// Encoding is how an answer is written.
type Encoding uint8

const (
	JSON Encoding = iota + 1
	Protobuf
	CBOR
	YAML
)

// As is what an answer is turned into.
type As uint8

const (
	AsIs As = iota
	AsTable
	AsPartial // PartialObjectMetadata, or its List
)

// Media is a negotiated media type.
type Media struct {
	Encoding      Encoding
	As            As
	Version       string // of meta.k8s.io, for AsTable and AsPartial: v1 or v1beta1
	IncludeObject metav1.IncludeObjectPolicy
	Pretty        bool
	// NoHeaders leaves the column definitions out of a Table: a watch sends
	// them in its first event only, so set it after that.
	NoHeaders bool
}

// Event is one event of a watch.
type Event struct {
	Type             watch.EventType
	Object           store.Object   // of ADDED, MODIFIED, DELETED; of BOOKMARK only Kind and ResourceVersion (and Key's Group and Version)
	InitialEventsEnd bool           // of BOOKMARK
	Status           *metav1.Status // of ERROR
}

// Items yields the objects of a list, in order; it is called at most twice (once
// to measure, once to write) and must yield the same both times.
type Items func(yield func(store.Object) error) error
