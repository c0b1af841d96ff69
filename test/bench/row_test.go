package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRows(t *testing.T) {
	rows := []Row{
		Against("worse", "MiB", 120, 100, 1.05),
		Against("same", "MiB", 100, 100, 1.05),
		Alone("slow", "s", 130, 120),
		Alone("quick", "s", 90, 120),
	}
	for i, met := range []bool{false, true, false, true} {
		if rows[i].Met != met {
			t.Errorf("%s: met = %v, want %v", rows[i].Name, rows[i].Met, met)
		}
	}
	if got := *rows[0].Ratio; got != 1.2 {
		t.Errorf("ratio = %v, want 1.2", got)
	}

	var table strings.Builder
	if err := Print(&table, rows); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(table.String(), "\n"); lines != len(rows)+1 {
		t.Errorf("table has %d lines:\n%s", lines, table.String())
	}

	dir := t.TempDir()
	if err := Save(dir, "all", rows); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "all.json"))
	if err != nil {
		t.Fatal(err)
	}
	var read []map[string]any
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	for _, row := range read {
		var keys []string
		for k := range row {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if want := []string{"control", "goal", "met", "name", "ratio", "unit", "value"}; !slices.Equal(keys, want) {
			t.Errorf("keys = %v, want %v", keys, want)
		}
	}
}
