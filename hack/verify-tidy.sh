#!/usr/bin/env bash
# go.mod and go.sum hold what the code needs, no more and no less.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
GOWORK=off go mod tidy -diff || die "go.mod or go.sum is not tidy: run hack/update-tidy.sh"
