package serve

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"mime"
	"strings"
	"sync"
	"time"

	"github.com/munnerz/goautoneg"

	"skerry.dev/skerry/pkg/edge/store"
)

// documents are the answers of the API server that are no objects: discovery,
// OpenAPI, the version, the issuer's keys. They are the same for every client.
type documents struct {
	store Store
	now   func() time.Time

	mu    sync.Mutex
	index map[string]*document // by path and media type
}

// document is what is known of one. Its body is in the store, compressed.
type document struct {
	ContentType string    `json:"contentType"`
	ETag        string    `json:"etag,omitempty"`
	Sum         string    `json:"sum,omitempty"`
	Size        int       `json:"size,omitempty"` // compressed
	Fetched     time.Time `json:"fetched"`
	// Absent says that the cloud answered 404; Body is that answer's.
	Absent bool   `json:"absent,omitempty"`
	Body   []byte `json:"body,omitempty"`
}

func newDocuments(s Store, now func() time.Time, logger *slog.Logger) *documents {
	d := &documents{store: s, now: now, index: map[string]*document{}}
	raw, ok, err := s.Document(documentIndex)
	if err == nil && ok {
		err = json.Unmarshal(raw, &d.index)
	}
	if err != nil {
		// They are fetched again; until then there are none.
		logger.Warn("the list of kept documents cannot be read", "err", err)
		d.index = map[string]*document{}
	}
	return d
}

// mediaKey writes a media type so that the one of a request and the one of its
// answer are the same.
func mediaKey(mediaType string) string {
	base, params, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return strings.ToLower(strings.TrimSpace(mediaType))
	}
	for name := range params {
		switch name {
		case "q", "charset", "profile":
			delete(params, name)
		}
	}
	// OpenAPI's types are asked for with an @ and answered with a dot.
	return mime.FormatMediaType(strings.ReplaceAll(base, "@", "."), params)
}

func documentKey(path, mediaType string) string { return path + " " + mediaKey(mediaType) }

// accepted lists the media types that a client reads, best first.
func accepted(accept string) []string {
	if strings.TrimSpace(accept) == "" {
		return []string{"*/*"}
	}
	var all []string
	for _, clause := range goautoneg.ParseAccept(accept) {
		base := clause.Type + "/" + clause.SubType
		if full := mime.FormatMediaType(strings.ReplaceAll(base, "@", "."), clause.Params); full != "" {
			base = full
		}
		all = append(all, base)
	}
	return all
}

// find returns the key of the best document of a path that a client reads.
func (d *documents) find(path, accept string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, media := range accepted(accept) {
		wanted := []string{media}
		if media == "*/*" || media == "application/*" {
			wanted = []string{"application/json", "text/plain"}
		}
		for _, media := range wanted {
			if key := documentKey(path, media); d.index[key] != nil {
				return key, true
			}
		}
	}
	key := absentKey(path)
	return key, d.index[key] != nil
}

func absentKey(path string) string { return path + " absent" }

// get returns a document and its compressed body.
func (d *documents) get(key string) (document, []byte, error) {
	d.mu.Lock()
	found := d.index[key]
	if found == nil {
		d.mu.Unlock()
		return document{}, nil, fmt.Errorf("document %q is gone", key)
	}
	about := *found
	d.mu.Unlock()
	if about.Absent {
		return about, nil, nil
	}
	packed, ok, err := d.store.Document(documentPrefix + key)
	if err == nil && !ok {
		err = fmt.Errorf("document %q is not in the store", key)
	}
	return about, packed, err
}

// put keeps a document.
func (d *documents) put(path, contentType, etag, sum string, packed []byte) error {
	key := documentKey(path, contentType)
	d.mu.Lock()
	defer d.mu.Unlock()
	before, now := d.index[key], d.now()
	same := before != nil && before.Sum == sum && before.ETag == etag && before.ContentType == contentType
	if same && now.Sub(before.Fetched) < time.Hour && d.index[absentKey(path)] == nil {
		// What is written less often than fetched is the time.
		before.Fetched = now
		return nil
	}
	total, count := len(packed), 1
	for other, about := range d.index {
		if other != key && !about.Absent {
			total, count = total+about.Size, count+1
		}
	}
	if total > maxDocumentBytes || count > maxDocuments {
		return fmt.Errorf("%d documents of %d bytes are more than is kept", count, total)
	}
	var batch store.Batch
	if !same {
		batch.PutDocument(documentPrefix+key, packed)
	}
	delete(d.index, absentKey(path))
	d.index[key] = &document{ContentType: contentType, ETag: etag, Sum: sum, Size: len(packed), Fetched: now}
	return d.save(&batch)
}

// putAbsent keeps the cloud's word that there is no such document.
func (d *documents) putAbsent(path, accept, contentType string, body []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var batch store.Batch
	changed := false
	for key, about := range d.index {
		// It was there once: a group that has been removed.
		if strings.HasPrefix(key, path+" ") && !about.Absent {
			batch.DeleteDocument(documentPrefix + key)
			delete(d.index, key)
			changed = true
		}
	}
	if before := d.index[absentKey(path)]; before != nil && !changed && d.now().Sub(before.Fetched) < time.Hour {
		before.Fetched = d.now()
		return nil
	}
	oldest, absent := "", 0
	for key, about := range d.index {
		if about.Absent {
			if absent++; oldest == "" || about.Fetched.Before(d.index[oldest].Fetched) {
				oldest = key
			}
		}
	}
	if absent >= maxAbsent && d.index[absentKey(path)] == nil {
		delete(d.index, oldest)
	}
	d.index[absentKey(path)] = &document{ContentType: contentType, Fetched: d.now(), Absent: true, Body: body}
	return d.save(&batch)
}

func (d *documents) save(batch *store.Batch) error {
	index, err := json.Marshal(d.index)
	if err != nil {
		return err
	}
	batch.PutDocument(documentIndex, index)
	return d.store.Apply(batch, store.Soon)
}

// fetched says how old a document is; false if there is none.
func (d *documents) fetched(path, accept string) (time.Time, bool) {
	key, ok := d.find(path, accept)
	if !ok {
		return time.Time{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	about := d.index[key]
	return about.Fetched, !about.Absent
}
