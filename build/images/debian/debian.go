// Package debian takes programs out of Debian packages, with the libraries they
// load and nothing else, and puts them into a layer. No package is installed and
// no file of the machine is read, so that it works for any architecture. It
// does not know where the packages come from, nor which image wants what.
package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/build/images/layer"
)

// unpackTimeout is far more than any package takes on a slow disk.
const unpackTimeout = 2 * time.Minute

// A Set is the contents of some packages, laid over each other.
type Set struct {
	files   map[string]file // by absolute, merged path
	control map[string][]byte
	imports func(program []byte) ([]string, error)
}

type file struct {
	owner  string // name of the package
	mode   int64
	target string // of a symbolic link
	data   []byte
}

// Open reads the packages that the file "packages" in dir lists, in the format
// of sha256sum.
func Open(dir string) (*Set, error) {
	list, err := os.ReadFile(filepath.Join(dir, "packages"))
	if err != nil {
		return nil, fmt.Errorf("reading the list of packages: %w", err)
	}
	s := &Set{files: map[string]file{}, control: map[string][]byte{}, imports: imports}
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 2 {
			return nil, fmt.Errorf("list of packages in %q: line %q is not a digest and a file", dir, lines.Text())
		}
		if err := s.open(filepath.Join(dir, fields[1])); err != nil {
			return nil, fmt.Errorf("reading package %q: %w", fields[1], err)
		}
	}
	return s, nil
}

func (s *Set) open(deb string) error {
	control, err := dpkgDeb("--field", deb)
	if err != nil {
		return err
	}
	contents, err := dpkgDeb("--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	owner, _, _ := strings.Cut(filepath.Base(deb), "_")
	return s.index(owner, control, bytes.NewReader(contents))
}

func dpkgDeb(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), unpackTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// index adds the contents of one package, a tar archive.
func (s *Set) index(owner string, control []byte, contents io.Reader) error {
	s.control[owner] = control
	r := tar.NewReader(contents)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
		f := file{owner: owner, mode: h.Mode & 0o7777}
		switch h.Typeflag {
		case tar.TypeSymlink:
			f.target = h.Linkname
		case tar.TypeLink:
			f = s.files[merged(h.Linkname)]
		case tar.TypeReg:
			if f.data, err = io.ReadAll(r); err != nil {
				return fmt.Errorf("unpacking %q: %w", h.Name, err)
			}
		default:
			continue
		}
		s.files[merged(h.Name)] = f
	}
}

// merged maps the folders that Debian has merged into /usr, while its packages
// still name the old ones.
func merged(name string) string {
	name = path.Join("/", name)
	top, rest, _ := strings.Cut(name[1:], "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return path.Join("/usr", top, rest)
	}
	return name
}

// Read returns the contents of every file that a pattern of path.Match names, in
// the order of their names.
func (s *Set) Read(pattern string) ([][]byte, error) {
	names, err := s.match(pattern)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, name := range names {
		all = append(all, s.files[name].data)
	}
	return all, nil
}

// Install puts the files that the patterns name into the layer, with what they
// need to run: targets of links, the ELF interpreter, libraries. Of each package
// that a file comes from, its copyright and, for those who scan images, its
// control data go along.
func (s *Set) Install(l *layer.Layer, patterns ...string) error {
	var todo []string
	for _, pattern := range patterns {
		names, err := s.match(pattern)
		if err != nil {
			return err
		}
		todo = append(todo, names...)
	}
	done := map[string]bool{}
	owners := map[string]bool{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if done[name] {
			continue
		}
		done[name] = true
		f := s.files[name]
		owners[f.owner] = true
		needed, err := s.install(l, name, f)
		if err != nil {
			return fmt.Errorf("installing %q of package %q: %w", name, f.owner, err)
		}
		todo = append(todo, needed...)
	}
	for _, owner := range slices.Sorted(maps.Keys(owners)) {
		if err := s.document(l, owner); err != nil {
			return err
		}
	}
	return nil
}

// install puts one file into the layer and returns the names of those it needs.
func (s *Set) install(l *layer.Layer, name string, f file) ([]string, error) {
	if f.target != "" {
		l.Link(name, f.target)
		target := f.target
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		target = merged(target)
		if _, ok := s.files[target]; !ok {
			return nil, fmt.Errorf("it links to %q, which no package of the set has", f.target)
		}
		return []string{target}, nil
	}
	l.File(name, f.mode, f.data)
	libraries, err := s.imports(f.data)
	if err != nil {
		return nil, fmt.Errorf("reading its list of libraries: %w", err)
	}
	var needed []string
	for _, library := range libraries {
		found, err := s.library(library)
		if err != nil {
			return nil, err
		}
		needed = append(needed, found)
	}
	return needed, nil
}

// library finds a library in the folders that Debian's loader searches, or the
// loader itself, which is named by its path.
func (s *Set) library(name string) (string, error) {
	if path.IsAbs(name) {
		if _, ok := s.files[merged(name)]; ok {
			return merged(name), nil
		}
	}
	for _, pattern := range []string{"/usr/lib/*-linux-gnu/" + name, "/usr/lib/" + name} {
		if found, err := s.match(pattern); err == nil {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("no package of the set has the library %q", name)
}

// document adds the copyright and the control data of a package.
func (s *Set) document(l *layer.Layer, owner string) error {
	l.File("/var/lib/dpkg/status.d/"+owner, 0o644, s.control[owner])
	// A package made of the same source as another may link to its documents.
	folder := "/usr/share/doc/" + owner
	if link, ok := s.files[folder]; ok && link.target != "" {
		folder = path.Join("/usr/share/doc", link.target)
	}
	copyright, ok := s.files[folder+"/copyright"]
	if !ok {
		return fmt.Errorf("package %q has no copyright file", owner)
	}
	l.File("/usr/share/doc/"+owner+"/copyright", 0o644, copyright.data)
	return nil
}

func (s *Set) match(pattern string) ([]string, error) {
	if _, ok := s.files[pattern]; ok {
		return []string{pattern}, nil
	}
	var names []string
	for name := range s.files {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
		if ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no package of the set has a file %q", pattern)
	}
	slices.Sort(names)
	return names, nil
}

// imports returns what an ELF file needs to be loaded: its interpreter and its
// libraries. Anything that is not ELF needs nothing.
func imports(data []byte) ([]string, error) {
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interpreter, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, err
			}
			needed = append(needed, string(bytes.TrimRight(interpreter, "\x00")))
		}
	}
	return needed, nil
}
