// Command check says whether the patch series is in order: files and headers
// complete, every hunk at its very line in the pinned upstream, and the number
// of changed upstream lines within the budget. It also writes the table of
// patches in the README and names the upstream packages to test.
//
// It must not apply anything: hack/kubernetes.sh makes the patched tree.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"skerry.dev/skerry/staging/kubernetes"
)

const (
	// budget is how many lines of existing upstream files the whole series may
	// add or remove. Raising it is a decision of its own.
	budget = 25
	// maxNewFile bounds the file with the hook variables: what is longer has
	// logic that belongs into pkg/hooks.
	maxNewFile = 100
)

// components are the binaries that are built from the patched tree.
var components = []string{"kubelet", "kube-proxy", "kube-controller-manager"}

var upstreamState = regexp.MustCompile(`^(carry|pr/[0-9]+|drop-at/v[0-9]+\.[0-9]+)$`)

// report is what a series comes to.
type report struct {
	patches []patchReport
	changed int
}

type patchReport struct {
	kubernetes.Patch
	changed int
	// files are the touched ones, those that the patch adds included.
	files []string
}

// checkSeries checks the patches in dir against upstream's files.
func checkSeries(dir, upstream fs.FS, budget int) (report, error) {
	var r report
	series, err := kubernetes.Series(dir)
	if err != nil {
		return r, err
	}
	if err := checkNames(dir, series); err != nil {
		return r, err
	}
	tree := &tree{upstream: upstream, patched: map[string][]byte{}, added: map[string]string{}}
	for _, p := range series {
		if err := checkHeader(p); err != nil {
			return r, fmt.Errorf("patch %s: %w", p.File, err)
		}
		pr, err := tree.apply(p)
		if err != nil {
			return r, fmt.Errorf("patch %s: %w", p.File, err)
		}
		r.patches = append(r.patches, pr)
		r.changed += pr.changed
	}
	if r.changed > budget {
		return r, fmt.Errorf("the series changes %d upstream lines, the budget is %d: move code into the new file of the package or into pkg/hooks", r.changed, budget)
	}
	return r, nil
}

// checkNames finds patches that the series does not name, and numbers used twice.
func checkNames(dir fs.FS, series []kubernetes.Patch) error {
	files, err := fs.Glob(dir, "*")
	if err != nil {
		return err
	}
	ids := map[string]string{}
	for _, p := range series {
		if other, taken := ids[p.ID]; taken {
			return fmt.Errorf("patches %s and %s have the same Id %s", other, p.File, p.ID)
		}
		ids[p.ID] = p.File
	}
	for _, f := range files {
		if f != "series" && !slices.ContainsFunc(series, func(p kubernetes.Patch) bool { return p.File == f }) {
			return fmt.Errorf("file %s is not in series: name it there or delete it", f)
		}
	}
	return nil
}

func checkHeader(p kubernetes.Patch) error {
	if !strings.HasPrefix(p.File, p.ID+"-") || !strings.HasSuffix(p.File, ".patch") {
		return fmt.Errorf("the file name must be %s-WORDS.patch, after its Id", p.ID)
	}
	if !upstreamState.MatchString(p.Upstream) {
		return fmt.Errorf("field Upstream is %q; it must be carry, pr/NUMBER or drop-at/vX.Y", p.Upstream)
	}
	for _, c := range p.Components {
		if !slices.Contains(components, c) {
			return fmt.Errorf("field Components names %q; known are %v", c, components)
		}
	}
	for _, t := range p.Tests {
		if !strings.HasPrefix(t, "k8s.io/kubernetes/") {
			return fmt.Errorf("field Tests names %q, which is no package of k8s.io/kubernetes", t)
		}
	}
	return nil
}

// tree is upstream with the patches so far.
type tree struct {
	upstream fs.FS
	patched  map[string][]byte
	added    map[string]string // package folder to the file that was added to it
}

