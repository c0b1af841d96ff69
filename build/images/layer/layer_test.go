package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestTarIsTheSameInAnyOrder(t *testing.T) {
	var a, b Layer
	a.File("/usr/bin/one", 0o755, []byte("1"))
	a.Link("/usr/bin/two", "one")
	a.Dir("/tmp", 0o1777)
	b.Dir("tmp/", 0o1777)
	b.Link("usr/bin/two", "one")
	b.File("/usr/bin/../bin/one", 0o755, []byte("1"))
	if first, second := mustTar(t, &a), mustTar(t, &b); !bytes.Equal(first, second) {
		t.Error("two layers of equal contents have different bytes")
	}
	b.File("/usr/bin/one", 0o755, []byte("2"))
	if bytes.Equal(mustTar(t, &a), mustTar(t, &b)) {
		t.Error("two layers of different contents have the same bytes")
	}
}

func TestTarEntries(t *testing.T) {
	var l Layer
	l.File("/usr/bin/su", 0o4755, []byte("program"))
	l.File("/coredns", 0o755, []byte("dns"))
	l.Link("/bin", "usr/bin")
	l.Dir("/tmp", 0o1777)
	if err := l.Grant("/coredns", CapNetBindService); err != nil {
		t.Fatal(err)
	}
	want := []tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "bin", Mode: 0o777, Linkname: "usr/bin"},
		{Typeflag: tar.TypeReg, Name: "coredns", Mode: 0o755, Size: 3},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "usr/bin/su", Mode: 0o4755, Size: 7},
	}
	// cap_net_bind_service=+ep, as getfattr -e text shows it after setcap.
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

	r := tar.NewReader(bytes.NewReader(mustTar(t, &l)))
	for _, w := range want {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("entry %q: %v", w.Name, err)
		}
		if h.Typeflag != w.Typeflag || h.Name != w.Name || h.Mode != w.Mode || h.Linkname != w.Linkname || h.Size != w.Size {
			t.Errorf("entry is type %c %q mode %o link %q size %d, want type %c %q mode %o link %q size %d",
				h.Typeflag, h.Name, h.Mode, h.Linkname, h.Size, w.Typeflag, w.Name, w.Mode, w.Linkname, w.Size)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%q: owner %d:%d %q, time %v; want root, no name, time 0", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		got := h.PAXRecords["SCHILY.xattr.security.capability"]
		if w.Name == "coredns" && got != capability {
			t.Errorf("%q: capability attribute is %q, want %q", h.Name, got, capability)
		}
		if w.Name != "coredns" && got != "" {
			t.Errorf("%q has a capability attribute", h.Name)
		}
	}
	if h, err := r.Next(); err != io.EOF {
		t.Errorf("one entry too many: %v, %v", h, err)
	}
}

func TestTarRefusesEntriesBelowLinks(t *testing.T) {
	var l Layer
	l.Link("/bin", "usr/bin")
	l.File("/bin/sh", 0o755, nil)
	if _, err := l.Tar(); err == nil || !strings.Contains(err.Error(), `"bin/sh" lies below "bin"`) {
		t.Errorf("error is %v, want one that names both entries", err)
	}
}

func TestGrantNeedsAFile(t *testing.T) {
	var l Layer
	l.Dir("/tmp", 0o755)
	for _, name := range []string{"/tmp", "/nothing"} {
		if err := l.Grant(name, CapNetBindService); err == nil {
			t.Errorf("a capability was granted to %q", name)
		}
	}
}

func mustTar(t *testing.T, l *Layer) []byte {
	t.Helper()
	data, err := l.Tar()
	if err != nil {
		t.Fatal(err)
	}
	return data
}
