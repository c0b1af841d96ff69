package cni

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRender(t *testing.T) {
	tests := []struct {
		name      string
		podCIDRs  []string
		want      []string
		wantError string
	}{
		{"IPv4", []string{"10.244.1.0/24"}, []string{`"subnet": "10.244.1.0/24"`, `"dst": "0.0.0.0/0"`}, ""},
		{"IPv6", []string{"fd00:1::/64"}, []string{`"subnet": "fd00:1::/64"`, `"dst": "::/0"`}, ""},
		{"both", []string{"10.244.1.0/24", "fd00:1::/64"}, []string{`"10.244.1.0/24"`, `"fd00:1::/64"`, `"0.0.0.0/0"`, `"::/0"`}, ""},
		{"none", nil, nil, "no pod CIDR"},
		{"not a CIDR", []string{"10.244.1.0"}, nil, "10.244.1.0"},
		{"host bits", []string{"10.244.1.7/24"}, nil, "10.244.1.0/24 was meant"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data, err := Render(test.podCIDRs)
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Fatalf("got error %v, want one with %q", err, test.wantError)
			}
			for _, part := range test.want {
				if !strings.Contains(string(data), part) {
					t.Errorf("no %s in %s", part, data)
				}
			}
		})
	}
}

// What the runtime reads: names and types that the plugins know.
func TestRenderedConfiguration(t *testing.T) {
	data, err := Render([]string{"10.244.1.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type         string
			IPMasq       *bool
			Capabilities map[string]bool
			IPAM         struct {
				Type, DataDir string
				Ranges        [][]struct{ Subnet string }
			}
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != NetworkName || got.CNIVersion != "1.0.0" || len(got.Plugins) != 2 {
		t.Fatalf("got %+v", got)
	}
	ptp, portmap := got.Plugins[0], got.Plugins[1]
	if ptp.Type != "ptp" || ptp.IPMasq == nil || *ptp.IPMasq || ptp.IPAM.Type != "skerry-ipam" || ptp.IPAM.DataDir != DataDir || ptp.IPAM.Ranges[0][0].Subnet != "10.244.1.0/24" {
		t.Errorf("got %+v", ptp)
	}
	if portmap.Type != "portmap" || !portmap.Capabilities["portMappings"] {
		t.Errorf("got %+v", portmap)
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	for range 2 {
		if err := Write(dir, []string{"10.244.1.0/24"}); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != FileName {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestWriteLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, []string{"10.244.1.0/24"}); err != nil {
		t.Fatalf("a file that is no configuration: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "05-other.conflist"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, []string{"10.244.1.0/24"}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "05-other.conflist") {
		t.Errorf("got %v", err)
	}
}

func FuzzRender(f *testing.F) {
	f.Add("10.244.1.0/24", "fd00::/64")
	f.Add("", "::/0")
	f.Fuzz(func(t *testing.T, first, second string) {
		data, err := Render([]string{first, second})
		if err == nil && !json.Valid(data) {
			t.Errorf("not JSON: %s", data)
		}
	})
}
