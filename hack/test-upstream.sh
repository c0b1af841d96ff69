#!/usr/bin/env bash
# Runs upstream's own tests of every patched package, and of the packages that
# the patches' headers name, in the patched tree with no hook set.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
"$ROOT/hack/kubernetes.sh"
mapfile -t packages < <("$ROOT/hack/verify-patches.sh" -tests)
[[ ${#packages[@]} -gt 0 ]] || die "the patches name no packages to test: run hack/verify-patches.sh"
GOARCH=$HOST_ARCH go test "$@" "${packages[@]}"
