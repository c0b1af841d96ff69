// Package kubernetes holds Skerry's patches against k8s.io/kubernetes: the diffs
// themselves, embedded, and what their headers say. hack/kubernetes.sh applies
// them; every patched binary lists those that name it.
//
// It must import nothing but the standard library: it is linked into every
// component. What needs to read diffs is in the package check.
package kubernetes

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

//go:embed patches
var patches embed.FS

// Files is the folder of the series: the file "series" and the patches it names.
func Files() fs.FS {
	sub, err := fs.Sub(patches, "patches")
	if err != nil {
		panic(err) // the name above is a constant
	}
	return sub
}

// Patch is one patch of the series.
type Patch struct {
	// File is the name of the file, without the folder.
	File string
	// ID stays the same when the patch is made again for a new version; numbers
	// are not used twice.
	ID string
	// Title says in one line what the patch does.
	Title string
	// Components are the binaries that behave differently because of it.
	Components []string
	// Gate is what has to be there before anything differs from upstream.
	Gate string
	// Upstream is "carry", "pr/NUMBER" or "drop-at/VERSION".
	Upstream string
	// Description, WhyNotUpstream and DropWhen are running text.
	Description, WhyNotUpstream, DropWhen string
	// Tests are the upstream packages (patterns) whose tests cover it.
	Tests []string
	// Diff is what follows the header.
	Diff string
}

// headerEnd is the line between the header and the diff.
const headerEnd = "---"

// Series reads the patches of a folder in the order in which they apply.
func Series(dir fs.FS) ([]Patch, error) {
	names, err := seriesNames(dir)
	if err != nil {
		return nil, err
	}
	var all []Patch
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, fmt.Errorf("reading patch %s, which series names: %w", name, err)
		}
		p, err := parse(name, string(text))
		if err != nil {
			return nil, fmt.Errorf("reading the header of patch %s: %w", name, err)
		}
		all = append(all, p)
	}
	return all, nil
}

func seriesNames(dir fs.FS) ([]string, error) {
	text, err := fs.ReadFile(dir, "series")
	if err != nil {
		return nil, fmt.Errorf("reading the list of patches: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if slices.Contains(names, line) {
			return nil, fmt.Errorf("series names %s twice", line)
		}
		names = append(names, line)
	}
	return names, nil
}

// parse reads "Key: value" lines; a line that begins with a blank continues the
// value before it.
func parse(file, text string) (Patch, error) {
	header, diff, ok := strings.Cut(text, "\n"+headerEnd+"\n")
	if !ok {
		return Patch{}, fmt.Errorf("no line %q ends the header", headerEnd)
	}
	fields := map[string]string{}
	key := ""
	for line := range strings.Lines(header) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, " ") && key != "" {
			fields[key] = strings.TrimSpace(fields[key] + "\n" + strings.TrimSpace(line))
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			return Patch{}, fmt.Errorf("line %q is neither \"Key: value\" nor indented", line)
		}
		if _, twice := fields[k]; twice {
			return Patch{}, fmt.Errorf("field %s is there twice", k)
		}
		key = k
		fields[key] = strings.TrimSpace(v)
	}
	p := Patch{File: file, Diff: diff}
	var components, tests string
	known := []struct {
		name string
		to   *string
	}{
		{"Id", &p.ID}, {"Title", &p.Title}, {"Components", &components}, {"Gate", &p.Gate},
		{"Upstream", &p.Upstream}, {"Description", &p.Description}, {"Why-not-upstream", &p.WhyNotUpstream},
		{"Tests", &tests}, {"Drop-when", &p.DropWhen},
	}
	for _, f := range known {
		if fields[f.name] == "" {
			return Patch{}, fmt.Errorf("field %s is missing or empty", f.name)
		}
		*f.to = fields[f.name]
		delete(fields, f.name)
	}
	for k := range fields {
		return Patch{}, fmt.Errorf("field %s is not one we know", k)
	}
	p.Components = strings.FieldsFunc(components, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	p.Tests = strings.Fields(tests)
	return p, nil
}
