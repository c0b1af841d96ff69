package cmd

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/sandbox/machine"
)

// ExitError makes the program end with the exit code of a command that ran in
// a machine, without a message of its own.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// ExitCode is what main should exit with.
func (e *ExitError) ExitCode() int { return e.Code }

func newExec(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARG...]",
		Short: "Run a command in a machine",
		Long:  "Runs a command in a machine, with this terminal's input, and ends with its exit code.",
		Example: `  skerry sandbox exec east-1 -- ctr -n k8s.io containers ls
  echo hello | skerry sandbox exec east-1 -- tee /root/file`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return c.inside(args[0], args[1:]) },
	}
}

func newShell(c *common) *cobra.Command {
	return &cobra.Command{
		Use:     "shell NODE",
		Short:   "Open a shell in a machine",
		Example: "  skerry sandbox shell cloud-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			shell := "/bin/sh"
			if _, err := os.Stat("/bin/bash"); err == nil {
				shell = "/bin/bash"
			}
			return c.inside(args[0], []string{shell, "-l"})
		},
	}
}

func (c *common) inside(name string, args []string) error {
	s, err := c.open()
	if err != nil {
		return err
	}
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	// The terminal's signals are for the command; we wait for it. Ignoring them
	// instead would make the command ignore them too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	child, err := m.Start(machine.Command{Args: args, Env: s.Environment(name), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	err = child.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	code := exit.ExitCode()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return &ExitError{Code: code}
}

func newLogs(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "logs NODE [UNIT]",
		Short: "Print a log of a machine, or list those it has",
		Example: `  skerry sandbox logs east-1            # which logs are there
  skerry sandbox logs east-1 kubelet
  skerry sandbox logs east-1 console    # of the machine's first process`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			logs, err := s.Logs(args[0])
			if err != nil {
				return err
			}
			names := slices.Sorted(maps.Keys(logs))
			if len(args) == 1 {
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(names, "\n"))
				return nil
			}
			file, ok := logs[args[1]]
			if !ok {
				return fmt.Errorf("machine %s has no log %q; it has: %s", args[0], args[1], strings.Join(names, ", "))
			}
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(cmd.OutOrStdout(), f)
			return err
		},
	}
}

func newLoad(c *common) *cobra.Command {
	var site string
	var nodes []string
	cmd := &cobra.Command{
		Use:   "load IMAGE.tar...",
		Short: "Import image archives on nodes",
		Long:  "Imports OCI or Docker image archives on all nodes, or on those named, so that pods can use them without a registry.",
		Example: `  skerry sandbox load app.tar
  skerry sandbox load app.tar --site west
  skerry sandbox load app.tar --node east-1`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			names, err := selected(s, nodes, site, site == "" && len(nodes) == 0)
			if err != nil {
				return err
			}
			for _, archive := range args {
				if err := s.Load(cmd.Context(), archive, names...); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: imported on %s\n", filepath.Base(archive), strings.Join(names, ", "))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "on all nodes of this site")
	cmd.Flags().StringSliceVar(&nodes, "node", nil, "on this node")
	return cmd
}
