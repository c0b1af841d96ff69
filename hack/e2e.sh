#!/usr/bin/env bash
# Runs one end-to-end suite: SUITE=name [RUN=regexp] hack/e2e.sh. RUN goes over
# the names of its cases, as `go test -run` takes it.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
suite=${SUITE:-} run=${RUN:-}
suites=$(find test/e2e -mindepth 1 -maxdepth 1 -type d -printf '%f ' 2>/dev/null || true)
[ -n "$suite" ] || die "which suite? make e2e SUITE=one of: $suites"
[ -d "test/e2e/$suite" ] || die "no suite $suite; there are: $suites"
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
export PATH="$BIN:$PATH"

# A test that is interrupted, or killed by its time limit, cannot clean up.
before=$(ls "$SKERRY_SANDBOX_ROOT" 2>/dev/null || true)
clean_up() {
	local name
	[ -z "${SKERRY_KEEP:-}" ] || return 0
	for name in $(ls "$SKERRY_SANDBOX_ROOT" 2>/dev/null); do
		[[ $name != t-* ]] || grep -qxF "$name" <<<"$before" || skerry sandbox delete --name "$name"
	done
}
trap clean_up EXIT
trap 'exit 130' INT TERM
go test -tags e2e -count=1 -v -timeout "${E2E_TIMEOUT:-80m}" ${run:+-run "$run"} "./test/e2e/$suite"
