package fabric

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

func insideSpec(t *testing.T) *spec.Spec {
	t.Helper()
	s, err := spec.Parse([]byte("sites: [{name: east, nodes: 2}, {name: west, nodes: 3}]"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRuleset(t *testing.T) {
	s := insideSpec(t)
	text, err := ruleset([]Inside{
		{"west-1", "west-2", weaklink.Settings{Cut: true, Loss: 5}},
		{"west-2", "west-1", weaklink.Settings{Cut: true}},
		{"west-2", "west-3", weaklink.Settings{Loss: 50}},
	}, s, map[string][]netip.Prefix{"west-1": {netip.MustParsePrefix("10.244.7.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ether saddr 02:00:ac:1e:02:0b ether daddr 02:00:ac:1e:02:0c drop",
		"ether saddr 02:00:ac:1e:02:0c ether daddr 02:00:ac:1e:02:0d numgen random mod 1048576 < 524288 drop",
		"ether saddr 02:00:ac:1e:02:0c ip daddr { 172.30.2.11, 10.244.7.0/24 } drop",
	} {
		if strings.Count(text, want+"\n") != 1 {
			t.Errorf("no rule %q in\n%s", want, text)
		}
	}
	empty, err := ruleset(nil, s, nil)
	if err != nil || strings.Contains(empty, "drop") || !strings.Contains(empty, "delete table bridge "+filterTable) {
		t.Errorf("without faults: %v\n%s", err, empty)
	}
}

func TestInsideIsChecked(t *testing.T) {
	f := &Fabric{config: Config{Spec: insideSpec(t)}}
	cut := weaklink.Settings{Cut: true}
	for what, c := range map[string]Inside{
		"no such machine": {"west-1", "west-9", cut},
		"belongs to":      {"west-1", "east-1", cut},
		"itself":          {"west-1", "west-1", cut},
		"in the cloud":    {"cloud-1", "cloud-1", cut},
		"nothing else":    {"west-1", "west-2", weaklink.Settings{Delay: weaklink.Duration(time.Second)}},
		"between 0%":      {"west-1", "west-2", weaklink.Settings{Loss: 101}},
	} {
		if err := f.SetInside([]Inside{c}); err == nil || what != "no such machine" && what != "itself" && what != "in the cloud" && !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v, want an error with %q", c, err, what)
		}
	}
	if len(f.State().Inside) != 0 {
		t.Error("what was refused is kept")
	}
}

func TestInsideIsListedInOrder(t *testing.T) {
	f := &Fabric{config: Config{Spec: insideSpec(t)}, inside: map[pair]weaklink.Settings{
		{"west-2", "west-1"}: {Cut: true}, {"west-1", "west-3"}: {Loss: 5}, {"west-1", "west-2"}: {Cut: true},
	}}
	want := []Inside{{"west-1", "west-2", weaklink.Settings{Cut: true}}, {"west-1", "west-3", weaklink.Settings{Loss: 5}}, {"west-2", "west-1", weaklink.Settings{Cut: true}}}
	if got := f.State().Inside; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
