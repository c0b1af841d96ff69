// Package component is what the main functions of the patched Kubernetes
// components share: they run upstream's command as it is, and say which patches
// are in the binary.
//
// It must not know any component, nor change a flag, a default or the help of
// one: each binary is a drop-in for upstream's.
package component

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"

	"skerry.dev/skerry/staging/kubernetes"
)

// Run runs an upstream component's command and returns its exit code.
func Run(cmd *cobra.Command) int {
	if err := printPatches(os.Stdout, cmd.Name(), os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		return 1
	}
	return cli.Run(cmd)
}

// printPatches adds a line to what --version=raw prints, so that a binary
// without the patches cannot pass for one that has them. Upstream prints its own
// line and exits in the middle of flag handling; so ours comes first.
func printPatches(w io.Writer, component string, args []string) error {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	if !slices.Contains(args, "--version=raw") {
		return nil
	}
	all, err := kubernetes.Series(kubernetes.Files())
	if err != nil {
		return fmt.Errorf("listing the patches in this binary: %w", err)
	}
	var names []string
	for _, p := range all {
		if slices.Contains(p.Components, component) {
			names = append(names, strings.TrimSuffix(p.File, ".patch"))
		}
	}
	_, err = fmt.Fprintf(w, "skerry_patches: [%s]\n", strings.Join(names, ", "))
	return err
}
