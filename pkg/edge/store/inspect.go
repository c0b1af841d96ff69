package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Record is one line of what `skerry store inspect` gets: exactly one field is
// set. Sealed data is in none of them.
type Record struct {
	Summary  *Stats        `json:"summary,omitempty"`
	View     *ViewInfo     `json:"view,omitempty"`
	Entry    *EntryInfo    `json:"entry,omitempty"`
	Sealed   *SealedInfo   `json:"sealed,omitempty"`
	Document *DocumentInfo `json:"document,omitempty"`
	Object   *ObjectInfo   `json:"object,omitempty"`
	Problem  string        `json:"problem,omitempty"`
}

// ViewInfo is a view and how many members it has.
type ViewInfo struct {
	View
	Members int `json:"members"`
}

// EntryInfo is an unsent write without its payload.
type EntryInfo struct {
	Seq     uint64    `json:"seq"`
	Key     Key       `json:"key"`
	UID     string    `json:"uid,omitempty"`
	Op      string    `json:"op"`
	Bytes   int       `json:"bytes"`
	Created time.Time `json:"created"`
}

// SealedInfo is a sealed value: whose, nobody can tell, but which and how old.
type SealedInfo struct {
	Bucket  string    `json:"bucket"`
	Hash    string    `json:"hash"` // of the name, with a key
	Bytes   int       `json:"bytes"`
	Created time.Time `json:"created"`
}

// DocumentInfo is a document without its contents.
type DocumentInfo struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
}

// ObjectInfo is an object; Data is empty for a secret, and if it was not asked
// for.
type ObjectInfo struct {
	Key             Key    `json:"key"`
	Kind            string `json:"kind"`
	UID             string `json:"uid"`
	ResourceVersion uint64 `json:"resourceVersion"`
	Format          Format `json:"format"`
	Bytes           int    `json:"bytes"`
	Sealed          bool   `json:"sealed,omitempty"`
	Damaged         bool   `json:"damaged,omitempty"`
	Data            []byte `json:"data,omitempty"`
}

// InspectOptions choose what Inspect tells: without a resource all but objects,
// with one (pods, or endpointslices.discovery.k8s.io; "all" is every one) its
// objects.
type InspectOptions struct {
	Resource, Namespace string
	Data                bool
}

// Inspect tells what is in the store, for operators. Each emitted record is
// valid until emit returns.
func (s *Store) Inspect(ctx context.Context, o InspectOptions, emit func(Record) error) error {
	if o.Resource != "" {
		return s.inspectObjects(ctx, o, emit)
	}
	var out []Record
	err := s.read(func(r *reader) error {
		out = nil
		for _, v := range s.views {
			if o.Namespace == "" || v.Namespace == o.Namespace {
				out = append(out, Record{View: &ViewInfo{View: s.describe(r, v), Members: int(v.members.count)}})
			}
		}
		slices.SortFunc(out, func(a, b Record) int {
			return strings.Compare(a.View.Query.String(), b.View.Query.String())
		})
		if err := r.each(bOutbox, nil, nil, func(k, v []byte) (bool, error) {
			e, _, err := decodeEntry(k, v)
			if err != nil {
				out = append(out, Record{Problem: "damaged: " + hurtRecord{bOutbox, string(k)}.String()})
				return true, nil
			}
			out = append(out, Record{Entry: &EntryInfo{Seq: e.Seq, Key: e.Key, UID: e.UID, Op: e.Op, Bytes: len(e.Payload), Created: e.Created}})
			return true, nil
		}); err != nil {
			return err
		}
		if err := r.each(bSecrets, nil, nil, func(k, v []byte) (bool, error) {
			name, hash, _ := strings.Cut(string(k), "\x00")
			created, sealed, err := decodeSecret(k, v)
			if err != nil {
				out = append(out, Record{Problem: "damaged: " + hurtRecord{bSecrets, string(k)}.String()})
				return true, nil
			}
			out = append(out, Record{Sealed: &SealedInfo{Bucket: name, Hash: hex.EncodeToString([]byte(hash)), Bytes: len(sealed) - sealOverhead, Created: created}})
			return true, nil
		}); err != nil {
			return err
		}
		return r.each(bDocuments, nil, nil, func(k, v []byte) (bool, error) {
			out = append(out, Record{Document: &DocumentInfo{Name: string(k), Bytes: len(v) - 5}})
			return true, nil
		})
	})
	if err != nil {
		return fmt.Errorf("inspecting the store: %w", err)
	}
	st := s.Stats()
	if err := emit(Record{Summary: &st}); err != nil {
		return err
	}
	for _, p := range s.Problems() {
		if err := emit(Record{Problem: p}); err != nil {
			return err
		}
	}
	for _, rec := range out {
		if err := emit(rec); err != nil {
			return err
		}
	}
	return nil
}

// matches says whether a key is of the resource, written as kubectl users do.
func (o InspectOptions) matches(k Key) bool {
	if o.Namespace != "" && k.Namespace != o.Namespace {
		return false
	}
	name, group, grouped := strings.Cut(o.Resource, ".")
	return o.Resource == "all" || k.Resource == name && (!grouped || k.Group == group)
}

func (s *Store) inspectObjects(ctx context.Context, o InspectOptions, emit func(Record) error) error {
	var after []byte
	for {
		var out []*ObjectInfo
		done := true
		begin := after
		err := s.read(func(r *reader) error {
			out, after, done = nil, begin, true
			size, looked := 0, 0
			return r.each(bObjects, nil, after, func(key, v []byte) (bool, error) {
				after = slices.Clone(key)
				k, err := parseKey(key)
				if err == nil && o.matches(k) {
					info := &ObjectInfo{Key: k}
					rec, err := decodeObject(key, v)
					if err != nil {
						info.Damaged = true
					} else {
						info.Kind, info.UID, info.ResourceVersion = string(rec.kind), string(rec.uid), rec.rv
						info.Format, info.Bytes, info.Sealed = rec.format, rec.size, rec.sealed
						if o.Data && !rec.sealed {
							info.Data = slices.Clone(rec.data)
							size += len(rec.data)
						}
					}
					out = append(out, info)
				}
				looked++
				done = looked < chunkObjects && size < chunkBytes
				return done, nil
			})
		})
		if err != nil {
			return fmt.Errorf("inspecting the store: %w", err)
		}
		for _, info := range out {
			if err := emit(Record{Object: info}); err != nil {
				return err
			}
		}
		if done {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
