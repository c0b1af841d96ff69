package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const header = `Id: 0001
Title: Ask a hook
Components: kubelet
Gate: a hook
Upstream: carry
Description:
 Asks a hook.
Why-not-upstream: ours
Tests: k8s.io/kubernetes/pkg/thing/...
Drop-when: never
---
`

const hunk = `diff --git a/pkg/thing/thing.go b/pkg/thing/thing.go
--- a/pkg/thing/thing.go
+++ b/pkg/thing/thing.go
@@ -2,3 +2,3 @@
 two
-three
+hook(three)
 four
`

const newFile = `diff --git a/pkg/thing/skerry_hooks.go b/pkg/thing/skerry_hooks.go
new file mode 100644
--- /dev/null
+++ b/pkg/thing/skerry_hooks.go
@@ -0,0 +1,2 @@
+package thing
+var Hook func()
`

const upstreamFile = "one\ntwo\nthree\nfour\nfive\n"

// check runs checkSeries on a series of one patch.
func check(patch, upstream string, budget int) (report, error) {
	return checkSeries(
		fstest.MapFS{
			"series":          {Data: []byte("# the patches\n0001-hook.patch\n")},
			"0001-hook.patch": {Data: []byte(patch)},
		},
		fstest.MapFS{"pkg/thing/thing.go": {Data: []byte(upstream)}}, budget)
}

func TestSeriesInOrder(t *testing.T) {
	r, err := check(header+hunk+newFile, upstreamFile, 2)
	if err != nil {
		t.Fatal(err)
	}
	if r.changed != 2 {
		t.Errorf("%d changed upstream lines, want 2: those of the new file do not count", r.changed)
	}
	if got, want := r.testPackages(), []string{"k8s.io/kubernetes/pkg/thing/..."}; !slices.Equal(got, want) {
		t.Errorf("packages to test: %v, want %v", got, want)
	}
	if table := r.table(); !strings.Contains(table, "| [0001](patches/0001-hook.patch) | Ask a hook | kubelet | a hook | carry | 2 |") {
		t.Errorf("table:\n%s", table)
	}
}

func TestSeriesNotInOrder(t *testing.T) {
	for _, tc := range []struct {
		name     string
		patch    string
		upstream string
		budget   int
		want     string
	}{
		{"one line over the budget", header + hunk + newFile, upstreamFile, 1, "the budget is 1"},
		{"offset", header + hunk, "zero\n" + upstreamFile, 25, "these very lines at this place"},
		{"context differs", header + hunk, strings.Replace(upstreamFile, "four", "fore", 1), 25, "these very lines at this place"},
		{"removed line differs", header + hunk, strings.Replace(upstreamFile, "three", "drei", 1), 25, "these very lines at this place"},
		{"file moved", header + strings.ReplaceAll(hunk, "thing.go", "moved.go"), upstreamFile, 25, "not in upstream any more"},
		{"new file exists", header + strings.ReplaceAll(newFile, "skerry_hooks.go", "thing.go"), upstreamFile, 25, "exists in upstream"},
		{"second new file", header + newFile + strings.ReplaceAll(newFile, "skerry_hooks", "more"), upstreamFile, 25, "second new one"},
		{"long new file", header + longFile(maxNewFile+1), upstreamFile, 25, "may have 100"},
		{"file deleted", header + "diff --git a/pkg/thing/thing.go b/pkg/thing/thing.go\ndeleted file mode 100644\n--- a/pkg/thing/thing.go\n+++ /dev/null\n@@ -1,5 +0,0 @@\n-one\n-two\n-three\n-four\n-five\n", upstreamFile, 25, "no deletion"},
		{"mode changed", header + "diff --git a/pkg/thing/thing.go b/pkg/thing/thing.go\nold mode 100644\nnew mode 100755\n", upstreamFile, 25, "mode"},
		{"no diff", header, upstreamFile, 25, "after it a diff"},
		{"text before the diff", header + "some words\n" + hunk, upstreamFile, 25, "must be nothing"},
		{"no header", hunk, upstreamFile, 25, "ends the header"},
		{"field missing", strings.Replace(header, "Drop-when: never\n", "", 1) + hunk, upstreamFile, 25, "Drop-when is missing"},
		{"field empty", strings.Replace(header, "carry", "", 1) + hunk, upstreamFile, 25, "Upstream is missing or empty"},
		{"field unknown", "Author: me\n" + header + hunk, upstreamFile, 25, "Author is not one we know"},
		{"field twice", "Id: 0002\n" + header + hunk, upstreamFile, 25, "Id is there twice"},
		{"state unknown", strings.Replace(header, "carry", "perhaps", 1) + hunk, upstreamFile, 25, "field Upstream"},
		{"component unknown", strings.Replace(header, "kubelet", "kubectl", 1) + hunk, upstreamFile, 25, "field Components"},
		{"tests outside upstream", strings.Replace(header, "k8s.io/kubernetes/pkg", "./pkg", 1) + hunk, upstreamFile, 25, "field Tests"},
		{"name and Id differ", strings.Replace(header, "0001", "0002", 1) + hunk, upstreamFile, 25, "file name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := check(tc.patch, tc.upstream, tc.budget)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one with %q", err, tc.want)
			}
		})
	}
}