// apply applies one patch, strictly: no offset, no fuzz.
func (t *tree) apply(p kubernetes.Patch) (patchReport, error) {
	r := patchReport{Patch: p}
	files, preamble, err := gitdiff.Parse(strings.NewReader(p.Diff))
	if err != nil {
		return r, fmt.Errorf("reading the diff: %w", err)
	}
	if strings.TrimSpace(preamble) != "" || len(files) == 0 {
		return r, errors.New("between the header and the first \"diff --git\" line must be nothing, and after it a diff")
	}
	for _, f := range files {
		if err := t.applyFile(f); err != nil {
			return r, err
		}
		r.files = append(r.files, f.NewName)
		if t.isOurs(f.NewName) {
			continue
		}
		for _, fragment := range f.TextFragments {
			r.changed += int(fragment.LinesAdded + fragment.LinesDeleted)
		}
	}
	return r, nil
}

func (t *tree) isOurs(name string) bool { return t.added[path.Dir(name)] == name }

func (t *tree) applyFile(f *gitdiff.File) error {
	if f.IsDelete || f.IsRename || f.IsCopy || f.IsBinary || (!f.IsNew && f.OldName != f.NewName) || (!f.IsNew && f.NewMode != 0) {
		return fmt.Errorf("file %s: a patch only changes lines and adds text files; no deletion, renaming, copy, mode or binary", cmpName(f))
	}
	name := f.NewName
	before, err := t.read(name)
	switch {
	case f.IsNew && err == nil:
		return fmt.Errorf("file %s is new in the patch, but exists in upstream", name)
	case !f.IsNew && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("file %s is not in upstream any more: find where its code went, and make the patch again", name)
	case !f.IsNew && err != nil:
		return fmt.Errorf("reading upstream's file: %w", err)
	}
	var after bytes.Buffer
	if err := gitdiff.Apply(&after, bytes.NewReader(before), f); err != nil {
		return fmt.Errorf("file %s does not have these very lines at this place in upstream: %w: make the patch again", name, err)
	}
	if f.IsNew {
		if other, taken := t.added[path.Dir(name)]; taken {
			return fmt.Errorf("file %s is the second new one in its package, after %s: one small file is enough for hooks", name, other)
		}
		t.added[path.Dir(name)] = name
	}
	if t.isOurs(name) {
		if n := bytes.Count(after.Bytes(), []byte("\n")); n > maxNewFile {
			return fmt.Errorf("file %s has %d lines, a new file may have %d: the body of a hook belongs into pkg/hooks", name, n, maxNewFile)
		}
	}
	t.patched[name] = after.Bytes()
	return nil
}

func (t *tree) read(name string) ([]byte, error) {
	if b, ok := t.patched[name]; ok {
		return b, nil
	}
	return fs.ReadFile(t.upstream, name)
}

func cmpName(f *gitdiff.File) string {
	if f.NewName != "" {
		return f.NewName
	}
	return f.OldName
}

// testPackages are the upstream packages whose tests have to pass in the patched
// tree: those that are touched, and those that the headers name.
func (r report) testPackages() []string {
	var all []string
	for _, p := range r.patches {
		for _, f := range p.files {
			all = append(all, "k8s.io/kubernetes/"+path.Dir(f)+"/...")
		}
		all = append(all, p.Tests...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// table is the generated part of the README.
func (r report) table() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| patch | what it does | components | nothing differs without | upstream | changed lines | can be dropped when |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- |")
	for _, p := range r.patches {
		fmt.Fprintf(&b, "| [%s](patches/%s) | %s | %s | %s | %s | %d | %s |\n", p.ID, p.File, p.Title,
			strings.Join(p.Components, ", "), oneLine(p.Gate), p.Upstream, p.changed, oneLine(p.DropWhen))
	}
	fmt.Fprintf(&b, "\n%d of %d lines of the budget are used.\n", r.changed, budget)
	return b.String()
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
