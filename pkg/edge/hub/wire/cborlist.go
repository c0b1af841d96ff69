package wire

import (
	"bufio"
	"errors"
	"io"

	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
)

func (l *listReader) cbor(body io.Reader) error {
	c := &cborReader{r: bufio.NewReaderSize(body, 32<<10)}
	head := func() (byte, uint64, bool, error) {
		c.buf, c.room = c.buf[:0], 16
		major, n, indefinite, err := c.head()
		return major, n, indefinite, unexpected(err)
	}
	major, n, indefinite, err := head()
	for err == nil && major == 6 {
		if n != 55799 {
			return errCBOR
		}
		major, n, indefinite, err = head()
	}
	if err != nil {
		return err
	}
	if major != 5 {
		return errCBOR
	}
	for i := uint64(0); indefinite || i < n; i++ {
		if indefinite {
			if stop, err := c.stop(); err != nil || stop {
				if err != nil {
					return err
				}
				break
			}
		}
		if err := l.cborMember(c, head); err != nil {
			return err
		}
	}
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.Join(errors.New("something stands behind the list"), err)
	}
	if !l.items {
		return errors.New("it has no items")
	}
	return nil
}

func (l *listReader) cborMember(c *cborReader, head func() (byte, uint64, bool, error)) error {
	key, text := "", ""
	if err := c.into(&key); err != nil {
		return err
	}
	switch key {
	case "kind":
		if err := c.into(&text); err != nil {
			return err
		}
		return l.isKind(text)
	case "apiVersion":
		if err := c.into(&text); err != nil {
			return err
		}
		return l.isVersion(text)
	case "metadata":
		return c.into(&l.meta)
	case "items":
	default:
		_, err := c.item(maxListMeta)
		return unexpected(err)
	}
	if l.items {
		return errors.New("it has items twice")
	}
	l.items = true
	major, n, indefinite, err := head()
	if err != nil {
		return err
	}
	if major == 7 && n == 22 { // null
		return nil
	}
	if major != 4 {
		return errCBOR
	}
	for i := uint64(0); indefinite || i < n; i++ {
		if indefinite {
			stop, err := c.stop()
			if err != nil {
				return err
			}
			if stop {
				break
			}
		}
		b, err := c.item(l.maxItem)
		if err != nil {
			return unexpected(err)
		}
		if err := l.yield(decode(CBOR, b, l.kind, l.key)); err != nil {
			return err
		}
	}
	return nil
}

// into reads a small data item into a value.
func (c *cborReader) into(v any) error {
	b, err := c.item(maxListMeta)
	if err != nil {
		return unexpected(err)
	}
	return direct.Unmarshal(b, v)
}

// stop reads a break, if one is next.
func (c *cborReader) stop() (bool, error) {
	b, err := c.r.Peek(1)
	if err != nil {
		return false, unexpected(err)
	}
	if b[0] != 0xff {
		return false, nil
	}
	_, err = c.r.Discard(1)
	return true, err
}
