#!/usr/bin/env bash
# Breaks the store of the edge again and again: kill -9 in the middle of writes,
# the power cut at each write with those before it torn, lost and out of order,
# flipped bits, a full disk; then random histories of the queue of unsent writes
# and of the views. ROUNDS (default 300) of each; SEED repeats a run. Counts and
# seeds are printed. Logs are in _output/torture.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[ -e go.work ] || "$ROOT/hack/kubernetes.sh"
rounds=${ROUNDS:-300} seed=${SEED:-0} logs=$OUT/torture
mkdir -p "$logs"
failed=0
torture() { # torture PACKAGE TESTS FLAGS...
	local package=$1 tests=$2 start=$SECONDS; shift 2
	local log=$logs/${package##*/}.log result=passed
	go test -count=1 -v -timeout 0 -run "^($tests)\$" "./$package" "$@" >"$log" 2>&1 || { result=FAILED failed=1; }
	# The tests' own words, with the seed; of subtests, one a round, how many.
	awk '
		function rounds() { if (n) printf "    %d rounds, from %s to %s\n", n, first, last; n = 0 }
		/^    --- / { if (!n++) first = $3; last = $3; next }
		/^--- /     { rounds(); print }
		/^=== RUN / { inside = /\// }
		/^    [a-z_]*_test\.go:[0-9]+: / && !inside { $1 = "   "; print }
		END         { rounds() }' "$log" || true
	# A name that matches nothing must not look like a success.
	grep -q '^--- ' "$log" || { result="FAILED: no test ran" failed=1; }
	printf 'torture: %-24s %s (%d s)\n' "$package" "$result" $((SECONDS - start))
	[ "$result" = passed ] || { tail -n 30 "$log"; echo "torture: the whole log is $log"; }
}
torture pkg/edge/store 'TestKill|TestPowerCut|TestFlippedBits|TestFlippedBitsUnderway|TestFullDisk' -store.rounds="$rounds" -store.seed="$seed"
torture pkg/edge/hub/outbox TestHistory -outbox.rounds="$rounds" -outbox.seed="$seed"
torture pkg/edge/hub/views TestHistory -views.rounds="$rounds" -views.seed="$seed"
exit $failed
