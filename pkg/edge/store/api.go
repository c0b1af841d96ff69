package store

import (
	"errors"
	"time"
)

// Format is how the bytes of an object are written.
type Format uint8

const (
	// FormatJSON is the object as JSON.
	FormatJSON Format = iota + 1
	// FormatProtobuf is the object's bare protobuf message, without the
	// "k8s\0" envelope that Kubernetes wraps it in.
	FormatProtobuf
)

// Key names one object. Group is empty for the core group; Namespace is empty
// for a cluster-scoped object.
type Key struct {
	Group, Version, Resource string
	Namespace, Name          string
}

// Object is one object as clients see it. Its bytes are never decoded by the
// store.
type Object struct {
	Key
	Kind            string
	UID             string
	ResourceVersion uint64
	Format          Format
	Data            []byte
}

// Query is what a view was asked for. Selectors are in canonical form
// (labels.Selector.String, fields.Selector.String); a GET is the query with the
// field selector metadata.name=NAME.
type Query struct {
	Group, Version, Resource     string
	Namespace                    string
	LabelSelector, FieldSelector string
}

// View is the answer to one query: which objects it has, and how fresh it is.
type View struct {
	Query
	Kind            string // of one object: "Pod"
	Node            bool   // the cloud has shown it to the node's own identity
	Complete        bool   // a whole list has been received; only then is absence known
	ResourceVersion uint64 // of the last list, event or bookmark; 0 for a single GET
	Synced          time.Time
}

// Entry is a write that the cloud does not know yet.
type Entry struct {
	Seq     uint64 // order of replay; 0 when it is to be appended
	Key     Key
	UID     string
	Op      string // what to do, in the words of the outbox
	Payload []byte
	Base    []byte // the cloud's last version of the object, if one is known
	Created time.Time
}

// Durability says when a change must be on the disk.
type Durability uint8

const (
	// Lazy changes may be lost in a power cut of the last minute: heartbeats,
	// bookmarks. They cost next to no writes.
	Lazy Durability = iota
	// Soon changes survive the end of this process at once, and a power cut
	// after Options.CommitInterval: what the cloud knows too.
	Soon
	// Durable changes are on the disk when Apply returns: what only this node
	// knows. Everything applied earlier is durable then, too.
	Durable
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrIncomplete means that a list cannot be answered in full: a record of
	// it is damaged. A shortened list is never returned.
	ErrIncomplete = errors.New("the stored list is not complete")
	// ErrDamaged means that a record failed its checksum.
	ErrDamaged = errors.New("the stored record is damaged")
	// ErrFull means that the store may not grow or the disk is full. Nothing
	// was changed.
	ErrFull = errors.New("the store is full")
	// ErrHeld means that another process has the store open.
	ErrHeld = errors.New("the store is open in another process")
)

// Batch is a set of changes that are made together or not at all. The zero
// value is empty and ready to use. Not safe for concurrent use.
type Batch struct {
	ops []op
}

type op struct {
	kind     opKind
	object   Object
	key      Key
	query    Query
	view     View
	entry    Entry
	revision uint64
	bucket   string
	name     string
	value    []byte
}

type opKind uint8

const (
	opPut opKind = iota + 1
	opDelete
	opSetView
	opDeleteView
	opJoin
	opLeave
	opSetRevision
	opResetRevision
	opPutEntry
	opDeleteEntry
	opPutSecret
	opDeleteSecret
	opPutDocument
	opDeleteDocument
)

// Put writes an object. An object that is in no view when the batch is applied
// is removed by the next collection of garbage.
func (b *Batch) Put(o Object) { b.ops = append(b.ops, op{kind: opPut, object: o}) }

// Delete removes an object, and its membership in every view.
func (b *Batch) Delete(k Key) { b.ops = append(b.ops, op{kind: opDelete, key: k}) }

// SetView creates or replaces the description of a view, not its members.
func (b *Batch) SetView(v View) { b.ops = append(b.ops, op{kind: opSetView, view: v}) }

// DeleteView removes a view and its memberships; objects in no other view go
// with it.
func (b *Batch) DeleteView(q Query) { b.ops = append(b.ops, op{kind: opDeleteView, query: q}) }

// Join makes an object a member of a view.
func (b *Batch) Join(q Query, k Key) { b.ops = append(b.ops, op{kind: opJoin, query: q, key: k}) }

// Leave ends a membership; an object in no other view goes with it.
func (b *Batch) Leave(q Query, k Key) { b.ops = append(b.ops, op{kind: opLeave, query: q, key: k}) }

// SetRevision records the highest resourceVersion that a client has been shown.
// It never goes back.
func (b *Batch) SetRevision(rv uint64) {
	b.ops = append(b.ops, op{kind: opSetRevision, revision: rv})
}

// ResetRevision makes rv the highest resourceVersion that a client has been shown,
// though it may be lower than the one before: the cloud's revisions have begun
// anew. What is stored of before has to be made known as unknown by the same
// batch or earlier ones (resourceVersion 0).
func (b *Batch) ResetRevision(rv uint64) {
	b.ops = append(b.ops, op{kind: opResetRevision, revision: rv})
}

// PutEntry appends an unsent write (Seq 0) or replaces the one of that Seq.
func (b *Batch) PutEntry(e Entry) { b.ops = append(b.ops, op{kind: opPutEntry, entry: e}) }

// DeleteEntry removes an unsent write.
func (b *Batch) DeleteEntry(seq uint64) {
	b.ops = append(b.ops, op{kind: opDeleteEntry, entry: Entry{Seq: seq}})
}

// PutSecret seals a value (service account tokens and the like).
func (b *Batch) PutSecret(bucket, name string, value []byte) {
	b.ops = append(b.ops, op{kind: opPutSecret, bucket: bucket, name: name, value: value})
}

// DeleteSecret removes a sealed value.
func (b *Batch) DeleteSecret(bucket, name string) {
	b.ops = append(b.ops, op{kind: opDeleteSecret, bucket: bucket, name: name})
}

// PutDocument keeps a document that is no object: discovery, OpenAPI, keys.
func (b *Batch) PutDocument(name string, value []byte) {
	b.ops = append(b.ops, op{kind: opPutDocument, name: name, value: value})
}

// DeleteDocument removes a document.
func (b *Batch) DeleteDocument(name string) {
	b.ops = append(b.ops, op{kind: opDeleteDocument, name: name})
}

// Len returns the number of changes.
func (b *Batch) Len() int { return len(b.ops) }
