package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

const (
	tableBegin = "<!-- The table is written by hack/update-patches.sh. -->\n"
	tableEnd   = "<!-- End of the table. -->\n"
)

func main() {
	dir := flag.String("dir", "staging/kubernetes", "folder with README.md and patches/")
	module := flag.String("module", "", "folder of the unpatched module k8s.io/kubernetes")
	update := flag.Bool("update", false, "write the table in README.md instead of comparing it")
	tests := flag.Bool("tests", false, "print the upstream packages to test, and nothing else")
	flag.Parse()
	if err := run(*dir, *module, *update, *tests); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(dir, module string, update, tests bool) error {
	if module == "" {
		return errors.New("give -module: where `go list -m -f {{.Dir}} k8s.io/kubernetes` says, with GOWORK=off")
	}
	r, err := checkSeries(os.DirFS(dir+"/patches"), os.DirFS(module), budget)
	if err != nil {
		return err
	}
	if tests {
		fmt.Println(strings.Join(r.testPackages(), "\n"))
		return nil
	}
	readme := dir + "/README.md"
	text, err := os.ReadFile(readme)
	if err != nil {
		return fmt.Errorf("reading the page with the table of patches: %w", err)
	}
	want, err := withTable(string(text), r.table())
	if err != nil {
		return fmt.Errorf("page %s: %w", readme, err)
	}
	switch {
	case want == string(text):
	case update:
		if err := os.WriteFile(readme, []byte(want), 0o644); err != nil {
			return fmt.Errorf("writing the table of patches: %w", err)
		}
	default:
		return fmt.Errorf("the table in %s is not what the headers say: run hack/update-patches.sh", readme)
	}
	fmt.Printf("patches: %d files, %d changed upstream lines of %d\n", len(r.patches), r.changed, budget)
	return nil
}

// withTable puts the table between its two marks.
func withTable(page, table string) (string, error) {
	before, rest, ok := strings.Cut(page, tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("the marks %q and %q are not both there", strings.TrimSpace(tableBegin), strings.TrimSpace(tableEnd))
	}
	return before + tableBegin + table + tableEnd + after, nil
}
