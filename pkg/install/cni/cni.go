// Package cni writes the CNI configuration of a node whose pod network is plain
// routing: one point-to-point link a pod, addresses from the node's pod CIDRs,
// no masquerading; the network outside routes the pod CIDRs.
//
// It knows nothing of the API server: callers hand it the CIDRs.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	// ConfDir is where container runtimes look for CNI configurations.
	ConfDir = "/etc/cni/net.d"
	// BinDir is where the plugins are.
	BinDir = "/opt/cni/bin"
	// FileName is our configuration in ConfDir.
	FileName = "10-skerry.conflist"
	// NetworkName names the network; host-local keeps its allocations under it,
	// and skerry-ipam under it and PodsSuffix.
	NetworkName = "skerry"
	PodsSuffix  = ".pods"
	// DataDir is where host-local keeps allocations.
	DataDir = "/var/lib/cni/networks"
)

// Plugins are the plugins that the configuration calls (loopback is called by
// the runtime itself, host-local by skerry-ipam).
var Plugins = []string{"ptp", addressPlugin, "host-local", "portmap", "loopback"}

// addressPlugin gives a pod its last address again, also after a reboot.
const addressPlugin = "skerry-ipam"

// ErrForeign means that another CNI configuration is in ConfDir.
var ErrForeign = errors.New("another CNI configuration is there")

type conflist struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	IPMasq       *bool           `json:"ipMasq,omitempty"`
	IPAM         *ipam           `json:"ipam,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	SNAT         *bool           `json:"snat,omitempty"`
}

type ipam struct {
	Type    string                `json:"type"`
	DataDir string                `json:"dataDir"`
	Ranges  [][]map[string]string `json:"ranges"`
	Routes  []map[string]string   `json:"routes"`
}

// Render returns the configuration for a node with these pod CIDRs.
func Render(podCIDRs []string) ([]byte, error) {
	if len(podCIDRs) == 0 {
		return nil, errors.New("the node has no pod CIDR")
	}
	addresses := &ipam{Type: addressPlugin, DataDir: DataDir}
	for _, cidr := range podCIDRs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR %q: %w", cidr, err)
		}
		if prefix != prefix.Masked() {
			return nil, fmt.Errorf("pod CIDR %q has host bits set; %s was meant?", cidr, prefix.Masked())
		}
		addresses.Ranges = append(addresses.Ranges, []map[string]string{{"subnet": prefix.String()}})
		everywhere := "0.0.0.0/0"
		if prefix.Addr().Is6() {
			everywhere = "::/0"
		}
		addresses.Routes = append(addresses.Routes, map[string]string{"dst": everywhere})
	}
	no, yes := false, true
	config := conflist{
		CNIVersion: "1.0.0",
		Name:       NetworkName,
		Plugins: []plugin{
			{Type: "ptp", IPMasq: &no, IPAM: addresses},
			{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, SNAT: &yes},
		},
	}
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// Write puts the configuration into dir in one step, so that the runtime never
// reads half of it. It leaves a folder alone that another network plugin
// configured, and returns ErrForeign then.
func Write(dir string, podCIDRs []string) error {
	data, err := Render(podCIDRs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	other, err := Foreign(dir)
	if err != nil {
		return err
	}
	if other != "" {
		return fmt.Errorf("%s: %w", filepath.Join(dir, other), ErrForeign)
	}
	path := filepath.Join(dir, FileName)
	// Runtimes read *.conf, *.conflist and *.json only.
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", temporary, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return nil
}

// Foreign returns the name of a configuration in dir that is not ours, if any.
func Foreign(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the CNI configurations: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		extension := strings.ToLower(filepath.Ext(name))
		if name != FileName && (extension == ".conf" || extension == ".conflist" || extension == ".json") {
			return name, nil
		}
	}
	return "", nil
}
