package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Median of the values; of an even number of them, the mean of the middle two.
func Median(values []float64) float64 {
	if len(values) == 0 {
		panic("bench: the median of no values")
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Memory of one process, in MiB.
type Memory struct {
	// RSS is every page that is mapped: the heap, and what of the program's
	// file has been touched.
	RSS float64
	// Anonymous is the part of RSS that belongs to no file: heap and stacks. It
	// does not depend on which pages of the file the kernel mapped in advance.
	Anonymous float64
}

// ReadMemory asks the kernel for the memory of a process.
func ReadMemory(pid int) (Memory, error) {
	file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	text, err := os.ReadFile(file)
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of process %d (has it ended?): %w", pid, err)
	}
	m, err := parseRollup(text)
	if err != nil {
		return Memory{}, fmt.Errorf("reading %s: %w", file, err)
	}
	return m, nil
}

// parseRollup reads the table of /proc/PID/smaps_rollup.
func parseRollup(text []byte) (Memory, error) {
	var m Memory
	want := map[string]*float64{"Rss": &m.RSS, "Anonymous": &m.Anonymous}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		into := want[key]
		if into == nil {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		kib, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil {
			return Memory{}, fmt.Errorf("%q is not a number of kB", lines.Text())
		}
		*into = float64(kib) / 1024
		delete(want, key)
	}
	for key := range want {
		return Memory{}, fmt.Errorf("it has no line %s", key)
	}
	return m, nil
}

// Step runs one step of a measurement and prints its name and how long it took.
func Step(out io.Writer, name string, do func() error) error {
	began := time.Now()
	err := do()
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Fprintf(out, " %s %-44s %6.1fs\n", mark, name, time.Since(began).Seconds())
	return err
}
