package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.dev/skerry/pkg/edge/store"
)

// Stores that cannot be read are kept with their journals, the newest three of
// them, and told for as long as they are there.
func TestStoresAside(t *testing.T) {
	config := configuration(t)
	state, run := config.Files.StateDir, filepath.Dir(config.Files.Journal)
	for _, dir := range []string{state, run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	a := &Agent{config: config, log: slog.New(slog.NewTextHandler(&log, nil)), policy: NewPolicy()}
	options := a.storeOptions()
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Names that only look like ours stay out of it.
	foreign := []string{options.Path + ".unreadable", options.Path + ".unreadable-x", options.Path + ".unreadable-0", options.Path + ".unreadable--4"}
	for _, path := range foreign {
		write(path, "foreign")
	}
	breakAgain := func(i int) {
		t.Helper()
		opened, err := a.replaceStore(options, store.ErrDamaged)
		if err != nil {
			t.Fatalf("store %d: %v", i, err)
		}
		batch := &store.Batch{}
		batch.PutDocument("what", []byte("new"))
		if err := opened.Apply(batch, store.Soon); err != nil {
			t.Errorf("the new store %d: %v", i, err)
		}
		if err := opened.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const all = 5
	for i := 1; i <= all; i++ {
		write(options.Path, fmt.Sprint("store ", i))
		write(options.JournalPath, fmt.Sprint("journal ", i))
		breakAgain(i)
		want := map[string]string{}
		for n := max(1, i-keptAside+1); n <= i; n++ {
			name := fmt.Sprintf("%s.unreadable-%d", options.Path, n)
			want[name], want[name+".journal"] = fmt.Sprint("store ", n), fmt.Sprint("journal ", n)
		}
		found, err := filepath.Glob(options.Path + ".unreadable-*")
		if err != nil {
			t.Fatal(err)
		}
		found = slices.DeleteFunc(found, func(name string) bool { return slices.Contains(foreign, name) })
		if len(found) != len(want) {
			t.Errorf("after %d: %q", i, found)
		}
		for name, content := range want {
			data, err := os.ReadFile(name)
			if err != nil || string(data) != content {
				t.Errorf("after %d: %s has %q, %v", i, name, data, err)
			}
			if info, err := os.Stat(name); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("others may read %s: %v", name, info.Mode())
			}
		}
	}
	for _, path := range foreign {
		if data, err := os.ReadFile(path); err != nil || string(data) != "foreign" {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	for _, want := range []string{options.Path + ".unreadable-5", options.Path + ".unreadable-5.journal", "removing the oldest", options.Path + ".unreadable-2"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}

	// A restart finds them, and says so until they are removed.
	if err := a.openStore(); err != nil {
		t.Fatal(err)
	}
	problems := strings.Join(a.allProblems(), "\n")
	for _, want := range []string{options.Path + ".unreadable-3", options.Path + ".unreadable-5.journal"} {
		if !strings.Contains(problems, want) {
			t.Errorf("the status does not say %q: %s", want, problems)
		}
	}
	if err := a.store.Close(); err != nil {
		t.Fatal(err)
	}
	kept, err := listAside(options)
	if err != nil || len(kept) != keptAside {
		t.Fatalf("%v, %v", kept, err)
	}
	for _, one := range kept {
		for _, file := range one.files {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.problem("store", a.storesAside())
	if problems := a.allProblems(); len(problems) > 0 {
		t.Errorf("nothing is kept any more: %q", problems)
	}

	// Without a journal, and with one that cannot be copied.
	write(options.Path, "store 1")
	if err := remove(options.JournalPath); err != nil {
		t.Fatal(err)
	}
	breakAgain(1)
	write(options.Path, "store 2")
	if err := errors.Join(remove(options.JournalPath), os.Mkdir(options.JournalPath, 0o700)); err != nil {
		t.Fatal(err)
	}
	breakAgain(2)
	kept, err = listAside(options)
	if err != nil || len(kept) != 2 || len(kept[0].files) != 1 || !slices.Contains(kept[1].files, options.JournalPath+".unreadable-2") {
		t.Errorf("%+v, %v", kept, err)
	}
}
