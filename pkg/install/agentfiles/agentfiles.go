// Package agentfiles tells where skerry-agent of this node has its things: where
// its configuration says, and by default where `skerry join` leaves them.
//
// It must not know what is in them, nor judge a configuration as the agent
// does: a node whose configuration is wrong is to be described and taken apart
// all the same.
package agentfiles

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
)

// maxConfig bounds what is read of a configuration.
const maxConfig = 256 << 10

// Files says where the agent has its things.
type Files struct {
	// Socket serves its status.
	Socket string
	// StateDir has the store, its key and PKIDir.
	StateDir            string
	Journal             string
	BootstrapKubeconfig string
	// PodInterface has PodAddress; it is empty if the agent makes none.
	PodInterface string
	PodAddress   netip.Addr
}

// PKIDir has the agent's certificates.
func (f Files) PKIDir() string {
	return filepath.Join(f.StateDir, filepath.Base(agentapi.PKIDir))
}

// Read reads where the things are. Without a configuration they are where they
// are by default; so they are, as far as can be told, with one that is wrong,
// beside the error that says what is.
func Read(path string) (Files, error) {
	data, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return defaults(agentv1.AgentConfiguration{}), fmt.Errorf("reading where skerry-agent has its files: %w", err)
	}
	var config agentv1.AgentConfiguration
	if err := yaml.Unmarshal(data, &config); err != nil {
		return defaults(agentv1.AgentConfiguration{}), fmt.Errorf("reading where skerry-agent has its files from %s: %w", path, err)
	}
	var problems []error
	for _, field := range []struct {
		name  string
		value *string
	}{
		{"listen.socket", &config.Listen.Socket}, {"files.stateDir", &config.Files.StateDir}, {"files.journal", &config.Files.Journal},
		{"files.bootstrapKubeconfig", &config.Files.BootstrapKubeconfig},
	} {
		if *field.value != "" && !filepath.IsAbs(*field.value) {
			problems = append(problems, fmt.Errorf("%s: %s: %q is no absolute path", path, field.name, *field.value))
			*field.value = ""
		}
	}
	if address := config.Listen.Pods; address != "" && address != agentv1.None {
		if _, err := netip.ParseAddrPort(address); err != nil {
			problems = append(problems, fmt.Errorf("%s: listen.pods: %w", path, err))
			config.Listen.Pods = ""
		}
	}
	return defaults(config), errors.Join(problems...)
}

func read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConfig)
	}
	return data, err
}

// defaults fills in what the agent fills in.
func defaults(c agentv1.AgentConfiguration) Files {
	files := Files{
		Socket:              filepath.Clean(cmp.Or(c.Listen.Socket, agentapi.Socket)),
		StateDir:            filepath.Clean(cmp.Or(c.Files.StateDir, agentapi.StateDir)),
		Journal:             filepath.Clean(cmp.Or(c.Files.Journal, agentapi.JournalFile)),
		BootstrapKubeconfig: filepath.Clean(cmp.Or(c.Files.BootstrapKubeconfig, agentapi.BootstrapKubeconfig)),
	}
	name, address := cmp.Or(c.Listen.PodInterface, agentapi.PodInterface), cmp.Or(c.Listen.Pods, agentapi.PodAddress)
	if name == agentv1.None || address == agentv1.None {
		return files
	}
	files.PodInterface, files.PodAddress = name, netip.MustParseAddrPort(address).Addr() // it was checked, or is ours
	return files
}
