package bench

import (
	"os"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 100, 2}, 3},
	} {
		given := append([]float64(nil), c.values...)
		if got := Median(given); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.values, got, c.want)
		}
		for i := range given {
			if given[i] != c.values[i] {
				t.Errorf("Median changed its argument %v to %v", c.values, given)
				break
			}
		}
	}
}

const rollup = `00400000-7ffc0f5f1000 ---p 00000000 00:00 0                              [rollup]
Rss:               90112 kB
Pss:               81920 kB
Pss_Anon:          40960 kB
Private_Dirty:     40960 kB
Anonymous:         40960 kB
AnonHugePages:      2048 kB
Locked:                0 kB
`

func TestParseRollup(t *testing.T) {
	m, err := parseRollup([]byte(rollup))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Memory{RSS: 88, Anonymous: 40}); m != want {
		t.Errorf("got %+v, want %+v", m, want)
	}
	for what, text := range map[string]string{
		"nothing":       "",
		"no Anonymous":  strings.Replace(rollup, "\nAnonymous:", "\nOther:", 1),
		"another unit":  strings.Replace(rollup, "90112 kB", "88 MB", 1),
		"not a number":  strings.Replace(rollup, "90112", "many", 1),
		"without value": strings.Replace(rollup, "90112 kB", "", 1),
	} {
		if m, err := parseRollup([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %+v", what, m)
		}
	}
}

func TestReadMemory(t *testing.T) {
	m, err := ReadMemory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.Anonymous <= 0 || m.RSS <= m.Anonymous {
		t.Errorf("this process has %+v", m)
	}
}
