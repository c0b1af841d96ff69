package site

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRecordIsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "node.yaml")
	want := Record{Role: RoleWorker, NodeName: "east-1", Site: "east", Server: "https://10.0.0.1:6443", Version: "v1.37.2+skerry.0", Since: time.Unix(1e9, 0).UTC()}
	for range 2 {
		if err := WriteRecord(path, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := ReadRecord(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing record gave %v", err)
	}
}

func TestParseRecordErrors(t *testing.T) {
	for name, test := range map[string]struct{ data, want string }{
		"role":          {"role: boss\n", "role"},
		"no role":       {"nodeName: a\n", "role"},
		"site":          {"role: worker\nsite: A b\n", "site name"},
		"unknown field": {"role: worker\nnodename2: a\n", "nodename2"},
		"not YAML":      {"{", "parsing"},
	} {
		if _, err := ParseRecord([]byte(test.data)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, test.want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte("role: worker\nnodeName: east-1\nsite: east\nversion: v1\nsince: 2026-11-23T17:00:00Z\n"))
	f.Add([]byte("role: control-plane\n"))
	f.Add([]byte("{\"role\": \"worker\", \"since\": \"never\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		record, err := ParseRecord(data)
		if err != nil {
			return
		}
		if record.Site != "" && ValidateName(record.Site) != nil {
			t.Errorf("accepted site %q", record.Site)
		}
	})
}

// Groups come over the network.
func FuzzFromGroups(f *testing.F) {
	f.Add("system:bootstrappers:skerry:site:east", "east")
	f.Add("system:bootstrappers:skerry:site:", "")
	f.Fuzz(func(t *testing.T, group, requested string) {
		for _, name := range FromGroups([]string{group}) {
			if err := ValidateName(name); err != nil {
				t.Error(err)
			}
		}
		decided, err := Decide([]string{"system:bootstrappers", group}, requested)
		if err == nil && decided != "" && group != groupPrefix+decided {
			t.Errorf("group %q gives site %q", group, decided)
		}
	})
}
