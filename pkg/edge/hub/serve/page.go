package serve

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"skerry.dev/skerry/pkg/edge/hub/views"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// writeList writes the members of a snapshot behind after, at most limit.
func (x *exchange) writeList(snapshot *views.Snapshot, after store.Key, limit int64, synced time.Time, live bool) {
	ctx := x.r.Context()
	media, err := wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	if err != nil {
		x.source = sourceHub
		x.fail(err)
		return
	}
	about := metav1.ListMeta{ResourceVersion: strconv.FormatUint(snapshot.ResourceVersion(), 10)}
	if limit > 0 {
		if about.Continue, about.RemainingItemCount, err = x.nextPage(snapshot, after, limit); err != nil {
			x.fail(x.unreadable(err))
			return
		}
	}
	items := snapshot.Items(ctx, after, limit)
	if x.rewrites() || !x.Upstream.Online() {
		plain := items
		items = func(yield func(store.Object) error) error {
			return plain(func(o store.Object) error {
				o, _, err := x.rewrite(o, !live)
				if err != nil {
					return err
				}
				return yield(o)
			})
		}
	}
	if live && limit == 0 && after == (store.Key{}) && !x.forDNS() && x.writeShelved(snapshot, media, about, items) {
		return
	}
	header := x.w.Header()
	header.Set("Content-Type", media.ContentType(false))
	header.Set("Cache-Control", "no-cache, private")
	header.Set(HeaderSource, x.source)
	if !live {
		x.age(synced)
	}
	out := &lateWriter{x: x}
	if err := wire.WriteList(out, media, x.req.Group, x.req.Version, x.kind(snapshot.Kind()), about, items); err != nil {
		if out.started {
			x.Logger.Error("a list broke off", "path", x.r.URL.Path, "err", err)
			panic(http.ErrAbortHandler) // a shortened list must not look whole
		}
		header.Del("Content-Type")
		if errors.Is(err, context.Canceled) {
			panic(http.ErrAbortHandler)
		}
		x.fail(x.unreadable(err))
		return
	}
	if err := out.close(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// writeShelved writes a list that is held in the form in which it is written, or
// makes it so; false if it cannot, and nothing is written.
func (x *exchange) writeShelved(snapshot *views.Snapshot, media wire.Media, about metav1.ListMeta, items wire.Items) bool {
	if !wire.Encodable(media) || x.rewrites() || !x.Upstream.Online() {
		return false // what is rewritten depends on who asks, and when
	}
	key := shelfKey{query: x.req.Query(), revision: snapshot.ResourceVersion(), media: media}
	held := x.shelf.take(key)
	if held == nil {
		bytes := 0
		grow := func(n int) bool {
			if !x.shelf.reserve(n) {
				return false
			}
			bytes += n
			return true
		}
		encoded, err := wire.EncodeItems(media, x.req.Group, x.req.Version, x.kind(snapshot.Kind()), grow, items)
		if err != nil {
			x.shelf.release(bytes)
			x.Logger.Debug("a list is written piece by piece", "path", x.r.URL.Path, "err", err)
			return false
		}
		held = x.shelf.put(key, encoded, bytes)
	}
	defer x.shelf.giveBack(held)
	list, err := held.list.List(about)
	if err != nil {
		return false
	}
	header := x.w.Header()
	header.Set("Content-Type", media.ContentType(false))
	header.Set("Content-Length", strconv.Itoa(list.Len()))
	header.Set("Cache-Control", "no-cache, private")
	header.Set(HeaderSource, x.source)
	x.w.WriteHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return true
	}
	if _, err := list.WriteTo(x.w); err != nil {
		panic(http.ErrAbortHandler)
	}
	return true
}

// kind finds out what the members of an empty list would be.
func (x *exchange) kind(known string) string {
	if known != "" {
		return known
	}
	if all, err := x.Store.Views(x.req.Group, x.req.Resource); err == nil {
		for _, v := range all {
			if v.Version == x.req.Version && v.Kind != "" {
				return v.Kind
			}
		}
	}
	for kind := range scheme.Scheme.KnownTypes(schema.GroupVersion{Group: x.req.Group, Version: x.req.Version}) {
		if plural, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: kind}); plural.Resource == x.req.Resource {
			return kind
		}
	}
	return ""
}

// lateWriter holds back the beginning of an answer, so that one that fails at
// once can still become an error, and short ones get a length.
type lateWriter struct {
	x       *exchange
	held    []byte
	started bool
}

const heldBytes = 16 << 10

func (w *lateWriter) Write(p []byte) (int, error) {
	if !w.started {
		if len(w.held)+len(p) <= heldBytes {
			w.held = append(w.held, p...)
			return len(p), nil
		}
		w.started = true
		if len(w.held) > 0 {
			if _, err := w.x.w.Write(w.held); err != nil {
				return 0, err
			}
			w.held = nil
		}
	}
	return w.x.w.Write(p)
}

func (w *lateWriter) close() error {
	if w.started {
		return nil
	}
	w.x.w.Header().Set("Content-Length", strconv.Itoa(len(w.held)))
	w.x.w.WriteHeader(http.StatusOK)
	if w.x.r.Method == http.MethodHead {
		return nil
	}
	_, err := w.x.w.Write(w.held)
	return err
}

// nextPage returns the token for what is behind the next limit members, if
// anything is.
func (x *exchange) nextPage(snapshot *views.Snapshot, after store.Key, limit int64) (string, *int64, error) {
	var last store.Key
	var seen, behind int64
	err := snapshot.Items(x.r.Context(), after, 0)(func(o store.Object) error {
		if seen++; seen <= limit {
			last = o.Key
		} else {
			behind++
		}
		return nil
	})
	if err != nil || behind == 0 {
		return "", nil, err
	}
	token := x.continues.seal(x.req, snapshot.ResourceVersion(), last)
	if !x.req.Options.Label.Empty() || !x.req.Options.Field.Empty() {
		return token, nil, nil // upstream counts only what is not selected
	}
	return token, &behind, nil
}
