package bootstrap

import (
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	initphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/init"
	joinphases "k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/join"
	"k8s.io/kubernetes/cmd/kubeadm/app/cmd/phases/workflow"
	"k8s.io/kubernetes/cmd/kubeadm/app/preflight"
	utilsexec "k8s.io/utils/exec"
)

// NewInitPreflightPhase is upstream's preflight without the checks that do not
// apply: see applicable.
func NewInitPreflightPhase() workflow.Phase {
	phase := initphases.NewPreflightPhase()
	phase.Run = runInitPreflight
	return phase
}

// NewJoinPreflightPhase is upstream's preflight without the checks that do not
// apply: see applicable.
func NewJoinPreflightPhase() workflow.Phase {
	phase := joinphases.NewPreflightPhase()
	phase.Run = runJoinPreflight
	return phase
}

func runInitPreflight(c workflow.RunData) error {
	data, err := dataOf[InitData]("preflight", c)
	if err != nil {
		return err
	}
	if err := preflight.RunRootCheckOnly(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	say(data, "preflight", "Running kubeadm's checks")
	checks, err := preflight.InitNodeChecks(utilsexec.New(), data.Cfg(), data.IgnorePreflightErrors(), false, false)
	if err != nil {
		return err
	}
	if err := preflight.RunChecks(applicable(checks, data.IgnorePreflightErrors(), data.DryRun()), os.Stderr, data.IgnorePreflightErrors()); err != nil {
		return err
	}
	if data.DryRun() {
		say(data, "preflight", "Would pull the images that are not there")
		return nil
	}
	return preflight.RunPullImagesCheck(utilsexec.New(), data.Cfg(), data.IgnorePreflightErrors())
}

func runJoinPreflight(c workflow.RunData) error {
	data, err := dataOf[JoinData]("preflight", c)
	if err != nil {
		return err
	}
	if err := preflight.RunRootCheckOnly(data.IgnorePreflightErrors()); err != nil {
		return err
	}
	say(data, "preflight", "Running kubeadm's checks")
	checks, err := preflight.JoinNodeChecks(utilsexec.New(), data.Cfg(), data.IgnorePreflightErrors())
	if err != nil {
		return err
	}
	if err := preflight.RunChecks(applicable(checks, data.IgnorePreflightErrors(), data.DryRun()), os.Stderr, data.IgnorePreflightErrors()); err != nil {
		return err
	}
	// Fail here, before anything is written, if the cluster cannot be read.
	_, err = data.InitCfg()
	return err
}

// applicable leaves out checks of a unit that kubelet-start has yet to install;
// the check that asks the network whether the node's name resolves, which only
// ever warns, and takes its time where there is no resolver; if it is ignored,
// the one that prints a page about the kernel with its warning; and in a dry run
// those of the container runtime that the host phase would have started.
func applicable(checks []preflight.Checker, ignored sets.Set[string], dryRun bool) []preflight.Checker {
	return slices.DeleteFunc(checks, func(check preflight.Checker) bool {
		switch check.(type) {
		case preflight.ServiceCheck, preflight.HostnameCheck:
			return true
		case preflight.SystemVerificationCheck:
			return ignored.HasAny("all", strings.ToLower(check.Name()))
		case preflight.ContainerRuntimeCheck, preflight.ContainerRuntimeVersionCheck:
			return dryRun
		}
		return false
	})
}
