#!/usr/bin/env bash
# Is the patch series in order? Files, headers, every hunk at its very line in
# the pinned upstream, the budget of changed lines, the table in the README.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
module=$(GOWORK=off go list -m -f '{{.Dir}}' k8s.io/kubernetes)
[[ -n $module ]] || die "k8s.io/kubernetes is not in the module cache: run hack/kubernetes.sh"
GOARCH=$HOST_ARCH go run ./staging/kubernetes/check -module "$module" "$@"
