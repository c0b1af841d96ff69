#!/usr/bin/env bash
# Runs upstream's conformance tests whose names match FOCUS against a sandbox
# of one site with two nodes, made for the run. Results: _output/conformance.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
focus=${FOCUS:-}
[ -n "$focus" ] || die "which tests? make conformance FOCUS='\\[sig-node\\] Pods.*\\[Conformance\\]' (all: FOCUS='\\[Conformance\\]', hours)"
"$ROOT/hack/build-e2e.sh"

name=conformance
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
report=$OUT/conformance
mkdir -p "$report"
cleanup() { [ -n "${SKERRY_KEEP:-}" ] || "$BIN/skerry" sandbox delete --name "$name" >/dev/null 2>&1 || true; }
trap cleanup EXIT
"$BIN/skerry" sandbox delete --name "$name" >/dev/null 2>&1 || true
"$BIN/skerry" sandbox create --name "$name" -f test/conformance/sandbox.yaml
for image in "$OUT/$ARCH"/images/test/{agnhost,busybox,nginx}.tar; do
	"$BIN/skerry" sandbox load --name "$name" "$image" --site east
done

# Serial tests change nodes under the others' feet: they run alone, after them.
procs=${CONFORMANCE_PROCS:-4}
run() { # run NAME PROCS [ginkgo flags]
	local part=$1 procs=$2; shift 2
	echo "conformance: $part tests matching $focus, $procs at a time; log $report/$part.log"
	"$OUT/$ARCH/e2e/ginkgo" --procs="$procs" --focus="$focus" "$@" --no-color \
		"$OUT/$ARCH/e2e/e2e.test" -- \
		--provider=skeleton --kubeconfig="$SKERRY_SANDBOX_ROOT/$name/kubeconfig" \
		--kubectl-path="$BIN/kubectl" --report-dir="$report/$part" \
		--disable-log-dump >"$report/$part.log" 2>&1 || { tail -60 "$report/$part.log"; return 1; }
	grep -E '^(Ran [0-9]+ of|SUCCESS!|FAIL!)' "$report/$part.log"
}
rc=0
rm -f "$report"/{parallel,serial}.log
run parallel "$procs" --label-filter='!Serial' || rc=1
run serial 1 --label-filter=Serial || rc=1
# A pattern that matches nothing must not look like a success.
ran=$(sed -n 's/^Ran \([0-9]*\) of .*/\1/p' "$report"/{parallel,serial}.log | awk '{n += $1} END {print n + 0}')
[ "$ran" -gt 0 ] || die "no test matches $focus"
exit $rc
