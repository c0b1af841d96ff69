// Package layer makes one layer of a container image: a tar archive whose bytes
// depend on nothing but its contents. Every entry belongs to root and carries
// the same time, and entries are sorted. It knows nothing of images, registries
// or where contents come from.
package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// CapNetBindService is the number of the Linux capability to bind ports below 1024.
const CapNetBindService = 10

// A Layer collects files, links and directories. The zero value is empty and ready.
type Layer struct {
	entries map[string]*entry
}

type entry struct {
	kind   byte // tar.TypeReg, tar.TypeSymlink or tar.TypeDir
	mode   int64
	target string
	data   []byte
	grants uint64 // permitted and effective file capabilities, as a bit set
}

// File adds a regular file. Mode has the permission bits of chmod(2), setuid
// and sticky included. A file that is there already is replaced.
func (l *Layer) File(name string, mode int64, data []byte) {
	l.put(name, &entry{kind: tar.TypeReg, mode: mode, data: data})
}

// Link adds a symbolic link to target.
func (l *Layer) Link(name, target string) {
	l.put(name, &entry{kind: tar.TypeSymlink, mode: 0o777, target: target})
}

// Dir adds a directory. Those that only hold other entries need not be added:
// they are made with mode 0755.
func (l *Layer) Dir(name string, mode int64) {
	l.put(name, &entry{kind: tar.TypeDir, mode: mode})
}

// Grant gives the file a capability, as setcap(8) NAME=+ep does: who runs it
// holds the capability without being root.
func (l *Layer) Grant(name string, capability uint) error {
	e := l.entries[clean(name)]
	if e == nil || e.kind != tar.TypeReg {
		return fmt.Errorf("granting capability %d to %q: no such file in the layer", capability, name)
	}
	e.grants |= 1 << capability
	return nil
}

// Has tells whether the layer has an entry of that name.
func (l *Layer) Has(name string) bool {
	return l.entries[clean(name)] != nil
}

func (l *Layer) put(name string, e *entry) {
	if l.entries == nil {
		l.entries = map[string]*entry{}
	}
	l.entries[clean(name)] = e
}

// clean makes the one spelling of a name that the archive uses: no leading slash.
func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// Tar returns the archive. It fails when an entry lies below one that is not a
// directory: unpacking would follow the link, or fail, depending on who unpacks.
func (l *Layer) Tar() ([]byte, error) {
	all := maps.Clone(l.entries)
	for name := range l.entries {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			parent := all[dir]
			if parent == nil {
				all[dir] = &entry{kind: tar.TypeDir, mode: 0o755}
			} else if parent.kind != tar.TypeDir {
				return nil, fmt.Errorf("writing layer: %q lies below %q, which is not a directory", name, dir)
			}
		}
	}
	var size int
	for _, e := range all {
		size += len(e.data) + 2048
	}
	buffer := bytes.NewBuffer(make([]byte, 0, size))
	w := tar.NewWriter(buffer)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := write(w, name, all[name]); err != nil {
			return nil, fmt.Errorf("writing layer entry %q: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("ending layer: %w", err)
	}
	return buffer.Bytes(), nil
}

func write(w *tar.Writer, name string, e *entry) error {
	h := &tar.Header{
		Typeflag: e.kind,
		Name:     name,
		Mode:     e.mode,
		Size:     int64(len(e.data)),
		Linkname: e.target,
		ModTime:  time.Unix(0, 0),
		Format:   tar.FormatPAX,
	}
	if e.kind == tar.TypeDir {
		h.Name += "/"
	}
	if e.grants != 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capabilityAttribute(e.grants)}
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(e.data)
	return err
}

// capabilityAttribute encodes permitted capabilities as the kernel's
// vfs_cap_data, version 2, with the flag that makes them effective.
func capabilityAttribute(permitted uint64) string {
	const version2, effective = 0x02000000, 0x000001
	words := []uint32{version2 | effective, uint32(permitted), 0, uint32(permitted >> 32), 0}
	var data []byte
	for _, word := range words {
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return string(data)
}
