// Command skerry-ipam is a CNI plugin that gives a pod its last address again,
// also after a reboot. It goes where the CNI plugins are, beside host-local.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"skerry.dev/skerry/pkg/edge/podaddress"
)

func main() {
	plugin := podaddress.Plugin{Getenv: os.Getenv, Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	err := plugin.Run(context.Background())
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "skerry-ipam:", err)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode()) // the delegate has spoken to the runtime
	}
	podaddress.WriteError(os.Stdout, err)
	os.Exit(1)
}
