package store

import (
	"encoding/binary"
	"fmt"
)

// state is the record of the store itself; it changes with each batch.
type state struct {
	revision uint64
	nextSeq  uint64
	nextView uint64
	sets     [nBuckets]set // of each bucket's keys; meta has none
}

var stateKey = []byte("state")

func (s *state) append() []byte {
	b := append(make([]byte, 0, 192), recordVersion)
	b = binary.AppendUvarint(b, s.revision)
	b = binary.AppendUvarint(b, s.nextSeq)
	b = binary.AppendUvarint(b, s.nextView)
	for i := bObjects; i < nBuckets; i++ {
		b = binary.AppendUvarint(b, s.sets[i].count)
		b = binary.LittleEndian.AppendUint64(b, s.sets[i].sum)
	}
	return finish(bMeta, stateKey, b)
}

func decodeState(record []byte) (state, error) {
	body, err := open(bMeta, stateKey, record)
	if err != nil {
		return state{}, err
	}
	r := reading{rest: body}
	s := state{revision: r.number(), nextSeq: r.number(), nextView: r.number()}
	for i := bObjects; i < nBuckets; i++ {
		s.sets[i] = set{count: r.number(), sum: r.fixed()}
	}
	return s, r.end()
}

// identity never changes after a store is made: its id, and a check value of
// the sealing key.
type identity struct {
	id       [16]byte
	keyCheck [16]byte
}

var identityKey = []byte("identity")

func (i *identity) append() []byte {
	b := append([]byte{recordVersion}, i.id[:]...)
	return finish(bMeta, identityKey, append(b, i.keyCheck[:]...))
}

func decodeIdentity(record []byte) (i identity, err error) {
	body, err := open(bMeta, identityKey, record)
	if err != nil {
		return i, err
	}
	if len(body) != 32 {
		return i, fmt.Errorf("%w: identity", ErrDamaged)
	}
	copy(i.id[:], body)
	copy(i.keyCheck[:], body[16:])
	return i, nil
}

// mark names a commit: its number, and a random number that tells it from
// another commit of the same number in a copy of the file.
type mark struct {
	gen, nonce uint64
}

var markKey = []byte("commit")

// append writes the mark with the number of bbolt's transaction: if that is not
// the one of the meta page, the disk has lost the writes in between. 0 is not
// compared.
func (m mark) append(tx int) []byte {
	b := binary.AppendUvarint([]byte{recordVersion}, m.gen)
	b = binary.AppendUvarint(b, uint64(tx))
	return finish(bMeta, markKey, binary.LittleEndian.AppendUint64(b, m.nonce))
}

func decodeMark(record []byte) (m mark, tx uint64, err error) {
	body, err := open(bMeta, markKey, record)
	if err != nil {
		return m, 0, err
	}
	r := reading{rest: body}
	m.gen = r.number()
	tx = r.number()
	m.nonce = r.fixed()
	return m, tx, r.end()
}

var schemaKey = []byte("schema")

func appendSchema(v uint64) []byte {
	return finish(bMeta, schemaKey, binary.AppendUvarint([]byte{recordVersion}, v))
}

func decodeSchema(record []byte) (uint64, error) {
	body, err := open(bMeta, schemaKey, record)
	if err != nil {
		return 0, err
	}
	r := reading{rest: body}
	v := r.number()
	return v, r.end()
}
