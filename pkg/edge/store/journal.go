package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// The journal is what has been applied and is not in the file yet. It lies on a
// tmpfs: it survives the end of the process, not of the machine, and is never
// synced. Its header names the store; each frame names the commit that it will
// be part of and the commit before that, so that a journal of another file, or
// of an older copy of this one, is not replayed over newer data.
//
//	header: "SKRYJRN1" | store id (16) | CRC-32C (4)
//	frame:  length (4) | CRC-32C (4) | gen (8) | nonce (8) | base nonce (8) | changes
//	change: bucket (1) | key | 0 for deleted, or 1 + length of the value | value
const (
	journalMagic  = "SKRYJRN1"
	journalHeader = 8 + 16 + 4
	frameHeader   = 8
	framePrefix   = 24
	maxFrame      = 64 << 20
)

type journal struct {
	path string
	id   [16]byte
	f    *os.File
	size int64
}

// frame is one batch.
type frame struct {
	mark    mark
	base    uint64 // nonce of the commit before
	changes *layer
}

func headerOf(id [16]byte) []byte {
	h := append([]byte(journalMagic), id[:]...)
	return binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
}

func appendFrame(out []byte, f frame) []byte {
	at := len(out)
	out = append(out, make([]byte, frameHeader)...)
	out = binary.LittleEndian.AppendUint64(out, f.mark.gen)
	out = binary.LittleEndian.AppendUint64(out, f.mark.nonce)
	out = binary.LittleEndian.AppendUint64(out, f.base)
	_ = f.changes.each(func(b bucket, key string, value []byte) error {
		out = append(out, byte(b))
		out = appendBytes(out, key)
		if value == nil {
			out = append(out, 0)
			return nil
		}
		out = binary.AppendUvarint(out, uint64(len(value))+1)
		out = append(out, value...)
		return nil
	})
	body := out[at+frameHeader:]
	binary.LittleEndian.PutUint32(out[at:], uint32(len(body)))
	binary.LittleEndian.PutUint32(out[at+4:], crc32.Checksum(body, castagnoli))
	return out
}

func decodeFrame(body []byte) (frame, error) {
	if len(body) < framePrefix {
		return frame{}, fmt.Errorf("%w: journal frame of %d bytes", ErrDamaged, len(body))
	}
	f := frame{
		mark:    mark{gen: binary.LittleEndian.Uint64(body), nonce: binary.LittleEndian.Uint64(body[8:])},
		base:    binary.LittleEndian.Uint64(body[16:]),
		changes: &layer{},
	}
	r := reading{rest: body[framePrefix:]}
	for len(r.rest) > 0 && r.err == nil {
		b := bucket(r.byte())
		key := r.string()
		n := r.number()
		if r.err != nil {
			break
		}
		if b >= nBuckets || key == "" {
			r.fail("bucket or key")
			break
		}
		if n == 0 {
			f.changes.set(b, key, nil)
			continue
		}
		if n-1 > uint64(len(r.rest)) {
			r.fail("length")
			break
		}
		f.changes.put(b, key, append([]byte{}, r.rest[:n-1]...))
		r.rest = r.rest[n-1:]
	}
	return f, r.err
}

var errJournalOther = errors.New("it belongs to another store")

// readJournal calls fn with each whole frame, and returns how many bytes of the
// file they fill. A torn tail is no error.
func readJournal(r io.Reader, id [16]byte, fn func(frame) error) (int64, error) {
	head := make([]byte, journalHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil // died while it was made
	}
	if binary.LittleEndian.Uint32(head[24:]) != crc32.Checksum(head[:24], castagnoli) || string(head[:8]) != journalMagic {
		return 0, fmt.Errorf("%w: journal header", ErrDamaged)
	}
	if [16]byte(head[8:24]) != id {
		return 0, errJournalOther
	}
	good := int64(journalHeader)
	var fh [frameHeader]byte
	for {
		if _, err := io.ReadFull(r, fh[:]); err != nil {
			return good, nil
		}
		n := binary.LittleEndian.Uint32(fh[:])
		if n < framePrefix || n > maxFrame {
			return good, nil
		}
		body, err := io.ReadAll(io.LimitReader(r, int64(n)))
		if err != nil || len(body) != int(n) || crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(fh[4:]) {
			return good, nil
		}
		f, err := decodeFrame(body)
		if err != nil {
			return good, err
		}
		if err := fn(f); err != nil {
			return good, err
		}
		good += frameHeader + int64(n)
	}
}

// openJournal opens the journal file for appending behind the first keep bytes;
// keep 0 makes it new.
func openJournal(path string, id [16]byte, keep int64) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	j := &journal{path: path, id: id, f: f, size: keep}
	if err := f.Chmod(0o600); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	if keep == 0 {
		err = j.reset()
	} else {
		err = f.Truncate(keep)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	return j, nil
}

// reset makes the journal empty.
func (j *journal) reset() error {
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	h := headerOf(j.id)
	if _, err := j.f.WriteAt(h, 0); err != nil {
		j.size = 0
		return err
	}
	j.size = int64(len(h))
	return nil
}

// append writes a frame; after an error the journal is as before.
func (j *journal) append(f frame) error {
	if j.size == 0 {
		if err := j.reset(); err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
	}
	b := appendFrame(nil, f)
	if len(b)-frameHeader > maxFrame {
		return fmt.Errorf("writing the journal: a batch of %d bytes is too large", len(b))
	}
	if _, err := j.f.WriteAt(b, j.size); err != nil {
		_ = j.f.Truncate(j.size)
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.size += int64(len(b))
	return nil
}

// dropBefore removes the frames before an offset: they are committed.
func (j *journal) dropBefore(offset int64) error {
	if offset >= j.size {
		return j.reset()
	}
	return j.replace(func(w io.Writer) (int64, error) {
		return io.Copy(w, io.NewSectionReader(j.f, offset, j.size-offset))
	})
}

// rewrite makes the journal that of a store with this id, with one frame.
func (j *journal) rewrite(id [16]byte, f frame) error {
	j.id = id
	return j.replace(func(w io.Writer) (int64, error) {
		n, err := w.Write(appendFrame(nil, f))
		return int64(n), err
	})
}

// replace writes a new file that takes the place of the old one at once.
func (j *journal) replace(fill func(io.Writer) (int64, error)) error {
	tmp := j.path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	var n int64
	if _, err = f.Write(headerOf(j.id)); err == nil {
		n, err = fill(f)
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(tmp)
		return err
	}
	_ = j.f.Close()
	j.f = f
	j.size = journalHeader + n
	return nil
}

func (j *journal) close() error { return j.f.Close() }
