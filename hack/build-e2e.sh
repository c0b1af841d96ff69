#!/usr/bin/env bash
# Builds upstream's end-to-end test binary and ginkgo from the pristine module:
# conformance is judged by upstream's tests as they are.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
export GOWORK=off
mkdir -p "$OUT/$ARCH/e2e"
echo "build: upstream's e2e.test (the first time takes about four minutes on 2 cores)"
# The version matters: pod security levels named by version are refused without it.
go test -c -ldflags "-s -w $(version_ldflags "$KUBERNETES_VERSION" "$(source_id)")" -o "$OUT/$ARCH/e2e/e2e.test" k8s.io/kubernetes/test/e2e
go build -ldflags "-s -w" -o "$OUT/$ARCH/e2e/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
