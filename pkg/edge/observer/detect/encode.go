package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxMessage bounds an encoded message, so that it fits in one datagram of an
// encrypted connection on any network.
const MaxMessage = 1000

const (
	messageVersion = 1
	maxName        = 253

	bitKubelet = 1 << 0
	bitRuntime = 1 << 1
	bitTarget  = 1 << 2

	shiftState = 4
)

// errMessage is what Decode says about anything that Append would not write.
var errMessage = errors.New("no message of an observer")

func (h Health) bits() byte {
	var bits byte
	if h.KubeletDown {
		bits |= bitKubelet
	}
	if h.RuntimeDown {
		bits |= bitRuntime
	}
	return bits
}

func healthOf(bits byte) Health {
	return Health{KubeletDown: bits&bitKubelet != 0, RuntimeDown: bits&bitRuntime != 0}
}

func uvarintSize(value uint64) int {
	size := 1
	for value >= 0x80 {
		value >>= 7
		size++
	}
	return size
}

// names are shorter than 254 bytes: one byte says how long.
func (u Update) size() int {
	return 1 + uvarintSize(u.Incarnation) + 1 + len(u.Member) + 1 + len(u.From)
}

// Size is how many bytes Append writes.
func Size(m Message) int {
	size := 3 + 4 + uvarintSize(m.Incarnation) + uvarintSize(m.Known) + 1
	if m.Target != "" {
		size += 1 + len(m.Target)
	}
	for _, u := range m.Updates {
		size += u.size()
	}
	return size
}

// Append encodes a message.
func Append(to []byte, m Message) []byte {
	bits := m.Health.bits()
	if m.Target != "" {
		bits |= bitTarget
	}
	to = append(to, messageVersion, byte(m.Kind), bits)
	to = binary.BigEndian.AppendUint32(to, m.Sequence)
	to = binary.AppendUvarint(to, m.Incarnation)
	to = binary.AppendUvarint(to, m.Known)
	if m.Target != "" {
		to = appendName(to, m.Target)
	}
	to = append(to, byte(len(m.Updates)))
	for _, u := range m.Updates {
		to = append(to, byte(u.State)<<shiftState|u.Health.bits())
		to = binary.AppendUvarint(to, u.Incarnation)
		to = appendName(to, u.Member)
		to = appendName(to, u.From)
	}
	return to
}

func appendName(to []byte, name string) []byte {
	return append(append(to, byte(len(name))), name...)
}

// Decode reads what Append wrote, and nothing else.
func Decode(data []byte) (Message, error) {
	r := reader{data: data}
	if len(data) > MaxMessage || r.byte() != messageVersion {
		return Message{}, errMessage
	}
	m := Message{Kind: Kind(r.byte())}
	bits := r.byte()
	m.Health = healthOf(bits)
	m.Sequence = uint32(r.byte())<<24 | uint32(r.byte())<<16 | uint32(r.byte())<<8 | uint32(r.byte())
	m.Incarnation, m.Known = r.uvarint(), r.uvarint()
	if bits&bitTarget != 0 {
		m.Target = r.name()
		r.bad = r.bad || !validName(m.Target)
	}
	count := int(r.byte())
	switch {
	case r.bad, count > maxUpdates, bits&^(bitKubelet|bitRuntime|bitTarget) != 0,
		m.Kind < Ping || m.Kind > Nack,
		m.Kind == Ping && m.Target != "", (m.Kind == PingReq || m.Kind == Nack) && m.Target == "":
		return Message{}, errMessage
	}
	for range count {
		u, err := r.update()
		if err != nil {
			return Message{}, err
		}
		m.Updates = append(m.Updates, u)
	}
	if len(r.data) != 0 {
		return Message{}, fmt.Errorf("%w: %d bytes too many", errMessage, len(r.data))
	}
	return m, nil
}

func (r *reader) update() (Update, error) {
	bits := r.byte()
	u := Update{State: State(bits >> shiftState), Health: healthOf(bits), Incarnation: r.uvarint(), Member: r.name(), From: r.name()}
	alive := u.State == Alive
	switch {
	case r.bad, bits&0x0c != 0, u.State != Alive && u.State != Suspect && u.State != Unreachable,
		!validName(u.Member), alive && u.From != "", !alive && (!validName(u.From) || u.Health != Health{}):
		return Update{}, errMessage
	}
	return u, nil
}

// reader takes values from the front of data, and notes if there were too few.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) byte() byte {
	if len(r.data) == 0 {
		r.bad = true
		return 0
	}
	b := r.data[0]
	r.data = r.data[1:]
	return b
}

func (r *reader) uvarint() uint64 {
	value, n := binary.Uvarint(r.data)
	if n <= 0 || n != uvarintSize(value) { // one way to write a number
		r.bad = true
		return 0
	}
	r.data = r.data[n:]
	return value
}

func (r *reader) name() string {
	length := int(r.byte())
	if length > len(r.data) {
		r.bad = true
		return ""
	}
	name := string(r.data[:length])
	r.data = r.data[length:]
	return name
}

// validName says whether a name can be that of a node.
func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
