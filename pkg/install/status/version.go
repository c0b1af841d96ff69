package status

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// kubeletVersion asks the kubelet's binary what it is.
func kubeletVersion(ctx context.Context) (Version, error) {
	out, err := exec.CommandContext(ctx, "kubelet", "--version=raw").Output()
	if err != nil {
		return Version{}, fmt.Errorf("asking the kubelet for its version: %w", err)
	}
	return parseKubeletVersion(string(out)), nil
}

// parseKubeletVersion reads what `kubelet --version=raw` prints: our line with
// the patches, and upstream's with the version.
func parseKubeletVersion(out string) Version {
	version := Version{Program: "kubelet"}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if list, ok := strings.CutPrefix(line, "skerry_patches: "); ok {
			version.Patches = strings.FieldsFunc(strings.Trim(list, "[]"), func(r rune) bool { return r == ',' || r == ' ' })
			continue
		}
		if _, rest, ok := strings.Cut(line, `GitVersion:"`); ok {
			version.Version, _, _ = strings.Cut(rest, `"`)
		}
	}
	return version
}
