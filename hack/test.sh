#!/usr/bin/env bash
# All tests that a change must pass: unit tests, upstream's own tests of what is
# patched, the drop-in checks, and the end-to-end suites that prove most per minute.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
step() { printf '\n=== %s (%d s since the start)\n' "$*" "$SECONDS"; }

step "unit tests"
go test ./...
(cd build/images && GOWORK=off go test ./...)

step "upstream's tests of the patched packages, in the patched tree"
hack/test-upstream.sh

step "the patched binaries take upstream's flags"
hack/verify-flags.sh

step "the hub under random histories, a fixed short run"
PATH="$BIN:$PATH" go test -tags e2e -count=1 -v -timeout 5m ./test/e2e/history -args -history.rounds=4 -history.seed=20261124

step "grids before a real API server"
SUITE=gridapi RUN='' hack/e2e.sh

step "end to end: the sandbox"
SUITE=sandbox RUN='' hack/e2e.sh

step "end to end: init, join, reset"
SUITE=install RUN='' hack/e2e.sh

step "end to end: the hold, the rows that prove most"
SUITE=hold RUN='TestHold/(skerry|pristine|drop-in)/(one-node-cut|site-cut|site-powered-off-and-one-declared-dead|no-site-label)$' hack/e2e.sh

step "end to end: a node without its cloud"
SUITE=offline RUN='TestOffline$/^(AgentKill9|CrashedContainerRestarts|JobFinishes|PowerCycle|ServicesAfterPowerCycle|Answers|CutInTheMiddle|SecurityOffline|AfterHeal|SecretsAtRest)$' hack/e2e.sh

step "end to end: the verdict, the rows that prove most"
SUITE=verdict RUN='TestVerdict/^rows$/.*/^(power-off|one-node-cut-from-the-cloud|cut-from-both|split-2-3-the-two-cut-off)$' hack/e2e.sh

step "end to end: closed Services"
SUITE=closed RUN='' hack/e2e.sh

step "end to end: grids"
SUITE=grid RUN='' hack/e2e.sh
