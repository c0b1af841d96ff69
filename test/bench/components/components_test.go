package components

import (
	"testing"
)

func TestOrder(t *testing.T) {
	for _, pairs := range []int{1, 2, 3, 4} {
		all := order(pairs)
		if len(all) != 2*pairs {
			t.Fatalf("order(%d) has %d rounds", pairs, len(all))
		}
		first := map[kind]int{}
		for i := 0; i < len(all); i += 2 {
			if all[i] == all[i+1] {
				t.Errorf("order(%d) = %v: rounds %d and %d are a pair of one kind", pairs, all, i, i+1)
			}
			first[all[i]]++
		}
		if d := first[patched] - first[pristine]; d < -1 || d > 1 {
			t.Errorf("order(%d) = %v: one kind comes first too often", pairs, all)
		}
	}
}

func TestRows(t *testing.T) {
	results := map[string]map[kind]*figures{"x": {
		patched:  {startUp: []float64{110, 900, 100}, rss: []float64{103, 103, 103}, anonymous: []float64{50}},
		pristine: {startUp: []float64{100, 100, 800}, rss: []float64{100, 100, 100}, anonymous: []float64{50}},
	}}
	got := rows([]*component{{name: "x"}}, results)
	want := []struct {
		name, unit     string
		value, control float64
		met            bool
	}{
		{"x RSS", "MiB", 103, 100, false},
		{"x anonymous memory", "MiB", 50, 50, true},
		{"x start-up", "ms", 110, 100, true},
	}
	if len(got) != len(want) {
		t.Fatalf("%d rows, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Name != w.name || g.Unit != w.unit || g.Value != w.value || *g.Control != w.control || g.Met != w.met {
			t.Errorf("row %d is %+v (control %v), want %+v", i, g, *g.Control, w)
		}
	}
}
