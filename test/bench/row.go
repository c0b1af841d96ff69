// Package bench measures what Skerry costs, always beside its control measured
// in the same run: upstream's binary, or the direct path. It prints tables and
// keeps them as JSON. Budgets are reported here, they fail nothing.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// A Row is one figure. Goal is the most that Ratio may be or, without a control,
// the most that Value may be.
type Row struct {
	Name    string   `json:"name"`
	Unit    string   `json:"unit"`
	Value   float64  `json:"value"`
	Control *float64 `json:"control"`
	Ratio   *float64 `json:"ratio"`
	Goal    float64  `json:"goal"`
	Met     bool     `json:"met"`
}

// NoGoal is the goal of a row that is there to be compared with.
const NoGoal = math.MaxFloat32

// Against makes a row from a value and its control.
func Against(name, unit string, value, control, goal float64) Row {
	ratio := value / control
	return Row{Name: name, Unit: unit, Value: value, Control: &control, Ratio: &ratio, Goal: goal, Met: ratio <= goal}
}

// Alone makes a row that has no upstream counterpart.
func Alone(name, unit string, value, goal float64) Row {
	return Row{Name: name, Unit: unit, Value: value, Goal: goal, Met: value <= goal}
}

// Print writes the rows as a table.
func Print(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "name\tunit\tvalue\tcontrol\tratio\tgoal\tmet\t")
	optional := func(f *float64, format string) string {
		if f == nil {
			return "-"
		}
		return fmt.Sprintf(format, *f)
	}
	for _, r := range rows {
		goal, met := fmt.Sprintf("%.2f", r.Goal), "no"
		switch {
		case r.Goal == NoGoal:
			goal, met = "-", "-"
		case r.Met:
			met = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\t%s\t%s\t%s\t\n", r.Name, r.Unit, r.Value, optional(r.Control, "%.1f"), optional(r.Ratio, "%.3f"), goal, met)
	}
	return t.Flush()
}

// Save keeps the rows as dir/name.json.
func Save(dir, name string, rows []Row) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder of benchmark results: %w", err)
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding benchmark results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping benchmark results: %w", err)
	}
	return nil
}
