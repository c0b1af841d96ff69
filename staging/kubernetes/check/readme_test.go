package main

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var (
	quoted   = regexp.MustCompile("`([A-Z][A-Za-z0-9]+)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
	e2eRow   = regexp.MustCompile(`\brow\("([A-Za-z0-9]+)"`)
)

// The README says for each of 35 dangers which test shows that it is covered.
// A test that was renamed or removed must not go on being named there.
func TestReadmeNamesTestsThatExist(t *testing.T) {
	root := os.DirFS("../../..")
	known := map[string]bool{}
	for _, dir := range []string{"pkg", "test/e2e/offline"} {
		err := fs.WalkDir(root, dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, "_test.go") {
				return err
			}
			text, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			for _, m := range testFunc.FindAllSubmatch(text, -1) {
				known[path.Dir(name)+" "+string(m[1])] = true
				if strings.HasPrefix(name, "test/e2e/offline/") {
					known[string(m[1])] = true
				}
			}
			if strings.HasPrefix(name, "test/e2e/offline/") {
				for _, m := range e2eRow.FindAllSubmatch(text, -1) {
					known[string(m[1])] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	readme, err := fs.ReadFile(root, "staging/kubernetes/README.md")
	if err != nil {
		t.Fatal(err)
	}
	next := 1
	for line := range strings.Lines(string(readme)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || strings.TrimSpace(cells[1]) != strconv.Itoa(next) {
			continue
		}
		next++
		shown := cells[4]
		if strings.TrimSpace(shown) == "" {
			t.Errorf("row %d says nothing about what shows it", next-1)
		}
		for _, m := range quoted.FindAllStringSubmatchIndex(shown, -1) {
			name := shown[m[2]:m[3]]
			if known[name] {
				continue
			}
			// A unit test: its package follows in brackets, maybe after others.
			_, after, _ := strings.Cut(shown[m[1]:], "(")
			pkg, _, _ := strings.Cut(after, ")")
			if !known[pkg+" "+name] {
				t.Errorf("row %d names %s, which is neither an end-to-end row nor a test of package %q", next-1, name, pkg)
			}
		}
	}
	if next != 36 {
		t.Errorf("the table has %d rows, want 35", next-1)
	}
}
