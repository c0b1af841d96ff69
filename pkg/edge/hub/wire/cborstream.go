package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

var (
	errCBOR    = errors.New("malformed CBOR")
	errTooMuch = errors.New("it is larger than allowed")
)

const cborDepth = 1000

// cborHead is the head of a data item: its major type and its length or value.
func cborHead(major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return []byte{major | byte(n)}
	case n < 1<<8:
		return []byte{major | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{major | 25}, uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32([]byte{major | 26}, uint32(n))
	}
	return binary.BigEndian.AppendUint64([]byte{major | 27}, n)
}

// cborReader splits a stream of CBOR into data items without decoding them. It
// never allocates by a declared length.
type cborReader struct {
	r    *bufio.Reader
	buf  []byte
	room int64 // how much more buf may grow
}

// head reads one head and keeps its bytes. indefinite says that a break ends
// the item.
func (c *cborReader) head() (major byte, n uint64, indefinite bool, err error) {
	first, err := c.byte()
	if err != nil {
		return 0, 0, false, err
	}
	major = first >> 5
	info := first & 31
	switch {
	case info < 24:
		return major, uint64(info), false, nil
	case info == 31:
		if major == 0 || major == 1 || major == 6 {
			return 0, 0, false, errCBOR
		}
		return major, 0, true, nil
	case info > 27:
		return 0, 0, false, errCBOR
	}
	for range 1 << (info - 24) {
		b, err := c.byte()
		if err != nil {
			return 0, 0, false, unexpected(err)
		}
		n = n<<8 | uint64(b)
	}
	return major, n, false, nil
}

func (c *cborReader) byte() (byte, error) {
	if c.room--; c.room < 0 {
		return 0, errTooMuch
	}
	b, err := c.r.ReadByte()
	if err == nil {
		c.buf = append(c.buf, b)
	}
	return b, err
}

// take keeps the next n bytes.
func (c *cborReader) take(n uint64) error {
	if n > uint64(max(c.room, 0)) {
		return errTooMuch
	}
	c.room -= int64(n)
	for n > 0 {
		part, err := c.r.Peek(int(min(n, uint64(c.r.Size()))))
		if len(part) == 0 {
			return unexpected(err)
		}
		c.buf = append(c.buf, part...)
		n -= uint64(len(part))
		if _, err := c.r.Discard(len(part)); err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// item reads one whole data item of at most max bytes. Its bytes are valid until
// the next call. io.EOF if there is none.
func (c *cborReader) item(max int64) ([]byte, error) {
	c.buf, c.room = c.buf[:0], max
	stopped, err := c.walk(cborDepth)
	if err != nil {
		if len(c.buf) > 0 {
			err = unexpected(err)
		}
		return nil, err
	}
	if stopped {
		return nil, errCBOR
	}
	return c.buf, nil
}

// walk reads one data item; true if it was a break.
func (c *cborReader) walk(depth int) (bool, error) {
	if depth == 0 {
		return false, errCBOR
	}
	major, n, indefinite, err := c.head()
	if err != nil {
		return false, err
	}
	if major == 7 {
		return indefinite, nil
	}
	if indefinite {
		// Chunks of a string, elements of an array, or pairs of a map.
		for i := 0; ; i++ {
			stop, err := c.walk(depth - 1)
			if err != nil {
				return false, unexpected(err)
			}
			if stop {
				if major == 5 && i%2 == 1 {
					return false, errCBOR
				}
				return false, nil
			}
		}
	}
	children := uint64(0)
	switch major {
	case 2, 3:
		return false, unexpected(c.take(n))
	case 4:
		children = n
	case 5:
		if n > 1<<62 {
			return false, errTooMuch
		}
		children = 2 * n
	case 6:
		children = 1
	}
	for range children {
		stop, err := c.walk(depth - 1)
		if err != nil {
			return false, unexpected(err)
		}
		if stop {
			return false, errCBOR
		}
	}
	return false, nil
}

// unexpected turns an end in the middle into what it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
