package detect

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

var examples = []Message{
	{Kind: Ping, Sequence: 1},
	{Kind: Ack, Sequence: 1 << 31, Incarnation: 300, Known: 1 << 40, Health: Health{KubeletDown: true}},
	{Kind: PingReq, Sequence: 7, Target: "west-2.example.com"},
	{Kind: Nack, Sequence: 7, Target: "west-2", Health: Health{RuntimeDown: true}},
	{Kind: Ack, Sequence: 9, Target: "west-2", Updates: []Update{
		{Member: "west-2", State: Alive, Incarnation: 3, Health: Health{KubeletDown: true, RuntimeDown: true}},
		{Member: strings.Repeat("a", 253), State: Suspect, Incarnation: 1 << 62, From: "west-1"},
		{Member: "west-4", State: Unreachable, From: "west-1"},
	}},
}

func TestEncode(t *testing.T) {
	for _, message := range examples {
		data := Append(nil, message)
		if len(data) != Size(message) {
			t.Errorf("%+v: %d bytes, and Size says %d", message, len(data), Size(message))
		}
		got, err := Decode(data)
		if err != nil || !reflect.DeepEqual(got, message) {
			t.Errorf("%+v became %+v, %v", message, got, err)
		}
		for cut := range data {
			if _, err := Decode(data[:cut]); err == nil {
				t.Errorf("%+v: %d of %d bytes were taken", message, cut, len(data))
			}
		}
		if _, err := Decode(append(data, 0)); err == nil {
			t.Errorf("%+v: a byte too many was taken", message)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, message := range map[string]Message{
		"no kind":                  {},
		"unknown kind":             {Kind: 9},
		"a ping with a target":     {Kind: Ping, Target: "a"},
		"a request without target": {Kind: PingReq},
		"a target that is no name": {Kind: PingReq, Target: "A b"},
		"an update about nobody":   {Kind: Ping, Updates: []Update{{State: Alive}}},
		"an update with no state":  {Kind: Ping, Updates: []Update{{Member: "a"}}},
		"a doubt of nobody":        {Kind: Ping, Updates: []Update{{Member: "a", State: Suspect}}},
		"a doubt with health":      {Kind: Ping, Updates: []Update{{Member: "a", State: Suspect, From: "b", Health: Health{KubeletDown: true}}}},
		"too many updates":         {Kind: Ping, Updates: make([]Update, maxUpdates+1)},
	} {
		if got, err := Decode(Append(nil, message)); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
	if _, err := Decode(make([]byte, MaxMessage+1)); err == nil {
		t.Error("too long a message was taken")
	}
}

// FuzzDecode: what is accepted is exactly what Append writes, and no message,
// whatever it says, brings a detector into disorder.
func FuzzDecode(f *testing.F) {
	for _, message := range examples {
		f.Add(Append(nil, message))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		message, err := Decode(data)
		if err != nil {
			return
		}
		if again := Append(nil, message); !bytes.Equal(again, data) {
			t.Fatalf("%x was taken, and is written %x", data, again)
		}
		s := newSite(t, 1, 3, Tuning{})
		s.nodes[s.names[0]].Receive(s.now, s.names[1], message)
		s.collect(s.names[0])
		s.nodes[s.names[0]].Tick(s.now)
		s.collect(s.names[0])
	})
}
