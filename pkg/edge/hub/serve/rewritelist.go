package serve

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// Bounds of the lists that are held to be rewritten, as they came: compressed, if
// they are long.
const (
	maxHeldList  = 8 << 20  // of one
	maxHeldLists = 16 << 20 // of all
	heldStep     = 64 << 10
)

// room is memory that several requests share. Half of it is for clients that are
// kept only: they are what the node lives on.
type room struct {
	mu    sync.Mutex
	free  int64
	half  int64
	freed chan struct{} // closed when there is more
}

func newRoom(size int64) *room {
	return &room{free: size, half: size / 2, freed: make(chan struct{})}
}

// take waits for room until ctx ends.
func (r *room) take(ctx context.Context, n int64, kept bool) error {
	for {
		r.mu.Lock()
		left := r.free - n
		if left >= 0 && (kept || left >= r.half) {
			r.free = left
			r.mu.Unlock()
			return nil
		}
		freed := r.freed
		r.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return apierrors.NewTooManyRequests("the hub is rewriting as many lists as it has memory for", 1)
		}
	}
}

func (r *room) give(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free += n
	close(r.freed)
	r.freed = make(chan struct{})
}

// unusable is an answer that came and cannot be passed on. It is not as if none
// had come: the store must not answer in its stead.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

// heldList is the body of a list as it came. It must be closed.
type heldList struct {
	room     *room
	taken    int64
	chunks   [][]byte // not one buffer, which would be copied as it grows
	encoding string
	media    string
	key      store.Key
}

// Close gives the room back.
func (l *heldList) Close() error {
	l.room.give(l.taken)
	l.taken, l.chunks = 0, nil
	return nil
}

// fill reads the body. An error of the body itself is as it is.
func (l *heldList) fill(ctx context.Context, body io.Reader, kept bool) error {
	for {
		if l.taken+heldStep > maxHeldList {
			return unusable{apierrors.NewRequestEntityTooLargeError("the list is too long for this node's hub; ask for it in pages, with limit")}
		}
		if err := l.room.take(ctx, heldStep, kept); err != nil {
			return unusable{err}
		}
		l.taken += heldStep
		chunk := make([]byte, 0, heldStep)
		for len(chunk) < cap(chunk) {
			n, err := body.Read(chunk[len(chunk):cap(chunk)])
			chunk = chunk[:len(chunk)+n]
			if err != nil {
				l.chunks = append(l.chunks, chunk)
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
		l.chunks = append(l.chunks, chunk)
	}
}

// each reads the items. It can be done more than once.
func (l *heldList) each(fn func(store.Object) error) (metav1.ListMeta, string, error) {
	var parts []io.Reader
	for _, chunk := range l.chunks {
		parts = append(parts, bytes.NewReader(chunk))
	}
	body := io.MultiReader(parts...)
	if l.encoding == "gzip" {
		plain, err := gzip.NewReader(body)
		if err != nil {
			return metav1.ListMeta{}, "", err
		}
		body = plain
	}
	body, kind := sniffKind(l.media, body)
	meta, err := wire.ReadList(l.media, body, l.key, maxObject, func(o store.Object) error {
		kind = o.Kind
		return fn(o)
	})
	if err == nil {
		_, err = io.Copy(io.Discard, body) // the checksum is at the end
	}
	return meta, kind, err
}

// unpack undoes a compression that the client did not ask for.
func (x *exchange) unpack(resp *http.Response) error {
	if resp.Header.Get("Content-Encoding") != "gzip" || strings.Contains(x.r.Header.Get("Accept-Encoding"), "gzip") {
		return nil
	}
	plain, err := gzip.NewReader(resp.Body)
	if err != nil {
		return unusable{err}
	}
	resp.Body = &joined{plain, resp.Body}
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
	resp.ContentLength = -1
	return nil
}

// rewriteList holds a list that passes, and writes it anew: where a member
// changes, so does the length of the whole, which comes first in protobuf. It is
// held as it came and read again for each pass.
func (x *exchange) rewriteList(resp *http.Response, kept, keep bool, objects int, quota int64) error {
	list := &heldList{room: x.room, encoding: resp.Header.Get("Content-Encoding"), media: resp.Header.Get("Content-Type"), key: x.listKey()}
	switch list.encoding {
	case "", "identity", "gzip":
	default:
		return unusable{fmt.Errorf("unknown encoding %q", list.encoding)}
	}
	if keep {
		x.keepList(resp, objects, quota)
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), max(x.HeaderDeadline-time.Since(x.began), x.HeaderDeadline/4))
	defer cancel()
	err := list.fill(ctx, resp.Body, kept)
	_ = resp.Body.Close()
	if err != nil {
		_ = list.Close()
		return err
	}
	// All of it is looked at before anything is sent on: afterwards an error
	// can only break the answer off.
	meta, kind, err := list.each(func(o store.Object) error {
		_, _, err := x.rewrite(o, false)
		return err
	})
	var media wire.Media
	if err == nil {
		media, err = wire.Negotiate(x.r, wire.BuiltIn(x.req.Group, x.req.Version), false)
	}
	if err != nil {
		_ = list.Close()
		return unusable{err}
	}
	resp.Header.Set("Content-Type", media.ContentType(false))
	resp.Header.Del("Content-Length")
	resp.Header.Del("Content-Encoding")
	resp.ContentLength = -1
	out, in := io.Pipe()
	go func() {
		defer list.Close()
		in.CloseWithError(wire.WriteList(in, media, x.req.Group, x.req.Version, kind, meta, func(yield func(store.Object) error) error {
			_, _, err := list.each(func(o store.Object) error {
				o, _, err := x.rewrite(o, false)
				if err != nil {
					return err
				}
				return yield(o)
			})
			return err
		}))
	}()
	resp.Body = out
	return nil
}
