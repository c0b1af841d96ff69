package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.dev/build/images/layer"
)

// testSet has a program that needs a library through two links, one of them
// across the folders that were merged into /usr. A "program" lists what it
// loads, one name a line after "needs".
func testSet(t *testing.T) *Set {
	t.Helper()
	s := &Set{files: map[string]file{}, control: map[string][]byte{}}
	s.imports = func(data []byte) ([]string, error) {
		names, ok := strings.CutPrefix(string(data), "needs ")
		if !ok {
			return nil, nil
		}
		return strings.Fields(names), nil
	}
	add := func(owner string, headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			contents := h.Uname // the tests' place for contents
			h.Uname, h.Size = "", int64(len(contents))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, contents); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.index(owner, []byte("Package: "+owner+"\n"), &b); err != nil {
			t.Fatal(err)
		}
	}
	reg := func(name, contents string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Uname: contents}
	}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	add("tool",
		tar.Header{Typeflag: tar.TypeDir, Name: "./sbin/", Mode: 0o755},
		reg("./sbin/tool", "needs libx.so.1 /lib64/loader.so"),
		reg("./usr/bin/broken", "needs libnone.so"),
		reg("./usr/bin/other", "not needed"),
		tar.Header{Typeflag: tar.TypeReg, Name: "./bin/su", Mode: 0o4755, Uname: "su"},
		link("./usr/bin/dangling", "nowhere"),
		reg("./usr/share/doc/tool/copyright", "tool's terms"))
	add("libx1",
		link("./usr/lib/x-linux-gnu/libx.so.1", "libx.so.1.2"),
		reg("./usr/lib/x-linux-gnu/libx.so.1.2", "library"),
		link("./usr/share/doc/libx1", "x-common"))
	add("x-common", reg("./usr/share/doc/x-common/copyright", "x's terms"))
	add("libc",
		link("./lib64/loader.so", "/lib/x-linux-gnu/loader.so"),
		reg("./lib/x-linux-gnu/loader.so", "loader"),
		reg("./usr/share/doc/libc/copyright", "libc's terms"))
	return s
}

func TestInstallTakesWhatAProgramNeeds(t *testing.T) {
	var l layer.Layer
	if err := testSet(t).Install(&l, "/usr/sbin/tool", "/usr/bin/su"); err != nil {
		t.Fatal(err)
	}
	got := entries(t, &l)
	want := []string{
		"usr/bin/su 4755 su",
		"usr/lib/x-linux-gnu/libx.so.1 -> libx.so.1.2",
		"usr/lib/x-linux-gnu/libx.so.1.2 755 library",
		"usr/lib/x-linux-gnu/loader.so 755 loader",
		"usr/lib64/loader.so -> /lib/x-linux-gnu/loader.so",
		"usr/sbin/tool 755 needs libx.so.1 /lib64/loader.so",
		"usr/share/doc/libc/copyright 644 libc's terms",
		"usr/share/doc/libx1/copyright 644 x's terms",
		"usr/share/doc/tool/copyright 644 tool's terms",
		"var/lib/dpkg/status.d/libc 644 Package: libc\n",
		"var/lib/dpkg/status.d/libx1 644 Package: libx1\n",
		"var/lib/dpkg/status.d/tool 644 Package: tool\n",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layer has\n%q\nwant\n%q", got, want)
	}
}

func TestInstallFails(t *testing.T) {
	for pattern, want := range map[string]string{
		"/usr/bin/missing":  `no package of the set has a file "/usr/bin/missing"`,
		"/usr/bin/broken":   `"/usr/bin/broken" of package "tool": no package of the set has the library "libnone.so"`,
		"/usr/bin/dangling": `it links to "nowhere"`,
		"/usr/bin/[":        `syntax error in pattern`,
	} {
		var l layer.Layer
		if err := testSet(t).Install(&l, pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("installing %q: error is %v, want %q in it", pattern, err, want)
		}
	}
}

func TestReadSorts(t *testing.T) {
	got, err := testSet(t).Read("/usr/share/doc/*/copyright")
	if err != nil {
		t.Fatal(err)
	}
	if joined := string(bytes.Join(got, []byte("; "))); joined != "libc's terms; tool's terms; x's terms" {
		t.Errorf("contents are %q", joined)
	}
}

func TestImports(t *testing.T) {
	if needed, err := imports([]byte("#!/bin/sh\n")); err != nil || len(needed) > 0 {
		t.Errorf("a script needs %q, error %v; want nothing", needed, err)
	}
	if _, err := imports([]byte("\x7fELF, but not really")); err == nil {
		t.Error("a damaged ELF file needs nothing")
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "list of packages") {
		t.Errorf("no list: error is %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "packages"), []byte("only-one-field\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "only-one-field") {
		t.Errorf("bad list: error is %v", err)
	}
}

// entries prints the layer, one line an entry, without directories.
func entries(t *testing.T, l *layer.Layer) []string {
	t.Helper()
	data, err := l.Tar()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		contents, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			all = append(all, fmt.Sprintf("%s %o %s", h.Name, h.Mode, contents))
		case tar.TypeSymlink:
			all = append(all, h.Name+" -> "+h.Linkname)
		}
	}
}
