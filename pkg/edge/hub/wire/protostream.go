package wire

import (
	"bufio"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

// protoReader reads protobuf fields off a stream. It believes no length: buf
// grows with what has been read.
type protoReader struct {
	r    *bufio.Reader
	left uint64 // in the message that is being read
	buf  []byte
}

// within reads a message of that size inside the present one.
func (p *protoReader) within(size uint64, read func() error) error {
	if size > p.left {
		return errProto
	}
	outside := p.left - size
	p.left = size
	if err := read(); err != nil {
		return err
	}
	if p.left != 0 {
		return errProto
	}
	p.left = outside
	return nil
}

// fields calls fn behind each tag until the message or the stream ends.
func (p *protoReader) fields(fn func(protowire.Number, protowire.Type) error, end func() error) error {
	for p.left > 0 {
		if _, err := p.r.Peek(1); err == io.EOF {
			return end()
		}
		tag, err := p.varint()
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber || num > protowire.MaxValidNumber {
			return errProto
		}
		if err := fn(num, typ); err != nil {
			return err
		}
	}
	return nil
}

func (p *protoReader) varint() (uint64, error) {
	n := uint64(0)
	for shift := uint(0); ; shift += 7 {
		if p.left == 0 {
			return 0, errProto
		}
		b, err := p.r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		p.left--
		if shift == 63 && b > 1 {
			return 0, errProto
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n, nil
		}
	}
}

// bytes reads size bytes, valid until the next call.
func (p *protoReader) bytes(size uint64, max int64) ([]byte, error) {
	if size > p.left {
		return nil, errProto
	}
	if size > uint64(max) {
		return nil, errTooMuch
	}
	p.left -= size
	p.buf = p.buf[:0]
	for size > 0 {
		part, err := p.r.Peek(int(min(size, uint64(p.r.Size()))))
		if len(part) == 0 {
			return nil, unexpected(err)
		}
		p.buf = append(p.buf, part...)
		size -= uint64(len(part))
		if _, err := p.r.Discard(len(part)); err != nil {
			return nil, unexpected(err)
		}
	}
	return p.buf, nil
}

// skip passes over the value of a field that nobody asks for.
func (p *protoReader) skip(_ protowire.Number, typ protowire.Type) error {
	size := uint64(0)
	switch typ {
	case protowire.VarintType:
		_, err := p.varint()
		return err
	case protowire.Fixed32Type:
		size = 4
	case protowire.Fixed64Type:
		size = 8
	case protowire.BytesType:
		var err error
		if size, err = p.varint(); err != nil {
			return err
		}
	default:
		return errProto
	}
	if size > p.left {
		return errProto
	}
	for size > 0 {
		n, err := p.r.Discard(int(min(size, 1<<20)))
		size -= uint64(n)
		p.left -= uint64(n)
		if err != nil {
			return unexpected(err)
		}
	}
	return nil
}
