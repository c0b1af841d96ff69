// Package cmd holds the commands that make, join and take apart clusters:
// init, join, reset, token and status. It turns flags and configuration files
// into the run data of phases, kubeadm's and those of pkg/install/bootstrap.
//
// It must not know what the phases do.
package cmd

import (
	"context"
	"errors"
)

// errInterrupted ends a command at the user's wish.
var errInterrupted = errors.New("interrupted: run it again, or `skerry reset` to undo the part that is done")

// untilInterrupted runs a workflow of phases, which know no contexts, until it
// is done or the context is; in the latter case the program is about to exit.
func untilInterrupted(ctx context.Context, workflow func() error) error {
	done := make(chan error, 1)
	go func() { done <- workflow() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}
