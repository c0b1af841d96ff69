package serve

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// capture compresses a body while it is read, and gives it away at the end.
type capture struct {
	io.ReadCloser
	packed bytes.Buffer
	packer io.WriteCloser
	sum    interface {
		io.Writer
		Sum([]byte) []byte
	}
	done func(packed []byte, sum string)
}

func newCapture(resp *http.Response) (*capture, error) {
	c := &capture{ReadCloser: resp.Body, sum: sha256.New()}
	switch resp.Header.Get("Content-Encoding") {
	case "", "identity":
		c.packer, _ = gzip.NewWriterLevel(&c.packed, gzip.BestSpeed)
	case "gzip":
		c.packer = struct {
			io.Writer
			io.Closer
		}{&c.packed, io.NopCloser(nil)}
	default:
		return nil, errors.New("unknown encoding")
	}
	return c, nil
}

func (c *capture) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.packer == nil {
		return n, err
	}
	_, _ = c.packer.Write(p[:n])
	_, _ = c.sum.Write(p[:n])
	if c.packed.Len() > maxDocument {
		c.packer, c.packed = nil, bytes.Buffer{}
	} else if err == io.EOF {
		if c.packer.Close() == nil {
			c.done(c.packed.Bytes(), hex.EncodeToString(c.sum.Sum(nil)))
		}
		c.packer = nil
	}
	return n, err
}

// prefetched are the documents that the hub fetches itself.
var prefetched = []struct{ path, accept string }{
	{"/version", "application/json"},
	{"/api", aggregated}, {"/apis", aggregated},
	{"/api", "application/json"}, {"/apis", "application/json"},
	{"/api/v1", "application/json"},
}

const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

const (
	documentStale   = 10 * time.Minute // after a reconnect
	documentRefresh = 6 * time.Hour    // while online
)

// prefetch fetches documents that are missing or old: soon after each reconnect,
// and now and then.
func (h *Handler) prefetch(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		changes, stale := h.Upstream.Changes(), documentRefresh
		select {
		case <-ctx.Done():
			return
		case <-changes:
			stale = documentStale
		case <-retry.C:
		}
		pause := documentRefresh
		if !h.Upstream.Online() {
			retry.Reset(pause)
			continue
		}
		for _, wanted := range prefetched {
			if at, ok := h.documents.fetched(wanted.path, wanted.accept); ok && h.Now().Sub(at) < stale {
				continue
			}
			if err := h.fetch(ctx, wanted.path, wanted.accept); err != nil && ctx.Err() == nil {
				h.Logger.Info("a document could not be fetched", "path", wanted.path, "err", err)
				pause = 30 * time.Second
			}
		}
		retry.Reset(pause)
	}
}

func (h *Handler) fetch(ctx context.Context, path, accept string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	resp, err := h.Upstream.Do(ctx, http.MethodGet, path, nil, "", accept, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the API server answered %d", resp.StatusCode)
	}
	body, err := newCapture(resp)
	if err != nil {
		return err
	}
	contentType, etag := resp.Header.Get("Content-Type"), resp.Header.Get("ETag")
	body.done = func(packed []byte, sum string) { err = h.documents.put(path, contentType, etag, sum, packed) }
	if _, copied := io.Copy(io.Discard, body); copied != nil {
		return copied
	}
	return err
}
