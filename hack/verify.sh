#!/usr/bin/env bash
# Everything that can be said about the checkout without running it. Each line
# says what was checked and how long it took; the first failure's output is shown.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
"$ROOT/hack/kubernetes.sh" >/dev/null
"$ROOT/hack/tools.sh"

failed=0
check() { # check NAME COMMAND...
	local name=$1 start=$SECONDS log; shift
	if log=$("$@" 2>&1); then
		printf 'verify: %-32s ok (%d s)\n' "$name" $((SECONDS - start))
		grep -E '^patches: ' <<<"$log" || true
	else
		printf 'verify: %-32s FAILED\n%s\n' "$name" "$log"
		failed=1
	fi
}
check "versions agree" hack/verify-versions.sh
check "patches and their budget" hack/verify-patches.sh
check "generated files are current" hack/verify-generated.sh
check "go.mod is tidy" hack/verify-tidy.sh
check "format, vet and lint" "$OUT/tools/golangci-lint" run ./...
check "format, vet and lint: images" env GOWORK=off sh -c 'cd build/images && "$0" run -c ../../.golangci.yml ./...' "$OUT/tools/golangci-lint"
check "imports, comments, docs links" go test -count=1 ./test/repo
exit $failed
