#!/usr/bin/env bash
# Fuzzes every target that there is, one after another, each for FUZZTIME
# (default 5m), and says how many inputs each was given. FUZZ narrows it to
# targets whose PACKAGE.NAME matches a regular expression. Logs are in
# _output/fuzz; an input that fails stands in the package's testdata/fuzz, where
# `go test` tries it from then on.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[ -e go.work ] || "$ROOT/hack/kubernetes.sh"
only=${FUZZ:-} fuzztime=${FUZZTIME:-5m} logs=$OUT/fuzz
mkdir -p "$logs"

targets=$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' cmd pkg test |
	sed -E 's|/[^/:]*_test.go:func (Fuzz[A-Za-z0-9_]*)\($|.\1|' | { grep -E -- "$only" || true; } | sort)
[ -n "$targets" ] || die "no fuzz target matches $only"
echo "fuzz: $(wc -l <<<"$targets") targets, $fuzztime each"

failed=0
for target in $targets; do
	package=./${target%.*} name=${target##*.}
	log=$logs/${target//\//-}.log
	result=clean
	# Without a bound the fuzzer spends its time on making inputs smaller.
	if ! go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" -fuzzminimizetime 20x "$package" >"$log" 2>&1; then
		# When the time is up, Go's fuzzer now and then takes its own end for a
		# failure. What fails an input is written down.
		if grep -q 'Failing input written' "$log" || ! grep -qx ' *context deadline exceeded' "$log"; then
			result=FAILED failed=1
		fi
	fi
	printf 'fuzz: %-46s %-6s %s\n' "$target" "$result" "$(grep -Eo 'execs: [0-9]+' "$log" | tail -n 1) in $(grep -Eo '^fuzz: elapsed: [0-9hms]+' "$log" | tail -n 1 | cut -d' ' -f3)"
	[ "$result" = clean ] || { grep -v '^fuzz: elapsed' "$log" | tail -n 20; echo "fuzz: the whole log is $log"; }
done
exit $failed
