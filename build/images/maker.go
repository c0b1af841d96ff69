package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skerry.dev/build/images/archive"
	"skerry.dev/build/images/debian"
	"skerry.dev/build/images/layer"
)

// sources says where contents come from and for what they are.
type sources struct {
	out, arch, kubernetes, upstream, source string
}

// A recipe is one image: what it is called, how it is started and what is in it.
type recipe struct {
	file   string   // of the archive, below the folder of images
	names  []string // full names; each gets an image of its own, of one layer
	config v1.Config
	fill   func(*contents) error
}

// contents is the layer in the making. It remembers what was read for it.
type contents struct {
	layer.Layer
	*maker
	inputs map[string]string
}

// maker makes images out of recipes.
type maker struct {
	sources
	program string // digest of this program: its recipes are inputs of every image
	mutex   sync.Mutex
	sets    map[string]*debian.Set
}

func newMaker(s sources) (*maker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	m := &maker{sources: s, sets: map[string]*debian.Set{}}
	if m.program, err = digestOf(self); err != nil {
		return nil, err
	}
	return m, nil
}

// build writes the archive, then its stamp.
func (m *maker) build(r recipe) (size int64, err error) {
	c := &contents{maker: m, inputs: map[string]string{}}
	if err := r.fill(c); err != nil {
		return 0, err
	}
	data, err := c.Tar()
	if err != nil {
		return 0, err
	}
	var images []archive.Image
	for _, name := range r.names {
		images = append(images, archive.Image{Name: name, Architecture: m.arch, Config: r.config, Layers: [][]byte{data}})
	}
	if err := os.MkdirAll(filepath.Dir(m.stamp(r)), 0o755); err != nil {
		return 0, fmt.Errorf("making the folder of stamps: %w", err)
	}
	if err := os.Remove(m.stamp(r)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("removing the stamp of the old image: %w", err)
	}
	if size, err = writeArchive(m.archive(r), m.stamp(r)+".archive", images); err != nil {
		return 0, err
	}
	stamp, err := json.Marshal(m.stampOf(r, c.inputs))
	if err != nil {
		return 0, fmt.Errorf("encoding the stamp: %w", err)
	}
	if err := os.WriteFile(m.stamp(r), stamp, 0o644); err != nil {
		return 0, fmt.Errorf("writing the stamp: %w", err)
	}
	return size, nil
}

// writeArchive leaves a whole file or none. It writes to scratch first, which is
// not among the archives: who copies their folder never sees half of one.
func writeArchive(name, scratch string, images []archive.Image) (size int64, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return 0, fmt.Errorf("making the folder of images: %w", err)
	}
	f, err := os.Create(scratch)
	if err != nil {
		return 0, fmt.Errorf("creating the archive: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(scratch)
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(archive.Write(buffered, images...), buffered.Flush()); err != nil {
		f.Close()
		return 0, err
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("writing the archive: %w", err)
	}
	if err := os.Rename(scratch, name); err != nil {
		return 0, fmt.Errorf("putting the archive in place: %w", err)
	}
	return info.Size(), nil
}

// A stamp tells of what an archive was made. It lies apart from the archives,
// whose folder goes to machines as it is.
type stamp struct {
	Program string
	Arch    string
	Names   []string
	Inputs  map[string]string // digests of the files read, by name
}

func (m *maker) archive(r recipe) string {
	return filepath.Join(m.out, "images", r.file)
}

func (m *maker) stamp(r recipe) string {
	return filepath.Join(m.out, "parts", "stamps", r.file+".json")
}

func (m *maker) stampOf(r recipe, inputs map[string]string) stamp {
	return stamp{Program: m.program, Arch: m.arch, Names: r.names, Inputs: inputs}
}

// upToDate tells whether making the image again would give the same bytes.
func (m *maker) upToDate(r recipe) bool {
	if _, err := os.Stat(m.archive(r)); err != nil {
		return false
	}
	old, err := os.ReadFile(m.stamp(r))
	if err != nil {
		return false
	}
	var before stamp
	if err := json.Unmarshal(old, &before); err != nil {
		return false
	}
	for name, digest := range before.Inputs {
		if now, err := digestOf(name); err != nil || now != digest {
			return false
		}
	}
	want, err := json.Marshal(m.stampOf(r, before.Inputs))
	return err == nil && string(want) == string(old)
}

func digestOf(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("reading an input: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// read returns a file that becomes part of the image.
func (c *contents) read(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("reading a part of the image: %w", err)
	}
	sum := sha256.Sum256(data)
	c.inputs[name] = hex.EncodeToString(sum[:])
	return data, nil
}

// place puts the file from, below the output folder, into the image.
func (c *contents) place(from, to string, mode int64) error {
	data, err := c.read(filepath.Join(c.out, from))
	if err != nil {
		return err
	}
	c.File(to, mode, data)
	return nil
}

// packages returns the set of Debian packages of that name. The digest of its
// list, which has the digests of the packages, stands for all of them.
func (c *contents) packages(name string) (*debian.Set, error) {
	dir := filepath.Join(c.out, "debs", name)
	if _, err := c.read(filepath.Join(dir, "packages")); err != nil {
		return nil, err
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.sets[name] == nil {
		set, err := debian.Open(dir)
		if err != nil {
			return nil, err
		}
		c.sets[name] = set
	}
	return c.sets[name], nil
}
