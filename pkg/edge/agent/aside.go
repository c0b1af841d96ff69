package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// asideInfix is between the store's name and a number, and asideJournal
	// behind that, in the names of what could not be read: numbers, as the
	// clock may be wrong when it matters.
	asideInfix   = ".unreadable-"
	asideJournal = ".journal"
	// keptAside is how many such stores are kept: what a node has not sent is
	// worth the space, and a disk that breaks one each day must not fill up.
	keptAside = 3
)

// aside is a store that could not be read.
type aside struct {
	number int
	since  time.Time
	files  []string // the store and its journal, as far as they are there
}

// listAside finds what was set aside, the oldest first: beside the store, and
// journals beside the journal.
func listAside(options store.Options) ([]aside, error) {
	byNumber := map[int]*aside{}
	for _, path := range []string{options.Path, options.JournalPath} {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			return nil, fmt.Errorf("looking for stores that could not be read: %w", err)
		}
		for _, entry := range entries {
			rest, ok := strings.CutPrefix(entry.Name(), filepath.Base(path)+asideInfix)
			if !ok {
				continue
			}
			number, err := strconv.Atoi(strings.TrimSuffix(rest, asideJournal))
			if err != nil || number < 1 {
				continue // somebody else's
			}
			found := byNumber[number]
			if found == nil {
				found = &aside{number: number}
				byNumber[number] = found
			}
			found.files = append(found.files, filepath.Join(filepath.Dir(path), entry.Name()))
			if info, err := entry.Info(); err == nil && info.ModTime().After(found.since) {
				found.since = info.ModTime()
			}
		}
	}
	var all []aside
	for _, found := range byNumber {
		all = append(all, *found)
	}
	slices.SortFunc(all, func(a, b aside) int { return cmp.Compare(a.number, b.number) })
	return all, nil
}

// replaceStore begins with an empty store, beside one of which nothing can be
// read: a node that serves what the cloud says is better than one that never
// starts again. What was not read is kept with its journal, under a number of
// its own; the oldest of too many goes.
func (a *Agent) replaceStore(options store.Options, reason error) (*store.Store, error) {
	kept, err := listAside(options)
	if err != nil {
		return nil, errors.Join(reason, err)
	}
	number := 1
	if len(kept) > 0 {
		number = kept[len(kept)-1].number + 1
	}
	for ; len(kept) >= keptAside; kept = kept[1:] {
		a.log.Warn("removing the oldest store that could not be read: there is a newer one, and no more are kept", "files", kept[0].files, "kept", keptAside)
		for _, file := range kept[0].files {
			if err := os.Remove(file); err != nil {
				return nil, errors.Join(reason, fmt.Errorf("removing the oldest store that could not be read: %w", err))
			}
		}
	}
	name := options.Path + asideInfix + strconv.Itoa(number)
	// The journal first: without its store it is worth nothing here, but a
	// store that is set aside is not looked at again.
	journal, err := a.keepJournal(options.JournalPath, number, name+asideJournal)
	if err != nil {
		return nil, errors.Join(reason, err)
	}
	if err := os.Rename(options.Path, name); err != nil {
		return nil, errors.Join(reason, fmt.Errorf("setting the store aside: %w", err))
	}
	if err := syncFolder(filepath.Dir(options.Path)); err != nil {
		return nil, errors.Join(reason, err)
	}
	// The next store has another name in its header, and would not read it.
	if err := remove(options.JournalPath); err != nil {
		return nil, errors.Join(reason, err)
	}
	a.log.Error("the store could not be read: it is kept, and this node knows only what the cloud says from now on",
		"err", reason, "kept", name, "journal", journal)
	return store.Open(options)
}

// keepJournal copies a journal to the store's disk, as it lies on another file
// system, which forgets; it returns where it is, "" if there is none. Where
// there is no space for it, it stays where it was, under another name, until
// the machine loses its power.
func (a *Agent) keepJournal(from string, number int, to string) (string, error) {
	err := copyFile(from, to)
	switch {
	case err == nil:
		return to, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	}
	beside := from + asideInfix + strconv.Itoa(number)
	a.log.Warn("the journal of a store that could not be read is not beside it: no copy can be made", "err", err, "kept", beside)
	if err := errors.Join(remove(to), os.Rename(from, beside)); err != nil {
		return "", fmt.Errorf("keeping the journal: %w", err)
	}
	return beside, nil
}

// copyFile makes a copy that is on the disk when it returns.
func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making a copy: %w", err)
	}
	_, err = io.Copy(target, source)
	if err := errors.Join(err, target.Sync(), target.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", to, err)
	}
	return nil
}

// remove removes a file that need not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a file: %w", err)
	}
	return nil
}

// syncFolder makes names in a folder survive a power cut.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("syncing a folder: %w", err)
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil {
		return fmt.Errorf("syncing folder %s: %w", path, err)
	}
	return nil
}

// storesAside is the problem that stores are kept which could not be read: for
// as long as they are there, over restarts, since what this node had not sent
// to the cloud may be in them.
func (a *Agent) storesAside() error {
	kept, err := listAside(a.storeOptions())
	if err != nil || len(kept) == 0 {
		return err
	}
	var names []string
	for _, one := range kept {
		names = append(names, fmt.Sprintf("%s (%s)", strings.Join(one.files, " and "), one.since.Local().Format(time.DateTime)))
	}
	return fmt.Errorf("the store could not be read, and this node began anew: what it had not sent to the cloud is kept in %s; remove these files when nobody needs them",
		strings.Join(names, ", "))
}
