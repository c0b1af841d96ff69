package bootstrap

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skerry.dev/skerry/pkg/install/agentfiles"
)

// An agent that was told to keep its things elsewhere leaves nothing there, and
// nothing of others goes with it.
func TestRemoveAgentFiles(t *testing.T) {
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	config := in("etc/agent.yaml")
	for _, name := range []string{
		"etc/agent.yaml", "etc/bootstrap.conf",
		"run/a.sock", "run/a.sock.new", "run/journal", "run/journal.tmp", "run/journal.refused", "run/journal.unreadable-2", "run/journal-of-another",
		"data/store.db", "data/store.db.lock", "data/store.db.damaged-20261123T231500", "data/store.db.unreadable-1", "data/store.db.unreadable-1.journal",
		"data/store.key", "data/store.key.damaged-1", "data/policy.yaml", "data/policy.yaml.new", "data/pki/hub.key", "data/pki/node-client-current.pem",
		"data/photos/cat.jpeg", "data/store.txt",
	} {
		if err := os.MkdirAll(filepath.Dir(in(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		content := "x"
		if name == "etc/agent.yaml" {
			content = "listen: {socket: " + in("run/a.sock") + ", podInterface: none}\nfiles: {stateDir: " + in("data") + ", journal: " + in("run/journal") +
				", bootstrapKubeconfig: " + in("etc/bootstrap.conf") + "}\n"
		}
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := agentfiles.Read(config)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		left, err := removeAgentFiles(files)
		if err != nil || !slices.Equal(left, []string{"photos", "store.txt"}) {
			t.Errorf("left %q, %v", left, err)
		}
	}
	var stay []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			stay = append(stay, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	want := []string{"data/photos/cat.jpeg", "data/store.txt", "etc/agent.yaml", "run/journal-of-another"}
	if err != nil || !slices.Equal(stay, want) {
		t.Errorf("there stay %q, want %q; %v", stay, want, err)
	}
	// With nothing of others in it, the folder goes too.
	for _, name := range want[:2] {
		if err := os.Remove(in(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(in("data/photos")); err != nil {
		t.Fatal(err)
	}
	if left, err := removeAgentFiles(files); err != nil || len(left) != 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if _, err := os.Stat(in("data")); !os.IsNotExist(err) {
		t.Errorf("an empty folder stays: %v", err)
	}
}
