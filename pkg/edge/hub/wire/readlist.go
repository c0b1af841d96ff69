package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

// maxListMeta bounds what a list has besides its items: its metadata is a few
// hundred bytes, with a long continue token.
const maxListMeta = 64 << 10

// ReadList reads a list's body as a stream and calls fn with each item, in
// bounded memory (one item, of at most maxItem bytes). The kind of the items is
// in each. The ListMeta may come before or after the items. Without an error the
// list was whole.
func ReadList(contentType string, body io.Reader, k store.Key, maxItem int64, fn func(store.Object) error) (metav1.ListMeta, error) {
	encoding, err := encodingOf(contentType)
	if err != nil {
		return metav1.ListMeta{}, err
	}
	l := &listReader{encoding: encoding, key: k, maxItem: maxItem, fn: fn}
	switch encoding {
	case Protobuf:
		err = l.proto(body)
	case JSON:
		err = l.json(body)
	case CBOR:
		err = l.cbor(body)
	default:
		return metav1.ListMeta{}, unsupportedMediaType(contentType)
	}
	if err != nil {
		return metav1.ListMeta{}, fmt.Errorf("reading a list of %s: %w", k.Resource, err)
	}
	return l.meta, nil
}

type listReader struct {
	encoding Encoding
	key      store.Key
	maxItem  int64
	fn       func(store.Object) error

	kind  string // of one item, as the list says
	meta  metav1.ListMeta
	items bool // seen
}

// isKind takes the list's kind.
func (l *listReader) isKind(kind string) error {
	item, ok := strings.CutSuffix(kind, "List")
	if !ok {
		return fmt.Errorf("it is a %q", kind)
	}
	l.kind = item
	return nil
}

func (l *listReader) isVersion(apiVersion string) error {
	if want := groupVersion(l.key).String(); apiVersion != "" && apiVersion != want {
		return fmt.Errorf("the API version in the data (%s) does not match the expected API version (%s)", apiVersion, want)
	}
	return nil
}

func (l *listReader) yield(o store.Object, err error) error {
	if err != nil {
		return err
	}
	if o.Name == "" {
		return errors.New("an item has no name")
	}
	return l.fn(o)
}

// budget fails a reader when it has given more than a part may have.
type budget struct {
	r    io.Reader
	left int64
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooMuch
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (l *listReader) json(body io.Reader) error {
	limited := &budget{r: body}
	d := json.NewDecoder(limited)
	part := func(max int64) { limited.left = max + 4096 }
	value := func(max int64) (json.RawMessage, error) {
		part(max)
		raw := json.RawMessage{}
		if err := d.Decode(&raw); err != nil {
			return nil, unexpected(err)
		}
		if int64(len(raw)) > max {
			return nil, errTooMuch
		}
		return raw, nil
	}
	part(maxListMeta)
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errJSON, unexpected(err))
	}
	for {
		part(maxListMeta)
		t, err := d.Token()
		if err != nil {
			return unexpected(err)
		}
		if t == json.Delim('}') {
			break
		}
		switch t {
		case "items":
			if err := l.jsonItems(d, part, value); err != nil {
				return err
			}
			continue
		}
		raw, err := value(maxListMeta)
		if err != nil {
			return err
		}
		text := ""
		switch t {
		case "kind":
			if err = jsonInto(raw, &text); err == nil {
				err = l.isKind(text)
			}
		case "apiVersion":
			if err = jsonInto(raw, &text); err == nil {
				err = l.isVersion(text)
			}
		case "metadata":
			err = jsonInto(raw, &l.meta)
		}
		if err != nil {
			return err
		}
	}
	part(maxListMeta)
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.Join(errors.New("something stands behind the list"), err)
	}
	if !l.items {
		return errors.New("it has no items")
	}
	return nil
}

func (l *listReader) jsonItems(d *json.Decoder, part func(int64), value func(int64) (json.RawMessage, error)) error {
	if l.items {
		return errors.New("it has items twice")
	}
	l.items = true
	part(maxListMeta)
	t, err := d.Token()
	if err != nil {
		return unexpected(err)
	}
	if t == nil {
		return nil
	}
	if t != json.Delim('[') {
		return errJSON
	}
	for {
		part(l.maxItem)
		if !d.More() {
			break
		}
		raw, err := value(l.maxItem)
		if err != nil {
			return err
		}
		if err := l.yield(decode(JSON, raw, l.kind, l.key)); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return unexpected(err)
	}
	return nil
}

func (l *listReader) proto(body io.Reader) error {
	p := &protoReader{r: bufio.NewReaderSize(body, 32<<10), left: 1 << 62}
	prefix, err := p.bytes(uint64(len(protoPrefix)), maxListMeta)
	if err != nil {
		return err
	}
	if string(prefix) != string(protoPrefix) {
		return errors.New("provided data does not appear to be a protobuf message")
	}
	return p.fields(func(num protowire.Number, typ protowire.Type) error {
		if num > 4 || typ != protowire.BytesType {
			return p.skip(num, typ)
		}
		size, err := p.varint()
		if err != nil {
			return err
		}
		if num == 2 {
			if l.items {
				return errors.New("it has two bodies")
			}
			l.items = true
			return p.within(size, func() error { return l.protoItems(p) })
		}
		b, err := p.bytes(size, maxListMeta)
		if err != nil {
			return err
		}
		switch {
		case num == 1:
			e := opened{}
			if err := e.typeMeta(b); err != nil {
				return err
			}
			if err := l.isVersion(e.apiVersion); err != nil {
				return err
			}
			return l.isKind(e.kind)
		case num == 3 && len(b) > 0:
			return fmt.Errorf("content encoding %q is not supported", b)
		}
		return nil
	}, func() error {
		if !l.items {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
}

func (l *listReader) protoItems(p *protoReader) error {
	if l.kind == "" {
		l.kind = kindOf(l.key)
	}
	if l.kind == "" {
		return errors.New("it does not say its kind")
	}
	return p.fields(func(num protowire.Number, typ protowire.Type) error {
		if (num != fieldMetadata && num != fieldItems) || typ != protowire.BytesType {
			return p.skip(num, typ)
		}
		size, err := p.varint()
		if err != nil {
			return err
		}
		if num == fieldMetadata {
			b, err := p.bytes(size, maxListMeta)
			if err != nil {
				return err
			}
			return l.meta.Unmarshal(b)
		}
		b, err := p.bytes(size, l.maxItem)
		if err != nil {
			return err
		}
		return l.yield(identified(store.Object{
			Key:  store.Key{Group: l.key.Group, Version: l.key.Version, Resource: l.key.Resource},
			Kind: l.kind, Format: store.FormatProtobuf, Data: bytes.Clone(b),
		}))
	}, func() error { return nil })
}
