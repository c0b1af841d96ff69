package offline

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"k8s.io/klog/v2"
)

// notes are pairs of an image's name and the ref that it had, one file each, on
// disk before a call returns. There are at most as many as images on the node.
// Flash wears: a note that is there already is not written again, and notes that
// are no longer needed stay until the next start of the kubelet.
type notes struct {
	dir string

	mu  sync.Mutex
	ref map[string]string // by name
}

type note struct {
	Image    string `json:"image"`
	ImageRef string `json:"imageRef"`
}

// maxNote bounds a file that is read; names of images have at most a few hundred
// bytes.
const maxNote = 64 << 10

const noteSuffix = ".json"

// loadNotes reads the folder and makes it if it is missing. A file that cannot
// be read as a note is removed: not to know is safe.
func loadNotes(dir string) (*notes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for notes: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the folder of notes: %w", err)
	}
	n := &notes{dir: dir, ref: map[string]string{}}
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		read, err := readNote(name)
		if err != nil {
			klog.ErrorS(err, "Skerry: removing a note that cannot be read", "file", name)
			if err := os.Remove(name); err != nil {
				return nil, fmt.Errorf("removing a note that cannot be read: %w", err)
			}
			continue
		}
		n.ref[read.Image] = read.ImageRef
	}
	return n, nil
}

func readNote(name string) (note, error) {
	var n note
	info, err := os.Lstat(name)
	if err != nil {
		return n, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxNote || !strings.HasSuffix(name, noteSuffix) {
		return n, fmt.Errorf("%s is no note: %s, %d bytes", name, info.Mode(), info.Size())
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return n, fmt.Errorf("%s is no note: %w", name, err)
	}
	if n.Image == "" || n.ImageRef == "" || noteFile(n.Image) != filepath.Base(name) {
		return n, fmt.Errorf("%s is not the note of image %q", name, n.Image)
	}
	return n, nil
}

func noteFile(image string) string {
	sum := sha256.Sum256([]byte(image))
	return hex.EncodeToString(sum[:]) + noteSuffix
}

// get returns the ref of an image, or "".
func (n *notes) get(image string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ref[image]
}

func (n *notes) all() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.ref)
}

// set notes an image's ref; "" means none.
func (n *notes) set(image, ref string) error {
	if ref == "" {
		return n.drop(image)
	}
	return n.put(image, ref)
}

// put notes an image's ref. After an error the image has no note in memory, and
// on disk the old one or none.
func (n *notes) put(image, ref string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ref[image] == ref {
		return nil
	}
	delete(n.ref, image)
	text, err := json.Marshal(note{Image: image, ImageRef: ref})
	if err != nil {
		return err
	}
	if err := n.write(noteFile(image), text); err != nil {
		return fmt.Errorf("noting down that image %s is there before its pull: %w", image, err)
	}
	n.ref[image] = ref
	return nil
}

// drop forgets an image.
func (n *notes) drop(image string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ref, image)
	err := os.Remove(filepath.Join(n.dir, noteFile(image)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = n.syncDir()
	}
	if err != nil {
		return fmt.Errorf("forgetting that image %s was there before its pull: %w", image, err)
	}
	return nil
}

func (n *notes) write(name string, text []byte) (err error) {
	f, err := os.CreateTemp(n.dir, "new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(n.dir, name))
	}
	if err == nil {
		err = n.syncDir()
	}
	return err
}

func (n *notes) syncDir() error {
	d, err := os.Open(n.dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
