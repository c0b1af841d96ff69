package serve

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// A list is read for the store beside the client, which must not wait for
	// that: so many pieces may queue, and so long may all further ones make the
	// client wait. A list that needs more is not kept.
	teeChunks   = 32
	teePatience = 300 * time.Millisecond
)

var (
	errQuota  = errors.New("the client's quota does not allow to keep this list")
	errBroken = errors.New("the list broke off, or was too fast to keep")
)

// keepList reads a list for the store beside its client, who does not wait until
// it is kept: whoever is answered from the store does (see pending). It begins
// when the client has all, or when no more of it can be held.
func (x *exchange) keepList(resp *http.Response, objects int, quota int64) {
	t := &tee{ReadCloser: resp.Body, chunks: make(chan []byte, teeChunks), patience: teePatience, ready: make(chan struct{})}
	encoding, contentType := resp.Header.Get("Content-Encoding"), resp.Header.Get("Content-Type")
	resp.Body = t
	ctx := context.WithoutCancel(x.r.Context())
	done := x.pending.begin(x.groupResource())
	go func() {
		defer done()
		defer t.drain()
		<-t.ready
		defer func() {
			if failure := recover(); failure != nil {
				x.Logger.Error("keeping a list made the hub panic", "path", x.r.URL.Path, "panic", failure)
			}
		}()
		if err := x.readKept(ctx, t, encoding, contentType, objects, quota); err != nil {
			x.Logger.Info("a list could not be kept", "client", x.caller.ID(), "path", x.r.URL.Path, "err", err)
		}
	}()
}

func (x *exchange) readKept(ctx context.Context, t *tee, encoding, contentType string, objects int, quota int64) error {
	var body io.Reader = &chunkReader{t: t}
	if encoding == "gzip" {
		unzipped, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		body = unzipped
	} else if encoding != "" && encoding != "identity" {
		return nil
	}
	body, kind := sniffKind(contentType, body)
	keeper := x.Views.NewKeeper(x.req.Query(), kind, x.caller.Node)
	if keeper == nil {
		return nil
	}
	done := false
	defer func() {
		if !done {
			keeper.Abort()
		}
	}()
	var count int
	var size int64
	meta, err := wire.ReadList(contentType, body, x.listKey(), maxObject, func(o store.Object) error {
		count++
		if size += int64(len(o.Data)); count > objects || size > quota {
			return errQuota
		}
		return keeper.Add(ctx, o)
	})
	if err != nil {
		return err
	}
	if meta.Continue != "" {
		return nil // a page of a list
	}
	revision, err := strconv.ParseUint(meta.ResourceVersion, 10, 64)
	if err != nil {
		return err
	}
	done = true
	return keeper.Done(ctx, revision)
}

// tee hands what its reader reads to somebody else, too, who must keep up.
type tee struct {
	io.ReadCloser
	chunks   chan []byte
	patience time.Duration
	ready    chan struct{} // closed when it is time to read
	begin    sync.Once
	lost     atomic.Bool // the other side has not got all, or wants no more
	end      sync.Once
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if n > 0 && !t.lost.Load() { // after drain nobody reads, and nothing is sent
		t.send(append(buffers.Get()[:0], p[:n]...))
	}
	if err != nil {
		t.finish(err == io.EOF)
	}
	return n, err
}

func (t *tee) send(chunk []byte) {
	select {
	case t.chunks <- chunk:
		return
	default:
		t.begin.Do(func() { close(t.ready) })
	}
	if t.patience <= 0 {
		t.lost.Store(true)
		return
	}
	started := time.Now()
	timer := time.NewTimer(t.patience)
	defer timer.Stop()
	select {
	case t.chunks <- chunk:
		t.patience -= time.Since(started)
	case <-timer.C:
		t.patience = 0
		t.lost.Store(true)
	}
}

func (t *tee) finish(whole bool) {
	t.end.Do(func() {
		if !whole {
			t.lost.Store(true)
		}
		close(t.chunks)
	})
}

func (t *tee) Close() error {
	t.finish(false)
	t.begin.Do(func() { close(t.ready) })
	return t.ReadCloser.Close()
}

// drain takes what nobody wants, so that the client never waits for it.
func (t *tee) drain() {
	t.lost.Store(true)
	for chunk := range t.chunks {
		buffers.Put(chunk)
	}
}

type chunkReader struct {
	t           *tee
	chunk, rest []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.chunk != nil {
			buffers.Put(r.chunk)
			r.chunk = nil
		}
		chunk, ok := <-r.t.chunks
		if !ok {
			if r.t.lost.Load() {
				return 0, errBroken
			}
			return 0, io.EOF
		}
		r.chunk, r.rest = chunk, chunk
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

var kindOfList = regexp.MustCompile(`"kind"\s*:\s*"(\w+)List"`)

// sniffKind reads what the members of a list are, of which an empty list has
// none to tell: "Pod" of a PodList. "" if the beginning does not say.
func sniffKind(contentType string, body io.Reader) (io.Reader, string) {
	reader := bufio.NewReaderSize(body, 4<<10)
	start, _ := reader.Peek(512)
	if strings.HasPrefix(contentType, runtime.ContentTypeProtobuf) {
		return reader, protobufKind(start)
	}
	if match := kindOfList.FindSubmatch(start); match != nil {
		return reader, string(match[1])
	}
	return reader, ""
}

// protobufKind reads the TypeMeta that begins each body of Kubernetes: the magic
// number, then field 1 of Unknown, which has the kind as its field 2.
func protobufKind(b []byte) string {
	b, ok := bytes.CutPrefix(b, []byte("k8s\x00\x0a"))
	if !ok || len(b) == 0 || int(b[0]) >= 0x80 || len(b) < 1+int(b[0]) {
		return ""
	}
	for b = b[1 : 1+int(b[0])]; len(b) >= 2 && len(b) >= 2+int(b[1]); b = b[2+int(b[1]):] {
		if b[0] == 0x12 {
			kind, _ := strings.CutSuffix(string(b[2:2+int(b[1])]), "List")
			return kind
		}
	}
	return ""
}

// readStatus reads a Status, in whatever encoding it came.
func readStatus(resp *http.Response, body []byte) (metav1.Status, bool) {
	plain, err := inflate(resp.Header.Get("Content-Encoding"), body)
	if err != nil {
		return metav1.Status{}, false
	}
	return decodeStatus(resp.Header.Get("Content-Type"), plain)
}
