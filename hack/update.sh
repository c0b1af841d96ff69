#!/usr/bin/env bash
# Writes again what is generated, and formats.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
"$ROOT/hack/kubernetes.sh"
"$ROOT/hack/tools.sh"
hack/update-tidy.sh
hack/update-generated.sh
hack/update-patches.sh
"$OUT/tools/golangci-lint" fmt ./...
