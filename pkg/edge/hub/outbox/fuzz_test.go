package outbox

import (
	"encoding/json"
	"testing"

	"skerry.dev/skerry/pkg/edge/store"
)

// FuzzPatch writes any body as a patch of a pod's status: it may be refused, and
// it may change the status; nothing else of the pod, and nothing panics. What
// was taken is replayed, too.
func FuzzPatch(f *testing.F) {
	for _, s := range []string{
		`{"status":{"phase":"Failed"}}`, `{"metadata":{"uid":"u1","labels":null},"spec":{"containers":null},"status":null}`, `{"status":{"conditions":[{"type":"Ready","$patch":"delete"}]}}`,
		`{"$patch":"replace"}`, `{"$patch":"delete"}`, `{"status":{"$retainKeys":["phase"],"phase":"x"}}`, `{"status":{"$setElementOrder/conditions":[{"type":"x"}],"conditions":[{"type":"Ready","status":"False"}]}}`,
		`{"status":{"$deleteFromPrimitiveList/podIPs":[1]}}`, `[{"op":"replace","path":"/spec","value":{}}]`, `[{"op":"copy","from":"","path":"/status/message"}]`, `[{"op":"remove","path":"/status/conditions/0"}]`,
		`{"status":{"containerStatuses":[{"name":1}]}}`, `{"status":{"startTime":"never"}}`, `null`, `[]`, `{"status":{"podIPs":[{"ip":"1"},{"$patch":"replace"}],"phase":"Succeeded"}}`,
	} {
		for kind := range byte(4) {
			f.Add(kind, []byte(s))
		}
	}
	types := []string{smp, "application/merge-patch+json", "application/json-patch+json", "application/json"}
	s := newSite(f)
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		s.t, s.online = t, false
		s.cloud.create(newPod("a", "u1"))
		s.show()
		before := s.shown("a")
		r := statusRequest("pods", "a")
		if kind%4 == 3 {
			r.Verb = "update"
		}
		_, _, err := s.box.Write(t.Context(), theNode, r, types[kind%4], body)
		after := s.shown("a")
		phase := after.Status.Phase
		before.Status, before.ResourceVersion = after.Status, after.ResourceVersion
		if a, b := asJSON(t, before), asJSON(t, after); a != b {
			t.Fatalf("more than the status changed (%v):\n%s\n%s", err, a, b)
		}
		s.online = true
		if err := s.box.Replay(t.Context()); err != nil {
			t.Fatalf("it cannot be replayed: %v", err)
		}
		s.show()
		if got := s.shown("a").Status.Phase; got != phase {
			t.Fatalf("the phase was %q and is %q", phase, got)
		}
		clear(s.box.sent)
	})
}

// FuzzEntry reads any payload out of the store: it may be dropped.
func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"fields":{"phase":"Succeeded"},"conditions":{"Ready":{"type":"Ready"},"x":null},"keys":{"capacity":{"cpu":1}}}`))
	f.Add([]byte(`{"fields":[],"conditions":{"Ready":3},"keys":{"capacity":[]}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := decodeDifference(payload)
		if err != nil {
			return
		}
		for _, status := range []map[string]any{nil, {"conditions": []any{map[string]any{"type": "Ready"}, 3}, "capacity": "x", "containerStatuses": 1}} {
			once := d.apply(status)
			if a, b := asJSON(t, once), asJSON(t, d.apply(once)); a != b {
				t.Fatalf("twice is not once:\n%s\n%s", a, b)
			}
		}
		if _, err := json.Marshal(d.patch()); err != nil {
			t.Fatal(err)
		}
		_, _, _, _ = merge(store.Object{Key: podKey("a"), Kind: "Pod", UID: "u", Format: store.FormatJSON, Data: []byte(`{}`)}, "u", d)
	})
}
