#!/usr/bin/env bash
# Runs one end-to-end suite: e2e.sh SUITE [RUN]. RUN is a regular expression
# over the names of its cases, as `go test -run` takes it.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
suite=${1:-} run=${2:-}
suites=$(find test/e2e -mindepth 1 -maxdepth 1 -type d -printf '%f ' 2>/dev/null || true)
[ -n "$suite" ] || die "which suite? make e2e SUITE=one of: $suites"
[ -d "test/e2e/$suite" ] || die "no suite $suite; there are: $suites"
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
export PATH="$BIN:$PATH"
exec go test -tags e2e -count=1 -v -timeout "${E2E_TIMEOUT:-80m}" ${run:+-run "$run"} "./test/e2e/$suite"