func longFile(lines int) string {
	head, _, _ := strings.Cut(newFile, "@@")
	return head + fmt.Sprintf("@@ -0,0 +1,%d @@\n", lines) + strings.Repeat("+// line\n", lines)
}

func TestSeriesAndFilesAgree(t *testing.T) {
	upstream := fstest.MapFS{"pkg/thing/thing.go": {Data: []byte(upstreamFile)}}
	patch := &fstest.MapFile{Data: []byte(header + hunk)}
	for _, tc := range []struct {
		name string
		dir  fstest.MapFS
		want string
	}{
		{"not in series", fstest.MapFS{"series": {}, "0001-hook.patch": patch}, "not in series"},
		{"no file", fstest.MapFS{"series": {Data: []byte("0001-hook.patch\n")}}, "which series names"},
		{"twice", fstest.MapFS{"series": {Data: []byte("0001-hook.patch\n0001-hook.patch\n")}, "0001-hook.patch": patch}, "twice"},
		{"no series", fstest.MapFS{"0001-hook.patch": patch}, "list of patches"},
		{"Id twice", fstest.MapFS{"series": {Data: []byte("0001-hook.patch\n0001-other.patch\n")}, "0001-hook.patch": patch, "0001-other.patch": patch}, "same Id"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := checkSeries(tc.dir, upstream, 25)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one with %q", err, tc.want)
			}
		})
	}
}

// A second patch sees what the first one did.
func TestPatchOnPatch(t *testing.T) {
	second := strings.NewReplacer("0001", "0002").Replace(header) +
		strings.NewReplacer("-three", "-hook(three)", "+hook(three)", "+hook(hook(three))").Replace(hunk)
	r, err := checkSeries(fstest.MapFS{
		"series":           {Data: []byte("0001-hook.patch\n0002-again.patch\n")},
		"0001-hook.patch":  {Data: []byte(header + hunk)},
		"0002-again.patch": {Data: []byte(second)},
	}, fstest.MapFS{"pkg/thing/thing.go": {Data: []byte(upstreamFile)}}, 4)
	if err != nil {
		t.Fatal(err)
	}
	if r.changed != 4 {
		t.Errorf("%d changed lines, want 4", r.changed)
	}
}

func TestWithTable(t *testing.T) {
	page := "before\n" + tableBegin + "old\n" + tableEnd + "after\n"
	got, err := withTable(page, "new\n")
	if want := "before\n" + tableBegin + "new\n" + tableEnd + "after\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := withTable("no marks\n", "new\n"); err == nil {
		t.Error("a page without marks was accepted")
	}
}
