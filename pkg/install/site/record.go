package site

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// RecordPath is where init and join record what this machine is, for commands
// that must work without the API server.
const RecordPath = "/var/lib/skerry/node.yaml"

// maxRecord bounds what is read back: the file is ours and small.
const maxRecord = 64 << 10

// Roles of a node.
const (
	RoleControlPlane = "control-plane"
	RoleWorker       = "worker"
)

// Record is what init and join write down about this machine.
type Record struct {
	Role     string `json:"role"`
	NodeName string `json:"nodeName"`
	Site     string `json:"site,omitempty"`
	Server   string `json:"server,omitempty"`
	// Hub says that skerry-agent stands between this node and the API server.
	Hub     bool      `json:"hub,omitempty"`
	Version string    `json:"version"`
	Since   time.Time `json:"since"`
	// LastReached is when init, join or `skerry status` last heard the API server.
	LastReached time.Time `json:"lastReached,omitzero"`
}

// ReadRecord reads the record; an error that wraps os.ErrNotExist means that
// neither init nor join ran here.
func ReadRecord(path string) (Record, error) {
	file, err := os.Open(path)
	if err != nil {
		return Record{}, fmt.Errorf("reading what this node is: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxRecord))
	if err != nil {
		return Record{}, fmt.Errorf("reading what this node is from %s: %w", path, err)
	}
	return ParseRecord(data)
}

// ParseRecord parses and checks the content of a record.
func ParseRecord(data []byte) (Record, error) {
	var record Record
	if err := yaml.UnmarshalStrict(data, &record); err != nil {
		return Record{}, fmt.Errorf("parsing %s: %w", RecordPath, err)
	}
	if record.Role != RoleControlPlane && record.Role != RoleWorker {
		return Record{}, fmt.Errorf("parsing %s: role %q is neither %s nor %s", RecordPath, record.Role, RoleControlPlane, RoleWorker)
	}
	if record.Site != "" {
		if err := ValidateName(record.Site); err != nil {
			return Record{}, fmt.Errorf("parsing %s: %w", RecordPath, err)
		}
	}
	return record, nil
}

// WriteRecord replaces the record in one step.
func WriteRecord(path string, record Record) error {
	data, err := yaml.Marshal(record)
	if err != nil {
		return fmt.Errorf("encoding what this node is: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the folder of %s: %w", path, err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", temporary, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return nil
}
