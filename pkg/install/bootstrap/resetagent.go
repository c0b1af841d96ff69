package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/install/agentfiles"
	"skerry.dev/skerry/pkg/install/host"
	"skerry.dev/skerry/pkg/install/undo"
)

// kubeletState is what our kubelet notes down beside upstream's own files.
const kubeletState = "/var/lib/skerry/kubelet"

// agentFiles says where this node's agent has its things. A configuration that
// is wrong is worth a warning, and no reason to leave a node as it is.
func agentFiles() agentfiles.Files {
	files, err := agentfiles.Read(agentapi.ConfigFile)
	if err != nil {
		klog.Warningf("[reset] %v: going on with the default places", err)
	}
	return files
}

// warnOfUnsent says what the cloud will never learn.
func warnOfUnsent() {
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout)
	defer cancel()
	status, err := agentapi.Get(ctx, agentFiles().Socket)
	if err == nil && status.Unsent > 0 {
		klog.Warningf("[reset] %d writes of this node have not reached the cloud (the oldest of %s), such as the result of a Job: a reset drops them. Let the node reach the cloud first if they matter.",
			status.Unsent, status.OldestUnsent.Local().Format(time.DateTime))
	}
}

// removeAgent removes what skerry-agent has, on a node that has it.
func removeAgent(data ResetData) error {
	if err := removeUnit(data, host.AgentUnit); err != nil {
		return err
	}
	files := agentFiles()
	var problems []error
	if files.PodInterface != "" {
		problems = append(problems, undo.PodLink(files.PodInterface, files.PodAddress))
	}
	left, err := removeAgentFiles(files)
	if len(left) > 0 {
		say(data, "reset", "Leaving in %s what is not skerry-agent's: %s", files.StateDir, strings.Join(left, ", "))
	}
	problems = append(problems, err, os.RemoveAll(kubeletState))
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("removing what skerry-agent left: %w", err)
	}
	// Last: it says where the rest is, should this have to run again.
	if err := os.Remove(agentapi.ConfigFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the configuration of skerry-agent: %w", err)
	}
	undo.EmptyDirs(filepath.Dir(agentapi.ConfigFile), filepath.Dir(kubeletState))
	return nil
}

// removeAgentFiles removes the agent's files, its own folder if it is in the
// default place, and elsewhere only what it made: the folder may be a disk that
// has more on it. It returns what stays there.
func removeAgentFiles(files agentfiles.Files) (left []string, err error) {
	problems := removeMatching(
		files.Socket, files.Socket+".new", files.BootstrapKubeconfig,
		files.Journal, files.Journal+".tmp", files.Journal+".refused", files.Journal+".unreadable-*",
	)
	if files.StateDir == agentapi.StateDir {
		problems = append(problems, os.RemoveAll(files.StateDir))
	} else {
		problems = append(problems, os.RemoveAll(files.PKIDir()))
		problems = append(problems, removeMatching(
			filepath.Join(files.StateDir, "store.db*"), filepath.Join(files.StateDir, "store.key*"), filepath.Join(files.StateDir, "policy.yaml*"),
		)...)
	}
	undo.EmptyDirs(filepath.Dir(files.Socket), filepath.Dir(files.Journal), files.StateDir, filepath.Dir(files.StateDir))
	entries, err := os.ReadDir(files.StateDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		problems = append(problems, err)
	}
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	return left, errors.Join(problems...)
}

// removeMatching removes the files that match one of the patterns.
func removeMatching(patterns ...string) (problems []error) {
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		problems = append(problems, err)
		for _, path := range found {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				problems = append(problems, err)
			}
		}
	}
	return problems
}
